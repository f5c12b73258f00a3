# SPDX-License-Identifier: Apache-2.0
"""
Which request a shared poll sends next, and when. Without I/O: the caller brings the time and sends the requests.

A page of the list has up to a thousand campaigns; a single read has one. For the waits at hand, whichever takes fewer
requests is chosen: the list for all, single reads, or the list for those that are in no hurry and single reads for the
others. The pages of one pass over the list, and the single reads, are spread over the poll interval. Every campaign is
read at least once in an interval: each round takes a little less than one, and passes over the list somewhat less if
they are cheap.

Who wants to know of all campaigns is a reader of the list, which is then read in any case. The waits go with it where
that saves requests.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from airflow_provider_voicegenie.api.endpoints import MAX_PAGE_SIZE, Request
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, Quota
from airflow_provider_voicegenie.api.retries import poll_delay

#: A round takes between these parts of the interval, so that reads of several triggerers do not stay in step.
_SHORTEST_ROUND = 0.86
_LONGEST_ROUND = 0.90

#: The same for passes over the list, if they take this many times fewer requests than single reads, and no more than so
#: many a minute: then it costs next to nothing that ends are seen sooner.
_SHORTEST_PASS = 0.74
_LONGEST_PASS = 0.78
_CHEAP = 20
_FEW = 30.0

#: Seconds that the first subscribers have to gather before the first page is read, at most.
_GATHERING = 1.0

#: Seconds for which the list is not tried again after it was refused while single reads worked.
_LIST_REST = 600.0

#: Seconds after which the size of the account is measured anew, if single reads are the cheaper way.
_MEASURE_AGAIN = 3600.0

#: How many times fewer requests the list has to take before more waits go by it. A change costs up to a pass over it,
#: and waits come and go all the time.
_WORTH_A_CHANGE = 1.1

#: How many reads of something else may wait, and be under way: polls come first.
_MOST_WAITING = 50
_MOST_UNDER_WAY = 3

#: Failed pages in a row after which a single read shows whether it is the list alone that fails.
_DOUBTFUL = 3


class Subscriber(Protocol):
    """Who waits for updates of a campaign."""

    @property
    def interval(self) -> float:
        """Seconds between reads, at most."""

    @property
    def needs_single_reads(self) -> bool:
        """Whether what the list has is not enough."""

    @property
    def joined_at(self) -> float:
        """When it subscribed, by the event loop's clock."""

    def publish(self, reading: Campaign | VoiceGenieError, in_full: bool, now: float) -> None:
        """Show it a reading."""


class ListReader(Protocol):
    """Who reads the whole list, pass by pass."""

    @property
    def interval(self) -> float:
        """Seconds that one pass takes, at most."""

    @property
    def joined_at(self) -> float:
        """When it subscribed, by the event loop's clock."""

    def publish(self, reading: ListedPage | VoiceGenieError) -> None:
        """Show it a page, or why one could not be read."""


class QuotaReader(Protocol):
    """Who wants to know what the account may still use."""

    @property
    def interval(self) -> float:
        """Seconds between reads, at most."""

    def publish(self, reading: Quota | VoiceGenieError) -> None:
        """Show it the quota, or why it could not be read."""


class ListedPage(NamedTuple):
    """
    A page of the list.

    :param offset: How many campaigns come before it.
    :param page: What was read.
    :param asked_at: When it was asked for, Unix seconds.
    """

    offset: int
    page: CampaignPage
    asked_at: float


class CampaignReading(NamedTuple):
    """
    What was read of one campaign.

    :param campaign_id: The campaign.
    :param reading: The campaign, or why it could not be read.
    :param now: Unix seconds.
    """

    campaign_id: str
    reading: Campaign | VoiceGenieError
    now: float


#: What a watcher is shown: a page of the list, what was read of one campaign, or why the list could not be read.
AnyReading = ListedPage | CampaignReading | VoiceGenieError


