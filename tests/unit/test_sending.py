# SPDX-License-Identifier: Apache-2.0
"""What must hold when a request with an effect is sent, is checked between the handshake and the first byte."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, AirflowTaskTimeout
from helpers.tasks import Starting, Store, context, wait_trigger
from helpers.tls_service import tls_service

from airflow_provider_voicegenie.api import session
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import send
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting.stop import KillSwitch

ENDED = "ended from outside"


@pytest.fixture
def service(tmp_path, monkeypatch):
    for name in ("https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with tls_service(tmp_path / "ca.pem") as service:
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", service.connection())
        yield service


def starting(**arguments):
    return Starting(**{"campaign_id": "c", "wait_for_completion": False, **arguments})(deferrable=False)


@contextmanager
def once_it(is_so, act):
    """Do something in another thread once there is a sign."""

    def work():
        is_so.wait()
        act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def signals(handle):
    """Let a signal of this process do what Airflow's does."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def never_look(monkeypatch):
    """Leave the look right before the first byte as the only one."""
    monkeypatch.setattr(session, "_CHECK_INTERVAL", 600)


@pytest.mark.parametrize("state", ["failed", "running"])
@pytest.mark.parametrize("when", ["at once", "before the first byte"])
def test_a_start_whose_task_is_killed_during_the_handshake_is_not_sent(service, monkeypatch, when, state):
    if when == "before the first byte":
        never_look(monkeypatch)
    store = Store()
    run = context(store)
    operator = starting()
    service.hold(2)  # behind the read of the campaign

    def handle():
        run["ti"].state = state
        operator.on_kill()

    with signals(handle) as kill:

        def act():
            kill()
            if when == "before the first byte":
                service.go_on.set()

        with (
            once_it(service.is_held, act),
            pytest.raises(VoiceGenieRetryException, match=f"{ENDED} before it started anything"),
        ):
            operator.execute(run)
    service.go_on.set()
    service.is_over.wait()
    assert service.requests == []
    assert store["voicegenie_task"]["start"]["phase"] == "closed"
    # What is known to have had no effect does not keep a later try from starting.
    assert starting().execute(context(store, try_number=2))["started_by_task"]
    assert service.requests == ["start"]


def test_a_task_that_was_marked_during_a_long_handshake_starts_nothing(service, monkeypatch):
    """Airflow tells the task some seconds later."""
    monkeypatch.setattr(timing, "fresh_state", 0.0)
    run = context(Store())
    service.hold(2)

    def act():
        run["ti"].state = "failed"
        service.go_on.set()

    with once_it(service.is_held, act), pytest.raises(VoiceGenieRetryException, match="before it started anything"):
        starting().execute(run)
    service.is_over.wait()
    assert service.requests == []


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_start_whose_response_is_slow_is_followed_by_a_pause_in_time(service, state):
    """Airflow ends the process five seconds after its signal."""
    store = Store()
    run = context(store)
    operator = starting()
    service.respond.clear()

    def handle():
        run["ti"].state = state
        operator.on_kill()

    with signals(handle) as kill, once_it(service.is_started, kill), pytest.raises(VoiceGenieRetryException) as caught:
        operator.execute(run)
    assert not service.respond.is_set()
    assert caught.match(f"{ENDED}[.]$")
    assert service.requests == (["start", "pause"] if state == "failed" else ["start"])
    # If no user ended it, the next try finds out.
    assert store["voicegenie_task"]["start"]["phase"] == ("closed" if state == "failed" else "sent")


def test_the_response_to_a_start_is_awaited_for_a_moment_after_a_kill(service, monkeypatch):
    monkeypatch.setattr(timing, "response_after_kill", 600)
    store = Store()
    run = context(store)
    operator = starting()
    service.respond.clear()
    with signals(operator.on_kill) as kill:

        def act():
            kill()
            service.respond.set()

        with once_it(service.is_started, act), pytest.raises(VoiceGenieRetryException, match=ENDED):
            operator.execute(run)
    assert store["voicegenie_task"]["start"]["phase"] == "started"


def test_an_execution_timeout_during_the_handshake_leaves_no_start(service):
    def over():
        raise AirflowTaskTimeout

    store = Store()
    service.hold(2)
    with signals(over) as end, once_it(service.is_held, end), pytest.raises(AirflowTaskTimeout):
        starting().execute(context(store))
    service.go_on.set()
    service.is_over.wait()
    assert service.requests == []
    assert store["voicegenie_task"]["start"]["phase"] == "closed"


_closed = threading.Event()


def is_closed(day):
    return _closed.is_set()


def is_broken(day):
    if _closed.is_set():
        raise OSError("no calendar")
    return False


def hours(closed=is_closed):
    _closed.clear()
    return CallingHours("00:00", "23:59:59.999999", "UTC", except_dates=closed)


def test_a_start_whose_hours_close_during_the_handshake_is_not_sent(service):
    store = Store()
    operator = starting(calling_hours=hours(), outcomes={"OUTSIDE_CALLING_HOURS": "skip"})
    service.hold(2)

    def act():
        _closed.set()
        service.go_on.set()

    with once_it(service.is_held, act), pytest.raises(AirflowSkipException, match="OUTSIDE_CALLING_HOURS"):
        operator.execute(context(store))
    service.is_over.wait()
    assert service.requests == []
    assert store["voicegenie_task"]["start"]["phase"] == "closed"


