# SPDX-License-Identifier: Apache-2.0
"""When people may be phoned."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from airflow_provider_voicegenie.rules.parameters import did_you_mean
from airflow_provider_voicegenie.rules.prerequisites import Check, Prerequisite

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Campaign

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY = timedelta(days=1)
_QUARTER = timedelta(minutes=15)
_MINUTE = timedelta(minutes=1)
#: The least time between two windows that are not one.
_MINIMUM_GAP = timedelta(milliseconds=1)

#: What some write for the end of a day.
_MIDNIGHT_AT_THE_END = re.compile(r"\s*24(?![0-9])|\s*24(00){1,2}\s*$")

#: How far ahead the next opening is looked for.
DAYS_AHEAD = 14


class AtClosing(StrEnum):
    """What a task that follows its campaign does when the calling hours close."""

    #: It pauses the campaign.
    PAUSE = "pause"
    #: It pauses the campaign, and starts it again when they open.
    PAUSE_AND_RESUME = "pause_and_resume"
    #: Nothing: the campaign calls on.
    GO_ON = "go_on"


@dataclass(frozen=True, init=False)
class CallingHours(Prerequisite):
    """
    A window, on some days of the week, in which a campaign may be started.

    The window holds from ``start``, which belongs to it, to ``end``, which does not: ``09:00`` to ``17:00`` has
    09:00:00 and 16:59:59, but not 17:00:00. An ``end`` of ``00:00`` is midnight. If ``end`` is before ``start``, the
    window goes over midnight, which ``over_midnight`` has to permit. It belongs to the day on which it begins:
    ``22:00`` to ``02:00`` on Fridays ends on Saturday at 02:00.

    Local time in ``timezone`` counts, so the window moves with daylight-saving time: an hour that the clock skips is
    not in it, and a time that the clock repeats is in it twice.

    Guards the start itself as ``StartCampaignOperator(calling_hours=...)``, and is waited for as one of
    ``CampaignReadySensor(prerequisites=[...])``. For several windows, give several of these in a list; one of them has
    to be open. A task that follows its campaign pauses it at ``end``, see ``at_closing`` of that operator.

    :param start: A ``datetime.time`` without time zone, or a text: ``"09"``, ``"09:00"``, ``"09:00:00"`` (also with a
        fraction of the second), ``"0900"`` or ``"090000"``. Anything else, such as ``"09.30"``, is refused.
    :param end: Likewise; not equal to ``start``.
    :param timezone: IANA name of a time zone, such as ``"Europe/Berlin"``.
    :param days: Names of weekdays, such as ``["monday", "tuesday"]`` or ``["mon", "tue"]``; every day by default.
        Numbers are refused, as Monday is 0 to some and 1 to others.
    :param except_dates: Dates without calls: a list of ``datetime.date`` or texts such as ``"2026-12-25"``, or a
        function that is given a date and returns whether it is one, defined at the top level of a module (or the
        function's path, such as ``"company.calendar.is_holiday"``). A window over midnight does not open on such a
        date, and closes when one begins.
    :param alternatives: More windows, in which a campaign may be started, too. A list of calling hours comes to this.
    :param over_midnight: Whether ``end`` may be before ``start``; by default, that is taken for a mistake.
    :raises ValueError: One of them is something else.
    """

    start: time
    end: time
    timezone: str
    days: tuple[str, ...]
    except_dates: tuple[date, ...] | Callable[[date], object]
    alternatives: tuple[CallingHours, ...]
    over_midnight: bool

    def __init__(
        self,
        start: time | str,
        end: time | str,
        timezone: str,
        days: Iterable[str] = _DAYS,
        except_dates: Iterable[date | str] | Callable[[date], object] | str | None = None,
        alternatives: Iterable[CallingHours | Mapping[str, Any]] = (),
        over_midnight: bool = False,
    ) -> None:
        values = {
            "start": _read_clock("start", start),
            "end": _read_clock("end", end),
            "timezone": _read_zone(timezone),
            "days": _read_days(days),
            "except_dates": _read_dates(except_dates),
            "alternatives": _read_alternatives(alternatives),
            "over_midnight": over_midnight,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.start == self.end:
            raise ValueError(
                f"CallingHours: start and end are both {self.start.isoformat()}, which could mean always or never. "
                'For a whole day, use "00:00" and "23:59:59.999999".'
            )
        if not isinstance(over_midnight, bool):
            raise ValueError(f"CallingHours: over_midnight must be True or False; got {over_midnight!r:.80}.")
        if time() < self.end < self.start and not over_midnight:
            raise ValueError(
                f"CallingHours: start is {self.start.isoformat()} and end is {self.end.isoformat()}, so people would "
                'be phoned at night. Swap them, or write hours after noon such as "18:00". If the window is to go over '
                "midnight, say over_midnight=True."
            )

    @property
    def windows(self) -> tuple[CallingHours, ...]:
        """Each window by itself; a campaign may be started while one of them is open."""
        return (self, *(window for each in self.alternatives for window in each.windows))

    def contains(self, moment: datetime) -> bool:
        """
        Say whether a moment is within the calling hours.

        :param moment: A time with time zone.
        """
        if moment.tzinfo is None:
            raise ValueError(f"CallingHours: {moment!r} has no time zone.")
        return any(window._is_open(moment) for window in self.windows)

    def _is_open(self, moment: datetime) -> bool:
        local = moment.astimezone(self._zone)
        clock, today = local.time(), local.date()
        if self.start < self.end:
            return self.start <= clock < self.end and self._on(today)
        if clock >= self.start:
            return self._on(today)
        return clock < self.end and self._on(today - _DAY) and not self._is_excepted(today)

    def moments(self, since: datetime, days: int) -> Iterator[datetime]:
        """
        Give the moments at which the first window begins or ends.

        :param since: A time with time zone.
        :param days: For how many days from then on.
        """
        first = since.astimezone(self._zone).date()
        for number in range(days + 1):
            for clock in (self.start, self.end):
                moment = datetime.combine(first + number * _DAY, clock, self._zone)
                yield moment.astimezone(UTC)
                yield moment.replace(fold=1).astimezone(UTC)

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Compare the time."""
        if self.contains(now):
            return Check.met()
        # Nobody wants to know it to the second, and thousands of waits have the same hours.
        opens = _describe_opening(self, now.replace(second=0, microsecond=0) + _MINUTE)
        return Check.waiting(f"outside the calling hours {self}, which {opens}")

    def local_time(self, moment: datetime) -> str:
        """Write a moment as weekday, date and time of day in the calling hours' time zone."""
        local = moment.astimezone(self._zone)
        return f"{_DAYS[local.weekday()].capitalize()} {local:%Y-%m-%d %H:%M:%S}"

    def keyword_arguments(self) -> dict[str, Any]:
        """Return the arguments as plain JSON."""
        dates = self.except_dates
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "timezone": self.timezone,
            "days": list(self.days),
            "except_dates": [day.isoformat() for day in dates] if isinstance(dates, tuple) else _path_of(dates),
            "alternatives": [each.keyword_arguments() for each in self.alternatives],
            "over_midnight": self.over_midnight,
        }

    def modules(self) -> list[str]:
        """Return the modules that have to be imported to make it again."""
        functions = [each.except_dates for each in self.windows if not isinstance(each.except_dates, tuple)]
        return [*super().modules(), *(function.__module__ for function in functions)]

    def __str__(self) -> str:
        days = "daily" if self.days == _DAYS else ", ".join(self.days)
        exceptions = ", except on some dates" if self.except_dates else ""
        window = f"{self.start.isoformat()} to {self.end.isoformat()} {self.timezone}, {days}{exceptions}"
        return " or ".join([window, *map(str, self.alternatives)])

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def _on(self, day: date) -> bool:
        return _DAYS[day.weekday()] in self.days and not self._is_excepted(day)

    def _is_excepted(self, day: date) -> bool:
        dates = self.except_dates
        if isinstance(dates, tuple):
            return day in dates
        try:
            return bool(dates(day))
        except Exception as error:
            raise ValueError(
                f"CallingHours: except_dates: {_path_of(dates)}({day.isoformat()}) failed with "
                f"{type(error).__name__}: {error}"
            ) from error


