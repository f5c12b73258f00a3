# SPDX-License-Identifier: Apache-2.0
"""The shared poll of a triggerer: which readings count for whom, how many requests are under way, and what slows it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from helpers.tasks import event_of, wait_trigger

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.endpoints import statistics
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, CampaignStatus, Quota
from airflow_provider_voicegenie.rules.prerequisites import Source
from airflow_provider_voicegenie.sensors.campaign import ContactsRegistered, HasQuota
from airflow_provider_voicegenie.triggers import feed as feeds
from airflow_provider_voicegenie.triggers.feed import feed_of
from airflow_provider_voicegenie.triggers.polling import ListedPage, PageRead, PollingPlan, QuotaRead
from airflow_provider_voicegenie.triggers.subscriptions import Readings, subscribe
from airflow_provider_voicegenie.triggers.wait import WaitTrigger

PATIENCE = 20
CONNECTION = "voicegenie_default"


def run(work):
    async def bounded():
        async with asyncio.timeout(PATIENCE):
            return await work()

    return asyncio.run(bounded())


async def eventually(condition):
    while not condition():
        await asyncio.sleep(0.01)


def campaign(campaign_id="c", status="running", **fields):
    return Campaign(campaign_id, CampaignStatus(status), status, **fields)


def polled_by(subscriber):
    """Return what the feed polls for a subscriber."""
    (polled,) = [each for each in feed_of(CONNECTION)._plan.campaigns.values() if subscriber in each.subscribers]
    return polled


@pytest.fixture
def quiet(monkeypatch):
    """A feed that sends nothing by itself: the tests bring the readings."""

    async def nothing(feed):
        await asyncio.Event().wait()

    monkeypatch.setattr(feeds.CampaignFeed, "_run", nothing)


# Readings that are older than what they are shown to.


@pytest.mark.usefixtures("clock", "quiet")
@pytest.mark.parametrize("in_full", [True, False])
def test_a_wait_is_shown_nothing_that_was_asked_for_before_it_came(in_full):
    shown = []

    async def work():
        wait = subscribe(CONNECTION, "c", 60, lambda reading, in_full, now: shown.append(reading))
        polled = polled_by(wait)
        for seconds in (-1.0, 0.0, 1.0):
            wait._feed._publish(polled, campaign(total_count=int(seconds)), wait.joined_at + seconds, in_full=in_full)
        wait.close()

    run(work)
    assert [each.total_count for each in shown] == [0, 1]


@pytest.mark.usefixtures("clock", "quiet")
def test_what_was_asked_for_before_a_pause_does_not_count_after_it():
    async def work():
        wait = subscribe(CONNECTION, "c", 60, lambda reading, in_full, now: reading)
        feed, sent_at = wait._feed, wait.joined_at
        feed._publish(polled_by(wait), campaign(total_count=1), sent_at, in_full=True)
        # An update that was not taken yet, and one that is still on its way, are older than the pause.
        await asyncio.sleep(0.01)
        wait.forget()
        feed._publish(polled_by(wait), campaign(total_count=2), sent_at, in_full=True)
        feed._publish(polled_by(wait), campaign(total_count=3), wait.joined_at, in_full=True)
        update = await wait.update()
        wait.close()
        return update.total_count

    assert run(work) == 3


@pytest.mark.usefixtures("clock", "quiet")
def test_a_watcher_is_shown_no_page_that_was_asked_for_before_it_came():
    async def work():
        readings = Readings(CONNECTION, 60)
        for number, seconds in enumerate((-1.0, 0.0, 1.0)):
            page = ListedPage(number, CampaignPage((campaign(),), 1, 1), time.time())
            readings._feed._publish_to_list_readers(page, readings.joined_at + seconds)
        await readings.come()
        _, read = readings.take()
        readings.close()
        return [page.offset for page in read]

    assert run(work) == [1, 2]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_watcher_of_some_campaigns_is_shown_none_twice_in_the_wrong_order():
    async def work():
        readings = Readings(CONNECTION, 60, ["c"])
        (part,) = readings._parts
        feed, first = readings._feed, readings.joined_at
        await asyncio.sleep(0.01)
        feed._publish(polled_by(part), campaign(status="completed"), part.joined_at, in_full=True)
        # Asked for before that one was shown, and late.
        feed._publish(polled_by(part), campaign(status="running"), first, in_full=True)
        await readings.come()
        _, read = readings.take()
        readings.close()
        return [each.reading.status.value for each in read]

    assert run(work) == ["completed"]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_wait_that_needs_single_reads_takes_none_of_the_list():
    shown = []

    async def work():
        on_reading = lambda reading, in_full, now: shown.append(in_full)  # noqa: E731
        wait = subscribe(CONNECTION, "c", 60, on_reading, needs_single_reads=True)
        for in_full in (False, True):
            wait._feed._publish(polled_by(wait), campaign(), wait.joined_at, in_full=in_full)
        wait.close()

    run(work)
    assert shown == [True]


# What some waits need besides.


@pytest.mark.usefixtures("clock", "quiet")
def test_the_shortest_interval_of_all_who_need_it_counts():
    async def work():
        intervals = []
        for needs in (Source.LIST, Source.QUOTA):
            waits = [
                subscribe(CONNECTION, f"c{number}", interval, lambda *_: None, needs=[needs])
                for number, interval in enumerate((30.0, 10.0, 60.0))
            ]
            shared = waits[0]._listed or waits[0]._quota
            assert all((wait._listed or wait._quota) is shared for wait in waits)
            intervals.append(shared.interval)
            for wait in waits:
                wait.close()
        return intervals

    assert run(work) == [10.0, 10.0]


@pytest.mark.usefixtures("clock", "quiet")
def test_what_the_list_had_is_forgotten_with_the_last_who_needs_it():
    async def work():
        first, second, other = (
            subscribe(CONNECTION, name, 60, lambda *_: None, needs=[Source.LIST]) for name in ("c", "c", "d")
        )
        listed = first._listed
        listed.publish(ListedPage(0, CampaignPage((campaign(registered_count=5),), 1, 1), time.time()))
        known = [dict(listed.found)]
        for wait in (first, second):
            wait.close()
            known.append(dict(listed.found))
        other.close()
        return [list(each) for each in known]

    assert run(work) == [["c"], ["c"], []]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_reading_that_waits_for_the_quota_is_shown_once():
    shown = []

    async def work():
        wait = subscribe(CONNECTION, "c", 60, lambda reading, *_: shown.append(reading), needs=[Source.QUOTA])
        wait._feed._publish(polled_by(wait), campaign(), wait.joined_at, in_full=True)
        for _ in range(3):
            wait._quota.publish(errors.ServerError("not now"))
            wait._quota.publish(Quota(7, None))
        wait.close()

    run(work)
    campaigns = [each for each in shown if isinstance(each, Campaign)]
    assert [each.quota.calls_remaining for each in campaigns] == [7]
    assert len(shown) == 4


# What does not pass.


def ready_trigger(campaign_id, *prerequisites):
    return wait_trigger(campaign_id, "ready", poll_interval=0.1, prerequisites=prerequisites)


@pytest.mark.parametrize(
    ("operation", "prerequisite"), [("list", ContactsRegistered()), ("quota", HasQuota(calls=10**9))]
)
def test_a_source_that_is_refused_ends_who_needs_it(sandbox, operation, prerequisite):
    campaign_id = sandbox.add_campaign(total_count=10, registered_count=1).id
    sandbox.inject("status", operation, status=403, times=None)
    event = event_of(ready_trigger(campaign_id, prerequisite))
    assert (event["reason"], event["finding"]["condition"]) == ("condition", "FORBIDDEN")


@pytest.mark.usefixtures("clock", "quiet")
@pytest.mark.parametrize("is_busy", [True, False])
def test_a_list_that_is_refused_while_a_check_takes_its_time_is_not_missed(is_busy):
    """The list is left alone for ten minutes then, so nobody would say so again."""

    async def work():
        wait = subscribe(CONNECTION, "c", 60, lambda reading, *_: reading, needs=[Source.LIST])
        if is_busy:
            wait._feed._publish(polled_by(wait), campaign(), wait.joined_at, in_full=True)
        wait._listed.publish(errors.ForbiddenError("no"))
        shown = [type(await wait.update())]
        for _ in range(2):
            wait._feed._publish(polled_by(wait), campaign(), wait.joined_at, in_full=True)
            shown.append(type(await wait.update()))
        wait.close()
        return shown

    refused, read = errors.ForbiddenError, Campaign
    assert run(work) == ([read, refused, read] if is_busy else [refused, read, read])


# How many at a time.


@pytest.mark.parametrize(("failures", "at_a_time"), [(0, 8), (2, 8), (3, 1), (50, 1)])
def test_so_many_requests_are_under_way(sandbox, monkeypatch, failures, at_a_time):
    under_way, gate = Counter(), []

    async def held(function, *arguments, **options):
        under_way["now"] += 1
        under_way["most"] = max(under_way["most"], under_way["now"])
        await gate[0].wait()
        raise errors.RefusedError("no")

    async def work():
        gate.append(asyncio.Event())
        waits = [
            subscribe(CONNECTION, f"c{number}", 0.01, lambda *_: None, needs_single_reads=True) for number in range(20)
        ]
        feed = waits[0]._feed
        # Until the connection is known, it is one.
        assert feed._allowed() == 1
        feed._client = await feeds.open_client(await feeds.read_settings(CONNECTION))
        # There is room in the share.
        feed._client.share.per_minute = 10.0**9
        monkeypatch.setattr(feeds, "in_thread", held)
        feed._failures = failures
        feed._wake.set()
        await eventually(lambda: under_way["now"] >= at_a_time)
        # All are due by now; that no more come takes some turns of the loop.
        await asyncio.sleep(0.2)
        most = under_way["most"]
        for wait in waits:
            wait.close()
        return most

    assert run(work) == at_a_time


# What slows it.


@pytest.mark.parametrize(
    ("operation", "take_note"), [("get", "campaign_failed"), ("list", "page_failed"), ("quota", "quota_failed")]
)
def test_the_service_says_when_each_kind_of_request_is_sent_again(sandbox, monkeypatch, operation, take_note):
    noted, original = [], getattr(PollingPlan, take_note)

    def failed(plan, *arguments, retry_after):
        original(plan, *arguments, retry_after=retry_after)
        noted.append((retry_after, plan.due_at()))

    monkeypatch.setattr(PollingPlan, take_note, failed)
    sandbox.inject("status", operation, status=503, headers={"Retry-After": "40"}, times=None)
    needs = {"get": (), "list": [Source.LIST], "quota": [Source.QUOTA]}[operation]

    async def work():
        wait = subscribe(CONNECTION, "long", 0.1, lambda *_: None, needs=needs)
        await eventually(lambda: noted)
        wait.close()

    run(work)
    assert noted[0][0] == 40


def test_failures_slow_all_and_one_success_ends_that(sandbox):
    """One campaign is read by itself, in a service that fails now and then."""
    sandbox.inject("status", "list", status=403, times=None)
    for _ in range(4):
        sandbox.inject("status", "get", status=503)
        sandbox.inject("delay", "get", seconds=0)
    most = []

    async def work():
        wait = subscribe(CONNECTION, "long", 0.1, lambda *_: most.append(wait._feed._failures), needs_single_reads=True)
        await eventually(lambda: len(most) >= 8)
        wait.close()
        return wait._feed._pause_until

    pause_until = run(work)
    assert max(most) == 1
    # It was never the service that failed, and so nothing was slowed.
    assert pause_until == float("-inf")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["list", "quota", "campaign"])
def test_a_success_of_each_kind_of_request_ends_a_row_of_failures(sandbox, kind):
    async def work():
        wait = subscribe(CONNECTION, "long", 60, lambda *_: None, needs=[Source.LIST, Source.QUOTA])
        feed = wait._feed
        feed._failures = 2
        await feed._poll({"list": PageRead(0), "quota": QuotaRead(), "campaign": polled_by(wait)}[kind])
        wait.close()
        return feed._failures

    assert run(work) == 0


def test_a_pause_that_is_under_way_is_not_cut_short(sandbox, clock):
    async def work():
        wait = subscribe(CONNECTION, "long", 60, lambda *_: None)
        feed = wait._feed
        pauses = []
        for retry_after in (None, None, 50.0, None, None):
            feed._count_failure(errors.ServerError("no", retry_after=retry_after))
            pauses.append(feed._pause_until)
        feed._count_failure(errors.NotFoundError("no"))
        pauses.append(feed._pause_until)
        wait.close()
        return pauses

    pauses = run(work)
    # Twice is no outage; from the third on, it is.
    assert pauses[:2] == [float("-inf")] * 2
    assert pauses[2] > clock.monotonic() + 30
    assert pauses[2:] == sorted(pauses[2:])


@pytest.mark.parametrize(("deadline", "patience"), [(None, 5.0), (60.0, 5.0), (7.0, 2.0), (4.0, -1.0)])
def test_how_long_statistics_are_waited_for(sandbox, clock, monkeypatch, deadline, patience):
    """The task needs some seconds of its own before its ``execution_timeout`` is over."""
    asked = []

    async def read(subscription, request, seconds):
        asked.append(seconds)

    monkeypatch.setattr("airflow_provider_voicegenie.triggers.subscriptions.Subscription.read", read)
    sandbox.sandbox.store.change("followed", status="completed")
    trigger = wait_trigger("followed", "completed", execution_deadline=deadline and clock.time() + 3600)
    if deadline is not None:
        original = WaitTrigger._read_once

        async def read_once(trigger, request):
            trigger.execution_deadline = clock.time() + deadline
            return await original(trigger, request)

        monkeypatch.setattr(WaitTrigger, "_read_once", read_once)

    async def work():
        return [event.payload["reason"] async for event in trigger.run()]

    assert run(work) == ["done"]
    assert asked == [pytest.approx(patience)]


def test_nothing_is_read_for_who_has_no_patience(sandbox):
    async def work():
        shown = []
        wait = subscribe(CONNECTION, "long", 0.1, lambda reading, *_: shown.append(reading))
        await eventually(lambda: shown)
        wait._feed._client.share.next_at = float("-inf")
        waiting = []
        for patience in (0.0, -1.0, 5.0):
            reading = asyncio.create_task(wait.read(statistics("long"), patience))
            await asyncio.sleep(0)
            waiting.append((wait._feed._plan.waiting_reads, reading.done()))
            reading.cancel()
        wait.close()
        return waiting

    assert run(work) == [(0, True), (0, True), (1, False)]
