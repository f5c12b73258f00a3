# SPDX-License-Identifier: Apache-2.0
"""A feed's share of the rate limit. The caller brings the time and does the waiting."""

from __future__ import annotations

import math
import random

from airflow_provider_voicegenie.api import rate_limit
from airflow_provider_voicegenie.timing import timing

_WINDOW = 60.0

# What follows was chosen by simulation, see tests/pure/test_fair_share.py: 1 to 50 feeds, 60 to 3,000 requests a
# minute, a window that slides or starts over each minute, with and without the headers.

#: Parts of the limit: the share to begin with, the smallest and the largest one (the rest is for tasks in workers), and
#: what may be sent at once after a pause.
_FIRST_SHARE, _SMALLEST_SHARE, _LARGEST_SHARE, _BURST = 1 / 20, 1 / 100, 0.8, 1 / 30

#: Requests a minute below which a share neither begins nor falls, however small the limit is.
_MINIMUM_FIRST_SHARE, _MINIMUM_SHARE = 3.0, 0.5

#: Parts of the limit that all use together: above the one, shares become smaller; below the other, they double in a
#: minute.
_CROWDED, _ROOMY = 0.8, 0.5

#: Seconds after which the last known use of the limit is ignored: since then, each response came when a window had
#: just begun. If windows slide, no other client sent anything in the last one.
_STALE = 150.0

#: What is left of a share if all use too much together, and if the service has refused a request. Once a minute: it
#: takes that long until the service's window shows what came of it.
_LESS, _HALF = 0.7, 0.5

#: By what part of the limit a share becomes larger in a minute, at first: with the headers, and without, if only
#: refused requests show what is too much. The increase doubles with every two minutes without a decrease; without the
#: headers it is the same for `_CALM` divided by the limit, in minutes, and doubles with each half of that.
_STEP, _SMALL_STEP, _CALM = 1 / 2000, 1 / 16000, 3000.0

#: The longest time between two responses that counts for an increase: minutes.
_LONGEST_GAP = 2.0


class FairShare:
    """
    A feed's share of a limit that others use too, unseen (additive increase, multiplicative decrease).

    All see how much of the limit is used: by ``X-RateLimit-Remaining``, or else by a 429. All become slower by the same
    part then, and faster by the same amount otherwise, so that their shares become even. One that needs no more than it
    has does not ask for more.

    :param requests_per_minute: The limit for all together.
    """

    def __init__(self, requests_per_minute: float) -> None:
        self._limit = requests_per_minute
        #: Requests a minute.
        self.per_minute = self._part(_FIRST_SHARE, _MINIMUM_FIRST_SHARE)
        #: When the next request may be sent.
        self.next_at = -math.inf
        self._is_short = False
        self._minutes_since_decrease = 0.0
        self._decreased_at = -math.inf
        self._responded_at: float | None = None
        self._used: float | None = None
        self._reported_at = -math.inf
        self._was_refused = False
        self._refusals_in_a_row = 0

    def take(self, now: float, due: float) -> None:
        """
        Count a request that is sent now.

        :param now: Seconds of a monotonic clock.
        :param due: When it would have been sent if there was no limit.
        """
        self._is_short = due <= self.next_at
        self.next_at = self.turn(1, now)

    def turn(self, number: int, now: float) -> float:
        """
        Return when a request may be sent that has so many others before it.

        :param number: How many are to be sent before it.
        """
        spacing = 60.0 / self.per_minute
        burst = max(1.0, self._limit * _BURST) - 1.0
        return max(self.next_at, now - burst * spacing) + number * spacing

    def succeeded(self, used: float | None, now: float, sent_at: float) -> None:
        """
        Take note of a response that is no 429.

        :param used: What part of the limit all use together, as the service says; ``None`` if it does not.
        :param sent_at: When the request was sent.
        """
        self._refusals_in_a_row = 0
        minutes = self._minutes_since_response(now)
        if used is None:
            is_stale = self._used is not None and now - self._reported_at > _STALE
            used = 0.0 if is_stale else self._used
        else:
            self._reported_at = now
            if used > _CROWDED:
                self._decrease(_LESS, now, sent_at)
        if self._is_short and (used is None or used <= _CROWDED):
            is_first = used is None and not self._was_refused
            is_roomy = used is not None and max(used, self._used or 0.0) < _ROOMY
            self._increase(minutes, doubles=is_first or is_roomy, is_reported=used is not None)
        self._used = used

    def was_refused(self, asked: float | None, now: float, sent_at: float) -> None:
        """
        Take note of a 429.

        :param asked: Seconds the service asked to wait.
        :param sent_at: When the request was sent.
        """
        self._was_refused = True
        self._minutes_since_response(now)
        self._refusals_in_a_row += 1
        self._decrease(_HALF, now, sent_at)
        backoff = min(2.0 ** min(self._refusals_in_a_row - 1, 10), timing.longest_pause) * random.uniform(0.8, 1.0)  # noqa: S311
        # Not all at the same moment.
        apart = random.uniform(0.0, min(5.0, 30.0 / self.per_minute))  # noqa: S311
        self.next_at = max(self.next_at, now + max(backoff, min(asked or 0.0, rate_limit.MAX_WAIT)) + apart)

    def _minutes_since_response(self, now: float) -> float:
        before, self._responded_at = self._responded_at, now
        return 0.0 if before is None else min((now - before) / 60.0, _LONGEST_GAP)

    def _decrease(self, part: float, now: float, sent_at: float) -> None:
        self._minutes_since_decrease = 0.0
        if sent_at - self._decreased_at >= _WINDOW:
            self._decreased_at = now
            self.per_minute = max(self.per_minute * part, self._part(_SMALLEST_SHARE, _MINIMUM_SHARE))

    def _part(self, part: float, minimum: float) -> float:
        return max(self._limit * part, min(self._limit * _LARGEST_SHARE / 2, minimum))

    def _increase(self, minutes: float, *, doubles: bool, is_reported: bool) -> None:
        if doubles:
            self.per_minute *= 2.0**minutes
        else:
            self._minutes_since_decrease += minutes
            if is_reported:
                step, doublings = _STEP, self._minutes_since_decrease / 2.0
            else:
                step = _SMALL_STEP
                doublings = max(0.0, 2.0 * (self._minutes_since_decrease * self._limit / _CALM - 1.0))
            self.per_minute += self._limit * step * 2.0 ** min(doublings, 30.0) * minutes
        self.per_minute = min(self.per_minute, self._limit * _LARGEST_SHARE)
