# SPDX-License-Identifier: Apache-2.0
"""After how long a read is repeated, and a poll that failed."""

from __future__ import annotations

import random

from airflow_provider_voicegenie.api import rate_limit

#: The longest a poll is put off because the ones before it failed: seconds. Recovery is noticed within it.
MAX_POLL_BACKOFF = 30.0

#: The longest we wait between two attempts if the server asks for nothing: seconds.
_MAX_BACKOFF = 20.0


def retry_delay(attempts: int, retry_after: float | None = None) -> float:
    """
    Return the seconds until a failed read is repeated: no less than the server asked, but no more than a minute.

    :param attempts: How many attempts failed in a row.
    :param retry_after: Seconds the server asked to wait.
    """
    backoff = min(0.5 * 2.0 ** min(attempts - 1, 10), _MAX_BACKOFF) + random.uniform(0.0, 0.5)  # noqa: S311
    return min(max(backoff, retry_after or 0.0), rate_limit.MAX_WAIT)


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
    return max(backoff, min(interval, MAX_POLL_BACKOFF), min(retry_after or 0.0, rate_limit.MAX_WAIT))
