# SPDX-License-Identifier: Apache-2.0
"""
Times of day and moments, as texts: a strict part of ISO 8601.

Python reads more: ``08.30`` as 08:00:00.3, and ``2026-05-31+02:00`` as 02:00 of that day. People who write that mean
something else, and an hour decides who is phoned when.
"""

from __future__ import annotations

import re
from datetime import datetime, time

_CLOCK = r"[0-9]{2}(?::[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?|[0-9]{2}(?:[0-9]{2})?)?"
_ZONE = r"(?:Z|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?)"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"

_TIME_OF_DAY = re.compile(f"{_CLOCK}{_ZONE}?")
_MOMENT = re.compile(f"(?:{_DATE}|[0-9]{{8}})[Tt ]{_CLOCK}{_ZONE}?")

#: A time of day as some write it, up to what ISO 8601 makes of it: ``08.30``, ``8:30``, ``8h30``, ``08-30-15``.
_RESEMBLES_CLOCK = re.compile(r"([0-9]{1,2})[.,:;h-]([0-9]{2})(?:[.,:;m-]([0-9]{2}))?")
_RESEMBLES_MOMENT = re.compile(rf"({_DATE})[Tt ]([0-9.,:;hm-]+?)({_ZONE}?)")


def read_time_of_day(text: str) -> time | None:
    """
    Read ``HH``, ``HH:MM``, ``HH:MM:SS``, ``HH:MM:SS.ffffff``, ``HHMM`` or ``HHMMSS``, each also with a time zone.

    :returns: The time; ``None`` if the text is something else.
    """
    try:
        return time.fromisoformat(text) if _TIME_OF_DAY.fullmatch(text) else None
    except ValueError:
        return None


def read_moment(text: str) -> datetime | None:
    """
    Read a date with a time of day behind ``T`` or a space; it has a time zone only if the text names one.

    :returns: The moment; ``None`` if the text is something else, a date alone too.
    """
    try:
        return datetime.fromisoformat(text) if _MOMENT.fullmatch(text) else None
    except ValueError:
        return None


def suggest_time_of_day(text: str) -> str | None:
    """
    Return what a text that is no time of day was meant to be: ``08:30`` for ``08.30``.

    :returns: The time of day; ``None`` if the text resembles none.
    """
    match = _RESEMBLES_CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    meant = ":".join(part.zfill(2) for part in match.groups() if part is not None)
    return meant if read_time_of_day(meant) is not None else None


def suggest_moment(text: str) -> str | None:
    """
    Return what a text that is no moment was meant to be: ``2026-05-31T08:30`` for ``2026-05-31T08.30``.

    :returns: The moment; ``None`` if the text resembles none.
    """
    match = _RESEMBLES_MOMENT.fullmatch(text.strip())
    clock = None if match is None else suggest_time_of_day(match[2])
    if match is None or clock is None:
        return None
    meant = f"{match[1]}T{clock}{match[3]}"
    return meant if read_moment(meant) is not None else None
