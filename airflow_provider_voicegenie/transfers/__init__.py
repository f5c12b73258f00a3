# SPDX-License-Identifier: Apache-2.0
"""Operators that move what the service knows elsewhere."""
