# SPDX-License-Identifier: Apache-2.0
"""Triggers and the poll they share, in a real event loop against the sandbox, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from airflow.triggers.base import BaseTrigger
from helpers.clock import now
from helpers.sandboxes import second_sandbox
from helpers.tasks import TaskInstance, meanwhile
from helpers.tasks import wait_trigger as trigger

from airflow_provider_voicegenie.api.client import VoiceGenieClient
from airflow_provider_voicegenie.api.endpoints import campaign as read_campaign
from airflow_provider_voicegenie.api.errors import ConnectionFailedError, InvalidConnectionError
from airflow_provider_voicegenie.feed import feed as feeds
from airflow_provider_voicegenie.feed import threads
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.rules.calling_hours import CallingHours
from airflow_provider_voicegenie.rules.prerequisites import Check, HasContacts, HasScript, IsStartable, Prerequisite
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.triggers.wait import WaitTrigger
from airflow_provider_voicegenie.waiting import stop
from airflow_provider_voicegenie.waiting.completion import CompletionWatch

LOGGER = "airflow_provider_voicegenie.triggers.wait"


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    connection = voicegenie_sandbox.connection(timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    monkeypatch.setattr(timing, "connection_interval_after_error", 0.0)
    # Airflow 3 gives triggers a logger that no handler of the standard library sees.
    monkeypatch.setattr(WaitTrigger, "log", logging.getLogger(LOGGER))
    return voicegenie_sandbox


async def first_event(waiting):
    async for event in waiting.run():
        return event.payload
    return None


def run(work, patience=300):  # seconds of the clock; a service that takes no requests may say so for each wait
    async def bounded():
        async with asyncio.timeout(patience):
            return await work()

    return asyncio.run(bounded())


def wait_for(*triggers, meanwhile=None):
    async def work():
        tasks = [asyncio.create_task(first_event(each)) for each in triggers]
        if meanwhile is not None:
            await meanwhile()
        return await asyncio.gather(*tasks)

    return run(work)


async def eventually(condition, patience=60):
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("waits", [1, 3])
@pytest.mark.parametrize(
    ("status", "reason", "condition"),
    [
        ("completed", "done", None),
        ("failed", "condition", "CAMPAIGN_FAILED"),
        ("stopped", "condition", "CAMPAIGN_STOPPED"),
    ],
)
def test_the_end_of_a_campaign(sandbox, waits, status, reason, condition):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        for name in names:
            sandbox.sandbox.store.change(name, status=status)

    for payload in wait_for(*(trigger(name) for name in names), meanwhile=meanwhile):
        assert json.loads(json.dumps(payload)) == payload
        found = payload["finding"] and payload["finding"]["condition"]
        assert (payload["reason"], found) == (reason, condition)
        assert payload["result"]["status"] == status


def test_waits_on_one_connection_share_the_list(sandbox):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(40)]

    async def meanwhile():
        await asyncio.sleep(2)
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")

    wait_for(*(trigger(name) for name in names), meanwhile=meanwhile)
    # The first one does not wait for company.
    assert sandbox.request_count("get") <= 1
    assert 8 <= sandbox.request_count("list") <= 18


def test_two_waits_for_one_campaign_share_its_reads(sandbox):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)

    async def meanwhile():
        await asyncio.sleep(1)
        sandbox.sandbox.store.change(campaign.id, status="completed")

    assert len(wait_for(trigger(campaign.id), trigger(campaign.id), meanwhile=meanwhile)) == 2
    assert sandbox.request_count("get") + sandbox.request_count("list") <= 8


def test_the_feed_ends_with_its_last_subscriber_and_leaves_nothing(sandbox):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)

    async def work():
        before = asyncio.all_tasks()
        tasks = [asyncio.create_task(first_event(trigger(campaign.id))) for _ in range(3)]
        await eventually(lambda: len(sandbox.sandbox.requests) >= 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before
        assert not any(feeds._feeds.get(asyncio.get_running_loop(), {}).values())
        sent = len(sandbox.sandbox.requests)
        await asyncio.sleep(0.6)
        assert len(sandbox.sandbox.requests) == sent

    run(work)


def test_cancellation_and_errors_of_one_wait_disturb_no_other(sandbox):
    good, bad, gone = (sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3))

    async def work():
        tasks = {name: asyncio.create_task(first_event(trigger(name))) for name in (good, bad, gone)}
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        subscription = next(iter(feeds._feeds[asyncio.get_running_loop()].values()))._plan.poll_of(bad).subscribers[0]
        subscription._on_response = lambda *reading: 1 / 0
        tasks[gone].cancel()
        sandbox.sandbox.store.remove(gone)
        with pytest.raises(ZeroDivisionError):
            await tasks[bad]
        sandbox.sandbox.store.change(good, status="completed")
        assert (await tasks[good])["reason"] == "done"

    run(work)


def test_each_line_is_logged_in_the_context_of_its_own_wait(sandbox):
    """Airflow finds by the context which task's log a line belongs to."""
    whose = contextvars.ContextVar("whose", default="nobody's")
    logged = []

    class Listener(logging.Handler):
        def emit(self, record):
            if "Campaign " in (message := record.getMessage()):
                logged.append((whose.get(), message.split("'")[1]))

    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3)]

    async def wait(name):
        whose.set(name)
        waiting = trigger(name, pause_on_kill=True)
        task = asyncio.create_task(first_event(waiting))
        await eventually(lambda: (name, name) in logged)
        task.cancel()
        logged.append(("kill", name))
        await waiting.on_kill()

    async def work():
        await asyncio.gather(*map(wait, names))

    listener = Listener()
    logging.getLogger("airflow_provider_voicegenie").addHandler(listener)
    try:
        run(work)
    finally:
        logging.getLogger("airflow_provider_voicegenie").removeHandler(listener)
    assert {owner for owner, _ in logged} == {"kill", *names}
    assert all(owner in ("kill", name) for owner, name in logged)
    for name in names:
        # Progress, and the pause.
        assert len([owner for owner, about in logged if owner == about == name]) >= 2
        assert sandbox.status(name) == "paused"