class PolledCampaign:
    """
    One campaign that is polled for.

    :param campaign_id: Its id.
    """

    __slots__ = (
        "_due",
        "campaign_id",
        "failures",
        "is_being_read",
        "joined_at",
        "needs_single_reads",
        "seen_at",
        "subscribers",
    )

    def __init__(self, campaign_id: str, now: float) -> None:
        self.campaign_id = campaign_id
        self.joined_at = now
        self.subscribers: tuple[Subscriber, ...] = ()
        #: Whether it must be read by itself: a subscriber asks for what the list does not have, or it is not listed.
        self.needs_single_reads = False
        self.seen_at = -math.inf
        self.failures = 0
        self.is_being_read = False
        #: When it is to be read by itself; ``None`` while the list covers it.
        self._due: float | None = None

    @property
    def interval(self) -> float:
        """The shortest interval that a subscriber asks for."""
        return min(subscriber.interval for subscriber in self.subscribers)


class PageRead(NamedTuple):
    """Read a page of the list from this offset on."""

    offset: int


class QuotaRead(NamedTuple):
    """Read the account's quota."""


class Answer(Protocol):
    """Who waits for what is read once."""

    def done(self) -> bool:
        """Say whether it waits no more."""

    def set_result(self, result: Any, /) -> None:
        """Show it what was read."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Show it why nothing could be read."""


class OneRead(NamedTuple):
    """
    Read something else, once.

    :param request: The request.
    :param answer: Who waits for it.
    """

    request: Request[Any]
    answer: Answer


