# SPDX-License-Identifier: Apache-2.0
"""Tasks that are ended from outside: what is paused, what is not, and that nothing is sent afterwards."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from helpers.tasks import (
    STEPS,
    Following,
    Starting,
    Store,
    TaskInstance,
    both_ways,
    change,
    context,
    deferred,
    event_of,
    in_wait,
    in_worker,
    is_waiting,
    kill_at,
    meanwhile,
)

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators import campaign as operators
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import find_out, send
from airflow_provider_voicegenie.timing import timing


@both_ways
@pytest.mark.parametrize("pause_on_kill", [True, False])
@pytest.mark.parametrize("campaign_id", ["long", "followed"])
def test_the_execution_timeout_pauses_what_the_task_started(sandbox, way, pause_on_kill, campaign_id):
    def make(*, deferrable):
        task = Starting(
            campaign_id=campaign_id,
            outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"},
            execution_timeout=timedelta(seconds=2),
            pause_on_kill=pause_on_kill,
        )
        return task(deferrable=deferrable)

    run = context()
    if way is in_worker:
        # Airflow raises this in the waiting task.
        with pytest.MonkeyPatch.context() as patch:
            in_wait(patch, is_waiting(sandbox, campaign_id), AirflowTaskTimeout("Timeout"))
            with pytest.raises(AirflowTaskTimeout):
                way(make, run)
    else:
        with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout.*'running'"):
            way(make, run)
    paused = pause_on_kill and campaign_id == "long"
    assert sandbox.status(campaign_id) == ("paused" if paused else "running")
    assert sandbox.request_count("pause") == int(paused)


@pytest.mark.parametrize(("is_sent", "takes_effect"), [(False, False), (True, False), (True, True)])
def test_the_execution_timeout_during_the_start(sandbox, monkeypatch, is_sent, takes_effect):
    monkeypatch.setattr(timing, "kill_pause_delays", (0.01, 0.01))
    store = Store()

    def interrupted_start(hook, campaign_id, *, on_sending, **callbacks):
        if is_sent:
            on_sending()
        if takes_effect:
            sandbox.sandbox.store.change(campaign_id, status="running")
        raise AirflowTaskTimeout("Timeout")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "start_campaign", interrupted_start)
        with pytest.raises(AirflowTaskTimeout):
            Starting()(deferrable=False).execute(context(store))
    # What was not sent is nobody's to pause; what may take effect late is tried for some seconds, and looked for later.
    assert sandbox.request_count("pause") == (0 if not is_sent else 1 if takes_effect else 3)
    phase = "timed_out" if takes_effect else "sent" if is_sent else "closed"
    assert store["voicegenie_task"]["start"]["phase"] == phase
    again = Starting(wait_for_completion=False)(deferrable=False)
    if takes_effect:
        with pytest.raises(AirflowFailException, match="paused it when its execution_timeout was over"):
            again.execute(context(store, try_number=2))
    else:
        assert again.execute(context(store, try_number=2))["started_by_task"]
        assert sandbox.start_count("long") == 1


def test_a_retry_after_the_execution_timeout_does_not_start_again(sandbox):
    store = Store()
    make = Starting(execution_timeout=timedelta(seconds=0.3))
    with pytest.raises(AirflowTaskTimeout):
        deferred(make, context(store))
    with pytest.raises(AirflowFailException, match="clear this task"):
        deferred(make, context(store, try_number=2))
    assert sandbox.start_count("long") == 1
    # Cleared by a user, it starts.
    with pytest.raises(AirflowTaskTimeout):
        deferred(make, context(store, try_number=3, max_tries=4))
    assert sandbox.start_count("long") == 2


@pytest.mark.parametrize("map_index", [-1, 2])
@pytest.mark.parametrize("state", ["running", None, "scheduled", "queued", "up_for_retry"])
def test_a_worker_or_a_scheduler_in_trouble_pauses_nothing(sandbox, state, map_index):
    kill_in_wait(sandbox, state, pause_on_kill=True, map_index=map_index)
    assert sandbox.status("long") == "running"


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "restarting", "deleted"])
@pytest.mark.parametrize("pause_on_kill", [True, False])
def test_a_user_who_ends_the_task_pauses_the_campaign(sandbox, state, pause_on_kill):
    kill_in_wait(sandbox, state, pause_on_kill=pause_on_kill)
    assert sandbox.status("long") == ("paused" if pause_on_kill else "running")


def test_a_kill_while_a_new_key_is_read_does_not_interrupt_airflow(sandbox, monkeypatch):
    """What is interrupted in a request to Airflow may make the next one read a wrong response."""
    run, read = context(Store()), []
    operator = Starting()(deferrable=False)
    original = VoiceGenieHook.get_connection

    def get_connection(conn_id):
        if is_waiting(sandbox, "long")():
            read.append("begins")
            run["ti"].state = "failed"
            operator.on_kill()
            read.append("ends")
        return original(conn_id)

    def replace_key():
        sandbox.sandbox.api_key += "-replaced"
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(requests_per_minute=60_000))

    monkeypatch.setattr(VoiceGenieHook, "get_connection", staticmethod(get_connection))
    in_wait(monkeypatch, is_waiting(sandbox, "long"), replace_key)
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(run)
    assert read[:2] == ["begins", "ends"]
    assert sandbox.status("long") == "paused"


def kill_in_wait(sandbox, state, *, pause_on_kill=True, map_index=-1):
    """Let Airflow end a task that waits in a worker, in a new state; return what Airflow keeps of the task."""
    store = Store()
    run = context(store, map_index=map_index)
    operator = Starting(pause_on_kill=pause_on_kill)(deferrable=False)

    def kill():
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    return store


@both_ways
@pytest.mark.parametrize("state", ["failed", "running"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_the_start_starts_nothing(sandbox, way, step, state):
    run = context(Store())
    operator = Starting()(deferrable=way is deferred)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run, state)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"):
            operator.execute(run)
    # Nor is Airflow asked for anything that takes time: five seconds are left.
    assert ("_link_CampaignLink" in run["ti"].xcom) is (step != "before execute")
    sent = ["get"] if STEPS.index(step) >= STEPS.index("get_campaign") else []
    assert [request.operation for request in sandbox.sandbox.requests] == sent


@both_ways
@pytest.mark.parametrize("step", STEPS)
def test_a_task_that_was_marked_but_not_told_yet_starts_nothing(sandbox, way, step):
    """Airflow tells the process of a task some seconds after a user has marked or cleared it."""
    run = context(Store())
    operator = Starting()(deferrable=way is deferred)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run, tells=False)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"):
            operator.execute(run)
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("step", ["before execute", "get_conn", "task state"])
def test_a_kill_before_a_pause_pauses_nothing(sandbox, step):
    run = context(Store(), state="failed")
    operator = PauseCampaignOperator(task_id="task", campaign_id="followed")
    with pytest.MonkeyPatch.context() as patch:
        if step == "task state":
            patch.setattr(Store, "set", lambda *_: operator.on_kill())
        else:
            kill_at(patch, step, operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.request_count("pause") == 0


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_sensor_that_a_user_ended_asks_no_more(sandbox, state):
    sensor = Following()(deferrable=False)
    sensor.on_kill()
    run = context(state=state)
    if state == "failed":
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            sensor.poke(run)
        assert not sandbox.sandbox.requests
    else:
        # A worker that is going down lets it finish what it is at.
        assert not sensor.poke(run).is_done


@pytest.mark.parametrize(
    ("step", "waits"),
    [*product(["start", "phase"], ["no", "in the worker", "deferred"]), ("deferral", "deferred")],
)
def test_a_kill_right_after_the_start_pauses_the_campaign(sandbox, step, waits):
    run = context(Store())
    operator = Starting(wait_for_completion=waits != "no")(deferrable=waits == "deferred")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


def test_a_deferral_that_airflow_would_refuse_pauses_the_campaign(sandbox):
    """A user marks the task, which is not told: it ends by itself before it could be."""
    run = context(Store())
    operator = Starting()(deferrable=True)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "phase", operator, run, tells=False)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.status("long") == "paused"


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill_while_a_lost_start_is_looked_into_ends_that_at_once(sandbox, monkeypatch, state):
    monkeypatch.setattr(timing, "start_read_delays", (30.0,))
    run = context(Store())
    operator = Starting()(deferrable=False)
    sandbox.inject("close", "start", after_acting=True)

    def kill(seconds):
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_out.time, "sleep", lambda seconds: kill(seconds) if seconds == 30 else None)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.status("long") == ("paused" if state == "failed" else "running")


def test_kill_during_the_start_waits_for_its_response(sandbox):
    run = context()
    operator = Starting()(deferrable=False)
    sandbox.inject("delay", "start", seconds=0.4, after_acting=True)

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    with (
        meanwhile(lambda: sandbox.status("long") == "running", kill),
        pytest.raises(VoiceGenieRetryException),
    ):
        operator.execute(run)
    assert sandbox.status("long") == "paused"


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill_before_a_deferred_task_is_resumed(sandbox, state):
    run = context()
    make = Starting(completion_timeout=0.3)
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    event = event_of(deferral.value.trigger)
    operator = make(deferrable=True)
    run["ti"].state = state
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.status("long") == ("paused" if state == "failed" else "running")


def test_kill_of_a_later_try_pauses_the_start_of_an_earlier_one(sandbox):
    store = Store()
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=2, state="failed"))
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


@pytest.mark.parametrize("state", ["failed", "running"])
@pytest.mark.parametrize("minutes", [0, -30])
def test_without_a_store_a_killed_try_asks_the_service_what_it_started(sandbox, state, minutes):
    """An earlier try started the campaign; or somebody did, half an hour before the run."""
    run = context(try_number=2)
    started_at = run["dag_run"].start_date + timedelta(minutes=minutes)
    change(sandbox, "long", status="running", started_at=started_at)()
    operator = Starting()(deferrable=False)
    run["ti"].state = state
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(run)
    assert sandbox.status("long") == ("paused" if (state, minutes) == ("failed", 0) else "running")
    assert sandbox.request_count("start") == 0


def test_without_a_store_a_first_try_that_is_killed_has_left_nothing(sandbox):
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="before it started anything"):
        operator.execute(context(state="failed"))
    assert not sandbox.sandbox.requests


def test_a_kill_during_a_late_resume_pauses_the_campaign(sandbox):
    run = context()
    make = Starting(completion_timeout=60)
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(run)
    operator = make(deferrable=True)
    sandbox.inject("hold", "get")

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    send = VoiceGenieHook.send

    def held(hook, request, **more):
        if request.has_effect:
            return send(hook, request, **more)
        kill()
        raise AssertionError("a read is broken off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "send", held)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.resume_execution("__fail__", {"error": "Trigger timeout"}, run)
    assert sandbox.status("long") == "paused"


class Airflow2TaskInstance(TaskInstance):
    get_task_states = property()

    def current_state(self):
        return self.state


@pytest.mark.parametrize(
    ("error", "state", "paused"),
    [(AirflowTaskTimeout, "running", True), (RuntimeError, "failed", True), (RuntimeError, "running", False)],
)
def test_airflow_2_ends_a_deferred_task_before_it_resumes_it(sandbox, monkeypatch, error, state, paused):
    run = context()
    make = Starting()
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    run["ti"] = Airflow2TaskInstance(**{**vars(run["ti"]), "state": state, "next_method": deferral.value.method_name})
    monkeypatch.setattr(operators, "get_current_context", lambda: run)
    operator = make(deferrable=True)
    operator.campaign_id = "followed"  # what the template gives by now
    try:
        raise error
    except error:
        operator.on_kill()
    assert sandbox.status("long") == ("paused" if paused else "running")
    assert sandbox.status("followed") == "running"


class UnaskableTaskInstance(TaskInstance):
    """Airflow cannot be asked for the state of the task."""

    def get_task_states(self, *_, **__):
        raise OSError("no database")


def test_running_task_pauses_nothing_when_airflow_cannot_be_asked(sandbox):
    run = context(Store())
    run["ti"] = UnaskableTaskInstance()
    operator = Starting()(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), operator.on_kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "running")


def test_kill_after_a_start_without_effect_pauses_nothing(sandbox):
    store = Store()
    sandbox.inject("close", "start")
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        Starting()(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    run = context(store, try_number=2)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "record", operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.request_count("start"), sandbox.request_count("pause")) == (1, 0)


@pytest.mark.parametrize("store", [Store(), None])
def test_a_user_who_ends_a_later_try_pauses_what_an_earlier_one_started(sandbox, store):
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), operator.on_kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(context(store, try_number=2, state="failed"))
    assert sandbox.status("long") == "paused"


@pytest.mark.parametrize("state", ["restarting", "failed"])
def test_after_a_user_ended_a_running_task_the_next_try_may_start(sandbox, state):
    """A task that is cleared while it runs becomes another try of the same task, with the same number of tries."""
    store = kill_in_wait(sandbox, state)
    assert store["voicegenie_task"]["start"]["phase"] == "closed"
    assert Starting(wait_for_completion=False)(deferrable=False).execute(context(store, try_number=2))[
        "started_by_task"
    ]
    assert sandbox.start_count("long") == 2


@both_ways
def test_kill_does_not_pause_a_campaign_that_others_started(sandbox, way):
    """Someone started it right before the task could, and the service refused the task's own start."""
    body = '{"success": false, "message": "Campaign is already running", "error": "CAMPAIGN_ALREADY_RUNNING"}'
    sandbox.inject("status", "start", status=400, body=body)
    run = context(Store())
    operator = Starting(outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})(deferrable=way is deferred)

    def start_campaign(hook, campaign_id, *, original=VoiceGenieHook.start_campaign, **callbacks):
        change(sandbox, campaign_id, status="running")()
        return original(hook, campaign_id, **callbacks)

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "start_campaign", start_campaign)
        if way is deferred:
            with pytest.raises(TaskDeferred) as deferral:
                operator.execute(run)
            assert deferral.value.trigger.serialize()[1]["pause_on_kill"] is False
        else:
            in_wait(patch, is_waiting(sandbox, "long"), kill)
            with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
                operator.execute(run)
    assert sandbox.status("long") == "running"
    assert sandbox.request_count("pause") == 0