@pytest.mark.parametrize("waits", [1, 3])
@pytest.mark.parametrize("broken", ["_publish", "_show_waits", "_poll"])
def test_an_error_of_the_feed_itself_ends_no_wait(sandbox, monkeypatch, caplog, broken, waits):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]
    original, breaks = getattr(feeds.Feed, broken), []
    monkeypatch.setattr(feeds, "poll_delay", lambda *_: 0.1)

    def breaking(*arguments, **options):
        if len(breaks) < 3:
            breaks.append(arguments)
            return 1 / 0
        return original(*arguments, **options)

    monkeypatch.setattr(feeds.Feed, broken, breaking)

    async def meanwhile():
        await eventually(lambda: len(breaks) == 3)
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(*map(trigger, names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}
    assert caplog.text.count("did not expect (ZeroDivisionError") == 1


def test_an_error_in_one_request_is_an_unreadable_response_of_its_campaign(sandbox, monkeypatch, caplog):
    bad, good = (sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(2))
    sandbox.inject("status", "list", status=403, times=None)
    original, broken = VoiceGenieClient.send, []

    def send(client, request, **options):
        if request.campaign_id == bad and len(broken) < 2:
            broken.append(request)
            return 1 / 0
        return original(client, request, **options)

    monkeypatch.setattr(VoiceGenieClient, "send", send)

    async def meanwhile():
        await eventually(lambda: len(broken) == 2)
        for name in (bad, good):
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(trigger(bad), trigger(good), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}
    (line,) = [
        each.getMessage() for each in caplog.records if "INVALID_RESPONSE: the wait goes on" in each.getMessage()
    ]
    assert bad in line
    assert "ZeroDivisionError in test_triggers.py" in line


def test_a_reading_that_one_wait_cannot_use_ends_no_wait(sandbox, monkeypatch, caplog):
    """It counts as a response that is not readable, for the wait that it is about."""
    bad, good = (sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(2))
    original, broken = CompletionWatch._take_campaign, []

    def observe(watch, campaign, now, *, in_full):
        if campaign.campaign_id == bad and len(broken) < 3:
            broken.append(now)
            return 1 / 0
        return original(watch, campaign, now, in_full=in_full)

    monkeypatch.setattr(CompletionWatch, "_take_campaign", observe)

    async def meanwhile():
        await eventually(lambda: len(broken) == 3)
        for name in (bad, good):
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(trigger(bad), trigger(good), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}
    assert caplog.text.count("INVALID_RESPONSE: the wait goes on") == 1


@pytest.mark.parametrize("waits", [1, 3])
@pytest.mark.parametrize(
    "more",
    [
        {"notes": "NESTED"},
        {"completed_count": 10**308, "failed_count": 10**308},
        {"campaign_name": "half a \ud83d"},
        {"campaign_status": "run\udc00ning"},
    ],
)
def test_a_response_of_any_kind_ends_no_wait(sandbox, waits, more):
    """Of one campaign it is unreadable, at the most."""
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]
    body = json.dumps({"id": names[0], "campaign_status": "running", **more})
    body = body.replace('"NESTED"', "[" * 600 + '"\\\\"' + "]" * 600)
    pages = [f'{{"campaigns": [{body}], "pagination": {{"total": 1}}}}', body]
    for operation, data in zip(("list", "get"), pages, strict=True):
        answer = f'{{"success": true, "data": {data}}}'
        sandbox.inject("status", operation, status=200, times=3, body=answer)

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 3)
        sandbox.sandbox.faults.clear()
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(*map(trigger, names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}


# The connection.


def connect(sandbox, monkeypatch, **more):
    connection = sandbox.connection(timeout=20, requests_per_minute=60_000, **more)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)


@pytest.mark.parametrize("waits", [1, 3])
def test_a_connection_that_is_changed_while_requests_succeed_is_noticed(sandbox, monkeypatch, waits):
    monkeypatch.setattr(timing, "connection_interval", 0.3)
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]
    with second_sandbox() as other:
        for name in names:
            other.add_campaign(id=name, status="running", total_count=10_000)

        async def meanwhile():
            await eventually(lambda: len(sandbox.sandbox.requests) >= 3)
            connect(other, monkeypatch)
            await eventually(lambda: len(other.sandbox.requests) >= 3)
            # The old key is used no more.
            before = len(sandbox.sandbox.requests)
            for name in names:
                sandbox.sandbox.store.change(name, status="failed")
            await asyncio.sleep(0.6)
            assert len(sandbox.sandbox.requests) == before
            for name in names:
                other.sandbox.store.change(name, status="completed")

        payloads = wait_for(*map(trigger, names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}


def test_what_is_on_its_way_from_the_account_of_before_is_left_out(sandbox, held, monkeypatch):
    monkeypatch.setattr(timing, "connection_interval", 0.3)
    name = sandbox.add_campaign(status="running", total_count=10_000).id
    with second_sandbox() as other:
        other.add_campaign(id=name, status="running", total_count=10_000)
        sandbox.inject("hold", "get")

        async def meanwhile():
            await asyncio.sleep(0)
            feed = feeds.feed_of("voicegenie_default")
            await eventually(lambda: feed._client is not None and len(feed._tasks) == 1)
            (task,) = feed._tasks
            connect(other, monkeypatch)
            await eventually(lambda: len(other.sandbox.requests) >= 3)
            assert task.cancelled()
            other.sandbox.store.change(name, status="completed")

        (payload,) = wait_for(trigger(name), meanwhile=meanwhile)
    assert payload["reason"] == "done"


def test_a_connection_that_is_deleted_while_requests_succeed_is_used_no_more(sandbox, monkeypatch):
    monkeypatch.setattr(timing, "connection_interval", 0.3)
    name = sandbox.add_campaign(status="running", total_count=10_000).id

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 3)
        monkeypatch.delenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT")

    (payload,) = wait_for(trigger(name), meanwhile=meanwhile)
    assert payload["finding"]["condition"] == "INVALID_CONNECTION"