def _read_alternatives(alternatives: object) -> tuple[CallingHours, ...]:
    found: list[CallingHours] = []
    for each in alternatives if isinstance(alternatives, Sequence) else [alternatives]:
        if not isinstance(each, (CallingHours, Mapping)):
            raise ValueError(
                f"CallingHours: alternatives must be a list of CallingHours; got {alternatives!r:.80}. A list of "
                "CallingHours as calling_hours comes to the same."
            )
        found.append(each if isinstance(each, CallingHours) else CallingHours(**each))
    return tuple(found)


def read_calling_hours(hours: object) -> tuple[CallingHours, ...]:
    """
    Return calling hours as a DAG author writes them, as one object; empty if there are none, which means at any time.

    :param hours: One object or a list of them, or ``None``.
    :raises ValueError: It is something else.
    """
    if hours is None:
        return ()
    given = [hours] if isinstance(hours, str) or not isinstance(hours, Iterable) else list(hours)
    found = tuple(each for each in given if isinstance(each, CallingHours))
    if not found or len(found) < len(given):
        raise ValueError(
            'calling_hours must be CallingHours("09:00", "18:00", "Europe/Berlin"), for example, or a list of them; '
            f"got {hours!r:.80}."
        )
    return (_as_one(found),)


def _as_one(hours: Sequence[CallingHours]) -> CallingHours:
    first, *others = hours
    return replace(first, alternatives=(*first.alternatives, *others)) if others else first