def test_a_resumed_task_knows_that_its_start_was_confirmed(sandbox, monkeypatch):
    """So a pause that is refused is not sent again and again: the start takes effect late no more."""
    monkeypatch.setattr(timing, "kill_pause_delays", (0.01, 0.01))
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(completion_timeout=0.3)(deferrable=True).execute(run)
    event = event_of(deferral.value.trigger)
    change(sandbox, "long", status="paused")()
    operator = Starting(completion_timeout=0.3)(deferrable=True)
    run["ti"].state = "failed"
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.request_count("pause") == 1


# Starts that an earlier try was cut off from, or made.


@pytest.mark.parametrize("is_pausing", [True, False])
@pytest.mark.parametrize("step", ["recall", "get_campaign", "look"])
def test_a_kill_while_a_start_that_was_cut_off_is_looked_into_pauses_it(sandbox, step, is_pausing, monkeypatch):
    monkeypatch.setattr(timing, "kill_pause_delays", (0.01,))
    store = Store()
    with monkeypatch.context() as patch:
        patch.setattr(send, "find_out", lambda *_, **__: 1 / 0)
        sandbox.inject("close", "start", after_acting=True)
        with pytest.raises(ZeroDivisionError):
            Starting()(deferrable=False).execute(context(store))
    assert store["voicegenie_task"]["start"]["phase"] == "sent"
    run = context(store, try_number=2)
    operator = Starting(pause_on_kill=is_pausing)(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.status("long") == ("paused" if is_pausing else "running")
    assert sandbox.start_count("long") == 1


@both_ways
@pytest.mark.parametrize("store", [True, False])
def test_the_execution_timeout_of_a_later_try_pauses_what_an_earlier_one_started(sandbox, way, store):
    store = Store() if store else None
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    make = Starting(execution_timeout=timedelta(seconds=2))
    run = context(store, try_number=2)
    if way is in_worker:
        with pytest.MonkeyPatch.context() as patch:
            in_wait(patch, is_waiting(sandbox, "long"), AirflowTaskTimeout("Timeout"))
            with pytest.raises(AirflowTaskTimeout):
                way(make, run)
    else:
        with pytest.raises(AirflowTaskTimeout):
            way(make, run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


@pytest.mark.parametrize("pause_on_kill", [True, False])
def test_a_deferred_task_owes_a_pause_only_if_its_author_wants_one(sandbox, pause_on_kill):
    store = Store()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(pause_on_kill=pause_on_kill)(deferrable=True).execute(context(store))
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"] is pause_on_kill
    assert deferral.value.trigger.pause_on_kill is pause_on_kill


def test_a_start_that_may_take_effect_late_stays_on_record_though_a_later_try_is_ended(sandbox, monkeypatch):
    """Nobody knows whether it was sent; a user ends the next try, and the campaign does not run yet."""
    monkeypatch.setattr(timing, "kill_pause_delays", (0.01,))
    store = Store()
    with monkeypatch.context() as patch:
        patch.setattr(send, "find_out", lambda *_, **__: 1 / 0)
        sandbox.inject("close", "start")
        with pytest.raises(ZeroDivisionError):
            Starting()(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=2, state="failed"))
    assert store["voicegenie_task"]["start"]["phase"] == "sent"
    # It takes effect, and the try after that finds it.
    sandbox.sandbox.store.start("long")
    again = Starting(wait_for_completion=False)(deferrable=False)
    assert again.execute(context(store, try_number=3))["started_by_task"]
    assert sandbox.request_count("start") == 1
