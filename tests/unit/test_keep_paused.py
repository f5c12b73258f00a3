# SPDX-License-Identifier: Apache-2.0
"""``PauseCampaignOperator(keep_paused_for=...)``: a campaign that starts itself, or is started, is paused again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout
from helpers.tasks import Store, both_ways, change, context, deferred, event_of, in_worker, meanwhile, wait_trigger

from airflow_provider_voicegenie import pause_run
from airflow_provider_voicegenie.api.errors import ServerError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules, TaskKind, VoiceGenieRetryException
from airflow_provider_voicegenie.waiting.pausing import PauseWatch
from airflow_provider_voicegenie.waiting.watch import EndReason


def keeping(campaign_id="followed", *, keep_paused_for=6, **arguments):
    def make(*, deferrable):
        return PauseCampaignOperator(
            **{"task_id": "pause", "campaign_id": campaign_id, "poll_interval": 0.5, **arguments},
            keep_paused_for=keep_paused_for,
            deferrable=deferrable,
        )

    return make


def is_paused(sandbox, times, campaign_id="followed"):
    """Whether the service has taken so many pauses by now."""
    return lambda: sandbox.request_count("pause", campaign_id) >= times and sandbox.status(campaign_id) == "paused"


@both_ways
def test_it_is_paused_again_whenever_it_runs(sandbox, clock, way, said):
    begin = change(sandbox, "followed", status="running")
    began = clock.time()
    with meanwhile(is_paused(sandbox, 1), begin), meanwhile(is_paused(sandbox, 2), begin):
        result = way(keeping(), context())
    assert clock.time() - began == pytest.approx(6, abs=0.01)
    assert (result["campaign_id"], result["status"], result["paused_again"]) == ("followed", "paused", 2)
    assert result["paused_at"].endswith("Z")
    assert sandbox.status("followed") == "paused"
    lines = said()
    assert [line for line in lines if "it ran again, so it was paused again (1 time(s) so far)" in line]
    assert [line for line in lines if "it ran again, so it was paused again (2 time(s) so far)" in line]


@both_ways
def test_what_was_paused_already_is_kept_so(sandbox, way, said):
    with meanwhile(lambda: sandbox.request_count("get", "paused") > 1, change(sandbox, "paused", status="running")):
        result = way(keeping("paused"), context())
    assert (result["status"], result["paused_again"]) == ("paused", 1)
    assert "goes on by itself" not in "".join(said())


@both_ways
def test_the_end_of_the_campaign_ends_it(sandbox, way):
    with meanwhile(is_paused(sandbox, 1), change(sandbox, "followed", status="completed")):
        result = way(keeping(keep_paused_for=timedelta(hours=1)), context())
    assert (result["status"], result["paused_again"]) == ("completed", 0)


@both_ways
@pytest.mark.parametrize(("operation", "status"), [("get", 503), ("pause", 503), ("pause", 429)])
def test_temporary_trouble_is_waited_out(sandbox, way, operation, status, said):
    begin = change(sandbox, "followed", status="running")
    sandbox.inject("delay", operation, seconds=0)
    sandbox.inject("status", operation, status=status, times=2)
    with meanwhile(is_paused(sandbox, 1), begin):
        result = way(keeping(keep_paused_for=8), context())
    assert (result["status"], result["paused_again"]) == ("paused", 1)
    assert sandbox.status("followed") == "paused"
    text = "".join(said())
    # A pause that failed with 503 may have taken effect.
    assert ("looking at it again" if (operation, status) == ("pause", 503) else "the wait goes on") in text


@both_ways
def test_a_pause_without_a_response_is_looked_into(sandbox, way, said):
    sandbox.inject("delay", "pause", seconds=0)
    sandbox.inject("close", "pause", after_acting=True)
    with meanwhile(is_paused(sandbox, 1), change(sandbox, "followed", status="running")):
        result = way(keeping(), context())
    assert (result["status"], result["paused_again"]) == ("paused", 1)
    assert sandbox.request_count("pause") == 2
    assert "the pause took effect (1 time(s) so far)" in "".join(said())


@both_ways
def test_what_does_not_pass_ends_it_by_the_table(sandbox, way):
    sandbox.inject("delay", "get", seconds=0)
    with (
        meanwhile(is_paused(sandbox, 1), lambda: sandbox.sandbox.store.remove("followed")),
        pytest.raises(AirflowFailException, match="NOT_FOUND: the task fails"),
    ):
        way(keeping(keep_paused_for=3600), context())


@both_ways
def test_what_starts_itself_between_the_last_two_looks_is_paused(sandbox, way):
    """There is a look at the very end, however long the interval is."""
    campaign_id = sandbox.add_campaign(status="running", total_count=10**6, resumes_after=1).id
    result = way(keeping(campaign_id, keep_paused_for=6, poll_interval=60), context())
    # Without that look it would have run for seconds by now. How many looks came before, the machine decides.
    assert result["status"] == "paused"
    assert 1 <= result["paused_again"] == sandbox.request_count("pause", campaign_id) - 1


def test_a_time_limit_of_airflow_ends_it(sandbox):
    make = keeping(keep_paused_for=3600, execution_timeout=timedelta(seconds=1))
    with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout: timed out \(last seen: paused, paused again 0"):
        deferred(make, context())


def test_a_later_try_goes_on_until_the_same_time(sandbox, clock, monkeypatch):
    store, until = Store(), []

    def keep(hook, watch, *, deadline, **arguments):
        until.append(deadline)
        raise OSError("the worker is gone")

    monkeypatch.setattr(pause_run, "wait_here", keep)
    for try_number in (1, 2):
        with pytest.raises(OSError, match="gone"):
            in_worker(keeping(keep_paused_for=3600), context(store, try_number=try_number))
        clock.sleep(0.01)
    with pytest.raises(OSError, match="gone"):
        in_worker(keeping(keep_paused_for=3600), context(store, try_number=3, max_tries=3))
    assert until[0] == until[1] < until[2]
    # Its time is over.
    store["voicegenie_task"]["until"] = clock.time() - 1
    pauses = sandbox.request_count("pause")
    with pytest.raises(AirflowFailException, match="an earlier try kept it paused is over, so this try sends nothing"):
        in_worker(keeping(keep_paused_for=3600), context(store, try_number=4, max_tries=3))
    assert sandbox.request_count("pause") == pauses


@both_ways
@pytest.mark.parametrize("operation", ["get", "pause", "*"])
def test_a_campaign_that_could_not_be_kept_paused_is_no_success(sandbox, way, operation, monkeypatch):
    monkeypatch.setattr("airflow_provider_voicegenie.waiting.pausing._FRESH", 0.5)

    def break_down():
        for each in ("get", "list", "pause") if operation == "*" else [operation]:
            sandbox.inject("status", each, status=500, times=None)
        if operation == "get":
            sandbox.inject("status", "list", status=500, times=None)
        sandbox.sandbox.store.change("followed", status="running")

    with (
        meanwhile(is_paused(sandbox, 1), break_down),
        pytest.raises(AirflowFailException, match=r"not kept paused until the end: timed out .*IT MAY"),
    ):
        way(keeping(), context())
    # One try at each look, and ever fewer.
    assert sandbox.request_count("pause") < 40
    assert sandbox.request_count("get") + sandbox.request_count("list") < 80


@both_ways
def test_what_was_seen_paused_a_moment_ago_is_kept_paused(sandbox, way):
    def break_down():
        for operation in ("get", "list"):
            sandbox.inject("status", operation, status=503, times=None)

    when = lambda: sandbox.request_count("get") + sandbox.request_count("list") > 3  # noqa: E731
    with meanwhile(when, break_down):
        assert way(keeping(), context())["status"] == "paused"


@pytest.mark.parametrize(("seconds", "reason"), [(299, EndReason.DONE), (301, EndReason.TIMEOUT)])
def test_what_was_seen_paused_long_ago_is_not_known_to_be_so(seconds, reason):
    watch = PauseWatch("c", OutcomeRules(TaskKind.PAUSE).while_waiting(), 1000.0)
    assert watch.take(Campaign("c", CampaignStatus.PAUSED, "paused"), 1000.0) is None
    for later in range(1, seconds, 10):
        assert watch.take(ServerError("no"), 1000.0 + later) is None
    assert watch.time_is_up(1000.0 + seconds, EndReason.TIMEOUT).reason is reason


@both_ways
@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "close"}], ids=["503", "close"])
def test_a_pause_that_failed_is_soon_tried_again(sandbox, clock, monkeypatch, way, fault):
    """However seldom the campaign is read."""
    clock.limit = 1000.0
    monkeypatch.setattr("helpers.tasks.PATIENCE", 1000)
    times = []

    def has_sent(number):
        return lambda: sandbox.request_count("pause") >= number

    def note():
        times.append(clock.time())

    sandbox.inject("delay", "pause", seconds=0)
    sandbox.inject(**fault, operation="pause")
    steps = [is_paused(sandbox, 1), change(sandbox, "followed", status="running"), has_sent(2), note, has_sent(3), note]
    with meanwhile(*steps):
        result = way(keeping(keep_paused_for=180, poll_interval=100), context())
    assert result["status"] == "paused"
    # Not at the next ordinary read, a hundred seconds later.
    assert times[1] - times[0] <= 31


@both_ways
def test_a_word_for_running_that_nobody_knows(sandbox, way, said):
    campaign_id = sandbox.add_campaign(status="calling").id
    original = sandbox.sandbox.store.pause

    def pause(campaign_id):
        if sandbox.status(campaign_id) == "calling":
            sandbox.sandbox.store.change(campaign_id, status="running")
        return original(campaign_id)

    sandbox.sandbox.store.pause = pause
    when = lambda: sandbox.request_count("get") + sandbox.request_count("list") > 2  # noqa: E731
    with meanwhile(when, change(sandbox, campaign_id, status="calling")):
        result = way(keeping(campaign_id), context())
    assert (result["status"], result["paused_again"]) == ("paused", 1)
    assert "status 'calling' is unknown here; trying to pause it" in "".join(said())


def test_a_pause_that_is_refused_is_not_tried_in_a_loop(sandbox):
    """As when readings are old: it says that it runs, and the service takes no pause."""
    campaign_id = sandbox.add_campaign(status="paused", total_count=10).id
    body = '{"success": false, "message": "Campaign is not running", "error": "CAMPAIGN_NOT_RUNNING"}'
    sandbox.inject("status", "pause", status=400, body=body, times=None)
    with (
        meanwhile(lambda: sandbox.request_count("get") > 1, change(sandbox, campaign_id, status="running")),
        contextlib.suppress(AirflowFailException),
    ):
        deferred(keeping(campaign_id, poll_interval=0.5), context())
    assert 2 <= sandbox.request_count("pause") < 15


def test_once_told_to_end_it_sends_nothing(sandbox):
    operator = keeping(keep_paused_for=3600)(deferrable=False)

    def end():
        operator.on_kill()
        sandbox.sandbox.store.change("followed", status="running")

    with meanwhile(is_paused(sandbox, 1), end), pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context())
    assert sandbox.request_count("pause") == 1


def test_without_a_triggerer_it_does_not_say_that_all_is_well(sandbox):
    late = {"error": "Trigger timeout"}
    with pytest.raises(VoiceGenieRetryException, match="no triggerer has kept it paused to the end"):
        keeping()(deferrable=True).resume_execution("__fail__", late, context())


def test_a_hundred_of_them_share_their_requests(sandbox, clock):
    names = [sandbox.add_campaign(status="paused", total_count=10).id for _ in range(100)]
    began = clock.time()

    def trigger(name):
        return wait_trigger(
            kind="pause",
            campaign_id=name,
            voicegenie_conn_id="voicegenie_default",
            outcomes={},
            poll_interval=1,
            deadline=began + 8,
        )

    async def events():
        async def first(name):
            (payload,) = [event.payload async for event in trigger(name).run()]
            return payload["result"]["paused_again"]

        tasks = [asyncio.create_task(first(name)) for name in names]
        await asyncio.sleep(2)
        sandbox.sandbox.store.change(names[7], status="running")
        return await asyncio.gather(*tasks)

    counts = asyncio.run(events())
    assert (sum(counts), counts[7]) == (1, 1)
    assert sandbox.status(names[7]) == "paused"
    # Not a hundred in each of eight seconds.
    assert sum(map(sandbox.request_count, ("get", "list", "pause"))) < 90


@pytest.mark.parametrize("name", ["Active", "in progress", "IN_PROGRESS", "running"])
def test_running_is_read_in_any_spelling(sandbox, name):
    campaign_id = sandbox.add_campaign(status="paused", total_count=10**6).id
    make = keeping(campaign_id, keep_paused_for=6)
    with meanwhile(lambda: sandbox.request_count("get") > 1, change(sandbox, campaign_id, status=name)):
        make(deferrable=False).execute(context())
    assert sandbox.request_count("pause", campaign_id) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep_paused_for": 0}, "keep_paused_for must be above 0 and a year at most; got 0. Leave it out to pause"),
        ({"keep_paused_for": 1e300}, "keep_paused_for must be above 0 and a year at most; got 1e.300"),
        ({"keep_paused_for": -1}, "keep_paused_for must be finite and not negative"),
        ({"keep_paused_for": "1h"}, "keep_paused_for must be a timedelta or a number of seconds"),
        ({"poll_interval": 0}, "poll_interval must be above 0"),
        ({"deferrable": "yes"}, "deferrable must be True or False"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, words):
    with pytest.raises(ValueError, match=words):
        PauseCampaignOperator(task_id="pause", campaign_id="c", **arguments)


def test_the_event_of_a_wait_has_nothing_of_the_task():
    trigger = wait_trigger(
        kind="pause",
        campaign_id="c",
        voicegenie_conn_id="d",
        outcomes={},
        poll_interval=1,
        deadline=time.time() - 1,
    )
    event = event_of(trigger)
    assert event["reason"] == "timeout"
    assert set(event) == {"reason", "message", "finding", "result", "at", "service", "deferred"}
