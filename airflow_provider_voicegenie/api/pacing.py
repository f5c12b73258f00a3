# SPDX-License-Identifier: Apache-2.0
"""How fast one client may call. Without I/O: the caller brings the time and does the waiting."""

from __future__ import annotations

from collections import deque

_WINDOW = 60.0


class RequestBudget:
    """
    At most so many requests in any 60 seconds, and none before the server's window ends once it is used up.

    :param requests_per_minute: The limit.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._sent: deque[float] = deque(maxlen=requests_per_minute)
        self._closed_until = 0.0

    def delay(self, now: float) -> float:
        """
        Return how many seconds the next request has to wait.

        :param now: Seconds of a monotonic clock.
        """
        opens = self._closed_until
        if len(self._sent) == self._sent.maxlen:
            opens = max(opens, self._sent[0] + _WINDOW)
        return max(0.0, opens - now)

    def spend(self, now: float) -> None:
        """Count a request that goes out now."""
        self._sent.append(now)

    def close(self, seconds: float, now: float) -> None:
        """Let nothing go out for so many seconds, as the server said that nothing of its window remains."""
        self._closed_until = max(self._closed_until, now + seconds)
