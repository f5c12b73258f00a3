# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api.rate_limit import RateLimiter, seconds_to_wait

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
DATE_SECONDS = 1767225600
NOW = 1800000000


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT", "date": DATE}, 30),
        ({"retry-after": "Wed, 31 Dec 2025 00:00:00 GMT", "date": DATE}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(DATE_SECONDS + 20), "date": DATE}, 20),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((DATE_SECONDS + 20) * 1000), "date": DATE}, 20),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "12"}, None),
        ({"x-ratelimit-reset": "12"}, None),
        ({"retry-after": "7", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 7),
        ({"retry-after": "soon", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 12),
    ],
)
def test_what_the_server_asks_for(headers, expected):
    assert seconds_to_wait(headers, now=0) == expected


@pytest.mark.parametrize("field", ["retry-after", "x-ratelimit-reset"])
@pytest.mark.parametrize(
    ("date", "moment", "expected"),
    [
        # The two agree with each other, whatever our clock shows.
        (NOW, NOW + 90, 90),
        (NOW + 240, NOW + 330, 90),
        (NOW + 7200, NOW + 7230, 30),
        (NOW - 7200, NOW - 7170, 30),
        # One of them is nobody's time: a minute, or what our own clock makes of it.
        (0, NOW + 30, 60),
        (0, NOW + 90, 90),
        (NOW - 7200, NOW + 20, 60),
        (NOW + 7200, NOW + 30, 0),
    ],
)
def test_a_date_that_is_far_off_makes_nobody_wait(field, date, moment, expected):
    asked = formatdate(moment, usegmt=True) if field == "retry-after" else str(moment)
    headers = {field: asked, "date": formatdate(date, usegmt=True), "x-ratelimit-remaining": "0"}
    assert seconds_to_wait(headers, now=NOW) == expected


@given(
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "date"]), st.text())
)
def test_any_header_is_a_wait_or_none(headers):
    seconds = seconds_to_wait(headers, now=0)
    assert seconds is None or seconds >= 0


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5))
def test_never_more_than_the_limit_in_any_minute(gaps, limit):
    limiter, now, sent = RateLimiter(limit), 0.0, []
    for gap in gaps:
        now += gap
        now += limiter.reserve(now)
        sent.append(now)
    for moment in sent:
        # Just under a minute, as sums of floats may fall short of it by a hair.
        assert sum(moment <= other < moment + 59.999 for other in sent) <= limit


def test_requests_at_one_time_are_given_times_of_their_own():
    limiter = RateLimiter(2)
    assert [limiter.reserve(10) for _ in range(5)] == [0, 0, 60, 60, 120]


def test_what_cannot_wait_counts_and_is_sent():
    limiter = RateLimiter(2)
    limiter.block(20, now=0)
    assert [limiter.reserve(0, may_wait=False) for _ in range(3)] == [0, 0, 0]
    assert limiter.reserve(1) == 59


def test_a_block_ends():
    limiter = RateLimiter(100)
    limiter.block(20, now=5)
    assert limiter.reserve(10) == 15
    assert limiter.reserve(30) == 0
