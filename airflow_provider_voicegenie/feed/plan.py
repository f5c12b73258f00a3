# SPDX-License-Identifier: Apache-2.0
"""
Which request a shared poll sends next, and when. Without I/O: the caller brings the time and sends the requests.

Each subscriber names a request, and the seconds between two responses. Equal requests are sent once for all of them.
Nothing here depends on what a request reads, but for one rule: a page of the list answers ``campaign(id)`` for up to a
thousand campaigns. For the subscribers at hand, whichever takes fewer requests is chosen: the list for all, single
reads, or the list for those that are in no hurry and single reads for the others. The pages of one pass over the list,
and the other reads, are spread over the interval. Everything is read at least once in an interval: each round takes a
little less than one, and passes over the list somewhat less if they are cheap.

A subscriber to :data:`LIST` itself makes the plan read the whole list in any case. The waits go with it if that saves
requests.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from airflow_provider_voicegenie.api.endpoints import MAX_PAGE_SIZE, Request, campaign_page
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage
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

#: How many reads of something that is read once may be under way: polls come first.
_MAXIMUM_UNDER_WAY = 3

#: Failed pages in a row after which a single read shows whether it is the list alone that fails.
_DOUBTFUL = 3


#: The whole list. A subscriber to this request is shown each page of each pass over it.
LIST: Request[CampaignPage] = campaign_page(limit=MAX_PAGE_SIZE, offset=0)

_CAMPAIGN = Campaign.from_json


class Interest:
    """
    What a subscriber wants of a request.

    :param interval: Seconds between two responses, at most; infinity for one response.
    :param is_list_enough: Whether the list's entry of a campaign is as good as the response to ``campaign(id)``.
    :param joined_at: When it subscribed, by the event loop's clock.
    :param is_counted: Whether Airflow's metrics count it as a wait.
    """

    __slots__ = ("interval", "is_counted", "is_list_enough", "joined_at")

    def __init__(self, interval: float, is_list_enough: bool, joined_at: float, is_counted: bool = True) -> None:
        self.interval = interval
        self.is_list_enough = is_list_enough
        self.joined_at = joined_at
        self.is_counted = is_counted


@dataclass(frozen=True)
class ListedPage:
    """
    A page of the list.

    :param offset: How many campaigns come before it.
    :param asked_at: When it was asked for, Unix seconds.
    """

    offset: int
    page: CampaignPage
    asked_at: float

    @cached_property
    def by_id(self) -> Mapping[str, Campaign]:
        """The campaigns by their ids; all subscribers share it."""
        return {campaign.campaign_id: campaign for campaign in self.page.campaigns}


class Poll:
    """
    One request that is sent for its subscribers.

    :param now: Seconds of a monotonic clock.
    """

    __slots__ = (
        "_due",
        "failures",
        "is_single",
        "is_under_way",
        "joined_at",
        "read_at",
        "request",
        "subscribers",
    )

    def __init__(self, request: Request[Any], now: float) -> None:
        self.request = request
        self.joined_at = now
        self.subscribers: tuple[Interest, ...] = ()
        #: Whether the list does not do: it has no such thing, not enough of it, or does not show this campaign.
        self.is_single = False
        self.read_at = -math.inf
        self.failures = 0
        self.is_under_way = False
        #: When the request is to be sent; ``None`` while the list covers it.
        self._due: float | None = None

    @property
    def interval(self) -> float:
        """The shortest interval that a subscriber asks for."""
        return min(subscriber.interval for subscriber in self.subscribers)

    @property
    def is_once(self) -> bool:
        """Whether one response is enough."""
        return self.interval == math.inf

    @property
    def needs_single_reads(self) -> bool:
        """Whether a subscriber asks for what the list does not have, or at once."""
        return not is_of_campaign(self.request) or any(
            not each.is_list_enough or each.interval == math.inf for each in self.subscribers
        )


class PollingPlan:
    """What is polled for, and which request is to be sent next."""

    def __init__(self) -> None:
        # By the campaign's id if it is `campaign(id)`, so that a page finds its campaigns fast; else by the request.
        self._polls: dict[str | Request[Any], Poll] = {}
        self._singles: list[tuple[float, int, Poll]] = []
        self._sequence = 0
        # Single reads, and since when each waits; and which of them are under way.
        self._once: deque[tuple[float, Poll]] = deque()
        self._once_under_way: set[Request[Any]] = set()
        # How many campaigns the list may cover, and how many subscribers it has itself, by interval.
        self._listable: Counter[float] = Counter()
        self._list_readers: Counter[float] = Counter()
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

    # Subscriptions.

    def polls(self) -> Iterable[Poll]:
        """Return all that is polled for."""
        return self._polls.values()

    def poll(self, request: Request[Any]) -> Poll | None:
        """Return the poll for a request, or for any page of the list; ``None`` if nothing asks for it."""
        return self._polls.get(_key(request))

    def poll_of(self, campaign_id: str) -> Poll | None:
        """Return the poll for a campaign."""
        return self._polls.get(campaign_id)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self._polls

    @property
    def waiting_once(self) -> int:
        """How many reads of something that is read once wait to be sent."""
        return len(self._once)

    def add(self, request: Request[Any], subscriber: Interest, now: float) -> Poll:
        """
        Send a request on behalf of one more subscriber.

        :param subscriber: What takes its responses.
        :param now: Seconds of a monotonic clock.
        """
        poll = self._join(request, subscriber, now)
        self._choose(now)
        self._begin(poll, subscriber.interval, now)
        return poll

    def remove(self, request: Request[Any], subscriber: Interest, now: float) -> None:
        """Stop sending a request for a subscriber."""
        key = _key(request)
        poll = self._polls[key]
        self._unlist(poll)
        at = poll.subscribers.index(subscriber)
        poll.subscribers = poll.subscribers[:at] + poll.subscribers[at + 1 :]
        if key == LIST:
            _decrease(self._list_readers, subscriber.interval)
        if poll.subscribers:
            self._list(poll)
        else:
            del self._polls[key]
            poll._due = None
        self._choose(now)

    def renewed(self, now: float) -> PollingPlan:
        """
        Return a plan for the same subscribers that has read nothing yet.

        :param now: Seconds of a monotonic clock.
        """
        plan = PollingPlan()
        for poll in self._polls.values():
            for subscriber in poll.subscribers:
                plan._join(poll.request, subscriber, now)
        plan._choose(now)
        for poll in plan._polls.values():
            plan._begin(poll, poll.interval, now)
        return plan

    def poll_now(self, request: Request[Any], now: float) -> None:
        """Send a request at once, although the list may cover it."""
        poll = self.poll(request)
        if poll is not None and not poll.is_under_way:
            self._schedule(poll, now)

    def _join(self, request: Request[Any], subscriber: Interest, now: float) -> Poll:
        key = _key(request)
        poll = self._polls.get(key)
        if poll is None:
            poll = self._polls[key] = Poll(LIST if key == LIST else request, now)
        else:
            self._unlist(poll)
        poll.subscribers = (*poll.subscribers, subscriber)
        poll.is_single = poll.is_single or poll.needs_single_reads
        self._list(poll)
        if key == LIST:
            self._list_readers[subscriber.interval] += 1
        return poll

    def _begin(self, poll: Poll, interval: float, now: float) -> None:
        """Send a request for the first time: at a random moment of the interval, as many waits may begin at once."""
        if poll.is_under_way or self._covers(poll):
            return
        is_once = interval == math.inf
        if poll._due is None or poll._due > now + (0.0 if is_once else interval):
            self._schedule(poll, now if is_once else now + interval * random.uniform(0.0, _LONGEST_ROUND))  # noqa: S311

    # Requests and responses.

    def due_at(self) -> float:
        """Return when the next request is due; infinity if none is."""
        while self._singles and self._singles[0][2]._due != self._singles[0][0]:
            heapq.heappop(self._singles)
        single = self._singles[0][0] if self._singles else math.inf
        page = math.inf
        if self._reads_list and not self._page_reading and self._page_due is not None:
            page = self._page_due
        return min(single, page, self._once_due())

    def take(self) -> Request[Any]:
        """Return the request that :meth:`due_at` is about; it counts as under way until its result is reported."""
        due = self.due_at()
        if self._once_due() <= due < math.inf:
            poll = self._once.popleft()[1]
            self._once_under_way.add(poll.request)
        elif self._singles and self._singles[0][0] <= due:
            poll = heapq.heappop(self._singles)[2]
        else:
            self._page_reading = True
            return campaign_page(limit=MAX_PAGE_SIZE, offset=self._offset)
        poll._due = None
        poll.is_under_way = True
        return poll.request

    def _once_due(self) -> float:
        """Return when something is to be read once. What nothing asks for any more is left out."""
        while self._once and self._once[0][1]._due != self._once[0][0]:
            self._once.popleft()
        return self._once[0][0] if self._once and len(self._once_under_way) < _MAXIMUM_UNDER_WAY else math.inf

    # What came of the requests.

    def page_was_read(self, campaign_ids: Iterable[str], size: int, total: int, now: float, sent_at: float) -> None:
        """
        Take note of a page of the list.

        :param campaign_ids: The campaigns on it.
        :param size: How many items it had, unreadable ones included.
        :param total: The campaigns in the account.
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
            poll = self._polls.get(campaign_id)
            if poll is not None:
                poll.read_at = now
                if self._covers(poll):
                    poll._due = None
                if poll.is_single and not poll.needs_single_reads:
                    poll.is_single = False
                    self._list(poll)
        self._offset += size
        if size == 0 or self._offset >= total:
            self._offset = 0
            self._read_missing(now)
        due = self._page_due if self._page_due is not None else now
        self._choose(now)
        if self._reads_list:
            bounds = (_SHORTEST_PASS, _LONGEST_PASS) if self._is_cheap() else (_SHORTEST_ROUND, _LONGEST_ROUND)
            self._page_due = max(now, due + self._slot() * random.uniform(*bounds))  # noqa: S311

    def page_failed(self, now: float, *, retry_after: float | None) -> None:
        """
        Take note of a page that could not be read, in a way that may pass.

        :param retry_after: Seconds the service asked to wait.
        """
        self._page_reading = False
        self._list_failures += 1
        if self._list_is_the_trouble:
            self.block_list(now)
            return
        self._page_due = now + poll_delay(self._slot(), self._list_failures, retry_after)
        if self._list_failures >= _DOUBTFUL:
            idle = [poll for poll in self._polls.values() if is_of_campaign(poll.request) and not poll.is_under_way]
            if idle:
                self._schedule(random.choice(idle), self._page_due)  # noqa: S311

    def block_list(self, now: float) -> None:
        """Do without the list for a while: it is refused, or fails while single reads succeed."""
        self._page_reading = False
        self._list_is_the_trouble = False
        self._list_failures = 0
        self._list_blocked_until = now + _LIST_REST
        # Its own subscribers have nothing else, so it is tried again for them.
        self._page_due = self._list_blocked_until
        self._choose(now)

    def was_read(self, request: Request[Any], now: float, sent_at: float) -> None:
        """
        Take note of a response to any other request.

        :param sent_at: When it was sent.
        """
        self._once_under_way.discard(request)
        poll = self.poll(request)
        if poll is None:
            return
        poll.is_under_way = False
        poll.failures = 0
        poll.read_at = now
        if is_of_campaign(request):
            if self._list_failures >= _DOUBTFUL and self._listed_from < math.inf and not self._page_reading:
                self._list_is_the_trouble = True
                self._page_due = now
            self._choose(now)
        self._schedule_next(poll, now, sent_at)

    def failed(self, request: Request[Any], now: float, sent_at: float, *, retry_after: float | None) -> None:
        """
        Take note that any other request has failed.

        :param sent_at: When it was sent.
        :param retry_after: Seconds the service asked to wait.
        """
        self._once_under_way.discard(request)
        poll = self.poll(request)
        if poll is not None:
            poll.is_under_way = False
            poll.failures += 1
            self._schedule_next(poll, now, sent_at, retry_after)

    # The choice.

    def _schedule_next(self, poll: Poll, now: float, sent_at: float, retry_after: float | None = None) -> None:
        if poll.is_once:
            # Those that came later are owed a later response.
            if any(each.joined_at > sent_at for each in poll.subscribers):
                self._schedule(poll, now)
            return
        if self._covers(poll):
            return
        delay = poll_delay(poll.interval, poll.failures, retry_after)
        if not poll.failures:
            delay *= random.uniform(_SHORTEST_ROUND, _LONGEST_ROUND)  # noqa: S311
        self._schedule(poll, now + delay)

    def _schedule(self, poll: Poll, due: float) -> None:
        poll._due = due
        if poll.is_once:
            self._once.append((due, poll))
            return
        self._sequence += 1
        heapq.heappush(self._singles, (due, self._sequence, poll))

    def _covers(self, poll: Poll) -> bool:
        return poll.request is LIST or (not poll.is_single and self._listed_from <= poll.interval)

    def _list(self, poll: Poll) -> None:
        if not poll.is_single:
            self._listable[poll.interval] += 1

    def _unlist(self, poll: Poll) -> None:
        if not poll.is_single:
            _decrease(self._listable, poll.interval)

    def _pages(self) -> int:
        return max(1, math.ceil((self._total or 0) / self._page_size))

    def _pass_time(self) -> float:
        """Return the seconds that one pass over the list may take."""
        by_list = (interval for interval in self._listable if interval >= self._listed_from)
        return min((*self._list_readers, *by_list), default=0.0)

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
        read, self._reads_list = self._reads_list, self._listed_from < math.inf or bool(self._list_readers)
        if self._reads_list and not read:
            # Single reads that are due stay so until the list has covered their campaigns.
            self._offset = 0
            self._page_due = now + min(_GATHERING, self._pass_time() / 10)
        elif self._page_due is not None and not self._list_failures and now >= self._list_blocked_until:
            # A subscriber that joined meanwhile may ask for a shorter interval.
            self._page_due = min(self._page_due, now + self._slot())
        if before < self._listed_from:
            for poll in self._polls.values():
                if poll._due is None and not poll.is_single and not poll.is_under_way and not self._covers(poll):
                    self._schedule(poll, self._next_single(poll, now))

    def _next_single(self, poll: Poll, now: float) -> float:
        """Return when to start polling singly a campaign the list has covered: in time, at a random offset."""
        left = max(poll.read_at, poll.joined_at) + poll.interval * _LONGEST_ROUND - now
        return now + max(0.0, left) * random.random()  # noqa: S311

    def _cheapest(self, now: float) -> float:
        """Return the shortest interval of the waits that are to go by the list; infinity for none."""
        if now < self._list_blocked_until or self._listable.total() < (1 if self._list_readers else 2):
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
        anyway = 1 / min(self._list_readers, default=math.inf)
        costs, singly = {}, 0.0
        for interval in sorted(self._listable):
            costs[interval] = singly + self._pages() * max(0.0, 1 / interval - anyway)
            singly += self._listable[interval] / interval
        costs[math.inf] = singly
        return costs

    def _read_missing(self, now: float) -> None:
        """Read those by themselves that a whole pass over the list did not show: pages shift while they are read."""
        for poll in self._polls.values():
            if not poll.is_single and poll.read_at < self._pass_began and poll.joined_at < self._pass_began:
                self._unlist(poll)
                poll.is_single = True
                if poll._due is None and not poll.is_under_way:
                    self._schedule(poll, now)


def is_page(request: Request[Any]) -> bool:
    """Say whether a request reads a page of the list."""
    return request.decode == LIST.decode


def is_of_campaign(request: Request[Any]) -> bool:
    """Say whether a request reads one campaign, which the list has, too."""
    return request.decode == _CAMPAIGN


def offset_of(page: Request[Any]) -> int:
    """Return how many campaigns come before a page of the list."""
    return int(dict(page.params)["offset"])


def _key(request: Request[Any]) -> str | Request[Any]:
    if is_of_campaign(request) and request.campaign_id is not None:
        return request.campaign_id
    return LIST if is_page(request) else request


def _decrease(counter: Counter[float], interval: float) -> None:
    counter[interval] -= 1
    if not counter[interval]:
        del counter[interval]
