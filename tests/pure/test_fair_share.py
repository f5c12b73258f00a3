# SPDX-License-Identifier: Apache-2.0
"""
Feeds that do not know of each other share the limit of an account: hours of it, simulated.

What must hold: together they stay within the limit, few requests are refused, the shares become even, and what a feed
leaves is used by the others.
"""

from __future__ import annotations

import pytest
from helpers.rate_limits import Feed, LimitedService, evenness, simulate

from airflow_provider_voicegenie.api.rate_limit import used_part
from airflow_provider_voicegenie.feed.share import FairShare

#: Limit -> hours that are simulated: the smaller it is, the longer it takes until the shares are settled.
HOURS = {60: 6, 300: 2, 3000: 1}
SLIDES = pytest.mark.parametrize("slides", [True, False], ids=["slides", "begins anew"])
HEADERS = pytest.mark.parametrize("has_headers", [True, False], ids=["headers", "no headers"])


@SLIDES
@HEADERS
@pytest.mark.parametrize(
    ("per_minute", "number"), [(60, 1), (60, 2), (60, 10), (60, 50), (300, 2), (300, 50), (3000, 50)]
)
def test_feeds_that_want_all_they_can_get(per_minute, number, has_headers, slides):
    hours = HOURS[per_minute]
    outcome = simulate(LimitedService(per_minute, slides, has_headers), [Feed()] * number, hours)
    assert outcome.refused_part() < 0.02
    minutes = int(hours * 60)
    # With those that are refused. A minute of the clock may have requests of two of the service's.
    assert sum(outcome.sent.values()) <= per_minute * minutes
    assert outcome.most_in_a_minute(30) <= 1.25 * per_minute
    settled = outcome.by_feed(minutes // 2, minutes)
    assert len(settled) == number
    assert evenness(settled) > (0.93 if has_headers else 0.65)
    assert 0.5 * per_minute < sum(settled) / (minutes / 2) <= per_minute * (0.81 if number == 1 else 1)


@SLIDES
@HEADERS
@pytest.mark.parametrize("per_minute", [60, 300])
def test_what_some_leave_is_used_by_the_others(per_minute, has_headers, slides):
    hours = HOURS[per_minute]
    feeds = [Feed()] * 2 + [Feed(ends=hours * 1200)] * 18
    outcome = simulate(LimitedService(per_minute, slides, has_headers), feeds, hours)
    minutes = int(hours * 60)
    before, after = (
        sum(outcome.accepted[minute, feed] for minute in range(first, last) for feed in (0, 1)) / (last - first)
        for first, last in ((minutes // 6, minutes // 3), (minutes * 5 // 6, minutes))
    )
    assert after > 0.5 * per_minute > 3 * before


@SLIDES
@pytest.mark.parametrize("per_minute", [60, 300])
def test_those_who_come_later_get_as_much(per_minute, slides):
    hours = HOURS[per_minute]
    feeds = [Feed()] * 5 + [Feed(begins=hours * 1200)] * 5
    outcome = simulate(LimitedService(per_minute, slides), feeds, hours)
    settled = outcome.by_feed(int(hours * 40), int(hours * 60))
    assert len(settled) == 10
    assert evenness(settled) > 0.9


@HEADERS
def test_one_that_needs_little_gets_it_beside_those_who_want_all(has_headers):
    feeds = [Feed()] * 4 + [Feed(wants=10)]
    outcome = simulate(LimitedService(300, has_headers=has_headers), feeds, 4)
    needed = sum(outcome.accepted[minute, 4] for minute in range(120, 240)) / 120
    assert 9 < needed < 12


def test_a_limit_for_an_hour_is_kept_too():
    """The service refuses nothing here; its headers speak of an hour's limit that is soon used up."""
    share, now, remaining = FairShare(60), 0.0, 300
    while now < 3600:
        share.take(now, now)
        remaining -= 1
        headers = {"x-ratelimit-limit": "300", "x-ratelimit-remaining": str(remaining)}
        headers["x-ratelimit-reset"] = str(3600 - now)
        share.succeeded(used_part(headers, now, 60), now, now)
        now = max(now, share.next_at)
    assert 0 < remaining < 250


def test_a_share_that_is_not_needed_does_not_grow():
    share = FairShare(600)
    before = share.per_minute
    for minute in range(600):
        share.take(minute * 60.0, minute * 60.0)
        share.succeeded(0.1, minute * 60.0 + 0.1, minute * 60.0)
    assert share.per_minute == before


def test_a_refused_request_is_waited_out_as_asked():
    share = FairShare(60)
    share.take(0.0, 0.0)
    share.was_refused(20.0, 0.5, 0.0)
    assert 20.5 <= share.next_at < 26
    share.was_refused(10_000.0, 0.5, 0.0)
    assert share.next_at < 66, "no longer than a minute, whatever the service asks for"


@pytest.mark.parametrize("used", [None, 0.1], ids=["without headers", "with headers"])
def test_the_time_before_a_refusal_lets_the_share_grow_no_more(used):
    """It grows by the time since the last response, and a 429 is one."""

    def grown(refused_at):
        share = FairShare(600)
        share.take(0.0, 0.0)
        share.succeeded(used, 1.0, 0.0)
        share.was_refused(None, refused_at, refused_at - 1)
        before = share.per_minute
        for at in (170.0, 171.0):
            # As many as it may send, so that it could do with more.
            while share.next_at <= at:
                share.take(share.next_at, share.next_at)
            share.succeeded(used, at, at - 0.5)
        return share.per_minute / before

    assert grown(165.0) < grown(5.0)


def test_no_number_of_refusals_is_too_large():
    share, now = FairShare(60), 0.0
    for _ in range(3000):
        share.take(now, now)
        share.was_refused(None, now, now)
        assert now < share.next_at <= now + 60 / share.per_minute + 40
        now = share.next_at


@pytest.mark.parametrize("limit", [1, 5, 10, 60])
def test_no_limit_is_so_small_that_nothing_is_polled(limit):
    share = FairShare(limit)
    assert 0.4 * limit <= share.per_minute or share.per_minute >= 3
    for minute in range(100):
        share.was_refused(None, minute * 100.0, minute * 100.0)
    assert 0.4 <= share.per_minute < 0.8 * limit


@SLIDES
@pytest.mark.parametrize(("has_headers", "minutes"), [(True, 20), (False, 300)])
def test_a_share_recovers_after_a_crowded_hour(has_headers, minutes, slides):
    """Without the headers, nothing tells that there is room, but that nothing is refused for long."""
    crowd = [Feed(ends=3600)] * 60
    outcome = simulate(LimitedService(60, slides, has_headers), [Feed(), *crowd], 1 + minutes / 60 + 1)
    before, after = (
        sum(outcome.accepted[minute, 0] for minute in range(first, first + 30)) / 30 for first in (30, 60 + minutes)
    )
    assert before < 3
    assert after > 10


@pytest.mark.parametrize(
    ("remaining", "limit", "reset", "used"),
    [
        ("60", "60", None, 0.0),
        ("15", "60", None, 0.75),
        ("15", "60", "0", 0.75),
        # Half of the minute is over.
        ("45", "60", "30", 0.5),
        ("0", "60", "30", 2.0),
        ("15", "60", str(1_800_000_030), 1.5),
        ("15", "60", str(1_800_000_030_000), 1.5),
        # Too early to say.
        ("59", "60", "59", None),
        # An hour's, and a day's.
        ("500", "1000", "1800", 1.0),
        ("500", "1000", "43200", 1.0),
        ("500", "1000", "1000000", 0.5),
        # As the connection says.
        ("150", None, None, 0.5),
        ("400", None, None, 0.0),
        # Nothing that can be read.
        (None, "60", "30", None),
        ("many", "60", "30", None),
        ("30", "0", "-1", 0.9),
        ("nan", "60", "1", None),
    ],
)
def test_what_the_headers_say_of_the_use_of_all(remaining, limit, reset, used):
    names = {"x-ratelimit-remaining": remaining, "x-ratelimit-limit": limit, "x-ratelimit-reset": reset}
    headers = {name: value for name, value in names.items() if value is not None}
    assert used_part(headers, 1_800_000_000, 300) == (used if used is None else pytest.approx(used))
