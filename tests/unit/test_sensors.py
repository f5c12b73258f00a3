# SPDX-License-Identifier: Apache-2.0
"""What is special about the sensors: their timeout, soft_fail, reschedule mode, and readiness."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from helpers.clock import now
from helpers.tasks import (
    Following,
    Store,
    both_tasks,
    both_ways,
    change,
    complete,
    context,
    deferred,
    event_of,
    is_waiting,
    meanwhile,
)

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors import campaign as sensors
from airflow_provider_voicegenie.sensors.campaign import (
    CallingHours,
    CampaignCompletedSensor,
    CampaignReadySensor,
    HasContacts,
    HasQuota,
)
from airflow_provider_voicegenie.timing import timing


@both_ways
def test_a_campaign_that_is_completed_already_needs_no_deferral(sandbox, way):
    result = Following(campaign_id="completed")(deferrable=way is deferred).execute(context())
    assert result["status"] == "completed"
    assert result["statistics"]["total_contacts"] > 0


@both_ways
@pytest.mark.parametrize("soft_fail", [False, True])
@pytest.mark.parametrize("sensor", [CampaignCompletedSensor, CampaignReadySensor])
def test_the_timeout_of_a_sensor(sandbox, way, soft_fail, sensor):
    def make(*, deferrable):
        campaign_id = "followed" if sensor is CampaignCompletedSensor else "no-script"
        return sensor(
            task_id="task",
            campaign_id=campaign_id,
            timeout=0.3,
            poke_interval=0.1,
            soft_fail=soft_fail,
            deferrable=deferrable,
        )

    with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout):
        way(make, context())


@both_ways
@pytest.mark.parametrize("soft_fail", [False, True])
def test_soft_fail_skips_what_would_fail(sandbox, way, soft_fail):
    with (
        meanwhile(is_waiting(sandbox, "followed"), change(sandbox, "followed", status="stopped")),
        pytest.raises(AirflowSkipException if soft_fail else AirflowFailException),
    ):
        way(Following(soft_fail=soft_fail), context())


@both_ways
@pytest.mark.parametrize("sensor", [CampaignCompletedSensor, CampaignReadySensor])
def test_soft_fail_leaves_retries_alone(sandbox, way, sensor):
    campaign_id = "followed" if sensor is CampaignCompletedSensor else sandbox.add_campaign(script_id=None).id

    def make(*, deferrable):
        return sensor(
            task_id="task",
            campaign_id=campaign_id,
            poke_interval=0.1,
            soft_fail=True,
            deferrable=deferrable,
            outcomes={"CAMPAIGN_STOPPED" if sensor is CampaignCompletedSensor else "CAMPAIGN_COMPLETED": "retry"},
        )

    seen = lambda: sandbox.request_count("get", campaign_id) >= 2  # noqa: E731
    with (
        meanwhile(seen, change(sandbox, campaign_id, status="stopped")),
        pytest.raises(VoiceGenieRetryException),
    ):
        way(make, context())


@both_ways
def test_readiness(sandbox, way):
    campaign = sandbox.add_campaign(script_id=None, total_count=3)

    def make(*, deferrable):
        return CampaignReadySensor(
            task_id="task",
            campaign_id=campaign.id,
            poke_interval=0.1,
            prerequisites=[HasContacts(5)],
            deferrable=deferrable,
        )

    ready = change(sandbox, campaign.id, script_id="s", total_count=5)
    with meanwhile(lambda: sandbox.request_count("get", campaign.id) >= 3, ready):
        result = way(make, context())
    assert (result["campaign_id"], result["total_count"]) == (campaign.id, 5)


def reschedule(make, run, clock):
    """Poke with a new sensor each time, as Airflow does in this mode."""
    while not (outcome := make(deferrable=False).poke(run)).is_done:
        clock.sleep(0.05)
    return outcome.xcom_value


@pytest.mark.parametrize("keeps_state", [True, False])
def test_a_stall_in_reschedule_mode(sandbox, clock, monkeypatch, keeps_state):
    monkeypatch.setattr(sensors, "KEEPS_TASK_STATE", keeps_state)
    task = Following(mode="reschedule", stall_timeout=0.3)
    if not keeps_state:
        with pytest.raises(ValueError, match="stall_timeout"):
            task(deferrable=False)
        assert task(deferrable=True)
        return
    store = Store()
    with pytest.raises(AirflowFailException, match="CAMPAIGN_STALLED"):
        reschedule(task, context(store), clock)
    assert sandbox.api_key not in json.dumps(store)
    with meanwhile(is_waiting(sandbox, "followed"), complete(sandbox, "followed")):
        assert reschedule(task, context(), clock)["status"] == "completed"


@pytest.mark.skipif(not sensors.KEEPS_TASK_STATE, reason="a rescheduled sensor forgets, before Airflow 3.3")
def test_a_retry_in_reschedule_mode_counts_a_stall_from_its_own_begin(sandbox, clock):
    store = Store()
    task = Following(mode="reschedule", stall_timeout=0.5, outcomes={"CAMPAIGN_STALLED": "retry"})
    for try_number in (1, 2):
        began = clock.monotonic()
        with pytest.raises(VoiceGenieRetryException, match="CAMPAIGN_STALLED"):
            reschedule(task, context(store, try_number=try_number), clock)
        assert clock.monotonic() - began >= 0.5


@both_tasks
def test_completion_counts_even_if_the_connection_cannot_be_read(sandbox, monkeypatch, task):
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        task()(deferrable=True).execute(run)
    complete(sandbox, task.campaign_id)()
    sandbox.inject("close", "stats")
    event = event_of(deferral.value.trigger)
    monkeypatch.setattr(timing, "statistics_patience", 0.1)
    monkeypatch.setattr(timing, "statistics_delay", 0.1)

    def get_connection(conn_id):
        raise RuntimeError("Airflow is not there")

    monkeypatch.setattr(VoiceGenieHook, "get_connection", get_connection)
    result = task()(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert (result["status"], result["statistics"]) == ("completed", None)


def hours_from_now(first, last):
    first, last = (now() + timedelta(hours=hours) for hours in (first, last))
    return CallingHours(first.time(), last.time(), "UTC", over_midnight=True)


@both_ways
@pytest.mark.parametrize("closed", [0, 1, 2])
@pytest.mark.parametrize("is_first", [True, False])
def test_one_of_several_calling_hours_is_enough_for_a_sensor(sandbox, way, closed, is_first):
    hours = [hours_from_now(2 + number, 5) for number in range(closed)]
    hours.insert(0 if is_first else closed, hours_from_now(-1, 1))

    def make(*, deferrable):
        return CampaignReadySensor(
            task_id="ready",
            campaign_id="ready",
            prerequisites=[hours[0], HasContacts(minimum=5), *hours[1:]],
            poke_interval=0.1,
            timeout=5,
            deferrable=deferrable,
        )

    assert way(make, context())["campaign_id"] == "ready"


def test_without_an_open_one_no_sensor_is_ready(sandbox):
    for hours in ([hours_from_now(2, 3)], [hours_from_now(2, 3), hours_from_now(4, 5)]):
        sensor = CampaignReadySensor(task_id="ready", campaign_id="ready", prerequisites=hours, deferrable=False)
        assert not sensor.poke(context()).is_done


# Prerequisites whose numbers are templates.


def ready_of(campaign_id, *prerequisites, **arguments):
    return CampaignReadySensor(
        task_id="ready",
        campaign_id=campaign_id,
        prerequisites=prerequisites,
        poke_interval=0.1,
        timeout=0.5,
        **arguments,
    )


def run_with(**values):
    return {**context(), "params": values}


@pytest.mark.parametrize("is_deferrable", [False, True])
@pytest.mark.parametrize(("wanted", "is_ready"), [("20", True), (20, True), ("21", False)])
def test_the_numbers_of_prerequisites_are_templates(sandbox, said, is_deferrable, wanted, is_ready):
    task, run = ready_of("ready", HasContacts("{{ params.n }}"), deferrable=is_deferrable), run_with(n=wanted)
    if is_ready:
        assert task.execute(run)["total_count"] == 20
        return
    if is_deferrable:
        with pytest.raises(TaskDeferred) as caught:
            task.execute(run)
        assert "20 of 21 contacts" in json.dumps(event_of(caught.value.trigger))
        return
    with pytest.raises(AirflowSensorTimeout):
        task.execute(run)
    assert "Campaign 'ready': not ready: 20 of 21 contacts." in said()


def test_the_numbers_of_a_quota_are_templates(sandbox, said):
    task = ready_of("ready", HasQuota(calls="{{ params.n }}", minutes=1))
    with pytest.raises(AirflowSensorTimeout):
        task.execute(run_with(n="1000000000.5"))
    assert "Campaign 'ready': not ready: 10,000 calls left, 1e+09 wanted." in said()


@pytest.mark.parametrize("given", [None, "", "many", "-1", 0, True])
@pytest.mark.parametrize("make", [HasContacts, lambda value: HasContacts(1, value), lambda value: HasQuota(value)])
def test_a_prerequisite_that_renders_to_no_number_is_an_error(given, make):
    with pytest.raises(ValueError, match=r"must be a (whole )?number|gave nothing"):
        make("{{ params.n }}").rendered(lambda template: given)


@pytest.mark.parametrize("prerequisite", [HasContacts("{{ params.n }}"), HasQuota("{{ params.n }}")])
def test_a_template_that_was_not_rendered_is_no_number(prerequisite):
    reading = Campaign("c", CampaignStatus.PAUSED, "paused", total_count=5)
    with pytest.raises(ValueError, match=r"template of (minimum|calls), '\{\{ params.n \}\}', was not rendered"):
        prerequisite.check(reading, now())


@pytest.mark.parametrize("make", [HasContacts, HasQuota])
def test_the_output_of_a_task_is_no_number(make):
    with DAG("output", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        plan = CampaignReadySensor(task_id="plan", campaign_id="x")
        with pytest.raises(ValueError, match=r"cannot be the output of a task\. Write .*ti\.xcom_pull.*plan >> ready"):
            make(plan.output["contacts"])


@pytest.mark.parametrize(("make", "given"), [(HasContacts, "9" * 5000), (HasQuota, 10**400), (HasQuota, "1e400")])
def test_numbers_beyond_reason_are_refused(make, given):
    with pytest.raises(ValueError, match=f"^{make.__name__}: "):
        make(given)


def test_bounds_are_compared_once_they_are_rendered():
    wanted = HasContacts("{{ params.a }}", "{{ params.b }}")
    assert wanted.serialize()[1] == {"minimum": "{{ params.a }}", "maximum": "{{ params.b }}"}
    with pytest.raises(ValueError, match="maximum must not be below minimum"):
        wanted.rendered({"{{ params.a }}": "5", "{{ params.b }}": "4"}.__getitem__)