@pytest.mark.parametrize("trouble", ["gone for one look", "Airflow cannot be asked", "only the timeout"])
def test_a_connection_that_is_gone_for_a_moment_ends_no_wait(sandbox, monkeypatch, trouble):
    """Who replaces one may delete it first."""
    monkeypatch.setattr(timing, "connection_interval", 0.3)
    name = sandbox.add_campaign(status="running", total_count=10_000).id
    original, looks = feeds.read_settings, []

    async def read_settings(conn_id):
        looks.append(conn_id)
        is_used = feeds.feed_of(conn_id)._client is not None
        if trouble == "gone for one look" and (len(looks) == 3 or (looks[1:] and not is_used)):
            raise InvalidConnectionError("gone")
        if trouble == "Airflow cannot be asked" and len(looks) > 1:
            raise ConnectionFailedError("away")
        return await original(conn_id)

    for module in (feeds, threads):
        monkeypatch.setattr(module, "read_settings", read_settings)

    async def meanwhile():
        await eventually(lambda: len(looks) >= 2)
        if trouble == "only the timeout":
            connect(sandbox, monkeypatch, max_attempts=2)
        await eventually(lambda: len(looks) >= 6)
        sandbox.sandbox.store.change(name, status="completed")

    (payload,) = wait_for(trigger(name), meanwhile=meanwhile)
    assert payload["reason"] == "done"


def test_a_late_joiner_is_not_shown_what_was_read_before_it_came(sandbox, held):
    first, second = (sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(2))
    late = sandbox.add_campaign(status="completed").id

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name))) for name in (first, second)]
        await eventually(lambda: sandbox.request_count("list") >= 2)
        # The next page is answered with the old state, after the third has joined.
        before = sandbox.request_count("list")
        sandbox.inject("delay", "list", seconds=0.8, after_acting=True)
        await eventually(lambda: sandbox.request_count("list") > before)
        await asyncio.sleep(0.3)
        sandbox.sandbox.store.change(late, status="running", total_count=10_000)
        joined = asyncio.create_task(first_event(trigger(late)))
        await asyncio.sleep(1.5)
        assert not joined.done()
        for task in (*tasks, joined):
            task.cancel()
        await asyncio.gather(*tasks, joined, return_exceptions=True)

    run(work)


def test_one_campaign_that_hangs_holds_up_no_other(sandbox, clock, held):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(4)]
    for kind in ("list", names[0]):
        sandbox.inject(
            "status" if kind == "list" else "delay",
            "list" if kind == "list" else "get",
            times=None,
            status=403,
            seconds=1.5,
            campaign_id=None if kind == "list" else kind,
        )

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name))) for name in names]
        await eventually(lambda: sandbox.request_count("get", names[0]) >= 1)
        for name in names[1:]:
            sandbox.sandbox.store.change(name, status="completed")
        begun = clock.monotonic()
        await asyncio.gather(*tasks[1:])
        assert clock.monotonic() - begun < 1.4
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work)


def test_wait_that_needs_single_reads_gets_no_reading_of_the_list(sandbox):
    """The list has no script and no failed calls."""
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3)]
    shown = {"wanted": [], "others": []}

    def on_response(whose):
        return lambda reading, in_full, now: shown[whose].append((reading.script_id, in_full))

    async def work():
        subscribe = functools.partial(feeds.subscribe, "voicegenie_default")
        wanted = subscribe(read_campaign(names[0]), 0.2, on_response("wanted"), is_list_enough=False)
        others = [subscribe(read_campaign(name), 0.2, on_response("others")) for name in names]
        await eventually(lambda: sandbox.request_count("list") >= 3 and len(shown["wanted"]) >= 3)
        for subscription in (wanted, *others):
            subscription.close()

    run(work)
    assert set(shown["wanted"]) == {("script-1", True)}
    assert (None, False) in shown["others"]


# Trouble.


@pytest.mark.parametrize("retry_after", [None, "2"])
def test_one_429_slows_the_feed(sandbox, retry_after):
    """All of it: the rate limit is that of the key, whichever request met it."""
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3)]
    alone = sandbox.add_campaign(script_id=None).id

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name))) for name in names]
        tasks.append(asyncio.create_task(first_event(ready(alone, HasScript()))))
        await eventually(lambda: sandbox.request_count("list") >= 2 and sandbox.request_count("get", alone) >= 2)
        headers = {"Retry-After": retry_after} if retry_after else {}
        sandbox.inject("status", "list", status=429, headers=headers)
        limited = lambda: [r for r in list(sandbox.sandbox.requests) if r.status == 429]  # noqa: E731
        await eventually(limited)
        at = limited()[0].at.timestamp()
        later = lambda: [r for r in list(sandbox.sandbox.requests) if r.at.timestamp() > at + 0.1]  # noqa: E731
        await eventually(lambda: len(later()) >= 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [request.at.timestamp() - at for request in later()]

    first, *others = run(work)
    assert first >= (1.9 if retry_after else 0.75)
    assert others[2] - first < 1.5


@pytest.mark.parametrize("waits", [1, 3])
def test_each_poll_is_one_attempt(sandbox, waits):
    """The poll is repeated anyway, at a pace that is that of the whole feed."""
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]
    sandbox.inject("status", "*", status=503, times=None)

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name, poll_interval=3))) for name in names]
        await eventually(lambda: len(sandbox.sandbox.requests) >= 1)
        await asyncio.sleep(1.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work)
    sent = [(request.operation, request.campaign_id) for request in sandbox.sandbox.requests]
    assert len(sent) == len(set(sent))