class PollingPlan:
    """The campaigns that are polled for, and which requests are to be sent for them."""

    def __init__(self) -> None:
        self.campaigns: dict[str, PolledCampaign] = {}
        self.list_readers: tuple[ListReader, ...] = ()
        self.quota_reader: QuotaReader | None = None
        # When the quota is to be read; infinity while nobody asks for it, or it is being read.
        self._quota_due = math.inf
        self._quota_failures = 0
        # What else is to be read, and since when; and how many such reads are under way.
        self._others: deque[tuple[float, OneRead]] = deque()
        self._under_way = 0
        self._singles: list[tuple[float, int, PolledCampaign]] = []
        self._sequence = 0
        # How many campaigns the list may cover, by interval.
        self._listable: Counter[float] = Counter()
        self._total: int | None = None
        # How many campaigns a page has that is not the last one: a service may give fewer than it is asked for.
        self._page_size = MAX_PAGE_SIZE
        self._measured_at = -math.inf
        self._list_blocked_until = -math.inf
        self._list_failures = 0
        self._list_is_the_trouble = False
        # The shortest interval of the waits that go by the list, infinity if none do; and whether it is read at all.
        self._listed_from = math.inf
        self._reads_list = False
        self._page_due: float | None = None
        self._page_reading = False
        self._pass_began = -math.inf
        self._offset = 0

    def add(self, campaign_id: str, subscriber: Subscriber, now: float) -> PolledCampaign:
        """
        Poll for a campaign on behalf of one more subscriber.

        :param campaign_id: The campaign.
        :param subscriber: Who wants to know.
        :param now: Seconds of a monotonic clock.
        """
        polled = self.campaigns.get(campaign_id)
        if polled is None:
            polled = self.campaigns[campaign_id] = PolledCampaign(campaign_id, now)
        else:
            self._unlist(polled)
        polled.subscribers = (*polled.subscribers, subscriber)
        polled.needs_single_reads = polled.needs_single_reads or subscriber.needs_single_reads
        self._list(polled)
        self._choose(now)
        if not self._covers(polled) and polled._due is None and not polled.is_being_read:
            self._schedule(polled, now + subscriber.interval * random.uniform(0.0, _LONGEST_ROUND))  # noqa: S311
        return polled

    def remove(self, polled: PolledCampaign, subscriber: Subscriber, now: float) -> None:
        """Stop polling for a subscriber."""
        self._unlist(polled)
        polled.subscribers = tuple(each for each in polled.subscribers if each is not subscriber)
        if polled.subscribers:
            self._list(polled)
        else:
            del self.campaigns[polled.campaign_id]
            polled._due = None
        self._choose(now)

    def renewed(self, now: float) -> PollingPlan:
        """
        Return a plan for the same subscribers and readers that has read nothing yet.

        :param now: Seconds of a monotonic clock.
        """
        plan = PollingPlan()
        for campaign_id, old in self.campaigns.items():
            polled = plan.campaigns[campaign_id] = PolledCampaign(campaign_id, now)
            polled.subscribers = old.subscribers
            polled.needs_single_reads = any(each.needs_single_reads for each in polled.subscribers)
            plan._list(polled)
        plan.list_readers = self.list_readers
        plan._others = self._others
        plan.set_quota_reader(self.quota_reader, now)
        plan._choose(now)
        for polled in plan.campaigns.values():
            if polled._due is None and not plan._covers(polled):
                plan._schedule(polled, now + polled.interval * random.uniform(0.0, _LONGEST_ROUND))  # noqa: S311
        return plan

    def add_list_reader(self, reader: ListReader, now: float) -> None:
        """
        Read the whole list, on behalf of one more reader.

        :param reader: Who wants to know.
        :param now: Seconds of a monotonic clock.
        """
        self.list_readers = (*self.list_readers, reader)
        self._choose(now)

    def remove_list_reader(self, reader: ListReader, now: float) -> None:
        """Stop reading the list for a reader."""
        self.list_readers = tuple(each for each in self.list_readers if each is not reader)
        self._choose(now)

    def set_quota_reader(self, reader: QuotaReader | None, now: float) -> None:
        """
        Read the account's quota for somebody, or for nobody any more.

        :param reader: Who wants to know.
        :param now: Seconds of a monotonic clock.
        """
        self.quota_reader = reader
        self._quota_failures = 0
        self._quota_due = math.inf if reader is None else now

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants to know anything."""
        return not self.campaigns and not self.list_readers

    def poll_now(self, polled: PolledCampaign, now: float) -> None:
        """Read a campaign by itself at once."""
        if polled.subscribers and not polled.is_being_read:
            self._schedule(polled, now)

    @property
    def waiting_reads(self) -> int:
        """How many reads of something else wait to be sent."""
        return len(self._others)

    def add_read(self, read: OneRead, now: float) -> bool:
        """
        Read something else at once; return whether it will be: not if many wait for that.

        :param read: What.
        :param now: The time.
        """
        if len(self._others) >= _MOST_WAITING:
            return False
        self._others.append((now, read))
        return True

    def read_is_over(self) -> None:
        """Take note that one of these reads is no longer under way."""
        self._under_way -= 1

    def due_at(self) -> float:
        """Return when the next request is due; infinity if none is."""
        while self._singles and self._singles[0][2]._due != self._singles[0][0]:
            heapq.heappop(self._singles)
        single = self._singles[0][0] if self._singles else math.inf
        page = math.inf
        if self._reads_list and not self._page_reading and self._page_due is not None:
            page = self._page_due
        return min(single, page, self._other_due(), self._quota_due)

    def take(self) -> PageRead | QuotaRead | OneRead | PolledCampaign:
        """Return the request that :meth:`due_at` is about; it counts as under way until its result is reported."""
        due = self.due_at()
        if self._quota_due <= due:
            self._quota_due = math.inf
            return QuotaRead()
        if self._other_due() <= due < math.inf:
            self._under_way += 1
            return self._others.popleft()[1]
        if self._singles and self._singles[0][0] <= due:
            _, _, polled = heapq.heappop(self._singles)
            polled._due = None
            polled.is_being_read = True
            return polled
        self._page_reading = True
        return PageRead(self._offset)

    def _other_due(self) -> float:
        """Return when something else is to be read. What nobody waits for any more is left out."""
        while self._others and self._others[0][1].answer.done():
            self._others.popleft()
        return self._others[0][0] if self._others and self._under_way < _MOST_UNDER_WAY else math.inf

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
        # An empty page is the end of the list, whatever the total says.
        self._total, self._measured_at = total if size else min(total, self._offset), now
        if 0 < size < total - self._offset or size > self._page_size:
            self._page_size = size
        if self._offset == 0:
            self._pass_began = sent_at
        for campaign_id in campaign_ids:
            polled = self.campaigns.get(campaign_id)
            if polled is not None:
                polled.seen_at = now
                if self._covers(polled):
                    polled._due = None
                if polled.needs_single_reads and not any(each.needs_single_reads for each in polled.subscribers):
                    self._unlist(polled)
                    polled.needs_single_reads = False
                    self._list(polled)
        self._offset += size
        if size == 0 or self._offset >= total:
            self._offset = 0
            self._look_for_missing(now)
        due = self._page_due if self._page_due is not None else now
        self._choose(now)
        if self._reads_list:
            bounds = (_SHORTEST_PASS, _LONGEST_PASS) if self._is_cheap() else (_SHORTEST_ROUND, _LONGEST_ROUND)
            self._page_due = max(now, due + self._slot() * random.uniform(*bounds))  # noqa: S311

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
        self._page_due = now + poll_delay(self._slot(), self._list_failures, retry_after)
        if self._list_failures >= _DOUBTFUL:
            idle = [polled for polled in self.campaigns.values() if not polled.is_being_read]
            if idle:
                self._schedule(random.choice(idle), self._page_due)  # noqa: S311

    def block_list(self, now: float) -> None:
        """Do without the list for a while: it is refused, or fails while single reads succeed."""
        self._page_reading = False
        self._list_is_the_trouble = False
        self._list_failures = 0
        self._list_blocked_until = now + _LIST_REST
        # Its readers have nothing else, so it is tried again for them.
        self._page_due = self._list_blocked_until
        self._choose(now)

    def quota_was_read(self, now: float) -> None:
        """Take note that the quota was read."""
        self._quota_failures = 0
        self._read_quota_again(now, None)

    def quota_failed(self, now: float, *, retry_after: float | None) -> None:
        """
        Take note that the quota could not be read.

        :param now: The time.
        :param retry_after: Seconds the service asked to wait.
        """
        self._quota_failures += 1
        self._read_quota_again(now, retry_after)

    def _read_quota_again(self, now: float, retry_after: float | None) -> None:
        if self.quota_reader is None:
            return
        delay = poll_delay(self.quota_reader.interval, self._quota_failures, retry_after)
        if not self._quota_failures:
            delay *= random.uniform(_SHORTEST_ROUND, _LONGEST_ROUND)  # noqa: S311
        self._quota_due = now + delay

    def campaign_was_read(self, polled: PolledCampaign, now: float) -> None:
        """Take note of a campaign that was read by itself."""
        polled.is_being_read = False
        polled.failures = 0
        polled.seen_at = now
        if self._list_failures >= _DOUBTFUL and self._listed_from < math.inf and not self._page_reading:
            self._list_is_the_trouble = True
            self._page_due = now
        self._choose(now)
        self._schedule_next(polled, now)

    def campaign_failed(self, polled: PolledCampaign, now: float, *, retry_after: float | None) -> None:
        """
        Take note of a campaign that could not be read.

        :param polled: The campaign.
        :param now: The time.
        :param retry_after: Seconds the service asked to wait.
        """
        polled.is_being_read = False
        polled.failures += 1
        self._schedule_next(polled, now, retry_after)

    # What is chosen.

    def _schedule_next(self, polled: PolledCampaign, now: float, retry_after: float | None = None) -> None:
        # Its last subscriber may have left while it was being read.
        if not polled.subscribers or self._covers(polled):
            return
        delay = poll_delay(polled.interval, polled.failures, retry_after)
        if not polled.failures:
            delay *= random.uniform(_SHORTEST_ROUND, _LONGEST_ROUND)  # noqa: S311
        self._schedule(polled, now + delay)

    def _schedule(self, polled: PolledCampaign, due: float) -> None:
        polled._due = due
        self._sequence += 1
        heapq.heappush(self._singles, (due, self._sequence, polled))

    def _covers(self, polled: PolledCampaign) -> bool:
        return not polled.needs_single_reads and self._listed_from <= polled.interval

    def _list(self, polled: PolledCampaign) -> None:
        if not polled.needs_single_reads:
            self._listable[polled.interval] += 1

    def _unlist(self, polled: PolledCampaign) -> None:
        if not polled.needs_single_reads:
            interval = polled.interval
            self._listable[interval] -= 1
            if not self._listable[interval]:
                del self._listable[interval]

    def _pages(self) -> int:
        return max(1, math.ceil((self._total or 0) / self._page_size))

    def _pass_time(self) -> float:
        """Return the seconds that one pass over the list may take."""
        intervals = [reader.interval for reader in self.list_readers]
        intervals += [interval for interval in self._listable if interval >= self._listed_from]
        return min(intervals, default=0.0)

    def _is_cheap(self) -> bool:
        """Say whether the list takes next to nothing, compared with single reads of all that go by it."""
        singly = sum(waits / interval for interval, waits in self._listable.items() if interval >= self._listed_from)
        seconds, pages = self._pass_time(), self._pages()
        return _CHEAP * pages <= singly * seconds and 60.0 * pages <= _FEW * seconds

    def _slot(self) -> float:
        """Return the seconds from one page to the next."""
        return self._pass_time() / self._pages()

    def _choose(self, now: float) -> None:
        """Choose between list and single reads, by the requests they take."""
        before, self._listed_from = self._listed_from, self._cheapest(now)
        read, self._reads_list = self._reads_list, self._listed_from < math.inf or bool(self.list_readers)
        if self._reads_list and not read:
            # Single reads that are due stay so until the list has covered their campaigns.
            self._offset = 0
            self._page_due = now + min(_GATHERING, self._pass_time() / 10)
        elif self._page_due is not None and not self._list_failures and now >= self._list_blocked_until:
            # Who has joined meanwhile may ask for a shorter interval.
            self._page_due = min(self._page_due, now + self._slot())
        if before < self._listed_from:
            for polled in self.campaigns.values():
                if polled._due is None and not polled.is_being_read and not self._covers(polled):
                    self._schedule(polled, self._next_single(polled, now))

    def _next_single(self, polled: PolledCampaign, now: float) -> float:
        """Return when to start polling singly a campaign the list has covered: in time, at a random offset."""
        left = max(polled.seen_at, polled.joined_at) + polled.interval * _LONGEST_ROUND - now
        return now + max(0.0, left) * random.random()  # noqa: S311

    def _cheapest(self, now: float) -> float:
        """Return the shortest interval of the waits that are to go by the list; infinity for none."""
        if now < self._list_blocked_until or self._listable.total() < (1 if self.list_readers else 2):
            return math.inf
        if self._total is None or (self._listed_from == math.inf and now - self._measured_at > _MEASURE_AGAIN):
            return min(self._listable)
        costs = self._requests_per_second()
        best = min(reversed(costs), key=costs.__getitem__)
        now_taken = next(cost for interval, cost in costs.items() if interval >= self._listed_from)
        covers_nobody = max(self._listable) < self._listed_from < math.inf
        is_worth_it = best > self._listed_from or covers_nobody or costs[best] * _WORTH_A_CHANGE < now_taken
        return best if is_worth_it else self._listed_from

    def _requests_per_second(self) -> dict[float, float]:
        """Return what the waits take if those from an interval on go by the list, by this interval, in order."""
        # The passes that the list's readers take anyway cost the waits nothing.
        anyway = max((1 / reader.interval for reader in self.list_readers), default=0.0)
        costs, singly = {}, 0.0
        for interval in sorted(self._listable):
            costs[interval] = singly + self._pages() * max(0.0, 1 / interval - anyway)
            singly += self._listable[interval] / interval
        costs[math.inf] = singly
        return costs

    def _look_for_missing(self, now: float) -> None:
        """Read those by themselves that a whole pass over the list did not show: pages shift while they are read."""
        for polled in self._missing():
            self._unlist(polled)
            polled.needs_single_reads = True
            if polled._due is None and not polled.is_being_read:
                self._schedule(polled, now)

    def _missing(self) -> Iterator[PolledCampaign]:
        for polled in self.campaigns.values():
            if (
                not polled.needs_single_reads
                and polled.seen_at < self._pass_began
                and polled.joined_at < self._pass_began
            ):
                yield polled
