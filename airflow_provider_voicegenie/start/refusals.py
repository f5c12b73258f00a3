# SPDX-License-Identifier: Apache-2.0
"""How long a start waits after a 429, which the service answers without starting anything. Without I/O."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

#: How long a start waits for the service in all. Longer than a thousand starts take at 60 requests a minute, and not so
#: long that a start of the evening comes at night. Whoever wants less sets ``execution_timeout``.
PATIENCE = timedelta(hours=2)

#: Seconds by which tasks that wait in workers keep out of each other's way: up to the first after one refused read,
#: then up to twice as many for each read and four times as many for each start, and no more than the second. Chosen by
#: simulation: a thousand starts at 60 requests a minute.
_FIRST_SPREAD, _LONGEST_SPREAD = 10.0, 600.0

#: Seconds to wait if the service does not say how long.
_UNTOLD = 1.0


class Refusals(NamedTuple):
    """
    The requests of a start that were refused.

    :param since: Since when it has waited for the service, Unix seconds.
    :param requests: How many, with those that only read.
    :param starts: How many of them would have started the campaign.
    """

    since: float = 0.0
    requests: int = 0
    starts: int = 0

    def one_more(self, now: float, *, was_start: bool) -> Refusals:
        """
        Count one more.

        :param now: Unix seconds.
        :param was_start: Whether it would have started the campaign.
        """
        return Refusals(self.since if self.requests else now, self.requests + 1, self.starts + was_start)

    def counted_from(self, opening: datetime) -> Refusals:
        """
        Do not count the time until the calling hours open.

        :param opening: When they do.
        """
        return self._replace(since=opening.timestamp())

    def next_attempt(self, asked: float | None, now: float, max_attempts: int) -> datetime | None:
        """
        Return when to try again at the earliest; ``None`` if not any more.

        :param asked: Seconds the service asked to wait.
        :param now: Unix seconds.
        :param max_attempts: How often a start may be sent; with 1, a read is not tried again either.
        """
        at = now + (_UNTOLD if asked is None else asked)
        if max_attempts == 1 or self.starts >= max_attempts or at > self.since + PATIENCE.total_seconds():
            return None
        return datetime.fromtimestamp(math.ceil(at), UTC)

    def __str__(self) -> str:
        return f"{self.starts} start(s) and {self.requests - self.starts} read(s) were refused,"

    def spread(self) -> timedelta:
        """Return a time by which to wait longer, so that not all try at the same moment."""
        longest = min(_FIRST_SPREAD * 2.0 ** min(self.requests - 1 + self.starts, 10), _LONGEST_SPREAD)
        return timedelta(seconds=random.uniform(0.0, longest))  # noqa: S311
