# SPDX-License-Identifier: Apache-2.0
"""Durations as DAG authors write them."""

from __future__ import annotations

import math
from datetime import timedelta


def read_seconds(name: str, value: object) -> float:
    """
    Return a duration in seconds.

    :param name: The parameter's name, for the message.
    :param value: A ``timedelta``, or a number of seconds.
    :raises ValueError: It is something else, negative, or not finite.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ValueError(f"{name} must be a timedelta or a number of seconds, not {value!r}.")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} must not be negative, and finite, but is {value!r}.")
    return seconds
