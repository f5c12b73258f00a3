# SPDX-License-Identifier: Apache-2.0
"""Simulations of many feeds at a service that limits all together. No time passes in them."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from dataclasses import dataclass, field

from airflow_provider_voicegenie.api.rate_limit import used_part
from airflow_provider_voicegenie.feed.share import FairShare

HOUR = 3600.0
LATENCY = 0.1


@dataclass
class LimitedService:
    """
    Counts requests.

    :param per_minute: The limit.
    :param slides: Whether it is for any 60 seconds; otherwise for each minute of the clock.
    :param has_headers: Whether its responses say what remains.
    """

    per_minute: int
    slides: bool = True
    has_headers: bool = True
    _window: deque = field(default_factory=deque)
    _began: float = -1.0

    def take(self, now):
        """Return whether a request is accepted, and the headers of its response."""
        if self.slides:
            while self._window and self._window[0] <= now - 60:
                self._window.popleft()
            reset = self._window[0] + 60 - now if self._window else 60
        else:
            if now // 60 != self._began:
                self._began = now // 60
                self._window.clear()
            reset = 60 - now % 60
        is_accepted = len(self._window) < self.per_minute
        if is_accepted:
            self._window.append(now)
        if not self.has_headers:
            return is_accepted, {}
        return is_accepted, {
            "x-ratelimit-limit": str(self.per_minute),
            "x-ratelimit-remaining": str(self.per_minute - len(self._window)),
            "x-ratelimit-reset": str(reset),
        }


@dataclass
class Feed:
    """
    One that polls.

    :param begins: When, in seconds.
    :param ends: When.
    :param wants: Requests a minute that it needs; as many as it may send by default.
    """

    begins: float = 0.0
    ends: float = float("inf")
    wants: float | None = None


@dataclass
class Outcome:
    """What was seen."""

    #: (Minute, index of the feed) -> requests that were accepted.
    accepted: Counter = field(default_factory=Counter)
    #: Minute -> requests that were sent, and those of them that were refused.
    sent: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)

    def refused_part(self, first_minute=0):
        sent = sum(count for minute, count in self.sent.items() if minute >= first_minute)
        return sum(count for minute, count in self.refused.items() if minute >= first_minute) / sent

    def most_in_a_minute(self, first_minute=0):
        return max(count for minute, count in self.sent.items() if minute >= first_minute)

    def by_feed(self, first_minute, last_minute):
        """Return how many requests of each feed were accepted."""
        feeds = Counter()
        for (minute, feed), count in self.accepted.items():
            if first_minute <= minute < last_minute:
                feeds[feed] += count
        return list(feeds.values())


def evenness(numbers):
    """Return Jain's index of fairness: 1 if all are the same, 1/n if one has everything."""
    return sum(numbers) ** 2 / (len(numbers) * sum(number**2 for number in numbers))


def simulate(service, feeds, hours, seed=1):
    """Let feeds poll a service for so many hours."""
    random.seed(seed)
    outcome = Outcome()
    shares = [FairShare(service.per_minute) for _ in feeds]
    # When the next request of each is sent, and since when it has been due.
    queue = [(feed.begins + random.uniform(0, 3), index, feed.begins) for index, feed in enumerate(feeds)]
    heapq.heapify(queue)
    while queue and queue[0][0] < hours * HOUR:
        now, index, due = heapq.heappop(queue)
        feed, share = feeds[index], shares[index]
        if now >= feed.ends:
            continue
        share.take(now, due)
        is_accepted, headers = service.take(now)
        minute = int(now // 60)
        outcome.sent[minute] += 1
        if is_accepted:
            outcome.accepted[minute, index] += 1
            share.succeeded(used_part(headers, now, service.per_minute), now + LATENCY, now)
        else:
            outcome.refused[minute] += 1
            asked = headers.get("x-ratelimit-reset")
            share.was_refused(asked and float(asked), now + LATENCY, now)
        due = now if feed.wants is None else max(due + 60 / feed.wants * random.uniform(0.86, 0.9), now - 60)
        # The machine has other things to do, too.
        late = random.uniform(0, 3 / share.per_minute)
        heapq.heappush(queue, (max(now, due, share.next_at) + late, index, due))
    return outcome
