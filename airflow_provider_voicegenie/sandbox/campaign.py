# SPDX-License-Identifier: Apache-2.0
"""
One campaign: the contacts that are uploaded to it, and its calls.

No call is stored: each is computed when somebody asks for it. The first calls are those from before the sandbox got the
campaign; their results are counters of the campaign. The others begin at an even rate while the campaign runs, and end
one way after the other.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from airflow_provider_voicegenie.api.models import write_time

_PUNCTUATION = re.compile(r"[ ()-]+")
_PHONE_NUMBER = re.compile(r"\+?[0-9]{7,15}")

#: The documented fields of a contact that need not be there.
_OPTIONAL: Mapping[str, type] = {"name": str, "email": str, "custom_fields": dict}


class UploadedContacts:
    """
    The contacts that were uploaded to one campaign, each number once as it is written.

    Whether the service takes two spellings for one number is documented nowhere, so they are two here.

    Of a contact only its number and name stay, so that a million of them fit into the memory.
    """

    def __init__(self) -> None:
        self.numbers: list[str] = []
        self._names: list[str | None] = []
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[str, str | None]:
        return self.numbers[index], self._names[index]

    def upload(self, contacts: Iterable[object]) -> tuple[int, list[dict[str, Any]]]:
        """Add contacts, but no number twice; return how many were added, and an error for each that is wrong."""
        before, errors = len(self), []
        for contact in contacts:
            try:
                number, name = _read(contact)
            except ValueError as problem:
                written = contact.get("phone_number") if isinstance(contact, Mapping) else None
                errors.append({"phone_number": written, "message": str(problem)})
                continue
            if number not in self._known:
                self._known.add(number)
                self.numbers.append(number)
                self._names.append(name)
        return len(self) - before, errors


def _read(contact: object) -> tuple[str, str | None]:
    """
    Return a contact's number and name.

    :raises ValueError: It is wrong. The message quotes the number: a client must be able to keep that out of its logs.
    """
    if not isinstance(contact, Mapping):
        raise ValueError("A contact must be an object")
    if "phone_number" not in contact:
        raise ValueError("Missing phone number")
    number = contact["phone_number"]
    if not (isinstance(number, str) and _PHONE_NUMBER.fullmatch(_PUNCTUATION.sub("", number))):
        raise ValueError(f"Invalid phone number: {number}")
    for name, kind in _OPTIONAL.items():
        if name in contact and not isinstance(contact[name], kind):
            raise ValueError(f"Invalid {name} of {number}")
    return number, contact.get("name")


@dataclass
class SandboxCampaign:
    """
    One campaign.

    :param status: Its status, as the service writes it; a running campaign becomes ``completed`` by itself.
    :param script_id: Its script, or ``None``.
    :param total_count: Its contacts.
    :param registered_count: Contacts that the list says are registered; ``None`` for all.
    :param completed_count: Calls that were completed before the sandbox got the campaign.
    :param failed_count: Calls that had failed before the sandbox got the campaign.
    :param start_count: How often it was started.
    :param resumes_after: Simulated seconds after which it goes on by itself when it was paused, as a campaign with a
        daily schedule does; ``None`` for never.
    """

    id: str = field(default_factory=lambda: str(uuid4()))
    name: str = "campaign"
    status: str = "scheduled"
    script_id: str | None = "script-1"
    total_count: int = 10
    registered_count: int | None = None
    completed_count: int = 0
    failed_count: int = 0
    start_count: int = 0
    resumes_after: float | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: When it was running: begin and end, in seconds of the store's clock; the last end may be open.
    running: list[tuple[float, float | None]] = field(default_factory=list)
    #: Contacts that were uploaded: the last ones of ``total_count``. The others are made up.
    contacts: UploadedContacts = field(default_factory=UploadedContacts)

    @property
    def contacts_to_call(self) -> int:
        """Contacts that had no call before the sandbox got the campaign."""
        return max(0, self.total_count - self.completed_count - self.failed_count)


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
