# SPDX-License-Identifier: Apache-2.0
"""
Which request a shared poll sends next, and when. Without I/O: the caller brings the time and sends the requests.

A page of the list tells up to a thousand campaigns; a single read tells one. For the waits at hand, whichever takes
fewer requests is chosen. The pages of one pass over the list, and the single reads, are spread over the poll interval.
Every campaign is read at least once in an interval: each round takes a little less than one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from airflow_provider_voicegenie.api.endpoints import MAX_PAGE_SIZE
from airflow_provider_voicegenie.api.retries import poll_delay

#: A round takes between these parts of the interval, so that reads of several triggerers do not stay in step.
_SHORTEST_ROUND = 0.86
_LONGEST_ROUND = 0.90

#: Seconds that the first subscribers have to gather before the first page is read, at most.
_GATHERING = 1.0

#: Seconds for which the list is not tried again after it was refused while single reads worked.
_LIST_REST = 600.0

#: Seconds after which the size of the account is measured anew, where single reads are the cheaper way.
_MEASURE_AGAIN = 3600.0

#: Failed pages in a row after which a single read shows whether it is the list alone that fails.
_DOUBTFUL = 3


class Member(Protocol):
    """Who waits for news of a campaign."""

    @property
    def interval(self) -> float:
        """Seconds between reads, at most."""

    @property
    def alone(self) -> bool:
        """Whether what the list tells is not enough."""


AnyMember = TypeVar("AnyMember", bound=Member)


class Entry(Generic[AnyMember]):
    """
    One campaign that is polled for.

    :param campaign_id: Its id.
    """

    __slots__ = ("_due", "alone", "campaign_id", "failures", "joined_at", "members", "reading", "seen_at")

    def __init__(self, campaign_id: str, now: float) -> None:
        self.campaign_id = campaign_id
        self.joined_at = now
        self.members: tuple[AnyMember, ...] = ()
        #: Whether it must be read by itself: a member asks for what the list does not tell, or it is not listed.
        self.alone = False
        self.seen_at = -math.inf
        self.failures = 0
        self.reading = False
        #: When it is to be read by itself; ``None`` while the list does.
        self._due: float | None = None

    @property
    def interval(self) -> float:
        """The shortest interval that a member asks for."""
        return min(member.interval for member in self.members)


class PageRead(NamedTuple):
    """Read a page of the list from this offset on."""

    offset: int


class PollingPlan(Generic[AnyMember]):
    """The campaigns that are polled for, and what is to be sent for them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry[AnyMember]] = {}
        self._singles: list[tuple[float, int, Entry[AnyMember]]] = []
        self._sequence = 0
        # The entries that the list may serve, by interval.
        self._listable: Counter[float] = Counter()
        self._total: int | None = None
        self._measured_at = -math.inf
        self._list_blocked_until = -math.inf
        self._list_failures = 0
        self._list_is_the_trouble = False
        self._uses_list = False
        self._page_due: float | None = None
        self._page_reading = False
        self._pass_began = -math.inf
        self._offset = 0

    def add(self, campaign_id: str, member: AnyMember, now: float) -> Entry[AnyMember]:
        """
        Poll for a campaign on behalf of one more member.

        :param campaign_id: The campaign.
        :param member: Who wants to know.
        :param now: Seconds of a monotonic clock.
        """
        entry = self.entries.get(campaign_id)
        if entry is None:
            entry = self.entries[campaign_id] = Entry(campaign_id, now)
        else:
            self._unlist(entry)
        entry.members = (*entry.members, member)
        entry.alone = entry.alone or member.alone
        self._list(entry)
        self._choose(now)
        if not self._serves(entry) and entry._due is None and not entry.reading:
            self._schedule(entry, now + member.interval * random.uniform(0.0, _LONGEST_ROUND))  # noqa: S311
        return entry

    def remove(self, entry: Entry[AnyMember], member: AnyMember, now: float) -> None:
        """Stop polling for a member."""
        self._unlist(entry)
        entry.members = tuple(each for each in entry.members if each is not member)
        if entry.members:
            self._list(entry)
        else:
            del self.entries[entry.campaign_id]
            entry._due = None
        self._choose(now)

    def hurry(self, entry: Entry[AnyMember], now: float) -> None:
        """Read a campaign by itself at once."""
        if not entry.reading:
            self._schedule(entry, now)

    def due_at(self) -> float:
        """Return when the next request is due; infinity where none is."""
        while self._singles and self._singles[0][2]._due != self._singles[0][0]:
            heapq.heappop(self._singles)
        single = self._singles[0][0] if self._singles else math.inf
        page = self._page_due if self._uses_list and not self._page_reading and self._page_due is not None else math.inf
        return min(single, page)

    def take(self) -> PageRead | Entry[AnyMember]:
        """Return the request that :meth:`due_at` spoke of; it counts as under way until its result is noted."""
        due = self.due_at()
        if self._singles and self._singles[0][0] <= due:
            _, _, entry = heapq.heappop(self._singles)
            entry._due = None
            entry.reading = True
            return entry
        self._page_reading = True
        return PageRead(self._offset)

    # What came of the requests.

    def page_was_read(self, campaign_ids: Iterable[str], size: int, total: int, now: float, sent_at: float) -> None:
        """
        Take note of a page.

        :param campaign_ids: The campaigns on it.
        :param size: How many items it had, unreadable ones included.
        :param total: The campaigns in the account.
        :param now: The time.
        :param sent_at: When it was asked for.
        """
        self._page_reading = False
        self._list_failures = 0
        self._list_is_the_trouble = False
        self._total, self._measured_at = total, now
        if self._offset == 0:
            self._pass_began = sent_at
        for campaign_id in campaign_ids:
            entry = self.entries.get(campaign_id)
            if entry is not None:
                entry.seen_at = now
                if self._serves(entry):
                    entry._due = None
                if entry.alone and not any(member.alone for member in entry.members):
                    self._unlist(entry)
                    entry.alone = False
                    self._list(entry)
        self._offset += size
        if size == 0 or self._offset >= total:
            self._offset = 0
            self._look_for_missing(now)
        due = self._page_due if self._page_due is not None else now
        self._choose(now)
        if self._uses_list:
            slot = min(self._listable) / self._pages()
            self._page_due = max(now, due + slot * random.uniform(_SHORTEST_ROUND, _LONGEST_ROUND))  # noqa: S311

    def page_failed(self, now: float, *, retry_after: float | None) -> None:
        """
        Take note of a page that could not be read, in a way that may pass.

        :param now: The time.
        :param retry_after: Seconds the service asked to wait.
        """
        self._page_reading = False
        self._list_failures += 1
        if self._list_is_the_trouble:
            self.block_list(now)
            return
        slot = min(self._listable, default=0.0) / self._pages()
        self._page_due = now + poll_delay(slot, self._list_failures, retry_after)
        if self._list_failures >= _DOUBTFUL:
            idle = [entry for entry in self.entries.values() if not entry.reading]
            if idle:
                self._schedule(random.choice(idle), self._page_due)  # noqa: S311

    def block_list(self, now: float) -> None:
        """Do without the list for a while: it is refused, or fails where single reads do not."""
        self._page_reading = False
        self._list_is_the_trouble = False
        self._list_failures = 0
        self._list_blocked_until = now + _LIST_REST
        self._choose(now)

    def campaign_was_read(self, entry: Entry[AnyMember], now: float) -> None:
        """Take note of a campaign that was read by itself."""
        entry.reading = False
        entry.failures = 0
        entry.seen_at = now
        if self._list_failures >= _DOUBTFUL and self._uses_list and not self._page_reading:
            self._list_is_the_trouble = True
            self._page_due = now
        self._choose(now)
        self._schedule_next(entry, now, entry.interval * random.uniform(_SHORTEST_ROUND, _LONGEST_ROUND))  # noqa: S311

    def campaign_failed(self, entry: Entry[AnyMember], now: float, *, retry_after: float | None) -> None:
        """
        Take note of a campaign that could not be read.

        :param entry: The campaign.
        :param now: The time.
        :param retry_after: Seconds the service asked to wait.
        """
        entry.reading = False
        entry.failures += 1
        self._schedule_next(entry, now, poll_delay(entry.interval, entry.failures, retry_after))

    # What is chosen.

    def _schedule_next(self, entry: Entry[AnyMember], now: float, delay: float) -> None:
        if entry.members and not self._serves(entry):
            self._schedule(entry, now + delay)

    def _schedule(self, entry: Entry[AnyMember], due: float) -> None:
        entry._due = due
        self._sequence += 1
        heapq.heappush(self._singles, (due, self._sequence, entry))

    def _serves(self, entry: Entry[AnyMember]) -> bool:
        return self._uses_list and not entry.alone

    def _list(self, entry: Entry[AnyMember]) -> None:
        if not entry.alone:
            self._listable[entry.interval] += 1

    def _unlist(self, entry: Entry[AnyMember]) -> None:
        if not entry.alone:
            interval = entry.interval
            self._listable[interval] -= 1
            if not self._listable[interval]:
                del self._listable[interval]

    def _pages(self) -> int:
        return max(1, math.ceil((self._total or 0) / MAX_PAGE_SIZE))

    def _choose(self, now: float) -> None:
        """Choose between list and single reads, by the requests they take."""
        used, self._uses_list = self._uses_list, self._list_is_cheaper(now)
        if self._uses_list and not used:
            # Single reads that are due stay so until the list has told their campaigns.
            self._offset = 0
            self._page_due = now + min(_GATHERING, min(self._listable) / 10)
        elif used and not self._uses_list:
            for entry in self.entries.values():
                if entry._due is None and not entry.reading:
                    self._schedule(entry, self._next_single(entry, now))

    def _next_single(self, entry: Entry[AnyMember], now: float) -> float:
        """Return when to read a campaign by itself that the list has told so far: in time, but not all at once."""
        left = max(entry.seen_at, entry.joined_at) + entry.interval * _LONGEST_ROUND - now
        return now + max(0.0, left) * random.random()  # noqa: S311

    def _list_is_cheaper(self, now: float) -> bool:
        if now < self._list_blocked_until or self._listable.total() < 2:
            return False
        if self._total is None or (not self._uses_list and now - self._measured_at > _MEASURE_AGAIN):
            return True
        singles_per_second = sum(count / interval for interval, count in self._listable.items())
        return self._pages() / min(self._listable) < singles_per_second

    def _look_for_missing(self, now: float) -> None:
        """Read those by themselves that a whole pass over the list did not show: pages shift while they are read."""
        for entry in self._missing():
            self._unlist(entry)
            entry.alone = True
            if entry._due is None and not entry.reading:
                self._schedule(entry, now)

    def _missing(self) -> Iterator[Entry[AnyMember]]:
        for entry in self.entries.values():
            if not entry.alone and entry.seen_at < self._pass_began and entry.joined_at < self._pass_began:
                yield entry