def test_when_the_service_fails_many_single_reads_slow_down_together(sandbox):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(40)]
    sandbox.inject("status", "list", times=None, status=403)

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name, poll_interval=1))) for name in names]
        await eventually(lambda: sandbox.request_count("get") >= 60)
        outage(sandbox, "status", status=503)
        begin = len(sandbox.sandbox.requests)
        await asyncio.sleep(3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(sandbox.sandbox.requests) - begin

    # What was under way, and then one at a time, with growing pauses.
    assert run(work) <= 15


def outage(sandbox, kind, **fields):
    sandbox.inject(kind, "*", times=None, **fields)


@pytest.mark.parametrize(
    ("waits", "kind", "fields"),
    [
        (1, "close", {}),
        (3, "status", {"status": 503, "body": "<html>"}),
    ],
)
def test_temporary_trouble_is_waited_out(sandbox, caplog, waits, kind, fields):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]
    caplog.set_level(logging.INFO)

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        outage(sandbox, kind, **fields)
        before = len(sandbox.sandbox.requests)
        await asyncio.sleep(1.8)
        # Without slowing down, there would be nine of one wait.
        assert 1 <= len(sandbox.sandbox.requests) - before <= 5
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")
        sandbox.sandbox.faults.clear()

    payloads = wait_for(*(trigger(name, outcomes={"CONNECTION_FAILED": "fail"}) for name in names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}
    said = [record.getMessage() for record in caplog.records if "the wait goes on" in record.getMessage()]
    assert len(said) == waits


@pytest.mark.parametrize("waits", [1, 3])
def test_a_campaign_that_is_gone(sandbox, waits):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        for name in names[1:]:
            sandbox.sandbox.store.change(name, status="completed")
        sandbox.sandbox.store.remove(names[0])

    gone, *others = wait_for(*(trigger(name) for name in names), meanwhile=meanwhile)
    assert (gone["reason"], gone["finding"]["condition"]) == ("condition", "NOT_FOUND")
    assert {other["reason"] for other in others} <= {"done"}
    # A list may miss one: it is asked for by itself before it is believed gone.
    assert sandbox.request_count("get", names[0]) >= 1


@pytest.mark.parametrize("waits", [1, 3])
def test_a_revoked_key(sandbox, waits):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        sandbox.sandbox.api_key = "another"

    payloads = wait_for(*(trigger(name) for name in names), meanwhile=meanwhile)
    assert {payload["finding"]["condition"] for payload in payloads} == {"UNAUTHORIZED"}


@pytest.mark.parametrize("waits", [1, 3])
def test_a_key_that_is_changed_in_the_connection_too_ends_no_wait(sandbox, monkeypatch, waits):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(waits)]

    async def meanwhile():
        await eventually(lambda: len(sandbox.sandbox.requests) >= 2)
        sandbox.sandbox.api_key = "another"
        connection = sandbox.connection(timeout=60, requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
        await asyncio.sleep(0.8)
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(*(trigger(name) for name in names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}


def test_a_connection_that_is_not_there(sandbox):
    (payload,) = wait_for(trigger("ready", voicegenie_conn_id="nowhere"))
    assert payload["finding"]["condition"] == "INVALID_CONNECTION"
    assert "'nowhere'" in payload["finding"]["message"]


def test_a_list_that_is_refused_is_done_without(sandbox):
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3)]
    sandbox.inject("status", "list", times=None, status=403)

    async def meanwhile():
        await eventually(lambda: sandbox.request_count("get") >= 6)
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")

    payloads = wait_for(*(trigger(name) for name in names), meanwhile=meanwhile)
    assert {payload["reason"] for payload in payloads} == {"done"}
    assert sandbox.request_count("list") == 1


def test_a_feed_begins_with_a_modest_part_of_the_limit(sandbox, clock, monkeypatch):
    """All sixty are due at once, again and again. How the part grows is shown in ``test_fair_share.py``."""
    connection = sandbox.connection(timeout=60, requests_per_minute=300)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    sandbox.inject("status", "list", times=None, status=403)
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(60)]

    async def work():
        tasks = [asyncio.create_task(first_event(trigger(name))) for name in names]
        begun = clock.monotonic()
        await eventually(lambda: sandbox.request_count("get") >= 10)
        # A few at once, and one every four seconds then.
        sent, seconds = len(sandbox.sandbox.requests), clock.monotonic() - begun
        assert sent <= 1 + 10 + 1.1 * seconds * 15 / 60 + 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work)


# Time.


@pytest.mark.parametrize(
    ("deadline", "execution_deadline", "reason"),
    [(4, None, "timeout"), (None, 4, "execution_timeout"), (4, 50, "timeout"), (50, 4, "execution_timeout")],
)
def test_every_wait_has_its_end(sandbox, clock, deadline, execution_deadline, reason):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    now = clock.time()
    limits = {"deadline": deadline, "execution_deadline": execution_deadline}
    (payload,) = wait_for(trigger(campaign.id, **{k: v and now + v for k, v in limits.items()}))
    assert payload["reason"] == reason
    assert clock.time() - now == pytest.approx(4, abs=0.01)
    assert "last seen" in payload["message"]
    assert "'running'" in payload["message"]


def test_a_deadline_that_has_passed_ends_the_wait_at_once(sandbox, clock):
    (payload,) = wait_for(trigger("running", deadline=clock.time() - 100))
    assert payload["reason"] == "timeout"


# Completion, stalls.


def completed_campaign(sandbox):
    return sandbox.add_campaign(status="completed", total_count=8, completed_count=8, ended_at=now()).id


def test_a_completion_has_its_statistics(sandbox, clock):
    (payload,) = wait_for(trigger(completed_campaign(sandbox)))
    assert (payload["reason"], payload["result"]["statistics"]["calls_completed"]) == ("done", 8)
    assert payload["result"]["completed_at"]
    assert payload["at"] == clock.time()
    assert payload["service"]["address"] == sandbox.url.removeprefix("http://")
    assert abs(payload["service"]["clock_offset"]) < 10