def read_at_closing(value: object, hours: Sequence[CallingHours], *, is_followed: bool) -> AtClosing:
    """
    Return what a task does when its calling hours close; by default it pauses the campaign, if it can.

    :param value: As the DAG author wrote it; ``None`` for the default.
    :param is_followed: Whether the task waits for completion.
    :raises ValueError: It is something else, or cannot be done.
    """
    if value is None:
        return AtClosing.PAUSE if hours and is_followed else AtClosing.GO_ON
    choices = {each.value: each for each in AtClosing}
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices)
        raise ValueError(f"at_closing must be one of {', '.join(choices)}; got {value!r:.80}. {hint}".rstrip())
    if choices[value] is not AtClosing.GO_ON:
        if not hours:
            raise ValueError(f"at_closing={value!r} needs calling_hours, which say when they close.")
        if not is_followed:
            raise ValueError(
                f"at_closing={value!r}: only a task that follows its campaign can pause it. Add "
                "wait_for_completion=True, or let a PauseCampaignOperator do it, in a DAG that is scheduled for then."
            )
    return choices[value]


def with_one_open(prerequisites: Iterable[Prerequisite]) -> list[Prerequisite]:
    """Return prerequisites, several calling hours of which have become one: it is enough that one of them is open."""
    wanted = list(prerequisites)
    hours = [each for each in wanted if isinstance(each, CallingHours)]
    if len(hours) < 2:
        return wanted
    return [*(each for each in wanted if not isinstance(each, CallingHours)), _as_one(hours)]


def is_open(hours: Sequence[CallingHours], moment: datetime) -> bool:
    """
    Say whether people may be phoned.

    :param hours: The calling hours; empty for any time.
    :param moment: A time with time zone.
    """
    return not hours or any(each.contains(moment) for each in hours)


def next_opening(hours: Sequence[CallingHours], since: datetime) -> datetime | None:
    """
    Return when people may be phoned next, in UTC; ``None`` if they may not within :data:`DAYS_AHEAD` days.

    :param since: A time with time zone.
    """
    return next((moment for moment in _moments(hours, since) if is_open(hours, moment)), None)


def next_closing(hours: Sequence[CallingHours], since: datetime) -> datetime | None:
    """
    Return when people may not be phoned any more, in UTC; ``None`` if they may for :data:`DAYS_AHEAD` days.

    :param hours: The calling hours; empty for any time.
    :param since: A time with time zone.
    """
    if not is_open(hours, since):
        return since.astimezone(UTC)
    return next((closes for _, closes in open_times(hours, since)), None)


def open_times(hours: Sequence[CallingHours], since: datetime) -> Iterator[tuple[datetime, datetime | None]]:
    """
    Give the times within which people may be phoned, in UTC, within :data:`DAYS_AHEAD` days.

    Windows that adjoin are one, also if one ends with the last microsecond before the next.

    :param hours: The calling hours; empty for any time.
    :param since: A time with time zone.
    :returns: When each opens and closes; ``None`` if it does not close within these days.
    :raises ValueError: A function of the author's failed for a date; until then, the times are given.
    """
    opens: datetime | None = None
    for moment in _moments(hours, since):
        try:
            is_open_now, is_open_soon = is_open(hours, moment), is_open(hours, moment + _MINIMUM_GAP)
        except ValueError:
            if opens is not None:
                yield opens, moment
            raise
        if is_open_now:
            opens = opens or moment
        elif opens is not None and not is_open_soon:
            yield opens, moment
            opens = None
    if opens is not None:
        yield opens, None


