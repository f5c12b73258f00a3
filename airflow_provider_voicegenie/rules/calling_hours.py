# SPDX-License-Identifier: Apache-2.0
"""When people may be phoned."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from airflow_provider_voicegenie.rules.parameters import did_you_mean
from airflow_provider_voicegenie.rules.prerequisites import Check, Prerequisite

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Campaign

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class CallingHours(Prerequisite):
    """
    A daily window in which a campaign may be started.

    The window holds from ``start``, which belongs to it, to ``end``, which does not: ``09:00`` to ``17:00`` has
    09:00:00 and 16:59:59, but not 17:00:00. If ``end`` is before ``start``, the window goes over midnight and belongs
    to the day on which it begins: ``22:00`` to ``02:00`` on Fridays ends on Saturday at 02:00.

    Local time in ``timezone`` counts, so the window moves with daylight-saving time: an hour that the clock skips is
    not in it, one that the clock repeats is in it twice.

    Guards the start itself as ``StartCampaignOperator(calling_hours=...)``, and is waited for as one of
    ``CampaignReadySensor(prerequisites=[...])``. It limits when a campaign is *started*; a campaign that runs on
    past ``end`` is for :class:`~airflow_provider_voicegenie.operators.campaign.PauseCampaignOperator` to stop.

    :param start: A ``datetime.time`` without time zone, or a text such as ``"09:00"``.
    :param end: Likewise; not equal to ``start``.
    :param timezone: IANA name of a time zone, such as ``"Europe/Berlin"``.
    :param days: Names of weekdays, such as ``["monday", "tuesday"]`` or ``["mon", "tue"]``; every day by default.
        Numbers are refused, as Monday is 0 to some and 1 to others.
    :raises ValueError: One of them is something else.
    """

    def __init__(self, start: time | str, end: time | str, timezone: str, days: Iterable[str] = _DAYS) -> None:
        self.start = _read_clock("start", start)
        self.end = _read_clock("end", end)
        if self.start == self.end:
            raise ValueError(
                f"CallingHours: start and end are both {self.start.isoformat()}, which could mean always or never. "
                'For a whole day, use "00:00" and "23:59:59.999999".'
            )
        self._zone = _read_zone(timezone)
        self.timezone = timezone
        self.days = _read_days(days)

    def contains(self, moment: datetime) -> bool:
        """
        Say whether a moment is within the calling hours.

        :param moment: A time with time zone.
        """
        if moment.tzinfo is None:
            raise ValueError(f"CallingHours: {moment!r} has no time zone.")
        local = moment.astimezone(self._zone)
        clock, today = local.time(), local.weekday()
        if self.start < self.end:
            return self.start <= clock < self.end and self._on(today)
        return (clock >= self.start and self._on(today)) or (clock < self.end and self._on((today - 1) % 7))

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Compare the time."""
        return Check.met() if self.contains(now) else Check.waiting(f"outside the calling hours {self}")

    def local_time(self, moment: datetime) -> str:
        """Write a moment as weekday and time of day in the calling hours' time zone."""
        local = moment.astimezone(self._zone)
        return f"{_DAYS[local.weekday()].capitalize()} {local:%H:%M:%S}"

    def keyword_arguments(self) -> dict[str, Any]:
        """Return the arguments as plain JSON."""
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "timezone": self.timezone,
            "days": list(self.days),
        }

    def __str__(self) -> str:
        days = "daily" if self.days == _DAYS else ", ".join(self.days)
        return f"{self.start.isoformat()} to {self.end.isoformat()} {self.timezone}, {days}"

    def _on(self, weekday: int) -> bool:
        return _DAYS[weekday] in self.days


def _read_clock(name: str, value: object) -> time:
    clock = value
    if isinstance(value, str) and value.strip().startswith("24:"):
        raise ValueError(
            f'CallingHours: {name} {value!r} is no time of day: a day ends at 23:59:59. For midnight, write "00:00".'
        )
    if isinstance(value, str):
        try:
            clock = time.fromisoformat(value)
        except ValueError:
            clock = None
    if not isinstance(clock, time):
        raise ValueError(f'CallingHours: {name} must be a time of day, such as "09:00"; got {value!r}.')
    if clock.tzinfo is not None:
        raise ValueError(
            f"CallingHours: {name} {value!r} has a time zone of its own. Leave it out: the time zone is the argument "
            "timezone."
        )
    return clock


def _read_zone(name: object) -> ZoneInfo:
    zone = None
    if isinstance(name, str) and name:
        try:
            zone = ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # what zoneinfo raises for names it cannot look up
            zone = None
    if zone is None:
        raise ValueError(
            f'CallingHours: timezone must be the IANA name of a time zone, such as "Europe/Berlin"; got {name!r}.'
        )
    return zone


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