@pytest.mark.parametrize("waits", [1, 3])
@pytest.mark.parametrize(
    "fault",
    [
        ("status", {"status": 500}),
        ("status", {"status": 404}),
        ("status", {"status": 429, "headers": {"Retry-After": "60"}}),
        ("not_json", {}),
        ("close", {}),
        ("hold", {}),
    ],
)
def test_statistics_that_cannot_be_read_at_once_are_left_to_the_task(sandbox, held, monkeypatch, waits, fault):
    monkeypatch.setattr(timing, "single_read_patience", 1.0)
    kind, fields = fault
    sandbox.inject(kind, "stats", times=None, **fields)
    for payload in wait_for(*(trigger(completed_campaign(sandbox)) for _ in range(waits))):
        assert (payload["reason"], payload["result"]["statistics"]) == ("done", None)
    assert sandbox.request_count("stats") <= waits


def test_old_statistics_are_left_to_the_task(sandbox):
    sandbox.sandbox.cache_stats = True
    campaign = sandbox.add_campaign(status="running", total_count=10_000).id
    VoiceGenieHook().get_campaign_stats(campaign)
    sandbox.sandbox.store.change(campaign, status="completed")
    (payload,) = wait_for(trigger(campaign))
    assert (payload["reason"], payload["result"]["statistics"]) == ("done", None)
    assert sandbox.request_count("stats") == 2


def test_those_who_wait_are_read_although_the_statistics_of_others_are_in_trouble(sandbox, clock, held, monkeypatch):
    """Neither reads that hang or fail, nor those that nobody waits for any more, take the place of a poll."""
    monkeypatch.setattr(timing, "single_read_patience", 0.5)
    sandbox.inject("hold", "stats", times=12)
    sandbox.inject("status", "stats", status=500, times=None)
    last = sandbox.add_campaign(status="running", total_count=10_000).id
    others = [completed_campaign(sandbox) for _ in range(60)]

    async def work():
        waiting = asyncio.create_task(first_event(trigger(last)))
        await asyncio.gather(*(first_event(trigger(each)) for each in others))
        before = sandbox.request_count("list") + sandbox.request_count("get")
        await asyncio.sleep(1.5)
        assert sandbox.request_count("list") + sandbox.request_count("get") - before >= 3
        sandbox.sandbox.store.change(last, status="failed")
        began = clock.monotonic()
        payload = await waiting
        assert clock.monotonic() - began < 1
        return payload

    assert run(work)["finding"]["condition"] == "CAMPAIGN_FAILED"


def test_a_wait_has_its_share_although_many_others_end(sandbox, monkeypatch):
    """Three requests a minute at first, and some at once: what is left of them is for the poll."""
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(requests_per_minute=60))
    last = sandbox.add_campaign(status="running", total_count=10_000).id
    others = [completed_campaign(sandbox) for _ in range(40)]
    waits = []

    async def work():
        waits.append(asyncio.create_task(first_event(trigger(last))))
        await asyncio.gather(*(first_event(trigger(each)) for each in others))
        (feed,) = feeds._feeds[asyncio.get_running_loop()].values()
        found = feed._share.next_at - asyncio.get_running_loop().time()
        waits[0].cancel()
        return found

    assert run(work) <= 21
    assert sandbox.request_count("stats") <= 3


def test_an_error_in_the_statistics_of_one_is_no_error_of_the_others(sandbox, monkeypatch):
    original = VoiceGenieClient.send

    def send(client, request, **options):
        # Outside of what makes a response unreadable.
        return 1 / 0 if "getCampaignStats" in request.path else original(client, request, **options)

    monkeypatch.setattr(VoiceGenieClient, "send", send)
    last = sandbox.add_campaign(status="running", total_count=10_000).id

    async def work():
        waiting = asyncio.create_task(first_event(trigger(last)))
        payload = await first_event(trigger(completed_campaign(sandbox)))
        assert (payload["reason"], payload["result"]["statistics"]) == ("done", None)
        sandbox.sandbox.store.change(last, status="failed")
        return await waiting

    assert run(work)["finding"]["condition"] == "CAMPAIGN_FAILED"


def test_statistics_are_not_waited_for_until_the_execution_timeout(sandbox, clock):
    """Airflow 2 ends a task at once that is resumed after it."""
    (payload,) = wait_for(trigger(completed_campaign(sandbox), execution_deadline=clock.time() + 4))
    assert (payload["reason"], payload["result"]["statistics"]) == ("done", None)
    assert sandbox.request_count("stats") == 0


def test_a_wait_that_is_over_says_nothing_more(sandbox, held, monkeypatch, caplog):
    monkeypatch.setattr(timing, "single_read_patience", 1.5)
    caplog.set_level(logging.INFO)
    sandbox.inject("hold", "stats")
    campaign = completed_campaign(sandbox)

    async def meanwhile():
        while not sandbox.request_count("stats"):
            await asyncio.sleep(0.05)
        sandbox.inject("status", "list", status=500, times=None)
        sandbox.inject("status", "get", status=500, times=None)

    wait_for(trigger(campaign), meanwhile=meanwhile)
    assert sandbox.request_count("list") + sandbox.request_count("get") >= 3
    lines = [record.getMessage() for record in caplog.records]
    # Nor does it take what is read of the campaign for its statistics.
    assert not [line for line in lines if "the wait goes on" in line or "statistics cannot be read" in line]


def test_if_many_end_at_once_the_statistics_of_most_are_left_to_their_tasks(sandbox, clock, held, monkeypatch):
    monkeypatch.setattr(feeds, "_MAXIMUM_WAITING", 3)
    sandbox.inject("delay", "stats", seconds=0.5)
    began = clock.monotonic()
    payloads = wait_for(*(trigger(completed_campaign(sandbox)) for _ in range(100)))
    assert clock.monotonic() - began < 5
    assert {payload["reason"] for payload in payloads} == {"done"}
    with_statistics = [payload for payload in payloads if payload["result"]["statistics"]]
    assert 3 <= len(with_statistics) == sandbox.request_count("stats") < 50