def _moments(hours: Sequence[CallingHours], since: datetime) -> list[datetime]:
    """Return each moment from some time on at which calling hours may open or close."""
    since = since.astimezone(UTC)
    # Clocks are changed at full quarters of an hour.
    quarter = since.replace(minute=since.minute // 15 * 15, second=0, microsecond=0)
    moments = {since, *(quarter + number * _QUARTER for number in range(1, DAYS_AHEAD * 96 + 1))}
    for each in hours:
        for window in each.windows:
            moments.update(window.moments(since, DAYS_AHEAD))
    last = since + DAYS_AHEAD * _DAY
    return sorted(moment for moment in moments if since <= moment <= last)


@lru_cache(maxsize=256)
def _describe_opening(hours: CallingHours, since: datetime) -> str:
    """Say when calling hours open next, on the clock of the first window."""
    try:
        opens = next_opening((hours,), since)
    except ValueError:
        # The author's function failed for a date to come, which is for the wait to tell on that date.
        return "open on a date that cannot be known yet"
    if opens is None:
        return f"do not open within {DAYS_AHEAD} days"
    local = opens.astimezone(ZoneInfo(hours.timezone))
    return f"open on {_DAYS[local.weekday()].capitalize()}, {local:%Y-%m-%d} at {local:%H:%M} {hours.timezone}"


def describe(hours: Sequence[CallingHours]) -> str:
    """Write calling hours in words."""
    return " or ".join(map(str, hours))


def _read_clock(name: str, value: object) -> time:
    # From here, as DAG files import this module, and few have calling hours.
    from airflow_provider_voicegenie.api.times import read_time_of_day, suggest_time_of_day

    clock = value
    if isinstance(value, str):
        if _MIDNIGHT_AT_THE_END.match(value):
            raise ValueError(
                f"CallingHours: {name} {value!r:.80} is no time of day: a day ends at 23:59:59. For midnight, write "
                '"00:00".'
            )
        clock = read_time_of_day(value)
        if clock is None:
            meant = suggest_time_of_day(value)
            remedy = f'Write "{meant}"' if meant else 'Write it such as "09:00"'
            raise ValueError(
                f"CallingHours: {name} must be a time of day; got {value!r:.80}. {remedy}: HH, HH:MM, HH:MM:SS, "
                "HH:MM:SS.ffffff, HHMM and HHMMSS are read."
            )
    if not isinstance(clock, time):
        raise ValueError(f'CallingHours: {name} must be a time of day, such as "09:00"; got {value!r:.80}.')
    if clock.tzinfo is not None:
        raise ValueError(
            f"CallingHours: {name} {value!r} has a time zone of its own. Leave it out: the time zone is the argument "
            "timezone."
        )
    return clock


def _read_zone(name: object) -> str:
    if isinstance(name, str) and name:
        with suppress(OSError, ValueError, KeyError):  # what zoneinfo raises for names it cannot look up
            ZoneInfo(name)
            return name
    raise ValueError(
        f'CallingHours: timezone must be the IANA name of a time zone, such as "Europe/Berlin"; got {name!r}.'
    )


def _read_days(days: object) -> tuple[str, ...]:
    names = [days] if not isinstance(days, Iterable) or isinstance(days, str) else list(days)
    chosen = set()
    for name in names:
        word = name.strip().lower() if isinstance(name, str) else ""
        matches = [day for day in _DAYS if word in (day, day[:3])]
        if not matches or isinstance(days, str):
            hint = did_you_mean(name, (*_DAYS, *(day[:3] for day in _DAYS))) if not matches else ""
            raise ValueError(
                f'CallingHours: days must be a list of weekday names, such as ["monday", "tue"]; got {name!r}'
                f"{f', {hint}' if hint else '.'} Valid: {', '.join(_DAYS)}, and their first three letters."
            )
        chosen.update(matches)
    if not chosen:
        raise ValueError("CallingHours: days is empty, so no time would ever be within. Name one day at least.")
    return tuple(day for day in _DAYS if day in chosen)


def _read_dates(dates: object) -> tuple[date, ...] | Callable[[date], object]:
    if dates is None:
        return ()
    if isinstance(dates, str):
        try:
            dates = pkgutil.resolve_name(dates)
        except (ImportError, AttributeError, ValueError):
            raise ValueError(
                f"CallingHours: except_dates {dates!r:.80} is the path of nothing that can be imported here. For "
                'dates, give a list such as ["2026-12-25"].'
            ) from None
    if callable(dates):
        _path_of(dates)
        return dates
    if isinstance(dates, Mapping):
        raise ValueError(
            f"CallingHours: except_dates {type(dates).__name__} is a mapping, which may fill itself only when it is "
            "asked, as those of the holidays package do. Give a function that asks it, or a list of its dates."
        )
    if not isinstance(dates, Iterable):
        raise ValueError(
            'CallingHours: except_dates must be a list of dates such as ["2026-12-25"], or a function; '
            f"got {dates!r:.80}."
        )
    return tuple(sorted({_read_date(day) for day in dates}))


def _read_date(day: object) -> date:
    if isinstance(day, datetime):
        if day.time() != time():
            raise ValueError(f"CallingHours: except_dates: {day!r} is a time, and a date is needed.")
        return day.date()
    if isinstance(day, str):
        with suppress(ValueError):
            day = date.fromisoformat(day.strip())
    if not isinstance(day, date):
        raise ValueError(f'CallingHours: except_dates: {day!r:.80} is no date, such as "2026-12-25".')
    return day


def _path_of(function: Callable[[date], object]) -> str:
    """
    Return the path by which a function can be imported.

    :raises ValueError: It has none.
    """
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", None)
    if not name or not module or "<" in name or "." in name:
        raise ValueError(
            f"CallingHours: except_dates: {function!r:.80} is no function at the top level of a module, so other "
            "processes could not import it. Define it with `def` there."
        )
    return f"{module}.{name}"
