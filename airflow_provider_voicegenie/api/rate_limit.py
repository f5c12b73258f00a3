# SPDX-License-Identifier: Apache-2.0
"""How many requests a client sends in a minute. The caller brings the time and does the waiting."""

from __future__ import annotations

import threading
from collections import deque

_WINDOW = 60.0


class RateLimiter:
    """
    Allows so many requests in any 60 seconds, and none while the service's own window is used up. Safe among threads.

    :param requests_per_minute: The limit.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._lock = threading.Lock()
        self._sent: deque[float] = deque(maxlen=requests_per_minute)
        self._blocked_until = 0.0

    def reserve(self, now: float, *, may_wait: bool = True) -> float:
        """
        Count a request, and return how many seconds it has to wait before it is sent.

        :param now: Seconds of a monotonic clock.
        :param may_wait: Whether it can wait; otherwise it counts, and is sent at once.
        """
        with self._lock:
            at = now
            if may_wait:
                at = max(at, self._blocked_until)
                if len(self._sent) == self._sent.maxlen:
                    at = max(at, self._sent[0] + _WINDOW)
            self._sent.append(at)
            return at - now

    def block(self, seconds: float, now: float) -> None:
        """Block requests for ``seconds``: the service's rate-limit window is used up."""
        with self._lock:
            self._blocked_until = max(self._blocked_until, now + seconds)
