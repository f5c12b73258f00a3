# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api.pacing import RequestBudget
from airflow_provider_voicegenie.api.retries import seconds_to_wait

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
DATE_SECONDS = 1767225600


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


@given(
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "date"]), st.text())
)
def test_any_header_is_a_wait_or_none(headers):
    seconds = seconds_to_wait(headers, now=0)
    assert seconds is None or seconds >= 0


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5))
def test_never_more_than_the_budget_in_any_minute(gaps, limit):
    budget, now, sent = RequestBudget(limit), 0.0, []
    for gap in gaps:
        now += gap
        now += budget.delay(now)
        budget.spend(now)
        sent.append(now)
    for moment in sent:
        # Just under a minute, as sums of floats may fall short of it by a hair.
        assert sum(moment <= other < moment + 59.999 for other in sent) <= limit


def test_a_closed_budget_opens_again():
    budget = RequestBudget(100)
    budget.close(20, now=5)
    assert budget.delay(10) == 15
    assert budget.delay(30) == 0
