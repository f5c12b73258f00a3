# SPDX-License-Identifier: Apache-2.0
"""Values of tables that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

#: How tables write a value that is not there.
_MISSING_TEXTS = ("NaN", "NaT", "<NA>")


def is_missing(value: Any) -> bool:
    """Say whether tables write a value that is not there like this: None, NaN, and the NaT and NA of pandas."""
    if isinstance(value, str):
        return value in _MISSING_TEXTS
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Mapping | list | tuple):
        return False
    if isinstance(value, Decimal):
        return value.is_nan()
    try:
        # Of all values, only those are not equal to themselves; an array does not say so.
        return bool(value != value)
    except (TypeError, ValueError):
        return False


def is_blank(value: Any) -> bool:
    """Say whether there is nothing in a value."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())