def test_statistics_for_which_the_share_has_no_room_are_left_to_the_task(sandbox, clock, monkeypatch):
    connection = sandbox.connection(requests_per_minute=3)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    payloads = []

    async def wait(campaign_id):
        payloads.append(await first_event(trigger(campaign_id)))
        # The share may let the campaigns be read late, too; once one is, its statistics hold up nothing.
        assert clock.time() - payloads[-1]["at"] < timing.single_read_patience

    async def work():
        await asyncio.gather(*(wait(completed_campaign(sandbox)) for _ in range(20)))

    run(work, patience=1000)
    assert {payload["reason"] for payload in payloads} == {"done"}
    assert sandbox.request_count("stats") == sum(bool(payload["result"]["statistics"]) for payload in payloads) < 5


def test_completion_seen_in_time_counts_although_time_is_over(sandbox, clock, monkeypatch):
    """The event loop may get to the deadline before it gets to what was seen."""
    original = feeds.Subscription.update

    async def late_update(subscription):
        update = await original(subscription)
        await asyncio.sleep(2)
        return update

    monkeypatch.setattr(feeds.Subscription, "update", late_update)
    campaign = sandbox.add_campaign(status="completed")
    (payload,) = wait_for(trigger(campaign.id, deadline=clock.time() + 1.5))
    assert payload["reason"] == "done"


@pytest.mark.parametrize("waits", [1, 2])
def test_a_stall(sandbox, clock, waits):
    names = [
        sandbox.add_campaign(status="running", total_count=10_000, completed_count=5, failed_count=1).id
        for _ in range(waits)
    ]
    seen = {"at": clock.time(), "completed": 5, "failed": 1}
    for payload in wait_for(*(trigger(name, stall_timeout=1, counters=seen) for name in names)):
        assert payload["finding"]["condition"] == "CAMPAIGN_STALLED"


# Readiness.


class NeedsTime(Prerequisite):
    """Takes its time, and notes where."""

    threads: ClassVar[list] = []

    def check(self, campaign, now):
        NeedsTime.threads.append(threading.current_thread())
        time.sleep(0.05)
        return Check.met() if len(NeedsTime.threads) > 2 else Check.waiting("not looked often enough")


def ready(campaign_id, *prerequisites, **arguments):
    return trigger(campaign_id, "ready", prerequisites=prerequisites, **arguments)


def test_readiness_with_prerequisites_of_every_kind(sandbox):
    campaign = sandbox.add_campaign(script_id=None, total_count=3)
    other = sandbox.add_campaign(status="running", total_count=10_000)
    hours = CallingHours("00:00", "23:59:59.999999", "UTC")

    async def meanwhile():
        await eventually(lambda: sandbox.request_count("get", campaign.id) >= 2)
        sandbox.sandbox.store.change(campaign.id, script_id="s", total_count=5)
        sandbox.sandbox.store.change(other.id, status="completed")

    waiting = ready(campaign.id, IsStartable(), HasScript(), HasContacts(5), hours, NeedsTime())
    payload, _, _ = wait_for(waiting, trigger(other.id), trigger(other.id), meanwhile=meanwhile)
    assert payload["reason"] == "done"
    assert payload["result"]["total_count"] == 5
    assert threading.main_thread() not in NeedsTime.threads


@pytest.mark.parametrize(
    ("campaign_id", "condition"),
    [("running", "CAMPAIGN_ALREADY_RUNNING"), ("completed", "CAMPAIGN_COMPLETED"), ("nobody", "NOT_FOUND")],
)
def test_readiness_that_can_never_come(sandbox, campaign_id, condition):
    (payload,) = wait_for(ready(campaign_id, IsStartable()))
    assert (payload["reason"], payload["finding"]["condition"]) == ("condition", condition)


def test_readiness_has_its_end_too(sandbox, clock):
    (payload,) = wait_for(ready("no-script", HasScript(), deadline=clock.time() + 0.5))
    assert payload["reason"] == "timeout"
    assert "no script" in payload["message"]


@pytest.mark.parametrize(
    "path",
    ["os.system", "no.such.module.Thing", "Thing", "builtins.dict", "", "airflow_provider_voicegenie.__doc__", "a b.c"],
)
def test_only_prerequisites_are_loaded(sandbox, path):
    with pytest.raises(ValueError, match="no Prerequisite"):
        wait_for(ready("ready", arguments={"prerequisites": [[path, {}]]}))


# What is stored and logged.


@pytest.mark.parametrize("waiting", [trigger("c"), ready("c", HasContacts(3))])
def test_trigger_arguments_go_through_json(waiting):
    path, arguments = waiting.serialize()
    module, _, name = path.rpartition(".")
    assert module == LOGGER
    assert json.loads(json.dumps(arguments)) == arguments
    again = type(waiting)(**arguments)
    assert name == type(again).__name__
    assert again.serialize() == (path, arguments)


def test_what_is_logged_belongs_to_the_trigger_it_is_about(sandbox, caplog):
    """Airflow's triggerer finds the task of a log line by context variables; the feed must not mix them up."""
    whose = contextvars.ContextVar("whose", default="nobody")
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append((whose.get(), record.getMessage()))

    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(3)]
    handler = Handler()
    logger = logging.getLogger(LOGGER.split(".")[0])
    caplog.set_level(logging.INFO)

    async def work():
        async def one(name):
            whose.set(name)
            return await first_event(trigger(name))

        tasks = [asyncio.create_task(one(name)) for name in names]
        await eventually(lambda: len(sandbox.sandbox.requests) >= 3)
        for name in names:
            sandbox.sandbox.store.change(name, status="completed")
        await asyncio.gather(*tasks)

    logger.addHandler(handler)
    try:
        run(work)
    finally:
        logger.removeHandler(handler)
    about = [(owner, text) for owner, text in lines if text.startswith("Campaign ")]
    assert {owner for owner, _ in about} == set(names)
    assert all(repr(owner) in text for owner, text in about)


