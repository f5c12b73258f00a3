# SPDX-License-Identifier: Apache-2.0
"""Operators that move data from the service to files."""
