# SPDX-License-Identifier: Apache-2.0
"""The shared poll of a triggerer: which readings count for whom, how many requests are under way, and what slows it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from helpers.tasks import event_of, wait_trigger

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.endpoints import campaign as campaign_request
from airflow_provider_voicegenie.api.endpoints import campaign_page, quota, statistics
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, CampaignStatus, Quota
from airflow_provider_voicegenie.feed import feed as feeds
from airflow_provider_voicegenie.feed.feed import feed_of, subscribe
from airflow_provider_voicegenie.feed.plan import LIST, ListedPage, PollingPlan
from airflow_provider_voicegenie.rules.prerequisites import Source
from airflow_provider_voicegenie.sensors.campaign import ContactsRegistered, HasQuota
from airflow_provider_voicegenie.triggers.sources import CampaignWithSources
from airflow_provider_voicegenie.triggers.wait import WaitTrigger
from airflow_provider_voicegenie.triggers.watchers import ReadingStream

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


def wait_for(campaign_id="c", interval=60, on_response=lambda response, *_: response, **options):
    return subscribe(CONNECTION, campaign_request(campaign_id), interval, on_response, **options)


async def respond(subscription, response, sent_at, *, in_full=True):
    """Let something come of the request of a subscription that was sent then."""
    feed = feed_of(CONNECTION)
    poll = feed._plan.poll(subscription.request)
    await feed._publish([(each, response, in_full) for each in poll.subscribers], sent_at)


def listed(*campaigns):
    return ListedPage(0, CampaignPage(campaigns, len(campaigns), len(campaigns)), time.time())


@pytest.fixture
def quiet(monkeypatch):
    """A feed that sends nothing by itself: the tests bring the readings."""

    async def nothing(feed):
        await asyncio.Event().wait()

    monkeypatch.setattr(feeds.Feed, "_run", nothing)


# Readings that are older than what they are shown to.


@pytest.mark.usefixtures("clock", "quiet")
@pytest.mark.parametrize("request_", [campaign_request("c"), LIST, quota()], ids=str)
@pytest.mark.parametrize("in_full", [True, False])
def test_nobody_is_shown_what_was_asked_for_before_it_came(in_full, request_):
    shown = []

    async def work():
        wait = subscribe(CONNECTION, request_, 60, lambda response, *_: shown.append(response))
        for seconds in (-1.0, 0.0, 1.0):
            await respond(wait, seconds, wait.joined_at + seconds, in_full=in_full)
        wait.close()

    run(work)
    assert shown == [0, 1]


@pytest.mark.usefixtures("clock", "quiet")
def test_what_was_asked_for_before_a_pause_does_not_count_after_it():
    async def work():
        wait = wait_for()
        sent_at = wait.joined_at
        await respond(wait, campaign(total_count=1), sent_at)
        # An update that was not taken yet, and one that is still on its way, are older than the pause.
        await asyncio.sleep(0.01)
        wait.forget()
        await respond(wait, campaign(total_count=2), sent_at)
        await respond(wait, campaign(total_count=3), wait.joined_at)
        update = await wait.update()
        wait.close()
        return update.total_count

    assert run(work) == 3


@pytest.mark.usefixtures("clock", "quiet")
def test_each_update_is_taken_once_and_none_is_lost_by_who_gives_up():
    async def work():
        wait = wait_for()
        taken = []
        for number in range(3):
            waiting = asyncio.ensure_future(wait.update())
            if number == 1:
                waiting.cancel()
                await asyncio.sleep(0)
            await respond(wait, number, wait.joined_at)
            # This one is left out: the one before is not dealt with.
            await respond(wait, 10 + number, wait.joined_at)
            taken.append(await (wait.update() if number == 1 else waiting))
        await respond(wait, 3, wait.joined_at)
        taken.append(wait.update().done())
        wait.close()
        return taken

    assert run(work) == [0, 1, 2, False]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_watcher_of_some_campaigns_is_shown_none_twice_in_the_wrong_order():
    async def work():
        stream = ReadingStream(["c"], CONNECTION, 60).open_stream()
        next_look = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        (part,) = feed_of(CONNECTION)._plan.poll_of("c").subscribers
        first = part.joined_at
        await respond(part, campaign(status="completed"), first)
        # Asked for before that one was shown, and late.
        await respond(part, campaign(status="running"), first)
        look, _ = await next_look
        await stream.aclose()
        return [each.reading.status.value for each in look.readings]

    assert run(work) == ["completed"]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_wait_that_needs_single_reads_takes_none_of_the_list():
    shown = []

    async def work():
        wait = wait_for(on_response=lambda _, in_full, now: shown.append(in_full), is_list_enough=False)
        for in_full in (False, True):
            await respond(wait, campaign(), wait.joined_at, in_full=in_full)
        wait.close()

    run(work)
    assert shown == [True]


# What some waits need besides.


@pytest.mark.usefixtures("clock", "quiet")
def test_the_shortest_interval_of_all_who_need_it_counts():
    async def work():
        waits = [
            CampaignWithSources(CONNECTION, f"c{number}", interval, [Source.LIST, Source.QUOTA])
            for number, interval in enumerate((30.0, 10.0, 60.0))
        ]
        intervals = [feed_of(CONNECTION)._plan.poll(request).interval for request in (LIST, quota())]
        for wait in waits:
            wait.close()
        return intervals

    assert run(work) == [10.0, 10.0]


@pytest.mark.usefixtures("clock", "quiet")
def test_a_campaign_that_was_read_before_the_quota_is_read_again():
    """What was read first may be as old as an interval when the quota comes."""

    async def work():
        wait = CampaignWithSources(CONNECTION, "c", 60, [Source.QUOTA])
        plan = feed_of(CONNECTION)._plan
        (of_quota,) = plan.poll(quota()).subscribers
        await respond(wait, campaign(), wait.joined_at)
        polls, shown = [], []
        wait.poll_now = lambda: polls.append(wait.request)
        for response in [Quota(7, None), errors.ServerError("not now")] * 3:
            await respond(of_quota, response, wait.joined_at)
            if len(shown) == 0:
                assert wait._update is None
                await respond(wait, campaign(status="stopped"), wait.joined_at)
            if wait._update is not None:
                shown.append(await wait.update())
        wait.close()
        return polls, shown

    polls, (first, *others) = run(work)
    assert len(polls) == 1
    assert (first.status.value, first.quota.calls_remaining) == ("stopped", 7)
    assert [type(each) for each in others] == [errors.ServerError] * 3


@pytest.mark.usefixtures("clock", "quiet")
def test_what_the_list_has_of_a_campaign_is_added_to_what_is_read_of_it():
    async def work():
        wait = CampaignWithSources(CONNECTION, "c", 60, [Source.LIST])
        feed = feed_of(CONNECTION)
        (of_list,) = feed._plan.poll(LIST).subscribers
        shown, hurried = [], []
        for count in (None, 5, 5, 6):
            feed._plan.poll_of("c")._due = 10.0**9
            entries = [campaign("other", registered_count=9)]
            entries += [campaign(registered_count=count)] * (count is not None)
            await respond(of_list, listed(*entries), wait.joined_at)
            hurried.append(feed._plan.poll_of("c")._due < 10.0**9)
            await respond(wait, campaign(), wait.joined_at)
            shown.append((await wait.update()).registered_count)
        wait.close()
        return shown, hurried

    assert run(work) == ([None, 5, 5, 6], [False, True, False, True])


@pytest.mark.usefixtures("clock", "quiet")
def test_a_wait_is_counted_once_whatever_is_read_for_it(monkeypatch):
    counts = []
    monkeypatch.setattr(feeds, "show_waits", lambda _, count: counts.append(count))

    async def work():
        waits = [wait_for(), CampaignWithSources(CONNECTION, "c", 60, list(Source))]
        waits.append(subscribe(CONNECTION, LIST, 60, lambda *_: None))
        feed_of(CONNECTION)._show_waits()
        for wait in waits:
            wait.close()

    run(work)
    assert counts == [3, 0]


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
        wait = CampaignWithSources(CONNECTION, "c", 60, [Source.LIST])
        (of_list,) = feed_of(CONNECTION)._plan.poll(LIST).subscribers
        if is_busy:
            await respond(wait, campaign(), wait.joined_at)
        await respond(of_list, errors.ForbiddenError("no"), wait.joined_at)
        shown = [type(await wait.update())]
        for _ in range(2):
            await respond(wait, campaign(), wait.joined_at)
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
        waits = [wait_for(f"c{number}", 0.01, lambda *_: None, is_list_enough=False) for number in range(20)]
        feed = waits[0].feed
        # Until the connection is known, it is one.
        assert feed._allowed() == 1
        feed._use(await feeds.open_client(CONNECTION))
        # There is room in the share.
        feed._share.per_minute = 10.0**9
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


# The Airflow connection.


@pytest.mark.parametrize(
    ("found", "is_gone"),
    [("-", False), ("--", True), ("-+-", False), ("-+--", True), ("-?-", True), ("+", False)],
)
def test_a_connection_that_is_missed_twice_in_a_row_is_gone(sandbox, monkeypatch, found, is_gone):
    """A user may delete it to replace it."""

    async def work():
        with_client = await feeds.open_client(CONNECTION)
        wait = wait_for()
        feed = wait.feed
        feed._use(with_client)

        async def read(conn_id):
            match found[reads.pop()]:
                case "-":
                    raise errors.InvalidConnectionError("there is none")
                case "?":
                    raise errors.ConnectionFailedError("Airflow cannot be asked")
            return with_client.settings

        monkeypatch.setattr(feeds, "read_settings", read)
        reads = list(reversed(range(len(found))))
        while reads:
            await feed._read_connection()
        wait.close()
        return feed._client is None

    assert run(work) is is_gone


# What slows it.


REQUESTS = {"get": campaign_request("long"), "list": LIST, "quota": quota(), "stats": statistics("long")}


@pytest.mark.parametrize("operation", REQUESTS)
def test_the_service_says_when_each_kind_of_request_is_sent_again(sandbox, monkeypatch, operation):
    noted = []

    def noting(original):
        def failed(plan, *arguments, retry_after):
            original(plan, *arguments, retry_after=retry_after)
            noted.append(retry_after)

        return failed

    for name in ("failed", "page_failed"):
        monkeypatch.setattr(PollingPlan, name, noting(getattr(PollingPlan, name)))
    sandbox.inject("status", operation, status=503, headers={"Retry-After": "40"}, times=None)

    async def work():
        wait = subscribe(CONNECTION, REQUESTS[operation], 0.1, lambda *_: None)
        await eventually(lambda: noted)
        wait.close()

    run(work)
    assert noted[0] == 40


def test_failures_slow_all_and_one_success_ends_that(sandbox):
    """One campaign is read by itself, in a service that fails now and then."""
    sandbox.inject("status", "list", status=403, times=None)
    for _ in range(4):
        sandbox.inject("status", "get", status=503)
        sandbox.inject("delay", "get", seconds=0)
    most = []

    async def work():
        wait = wait_for("long", 0.1, lambda *_: most.append(wait.feed._failures), is_list_enough=False)
        await eventually(lambda: len(most) >= 8)
        wait.close()
        return wait.feed._pause_until

    pause_until = run(work)
    assert max(most) == 1
    # It was never the service that failed, and so nothing was slowed.
    assert pause_until == float("-inf")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("operation", REQUESTS)
def test_a_success_of_each_kind_of_request_ends_a_row_of_failures(sandbox, operation):
    async def work():
        wait = subscribe(CONNECTION, REQUESTS[operation], 60, lambda *_: None)
        feed = wait.feed
        feed._failures = 2
        await feed._poll(campaign_page(limit=1000, offset=0) if operation == "list" else REQUESTS[operation])
        wait.close()
        return feed._failures

    assert run(work) == 0


def test_a_pause_that_is_under_way_is_not_cut_short(sandbox, clock):
    async def work():
        wait = wait_for("long", 60, lambda *_: None)
        feed = wait.feed
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

    monkeypatch.setattr("airflow_provider_voicegenie.feed.feed.Subscription.read_once", read)
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
        wait = wait_for("long", 0.1, lambda response, *_: shown.append(response))
        await eventually(lambda: shown)
        wait.feed._share.next_at = float("-inf")
        waiting = []
        for patience in (0.0, -1.0, 5.0):
            reading = asyncio.create_task(wait.read_once(statistics("long"), patience))
            await asyncio.sleep(0)
            waiting.append((wait.feed._plan.waiting_once, reading.done()))
            reading.cancel()
        wait.close()
        return waiting

    assert run(work) == [(0, True), (0, True), (1, False)]