# Being killed.


@pytest.mark.parametrize(
    ("status", "pause_on_kill", "pauses", "after"),
    [("running", True, 1, "paused"), ("running", False, 0, "running"), ("completed", True, 1, "completed")],
)
def test_a_user_who_ends_the_task_pauses_the_campaign(sandbox, status, pause_on_kill, pauses, after):
    campaign = sandbox.add_campaign(status=status, total_count=10_000)
    run(trigger(campaign.id, pause_on_kill=pause_on_kill).on_kill)
    assert sandbox.request_count("pause") == pauses
    assert sandbox.status(campaign.id) == after


@pytest.mark.parametrize(
    ("state", "pauses"), [("deferred", 0), ("failed", 1), ("success", 1), (None, 1), ("running", 1), ("deleted", 1)]
)
def test_a_trigger_that_moves_to_another_triggerer_pauses_nothing(sandbox, notes, state, pauses):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    waiting = trigger(campaign.id, pause_on_kill=True)
    waiting.task_instance = TaskInstance(task=None, state=state)
    run(waiting.on_kill)
    assert sandbox.request_count("pause") == pauses


TELLS_OF_KILLS = pytest.mark.skipif(
    not hasattr(BaseTrigger, "on_kill"), reason="this Airflow tells no trigger that it is ended"
)


class Notes(dict):
    """The XComs that a trigger gets and sets."""

    def set(self, key, value, **place):
        self[key, tuple(sorted(place.items()))] = value

    def get_one(self, key, **place):
        return self.get((key, tuple(sorted(place.items()))))


@pytest.fixture
def notes(monkeypatch):
    notes = Notes()
    monkeypatch.setattr(stop, "XCom", notes)
    return notes


def second_trigger(campaign_id, state="scheduled", **arguments):
    """Return a trigger whose wait another triggerer has, too."""
    second = trigger(campaign_id, pause_on_kill=True, **arguments)
    second.task_instance = TaskInstance(task=None, state=state)
    return second


@TELLS_OF_KILLS
@pytest.mark.parametrize("state", [None, "scheduled", "queued", "running", "up_for_retry", "failed", "success"])
@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_a_second_trigger_of_a_wait_that_is_over_pauses_nothing(sandbox, notes, state, status):
    """Another triggerer took it over while the first was telling Airflow of the end; to Airflow, a user dropped it."""
    campaign = sandbox.add_campaign(status=status)
    first = second_trigger(campaign.id, "deferred")
    run(lambda: first_event(first))
    # Started anew since, by another run of its DAG.
    sandbox.sandbox.store.change(campaign.id, status="running")
    run(second_trigger(campaign.id, state).on_kill)
    assert sandbox.request_count("pause") == 0


@TELLS_OF_KILLS
@pytest.mark.parametrize("state", ["scheduled", "running", "failed", "success", "skipped"])
@pytest.mark.parametrize("arguments", [{"deadline": -1}, {"execution_deadline": -1}, {"stall_timeout": 0.5}])
def test_a_second_trigger_leaves_a_campaign_alone_that_goes_on(sandbox, clock, notes, state, arguments):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    sandbox.speed = 1e-9
    arguments = {name: value if value > 0 else clock.time() + value for name, value in arguments.items()}
    first = second_trigger(campaign.id, "deferred", **arguments)
    payload = run(lambda: first_event(first))
    assert payload["reason"] in ("timeout", "execution_timeout", "condition")
    second = second_trigger(campaign.id, state, **arguments)
    run(second.on_kill)
    assert sandbox.request_count("pause") == 0
    # That of another task has its own.
    other = second_trigger(campaign.id, state)
    other.task_instance.map_index = 7
    other.task_instance.get_task_states = lambda *_, **__: {"run": {"task_7": "failed"}}
    run(other.on_kill)
    assert sandbox.request_count("pause") == 1


def test_many_who_are_killed_at_once_have_their_campaigns_paused(sandbox, monkeypatch):
    """Nothing but their pauses goes out, so that a limit of sixty a minute is enough for fifty."""
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(timeout=60))
    sandbox.sandbox.enforce_rate_limits = True
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(50)]

    async def work():
        await asyncio.gather(*(trigger(name, pause_on_kill=True).on_kill() for name in names))

    run(work)
    assert {sandbox.status(name) for name in names} == {"paused"}
    assert len(sandbox.sandbox.requests) == 50


def cleared_trigger(campaign_id, notes, state="running", **arguments):
    """Return a trigger whose task was cleared, and whose next try is deferred by now if the state says so."""
    waiting = trigger(campaign_id, pause_on_kill=True, generation=[2, 0, 1], **arguments)
    waiting.task_instance = TaskInstance(task=None, state=state)
    place = {name: getattr(waiting.task_instance, name) for name in ("dag_id", "task_id", "run_id", "map_index")}
    notes.set("voicegenie_task", {"campaign_id": "another", "generation": [3, 1, 2]}, **place)
    return waiting


@pytest.mark.parametrize("state", ["running", "deferred"])
def test_the_clear_of_a_task_that_is_deferred_again_pauses_its_first_campaign(sandbox, notes, state):
    """The task was cleared so that it takes another campaign."""
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    run(cleared_trigger(campaign.id, notes, state).on_kill)
    assert sandbox.status(campaign.id) == "paused"


def test_many_whose_tasks_are_cleared_at_once_have_their_campaigns_paused(sandbox, notes, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(timeout=20))
    sandbox.sandbox.enforce_rate_limits = True
    names = [sandbox.add_campaign(status="running", total_count=10_000).id for _ in range(50)]

    async def work():
        await asyncio.gather(*(cleared_trigger(name, notes).on_kill() for name in names))

    run(work, patience=40)
    assert {sandbox.status(name) for name in names} == {"paused"}


