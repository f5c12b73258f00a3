# SPDX-License-Identifier: Apache-2.0
"""
When a request may be sent: so many in a minute, and what the headers of responses say.

The caller brings the time and does the waiting. A moment in a header is read against the response's own ``Date``, so
that a clock that is off, theirs or ours, does no harm.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

#: The longest we wait between two attempts, whatever the server asks for: seconds.
MAX_WAIT = 60.0

#: How far the service's clock may be from ours. A `Date` further away is no clock's time. Seconds.
MAX_CLOCK_DIFFERENCE = 300.0

_WINDOW = 60.0


class RateLimiter:
    """
    Allows so many requests in any 60 seconds, and none while the service's own window is used up.

    It is safe among threads.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._lock = threading.Lock()
        self._sent: deque[float] = deque(maxlen=requests_per_minute)
        self._blocked_until = 0.0
        #: What part of the limit all clients use together, as the last response said; ``None`` if it did not say so.
        self.used: float | None = None

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

    def heed(self, headers: Mapping[str, str], now: float, unix_now: float) -> None:
        """
        Take note of what a response says of the limit.

        :param headers: Header fields, names in lower case.
        :param now: Seconds of a monotonic clock.
        :param unix_now: The same moment in Unix seconds.
        """
        if "x-ratelimit-remaining" not in headers:
            self.used = None
            return
        self.used = used_part(headers, unix_now, self._sent.maxlen or 0)
        if (reset := rate_limit_reset(headers, unix_now)) is not None:
            self.block(min(reset, MAX_WAIT), now)

    def block(self, seconds: float, now: float) -> None:
        """Block requests for ``seconds``: the service's rate-limit window is used up."""
        with self._lock:
            self._blocked_until = max(self._blocked_until, now + seconds)


def seconds_to_wait(headers: Mapping[str, str], now: float) -> float | None:
    """
    Return how many seconds the server asks to wait; ``None`` if it does not say so in a readable way.

    ``Retry-After`` counts before ``X-RateLimit-Reset``, and that one only if nothing remains. Dates are read against
    the response's own ``Date``, so that a clock that is off, theirs or ours, does no harm; beyond
    :data:`MAX_CLOCK_DIFFERENCE`, for no longer than :data:`MAX_WAIT` or than our own clock says.

    :param headers: Header fields, names in lower case.
    :param now: The time in Unix seconds, used if the response has no ``Date``.
    """
    asked = headers.get("retry-after", "").strip()
    if asked:
        seconds = _number(asked)
        if seconds is None and (moment := _read_date(asked)) is not None:
            seconds = _seconds_until(moment, headers, now)
        if seconds is not None and seconds >= 0:
            return seconds
    return rate_limit_reset(headers, now)


def rate_limit_reset(headers: Mapping[str, str], now: float) -> float | None:
    """
    Return the seconds until the rate limit's window ends, if the headers say that nothing of it remains.

    :param headers: Header fields, names in lower case.
    :param now: The time in Unix seconds, used if the response has no ``Date``.
    """
    remaining = _number(headers.get("x-ratelimit-remaining", ""))
    if remaining is None or remaining > 0:
        return None
    return _reset(headers, now)


def used_part(headers: Mapping[str, str], now: float, requests_per_minute: float) -> float | None:
    """
    Return what part of the rate limit is used by all together; ``None`` if the headers do not show it.

    It is more than 1 if the limit would be used up before its window ends. The window may slide or start over, and last
    a minute, an hour or a day. Its first seconds show nothing.

    :param headers: Header fields, names in lower case.
    :param now: The time in Unix seconds, used if the response has no ``Date``.
    :param requests_per_minute: The limit, if ``X-RateLimit-Limit`` is not there.
    """
    remaining = _number(headers.get("x-ratelimit-remaining", ""))
    limit = _number(headers.get("x-ratelimit-limit", "")) or requests_per_minute
    if remaining is None or limit <= 0:
        return None
    used = max(0.0, 1.0 - remaining / limit)
    reset = _reset(headers, now)
    window = next((window for window in _WINDOWS if reset is not None and reset <= window), None)
    if reset is None or window is None:
        return used
    passed = window - reset
    return used * window / passed if passed >= _TELLING else None


#: How long a rate limit's window may be, and how much of it has to be over before it shows anything: seconds.
_WINDOWS = (60.0, 3600.0, 86400.0)
_TELLING = 15.0


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until the rate limit's window ends; ``None`` if the headers do not say so."""
    reset = _number(headers.get("x-ratelimit-reset", ""))
    if reset is None or reset < 0:
        return None
    if reset < 1e9:  # seconds to go, not a moment
        return reset
    moment = reset / 1000 if reset > 1e11 else reset
    return _seconds_until(moment, headers, now)


def _seconds_until(moment: float, headers: Mapping[str, str], now: float) -> float:
    offset = clock_offset(headers, now)
    seconds = max(0.0, moment - (now + offset))
    return seconds if abs(offset) <= MAX_CLOCK_DIFFERENCE else min(seconds, max(MAX_WAIT, moment - now))


def clock_offset(headers: Mapping[str, str], now: float) -> float:
    """
    Return by how many seconds the server's clock is ahead; 0 if the response has no ``Date``.

    :param headers: Header fields, names in lower case.
    :param now: The time in Unix seconds.
    """
    moment = _read_date(headers.get("date", ""))
    return 0.0 if moment is None else moment - now


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_date(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
