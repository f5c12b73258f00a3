# SPDX-License-Identifier: Apache-2.0
"""Parameters as DAG authors write them. Whatever is wrong is refused when the DAG is parsed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum


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
        raise ValueError(f"{name} must be a timedelta or a number of seconds; got {value!r}.")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} must be finite and not negative; got {value!r}.")
    return seconds


def read_optional_seconds(name: str, value: object) -> float | None:
    """Return a duration in seconds, or ``None`` if none is given; like :func:`read_seconds`."""
    return None if value is None else read_seconds(name, value)


def read_interval(name: str, value: object) -> float:
    """Return a duration above zero in seconds; like :func:`read_seconds`."""
    seconds = read_seconds(name, value)
    if seconds == 0:
        raise ValueError(f"{name} must be above 0, or the service would be asked without a pause; got {value!r}.")
    return seconds


def read_whole_number(name: str, value: object, *, minimum: int) -> int:
    """
    Return a whole number.

    :param name: The parameter's name, for the message.
    :param value: The number.
    :param minimum: The smallest that is allowed.
    :raises ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be a whole number of {minimum} or more; got {value!r:.80}.")
    return value


#: Digits of the largest number that a template may give.
_MAXIMUM_DIGITS = 15


class NotGiven(Enum):
    """A parameter that the author has left out. It is not ``None``, which a template or an upstream task may give."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"

    def __str__(self) -> str:
        # So Airflow's UI shows a templated parameter.
        return self.value


#: The default of a parameter whose absence means *no limit* or *nobody*.
NOT_GIVEN = NotGiven.NOT_GIVEN


def check_literal_text(name: str, value: object) -> None:
    """
    Refuse what no run can use as an id, when the DAG is parsed.

    :param name: The parameter's name, for the message.
    :param value: The id, or what becomes one later, which is not checked.
    :raises ValueError: It is no text, or an empty one.
    """
    if isinstance(value, str) and is_whole_connection(value) and "{{" not in value:
        raise ValueError(f"{name} must be an id; it is an address, or a whole connection.")
    # Airflow calls a function in a templated field, in the run.
    if is_template(value) or callable(value):
        return
    if value is None:
        raise ValueError(f"{name} must be a text, and nothing was given: it is None.")
    if not isinstance(value, str):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        hint = f' Write it in quotes: "{value}".' if is_number else ""
        # Of a mapping nothing is shown: it may be a connection, with the API key in it.
        shown = type(value).__name__ if isinstance(value, Mapping) else f"{value!r:.80} ({type(value).__name__})"
        raise ValueError(f"{name} must be a text; got {shown}.{hint}")
    if not value.strip():
        raise ValueError(f"{name} must not be empty; got {value!r:.80}.")


def is_whole_connection(text: str) -> bool:
    """Say whether a text is an address, or JSON, in place of an id. It may have a key in it, so it is not shown."""
    return "://" in text or text.lstrip().startswith('{"')


def is_template(value: object) -> bool:
    """Say whether a value may become something else when Airflow renders it: a template, or what a task returns."""
    return (isinstance(value, str) and "{" in value) or hasattr(value, "iter_references")


def read_rendered_number(name: str, value: object, *, minimum: int) -> int:
    """
    Return a whole number that a template may have made, so that it may be a text; like :func:`read_whole_number`.

    :param name: The parameter's name, for the message.
    :param value: The number.
    :param minimum: The smallest that is allowed.
    :raises ValueError: It is something else.
    """
    text = value.strip() if isinstance(value, str) else ""
    is_number = text.isdecimal() and len(text) <= _MAXIMUM_DIGITS
    return read_whole_number(name, int(text) if is_number else value, minimum=minimum)


def read_percent(name: str, value: object) -> float | None:
    """
    Return a number from 0 to 100, or ``None`` if none is given.

    :param name: The parameter's name, for the message.
    :param value: The number.
    :raises ValueError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{name} must be a percentage from 0 to 100; got {value!r}.")
    if 0 < value < 1:
        raise ValueError(
            f"{name} is a percentage from 0 to 100, and {value!r} is less than one percent: did you mean "
            f"{100 * value:g}?"
        )
    return float(value)


