# SPDX-License-Identifier: Apache-2.0
"""Apache Airflow provider for VoiceGenie outbound phone-call campaigns."""

__version__ = "0.1.0"