@pytest.mark.parametrize(
    ("status", "began", "began_again", "is_paused"),
    [
        # Paused by a person before the task was cleared: a pause that comes late would be one of the next try's start.
        ("paused", 60, None, False),
        ("running", 60, None, True),
        ("running", 60, 60, True),
        # The next try has started it already.
        ("running", 60, 5, False),
        # It started itself, as by a daily schedule.
        ("running", 90_000, 3600, True),
        ("running", None, 5, True),
    ],
)
def test_the_pause_of_a_cleared_task_is_about_its_own_start(sandbox, notes, status, began, began_again, is_paused):
    now = datetime.now(UTC)
    ago = lambda seconds: now - timedelta(seconds=seconds)  # noqa: E731
    campaign = sandbox.add_campaign(status=status, total_count=10_000)
    started_at = None if began is None else ago(began)
    latest = started_at if began_again is None else ago(began_again)
    sandbox.sandbox.store.change(campaign.id, started_at=latest)
    start = {"started_at": None if started_at is None else started_at.isoformat()}
    run(cleared_trigger(campaign.id, notes, **start).on_kill)
    assert sandbox.request_count("pause") == int(is_paused)


def test_the_pause_of_a_cleared_task_does_not_wait_for_long_for_what_precedes_it(sandbox, notes, monkeypatch):
    monkeypatch.setattr(timing, "read_before_pause", 0.2)
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    sandbox.inject("hold", "get")
    run(cleared_trigger(campaign.id, notes).on_kill)
    assert sandbox.status(campaign.id) == "paused"


def test_a_pause_that_is_repeated_is_about_its_own_start_too(sandbox, notes):
    """The response to the first was lost, and the next try has started the campaign meanwhile."""
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    first = datetime.now(UTC) - timedelta(minutes=5)
    sandbox.sandbox.store.change(campaign.id, started_at=first)
    sandbox.inject("close", "pause", after_acting=True)
    with meanwhile(
        lambda: sandbox.status(campaign.id) == "paused",
        lambda: sandbox.sandbox.store.change(campaign.id, status="running", started_at=datetime.now(UTC)),
    ):
        run(cleared_trigger(campaign.id, notes, started_at=first.isoformat()).on_kill)
    assert (sandbox.request_count("pause"), sandbox.status(campaign.id)) == (1, "running")


def test_a_pause_that_took_effect_although_its_response_was_lost_is_said_to(sandbox, notes, caplog):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    sandbox.inject("close", "pause", after_acting=True)
    run(cleared_trigger(campaign.id, notes).on_kill)
    assert (sandbox.request_count("pause"), sandbox.status(campaign.id)) == (1, "paused")
    assert "so the campaign was paused" in caplog.text
    assert "Nothing is paused" not in caplog.text


@TELLS_OF_KILLS
def test_a_note_that_cannot_be_made_ends_no_wait(sandbox, clock, notes, monkeypatch, caplog):
    monkeypatch.setattr(notes, "set", None, raising=False)
    first = second_trigger("running", "deferred", deadline=clock.time() - 1)
    assert run(lambda: first_event(first))["reason"] == "timeout"
    assert "did not take the note" in caplog.text


def test_kill_pauses_when_airflow_cannot_be_asked(sandbox):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    waiting = trigger(campaign.id, pause_on_kill=True)
    waiting.task_instance = TaskInstance(task=None, get_task_states=None)
    run(waiting.on_kill)
    assert sandbox.request_count("pause") == 1


def test_pause_survives_repeated_cancellation(sandbox):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    waiting = trigger(campaign.id, pause_on_kill=True)
    asked, answer = threading.Event(), threading.Event()

    def get_task_states(*_, **__):
        asked.set()
        answer.wait(60)
        return {"run": {"task": "failed"}}

    waiting.task_instance = TaskInstance(task=None, get_task_states=get_task_states)

    async def work():
        killing = asyncio.create_task(asyncio.wait_for(waiting.on_kill(), timeout=30))
        # Time stands still meanwhile.
        while not asked.is_set():
            await asyncio.sleep(0)
        for _ in range(5):
            killing.cancel("user-action")
            await asyncio.sleep(0)
        answer.set()
        await eventually(lambda: sandbox.status(campaign.id) == "paused")

    run(work)
    assert sandbox.request_count("pause") == 1


@pytest.mark.parametrize("after_acting", [True, False])
def test_the_pause_of_a_killed_task_is_repeated_while_that_may_help(sandbox, caplog, after_acting):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)
    sandbox.inject("close", "pause", after_acting=after_acting)
    caplog.set_level(logging.INFO)
    run(trigger(campaign.id, pause_on_kill=True).on_kill)
    assert sandbox.status(campaign.id) == "paused"
    assert sandbox.request_count("pause") == 2


def test_campaign_that_cannot_be_paused_is_an_error_in_the_log(sandbox, caplog):
    sandbox.inject("status", "pause", status=403, times=None)
    run(trigger("running", pause_on_kill=True).on_kill)
    assert "IT MAY GO ON CALLING" in caplog.text
    caplog.clear()
    sandbox.sandbox.faults.clear()
    outage(sandbox, "close")
    run(trigger("running", pause_on_kill=True).on_kill)
    assert caplog.text.count("Trying again") == 3
    assert "IT MAY GO ON CALLING" in caplog.text


def test_ending_the_triggerer_pauses_nothing(sandbox):
    campaign = sandbox.add_campaign(status="running", total_count=10_000)

    async def work():
        waiting = trigger(campaign.id, pause_on_kill=True)
        task = asyncio.create_task(first_event(waiting))
        await eventually(lambda: len(sandbox.sandbox.requests) >= 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await waiting.cleanup()

    run(work)
    assert sandbox.request_count("pause") == 0