#: The outcomes of calls by which the service filters a history.
CALL_STATUSES = ("answered", "busy", "no_answer", "failed")


def read_call_statuses(statuses: object) -> tuple[str, ...]:
    """
    Return outcomes of calls to filter a history by; empty if none are given.

    :param statuses: A list of them, or ``None``.
    :raises ValueError: One of them is none that the service filters by.
    """
    if statuses is None:
        return ()
    if isinstance(statuses, str) or not isinstance(statuses, Iterable):
        raise ValueError(f'statuses must be a list such as ["answered"]; got {statuses!r:.80}.')
    wanted = tuple(dict.fromkeys(statuses))
    for status in wanted:
        if status not in CALL_STATUSES:
            hint = did_you_mean(status, CALL_STATUSES)
            raise ValueError(f"statuses: {status!r:.80} is none of {', '.join(CALL_STATUSES)}. {hint}".rstrip())
    return wanted


def read_bounds(since: object, until: object) -> tuple[datetime | None, datetime | None]:
    """
    Return the bounds of a time.

    :param since: A ``datetime``, a ``date``, or a text in ISO 8601; a date begins at 00:00. In UTC if it names no
        zone; ``None`` or an empty text for none.
    :param until: Likewise; a date ends with its last microsecond.
    :raises ValueError: One of them is something else, or ``until`` is not after ``since``.
    """
    begin, end = _read_moment("since", since, time.min), _read_moment("until", until, time.max)
    if begin is not None and end is not None and end <= begin:
        raise ValueError(f"until must be after since; got since={since!s:.40} and until={until!s:.40}.")
    return begin, end


def _read_moment(name: str, value: object, time_of_date: time) -> datetime | None:
    """
    Read a bound.

    :param name: The parameter's name, for the message.
    :param value: The bound.
    :param time_of_date: Which time of the day is meant by a date alone.
    """
    # From here, as DAG files import this module, and few have times in them.
    from airflow_provider_voicegenie.api.times import read_moment, suggest_moment

    moment, hint = value, ""
    if isinstance(value, str):
        text = value.strip()
        moment = (_read_date(text) or read_moment(text) or text) if text else None
        hint = f" Write {meant!r}." if moment is text and (meant := suggest_moment(text)) else ""
    if moment is None:
        return None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime.combine(moment, time_of_date)
    if not isinstance(moment, datetime):
        raise ValueError(
            f"{name} must be a datetime or a time in ISO 8601, such as '2026-05-01T08:00:00+02:00', or a date; got "
            f"{value!r:.80}.{hint}"
        )
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """
    Return a hint at what a misspelled word was meant to be; empty if nothing resembles it.

    :param word: The word as it was given.
    :param known: The words that mean something.
    """
    # From here, as only a mistake needs it.
    from difflib import get_close_matches

    def plain(text: str) -> str:
        return text.strip().casefold().replace("-", "_").replace(" ", "_")

    names = {plain(name): name for name in known}
    matches = get_close_matches(plain(str(word)), names, n=1, cutoff=0.7)
    return f"did you mean {str(names[matches[0]])!r}?" if matches else ""


def check_flags(**flags: object) -> None:
    """
    Check parameters that are true or false.

    :raises ValueError: One of them is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; got {value!r:.80}.")


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_flag(name: str, value: object) -> bool:
    """
    Return what a template made of something that is true or false.

    :param name: The parameter's name, for the message.
    :param value: ``True`` or ``False``, or a text for it.
    :raises ValueError: It is something else.
    """
    flag = value if isinstance(value, bool) else _FLAGS.get(str(value).strip().casefold())
    if flag is None:
        raise ValueError(
            f"{name} must be True or False, or a template that gives one of them; got {value!r:.80}. For a value "
            "that may be missing, write such as \"{{ dag_run.conf.get('check') or False }}\"."
        )
    return flag