def test_a_start_whose_hours_close_during_the_handshake_may_wait_for_the_next_ones(service, monkeypatch):
    operator = starting(calling_hours=hours(), outcomes={"OUTSIDE_CALLING_HOURS": "wait"})
    service.hold(2)

    def act():
        _closed.set()
        service.go_on.set()

    def opening(hours, since):
        _closed.clear()
        return since

    monkeypatch.setattr(send, "next_opening", opening)
    with once_it(service.is_held, act):
        assert operator.execute(context(Store()))["started_by_task"]
    assert service.requests == ["start"]


def test_hours_that_cannot_be_read_any_more_are_no_trouble_with_the_service(service):
    store = Store()
    service.hold(2)

    def act():
        _closed.set()
        service.go_on.set()

    with once_it(service.is_held, act), pytest.raises(ValueError, match=r"is_broken.*OSError: no calendar"):
        starting(calling_hours=hours(is_broken)).execute(context(store))
    service.is_over.wait()
    assert service.requests == []
    assert store["voicegenie_task"]["start"]["phase"] == "closed"


def test_a_start_that_becomes_too_late_during_the_handshake_is_not_sent(service):
    run = context(Store())
    run["dag_run"].run_type = "scheduled"
    service.hold(2)

    def act():
        run["dag_run"].run_after -= timedelta(hours=2)
        service.go_on.set()

    with once_it(service.is_held, act), pytest.raises(AirflowSkipException, match="RUN_TOO_LATE"):
        starting(max_lateness=3600).execute(run)
    service.is_over.wait()
    assert service.requests == []


@pytest.mark.parametrize("kind", ["pause", "keep paused", "upload"])
def test_nothing_else_with_an_effect_is_sent_after_a_kill(service, kind):
    run = context(Store())
    if kind == "upload":
        operator = UploadContactsOperator(task_id="task", campaign_id="c", contacts=[{"phone_number": "+4915112345"}])
        service.hold(2)
    else:
        service.status = "running"
        operator = PauseCampaignOperator(
            task_id="task", campaign_id="c", keep_paused_for=3600 if kind == "keep paused" else None, poll_interval=1
        )
        service.hold(1)
    if kind == "keep paused":
        service.hold(3)  # behind the first pause, and a read
        original = VoiceGenieHook.send

        def send(*arguments, **options):
            service.status = "running"
            return original(*arguments, **options)

        operator._hook.send = send.__get__(operator._hook)
    with signals(operator.on_kill) as kill:

        def act():
            kill()
            service.go_on.set()

        with once_it(service.is_held, act), pytest.raises(VoiceGenieRetryException, match=ENDED):
            operator.execute(run)
    service.is_over.wait()
    assert service.requests == (["pause"] if kind == "keep paused" else [])
    if kind == "pause":
        # The task has looked at nothing, so the next try may take another campaign.
        assert not run["task_state_store"]


def test_a_trigger_that_is_cancelled_during_the_handshake_pauses_nothing(service):
    service.status = "running"
    service.hold(2)
    trigger = wait_trigger(
        kind="pause",
        campaign_id="c",
        voicegenie_conn_id="voicegenie_default",
        outcomes={},
        poll_interval=1.0,
        deadline=time.time() + 600,
    )

    async def work():
        async def run():
            async for _ in trigger.run():
                pass

        task = asyncio.create_task(run())
        await asyncio.to_thread(service.is_held.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        service.go_on.set()
        await asyncio.to_thread(service.is_over.wait)

    asyncio.run(work())
    assert service.requests == []


@pytest.mark.parametrize("method", ["start_campaign", "pause_campaign"])
@pytest.mark.parametrize("error", [ValueError("no"), OSError("no"), KeyboardInterrupt()])
def test_what_a_callback_raises_comes_through_and_nothing_is_sent(service, method, error):
    def refuse():
        raise error

    with pytest.raises(type(error)) as caught:
        getattr(VoiceGenieHook(), method)("c", on_sending=refuse)
    assert caught.value is error
    assert service.requests == []


def test_a_kill_between_its_record_and_its_start_leaves_a_record_that_nothing_was_sent(service, monkeypatch):
    store = Store()
    operator = starting()
    monkeypatch.setattr(KillSwitch, "check_with_airflow", lambda kill, run: (operator.on_kill(), kill.check()))
    with pytest.raises(VoiceGenieRetryException, match="before it started anything"):
        operator.execute(context(store))
    assert store["voicegenie_task"]["start"]["phase"] == "closed"
    assert service.requests == []


def test_a_record_that_may_have_been_stored_is_closed(service, monkeypatch):
    """Airflow stored it, and its response was lost."""
    original = Store.set

    def lose(store, key, value):
        original(store, key, value)
        if value["start"]["phase"] == "sent":
            raise OSError("no response from Airflow")

    monkeypatch.setattr(Store, "set", lose)
    store = Store()
    with pytest.raises(OSError, match="no response from Airflow"):
        starting().execute(context(store))
    assert store["voicegenie_task"]["start"]["phase"] == "closed"
