# SPDX-License-Identifier: Apache-2.0
"""When a read is repeated, and after how long."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.errors import VoiceGenieError

if TYPE_CHECKING:
    from tenacity import RetryCallState

#: The longest we wait between two attempts, whatever the server asks for: seconds.
MAX_WAIT = 60.0

#: The longest a poll is put off because the ones before it failed: seconds. Recovery is noticed within it.
MAX_POLL_BACKOFF = 30.0

#: How far the service's clock may be from ours. A `Date` that is further away is nobody's time. Seconds.
MAX_CLOCK_DIFFERENCE = 300.0

#: The longest we wait between two attempts if the server asks for nothing: seconds.
_MAX_BACKOFF = 20.0


def retry_arguments(
    max_attempts: int, announce: Callable[[RetryCallState], None], *, except_for: type[VoiceGenieError] | None = None
) -> dict[str, Any]:
    """
    Return the arguments for tenacity's ``Retrying``.

    :param max_attempts: Attempts in all, the first included.
    :param announce: Called before each wait.
    :param except_for: Trouble that looks temporary, and is not repeated all the same.
    """
    # From here, as DAG files with a watcher import this module, and Airflow's SDK no longer does this one.
    from tenacity import retry_if_exception, stop_after_attempt

    def may_be_repeated(error: BaseException) -> bool:
        return (
            isinstance(error, VoiceGenieError)
            and error.temporary
            and not (except_for and isinstance(error, except_for))
        )

    return {
        "stop": stop_after_attempt(max_attempts),
        "wait": _wait,
        "retry": retry_if_exception(may_be_repeated),
        "before_sleep": announce,
        "reraise": True,
    }


def _wait(state: RetryCallState) -> float:
    """Back off, but not for less than the server asked, nor for longer than :data:`MAX_WAIT`."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, VoiceGenieError) and error.retry_after is not None else 0.0
    backoff = min(0.5 * 2.0 ** min(state.attempt_number - 1, 10), _MAX_BACKOFF) + random.uniform(0.0, 0.5)  # noqa: S311
    return min(max(backoff, asked), MAX_WAIT)


def poll_delay(interval: float, failures: int, retry_after: float | None = None) -> float:
    """
    Return the seconds until the next poll of something that is waited for.

    Failures put it off, but never for longer than :data:`MAX_POLL_BACKOFF`, and bring it forward if the interval is
    longer than that: a long outage costs few requests, and its end is noticed soon.

    :param interval: Seconds between polls while all is well.
    :param failures: How many polls failed in a row.
    :param retry_after: Seconds the server asked to wait.
    """
    if failures == 0:
        return interval
    backoff = min(2.0 ** min(failures - 1, 10), MAX_POLL_BACKOFF) * random.uniform(0.8, 1.0)  # noqa: S311
    return max(backoff, min(interval, MAX_POLL_BACKOFF), min(retry_after or 0.0, MAX_WAIT))


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

    It is more than 1 if the limit would be used up before its window ends. The window may slide or begin anew, and last
    a minute, an hour or a day. What is seen in its first seconds says nothing.

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
