# SPDX-License-Identifier: Apache-2.0
"""
The calls of a campaign. None is stored: each is computed when somebody asks for it.

The first calls are those from before the sandbox got the campaign; their results are counters of the campaign. The
others begin at an even rate while the campaign runs, and end one way after the other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_voicegenie.api.models import write_time

if TYPE_CHECKING:
    from airflow_provider_voicegenie.sandbox.store import SandboxCampaign

#: Seconds that one call takes, and calls that begin in a second; both in simulated time.
CALL_SECONDS = 30.0
CALLS_PER_SECOND = 1.0

#: How the calls of a campaign end, over and over.
_RESULTS = ("answered",) * 7 + ("busy", "no_answer", "voicemail")
_GOOD_RESULTS = ("answered", "voicemail")


def results_of(calls: int) -> dict[str, int]:
    """Return how many of the first calls of the sandbox's own end in which way."""
    return {result: _count(result, calls) for result in dict.fromkeys((*_RESULTS, "failed"))}


def good_ones(results: Mapping[str, int]) -> int:
    """Return how many of the results are good."""
    return sum(results[result] for result in _GOOD_RESULTS)


def _count(result: str, calls: int) -> int:
    return calls // len(_RESULTS) * _RESULTS.count(result) + _RESULTS[: calls % len(_RESULTS)].count(result)


class EndedCalls:
    """
    The calls of a campaign that ended, the oldest first.

    :param campaign: The campaign.
    :param ended: How many of the sandbox's own calls ended.
    :param pace: Calls that begin in a second of the store's clock.
    :param clock_zero: The time at which that clock showed 0.
    """

    def __init__(self, campaign: SandboxCampaign, ended: int, *, pace: float, clock_zero: datetime) -> None:
        self._campaign = campaign
        self._from_before = campaign.completed_count + campaign.failed_count
        self._length = self._from_before + ended
        self._made_up = max(0, campaign.total_count - len(campaign.contacts))
        self._pace = pace
        self._clock_zero = clock_zero

    def page(
        self, *, limit: int, offset: int, status: str | None, since: datetime | None, until: datetime | None
    ) -> tuple[list[dict[str, Any]], int]:
        """
        Return some calls, and how many there are.

        :param limit: Calls on the page, at most.
        :param offset: Calls to skip.
        :param status: Only calls that ended like this.
        :param since: Only calls that began then or later.
        :param until: Only calls that began then or earlier.
        """
        calls = range(self._length)
        first = 0 if since is None else bisect_left(calls, since, key=self._time)
        end = self._length if until is None else bisect_right(calls, until, key=self._time)

        def matching_before(call: int) -> int:
            return self._count_before(call, status)

        skipped = matching_before(first) + offset
        total = max(0, matching_before(end) - matching_before(first))
        start = bisect_right(range(end), skipped, key=lambda call: matching_before(call + 1))
        matching = (call for call in range(start, end) if status in (None, self._status(call)))
        return [self._call(call) for call in islice(matching, max(0, min(limit, total - offset)))], total

    def _count_before(self, call: int, status: str | None) -> int:
        if status is None:
            return call
        completed, failed = self._campaign.completed_count, self._campaign.failed_count
        from_before = {"answered": min(call, completed), "failed": min(max(0, call - completed), failed)}
        return from_before.get(status, 0) + _count(status, max(0, call - self._from_before))

    def _status(self, call: int) -> str:
        if call < self._from_before:
            return "answered" if call < self._campaign.completed_count else "failed"
        return _RESULTS[(call - self._from_before) % len(_RESULTS)]

    def _time(self, call: int) -> datetime:
        """Return when a call began."""
        if call < self._from_before:
            calls_later = self._from_before - 1 - call
            return self._campaign.created_at - timedelta(seconds=CALL_SECONDS + calls_later / CALLS_PER_SECOND)
        seconds = (call - self._from_before + 1) / self._pace
        moment = 0.0
        for begin, end in self._campaign.running:
            moment = begin + seconds
            if end is None or moment <= end:
                break
            seconds -= end - begin
        return self._clock_zero + timedelta(seconds=moment)

    def _call(self, call: int) -> dict[str, Any]:
        status = self._status(call)
        call_id = f"call-{self._campaign.id}-{call + 1:06}"
        number, name = self._contact(call)
        return {
            "call_id": call_id,
            "contact_name": name,
            "phone_number": number,
            "status": status,
            "duration": int(CALL_SECONDS) if status in _GOOD_RESULTS else 0,
            "call_time": write_time(self._time(call)),
            "recording_url": (
                f"https://recordings.example.com/{quote(call_id, safe='')}.mp3" if status == "answered" else None
            ),
        }

    def _contact(self, call: int) -> tuple[str, str | None]:
        if call < self._made_up:
            return f"+1555{call + 1:07}", f"Contact {call + 1}"
        return self._campaign.contacts[call - self._made_up]
