# SPDX-License-Identifier: Apache-2.0
"""How long a start waits after a 429, which the service answers without starting anything. Without I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from airflow_provider_voicegenie.timing import timing

#: How long a start waits for the service in all. Longer than a thousand starts take at 60 requests a minute, and not so
#: long that a start of the evening comes at night. Whoever wants less sets ``execution_timeout``.
PATIENCE = timedelta(hours=2)


#: By how many times the spread of a start grows at a refusal, at most (decorrelated jitter).
_FACTOR = 8.0

#: Seconds to wait if the service does not say how long.
_UNTOLD = 1.0


class Refusals(NamedTuple):
    """
    The requests of a start that were refused.

    :param since: Since when it has waited for the service, Unix seconds.
    :param requests: How many, with those that only read.
    :param starts: How many of them would have started the campaign.
    :param spread: Seconds by which it waited longer than asked, after the last one.
    """

    since: float = 0.0
    requests: int = 0
    starts: int = 0
    spread: float = 0.0

    def one_more(self, now: float, *, was_start: bool) -> Refusals:
        """
        Count one more.

        :param now: Unix seconds.
        :param was_start: Whether it would have started the campaign.
        """
        shortest, longest = (0.0, timing.shortest_spread)
        if self.requests:
            shortest, longest = timing.shortest_spread, max(self.spread, timing.shortest_spread) * _FACTOR
        spread = min(random.uniform(shortest, longest), timing.longest_spread)  # noqa: S311
        return Refusals(self.since if self.requests else now, self.requests + 1, self.starts + was_start, spread)

    def counted_from(self, opening: datetime) -> Refusals:
        """Do not count the time until the calling hours open."""
        return self._replace(since=opening.timestamp(), spread=0.0)

    def earliest_attempt(self, asked: float | None, now: float, max_attempts: int) -> datetime | None:
        """
        Return when the service may take the start; ``None`` if it is not tried again.

        :param asked: Seconds the service asked to wait.
        :param now: Unix seconds.
        :param max_attempts: How often a start may be sent; with 1, a read is not tried again either.
        """
        at = now + (_UNTOLD if asked is None else asked)
        if max_attempts == 1 or self.starts >= max_attempts or at > self._end:
            return None
        return datetime.fromtimestamp(math.ceil(at), UTC)

    def spread_out(self, earliest: datetime) -> Iterator[datetime]:
        """Give the times to try again, the best first: later than at the earliest, but not past the end of patience."""
        longest = max(0.0, min(self.spread, self._end - earliest.timestamp()))
        for part in (1.0, 0.5, 0.25, 0.0):
            yield earliest + timedelta(seconds=part * longest)

    @property
    def _end(self) -> float:
        return self.since + PATIENCE.total_seconds()

    def __str__(self) -> str:
        return f"{self.starts} start(s) and {self.requests - self.starts} read(s) were refused,"
