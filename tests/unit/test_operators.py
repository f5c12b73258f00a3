# SPDX-License-Identifier: Apache-2.0
"""Operators and sensor against the sandbox, over real HTTP: each line of the table, and each fault of a start."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.clock import now
from helpers.tasks import Store, shorten_times

from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.operators.campaign import (
    CallingHours,
    PauseCampaignOperator,
    StartCampaignOperator,
)
from airflow_provider_voicegenie.rules.outcomes import Condition, Outcome, VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import (
    CampaignReadySensor,
    Check,
    HasContacts,
    HasScript,
    IsStartable,
    Prerequisite,
)
from airflow_provider_voicegenie.start import find_out, record, send
from airflow_provider_voicegenie.start.record import OwnStart

ENDS = {"skip": AirflowSkipException, "fail": AirflowFailException, "retry": VoiceGenieRetryException}
NOW = datetime.now(UTC)


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    shorten_times(monkeypatch)
    connect(voicegenie_sandbox, monkeypatch, timeout=60)
    return voicegenie_sandbox


def connect(sandbox, monkeypatch, timeout):
    connection = sandbox.connection(max_attempts=1, timeout=timeout, requests_per_minute=10_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)


def context(run_type="manual", due=NOW):
    return {"dag_run": SimpleNamespace(run_type=run_type, run_after=due)}


def start(campaign_id="ready", run=None, **arguments):
    operator = StartCampaignOperator(task_id="start", campaign_id=campaign_id, **arguments)
    return operator.execute(run or context())


def pause(campaign_id="running", **arguments):
    return PauseCampaignOperator(task_id="pause", campaign_id=campaign_id, **arguments).execute(context())


def poke(campaign_id="ready", **arguments):
    return CampaignReadySensor(task_id="ready", campaign_id=campaign_id, **arguments).poke(context())


def closed_hours():
    return CallingHours(
        (now() + timedelta(hours=2)).time(), (now() + timedelta(hours=3)).time(), "UTC", over_midnight=True
    )


def test_a_start(sandbox):
    result = start()
    assert result == json.loads(json.dumps(result))
    assert result["campaign_id"] == "ready"
    assert result["status"] == "running"
    assert result["started_by_task"] is True
    assert result["started_at"].endswith("Z")
    assert sandbox.start_count("ready") == 1


def test_a_start_takes_two_requests(sandbox):
    start()
    assert [request.operation for request in sandbox.sandbox.requests] == ["get", "start"]


START_CONDITIONS = {
    "CAMPAIGN_ALREADY_RUNNING": {"campaign_id": "running"},
    "CAMPAIGN_COMPLETED": {"campaign_id": "completed"},
    "INVALID_CAMPAIGN_STATE": {"campaign_id": "no-script"},
    "NOT_FOUND": {"campaign_id": "nobody"},
    "UNAUTHORIZED": {"fault": ("status", "*", {"status": 401, "times": None})},
    "FORBIDDEN": {"fault": ("status", "*", {"status": 403, "times": None})},
    "REFUSED": {"fault": ("status", "start", {"status": 418})},
    "RATE_LIMIT_EXCEEDED": {"fault": ("status", "start", {"status": 429, "headers": {"Retry-After": "9"}})},
    "INTERNAL_SERVER_ERROR": {"fault": ("status", "start", {"status": 500})},
    "CONNECTION_FAILED": {"fault": ("close", "start", {})},
    "REDIRECTED": {"fault": ("redirect", "start", {"location": "http://elsewhere.invalid/"})},
    "INVALID_RESPONSE": {"fault": ("not_json", "start", {})},
    "OUTSIDE_CALLING_HOURS": {"arguments": {"calling_hours": closed_hours()}},
    "BACKFILL_RUN": {"run": context("backfill")},
    "RUN_TOO_LATE": {
        "run": context("scheduled", NOW - timedelta(minutes=5)),
        "arguments": {"max_lateness": timedelta(minutes=1)},
    },
    "INVALID_CAMPAIGN_ID": {"campaign_id": "../pauseTheCampaign/running"},
}


@pytest.mark.parametrize(
    ("condition", "changed_to"),
    # That each of them can have each outcome is the table's business, see test_outcomes.
    [
        *((condition, None) for condition in START_CONDITIONS),
        ("NOT_FOUND", "skip"),
        ("BACKFILL_RUN", "fail"),
        ("UNAUTHORIZED", "retry"),
    ],
)
def test_each_condition_of_a_start_has_its_outcome(sandbox, condition, changed_to):
    case = START_CONDITIONS[condition]
    if "fault" in case:
        kind, operation, fields = case["fault"]
        sandbox.inject(kind, operation, **fields)
    outcomes = {condition: changed_to} if changed_to else None
    arguments = {**case.get("arguments", {}), "outcomes": outcomes}
    campaign_id = case.get("campaign_id", "ready")
    operator = StartCampaignOperator(task_id="start", campaign_id=campaign_id, **arguments)
    outcome = changed_to or operator.outcome_rules.outcome(Condition(condition)).value
    with pytest.raises(ENDS[outcome]) as caught:
        operator.execute(case.get("run", context()))
    assert f"[{condition}:" in str(caught.value)
    assert repr(campaign_id) in str(caught.value)
    assert sandbox.api_key not in str(caught.value)
    assert all(campaign.start_count == 0 for campaign in sandbox.sandbox.store.all())
    assert sandbox.status("running") == "running"
    if outcome == "retry" and condition == "RATE_LIMIT_EXCEEDED":
        assert caught.value.retry_after == 9


@pytest.mark.parametrize(
    ("campaign_id", "missing"),
    [("draft", "script_id, contacts"), ("no-script", "script_id"), ("no-contacts", "contacts")],
)
def test_an_invalid_state_says_what_is_missing(sandbox, campaign_id, missing):
    with pytest.raises(AirflowFailException, match=f"Missing: {missing} "):
        start(campaign_id)


@pytest.mark.parametrize("campaign_id", ["completed", "stopped", "failed"])
def test_a_campaign_that_ended_in_any_way_is_not_started(sandbox, campaign_id):
    with pytest.raises(AirflowFailException, match="CAMPAIGN_COMPLETED"):
        start(campaign_id)
    assert start(campaign_id, outcomes={"CAMPAIGN_COMPLETED": "succeed"}) == {
        "campaign_id": campaign_id,
        "status": campaign_id,
        "started_at": None,
        "started_by_task": False,
    }
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("campaign_id", ["running", "in-progress"])
def test_a_campaign_that_runs_may_count_as_started(sandbox, campaign_id):
    result = start(campaign_id, outcomes={Condition.CAMPAIGN_ALREADY_RUNNING: Outcome.SUCCEED})
    assert (result["status"], result["started_by_task"]) == ("running", False)
    assert sandbox.request_count("start") == 0


def test_someone_else_starting_it_in_between_is_not_our_start(sandbox):
    body = json.dumps({"success": False, "message": "Campaign is already running", "error": "CAMPAIGN_ALREADY_RUNNING"})
    sandbox.inject("status", "start", status=400, body=body)
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        start()


def test_of_tasks_that_race_for_a_campaign_one_starts_it(sandbox, monkeypatch):
    racers = 4
    all_have_looked = threading.Barrier(racers, timeout=100)
    monkeypatch.setattr(OwnStart, "add_record", lambda *_: all_have_looked.wait())

    def run(_):
        operator = StartCampaignOperator(task_id="start", campaign_id="ready")
        try:
            # Not by way of the operator, which Airflow 2 lets run in a thread of its own only.
            return operator._begin(about := context(), Memory(about)).execute()["started_by_task"]
        except AirflowSkipException as error:
            return "CAMPAIGN_ALREADY_RUNNING" in str(error) and "skipped"

    with ThreadPoolExecutor(racers) as pool:
        assert sorted(map(str, pool.map(run, range(racers)))) == ["True", "skipped", "skipped", "skipped"]
    assert (sandbox.request_count("start"), sandbox.start_count("ready")) == (racers, 1)


@pytest.mark.parametrize("status", [401, 404, 418, 422, 429])
def test_a_refused_start_is_not_looked_into(sandbox, status):
    sandbox.inject("status", "start", status=status)
    with pytest.raises((AirflowFailException, VoiceGenieRetryException)):
        start()
    assert [request.operation for request in sandbox.sandbox.requests] == ["get", "start"]


def test_guards_that_need_no_service_ask_nothing_of_it(sandbox):
    with pytest.raises(AirflowSkipException):
        start(run=context("backfill"))
    assert len(sandbox.sandbox.requests) == 0


def test_a_backfill_starts_where_the_dag_says_so(sandbox):
    assert start(run=context("backfill"), start_in_backfill=True)["started_by_task"]


def test_calling_hours_that_end_while_airflow_takes_its_time_are_kept(sandbox, monkeypatch):
    run = {**context(), "task_state_store": Store()}
    original, checks = send.check_calling_hours, []

    def check(hours, now):
        checks.append(len(sandbox.sandbox.requests))
        return original([closed_hours()] if len(checks) == 2 else hours, now)

    monkeypatch.setattr(send, "check_calling_hours", check)
    with pytest.raises(AirflowFailException, match="OUTSIDE_CALLING_HOURS"):
        start(run=run, calling_hours=CallingHours("00:00", "23:59:59.999999", "UTC"))
    assert (checks, sandbox.request_count("start")) == ([1, 1], 0)
    # The next try may start.
    assert run["task_state_store"]["voicegenie_task"]["start"]["phase"] == "closed"


def test_a_run_that_becomes_too_late_while_airflow_takes_its_time_starts_nothing(sandbox, monkeypatch):
    run = context("scheduled")
    original, checks = record.check_run, []

    def check(task, context, now):
        checks.append(len(sandbox.sandbox.requests))
        return original(task, context, now + timedelta(days=1) if len(checks) == 2 else now)

    monkeypatch.setattr(record, "check_run", check)
    with pytest.raises(AirflowSkipException, match="RUN_TOO_LATE"):
        start(run=run, max_lateness=36_000)
    assert (checks, sandbox.request_count("start")) == ([0, 1], 0)


def test_within_the_calling_hours_it_starts(sandbox):
    assert start(calling_hours=CallingHours("00:00", "23:59:59.999999", "UTC"))["started_by_task"]


FAULTS = {
    "close": {},
    "delay": {"seconds": 1.5},
    "truncated": {},
    "not_json": {},
    "oversized": {},
    "drip": {"seconds": 0.1},
    "redirect": {"location": "http://elsewhere.invalid/"},
    "status": {"status": 502, "body": "<html>Bad Gateway</html>"},
}


@pytest.fixture
def fault(sandbox, clock, monkeypatch, kind):
    """What goes wrong. A task waits long only for a response that comes."""
    if kind in ("delay", "drip"):
        clock.end_requests_that_are_held(monkeypatch)
    return FAULTS[kind]


@pytest.mark.parametrize("campaign_id", ["ready", "paused"])
@pytest.mark.parametrize("kind", FAULTS)
def test_lost_response_of_a_start_that_took_effect_is_a_success(sandbox, kind, fault, campaign_id):
    sandbox.inject(kind, "start", after_acting=True, **fault)
    result = start(campaign_id)
    assert (result["status"], result["started_by_task"]) == ("running", True)
    assert sandbox.start_count(campaign_id) == 1
    assert sandbox.request_count("start") == 1
    # Before the start, and once after it, which showed that it had taken effect.
    assert sandbox.request_count("get") == 2


@pytest.mark.parametrize("campaign_id", ["ready", "paused"])
@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in ("delay", "redirect")])
def test_lost_start_without_effect_is_retried_by_airflow_only(sandbox, kind, fault, campaign_id):
    sandbox.inject(kind, "start", **fault)
    with pytest.raises(VoiceGenieRetryException):
        start(campaign_id)
    assert sandbox.start_count(campaign_id) == 0
    assert sandbox.request_count("start") == 1
    assert start(campaign_id)["started_by_task"]
    assert sandbox.start_count(campaign_id) == 1


def lose_answer_and(sandbox, monkeypatch, **changes):
    """Let the start take effect, its answer get lost, and someone change the campaign before we look."""
    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start

    def act(campaign_id):
        campaign = original(campaign_id)
        store.change(campaign_id, **changes)
        return campaign

    monkeypatch.setattr(store, "start", act)
    sandbox.inject("close", "start", after_acting=True)


@pytest.mark.parametrize("campaign_id", ["ready", "paused"])
def test_a_campaign_that_someone_paused_meanwhile_stays_paused(sandbox, monkeypatch, campaign_id):
    lose_answer_and(sandbox, monkeypatch, status="paused")
    result = start(campaign_id)
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    assert sandbox.start_count(campaign_id) == 1
    assert sandbox.status(campaign_id) == "paused"


def test_a_campaign_that_ran_to_its_end_meanwhile_is_not_started_again(sandbox, monkeypatch):
    lose_answer_and(sandbox, monkeypatch, status="completed")
    assert start()["status"] == "completed"
    assert sandbox.start_count("ready") == 1


def test_unconfirmed_start_fails_and_says_how_to_decide(sandbox):
    sandbox.inject("close", "start", after_acting=True)
    operator = StartCampaignOperator(task_id="start", campaign_id="ready")
    original = find_out.time.sleep

    def outage(seconds):
        sandbox.inject("close", "*", times=None)
        original(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_out.time, "sleep", outage)
        with pytest.raises(AirflowFailException, match="START_UNCONFIRMED") as caught:
            operator.execute(context())
    assert "clear this task" in str(caught.value)
    assert sandbox.start_count("ready") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"outcomes": {"NOPE": "skip"}}, "NOPE"),
        ({"outcomes": {"NOT_FOUND": "explode"}}, "explode"),
        ({"calling_hours": "09:00-17:00"}, "calling_hours"),
        ({"max_lateness": -1}, "max_lateness"),
        ({"max_lateness": "1h"}, "max_lateness"),
        ({"start_in_backfill": "false"}, "start_in_backfill"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named):
        StartCampaignOperator(task_id="start", campaign_id="c", **arguments)


@pytest.mark.parametrize(
    ("connection", "named"),
    [
        ({"password": ""}, "API key"),
        ({"password": "sk-marked\n"}, "API key"),
        ({"host": "http://sk-marked.example.com", "password": "sk-marked"}, "Host"),
        ({"host": "https://sk-marked@example.com", "password": "sk-marked"}, "Host"),
        ({"password": "sk-marked", "extra": {"timeout": "sk-marked"}}, "timeout"),
    ],
)
def test_a_bad_connection_fails_the_task_without_its_values(sandbox, monkeypatch, connection, named):
    monkeypatch.setenv(
        "AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps({"conn_type": "voicegenie", "host": sandbox.url, **connection})
    )
    with pytest.raises(AirflowFailException, match="INVALID_CONNECTION") as caught:
        start()
    assert named in str(caught.value)
    assert "'voicegenie_default'" in str(caught.value)
    assert "marked" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
    assert len(sandbox.sandbox.requests) == 0


def test_a_pause(sandbox):
    result = pause()
    assert (result["campaign_id"], result["status"]) == ("running", "paused")
    assert result["paused_at"].endswith("Z")
    assert isinstance(result["active_calls"], int)
    assert sandbox.status("running") == "paused"


@pytest.mark.parametrize(
    ("campaign_id", "condition", "default"),
    [
        ("paused", "CAMPAIGN_ALREADY_PAUSED", "succeed"),
        ("completed", "CAMPAIGN_COMPLETED", "fail"),
        ("stopped", "CAMPAIGN_COMPLETED", "fail"),
        ("ready", "CAMPAIGN_NOT_RUNNING", "fail"),
        ("draft", "CAMPAIGN_NOT_RUNNING", "fail"),
        ("nobody", "NOT_FOUND", "fail"),
        ("", "INVALID_CAMPAIGN_ID", "fail"),
    ],
)
def test_what_cannot_be_paused(sandbox, campaign_id, condition, default):
    for outcome in (None, "skip", "retry"):
        changes = {condition: outcome} if outcome else None
        if (outcome or default) == "succeed":
            assert pause(campaign_id, outcomes=changes)["status"] == "paused"
        else:
            with pytest.raises(ENDS[outcome or default], match=condition):
                pause(campaign_id, outcomes=changes)


@pytest.mark.parametrize("kind", FAULTS)
def test_lost_response_of_a_pause_that_took_effect_is_a_success(sandbox, kind, fault):
    sandbox.inject(kind, "pause", after_acting=True, **fault)
    assert pause()["status"] == "paused"
    assert sandbox.request_count("pause") == 1


def test_lost_pause_without_effect_is_retried_by_airflow_only(sandbox):
    sandbox.inject("close", "pause")
    with pytest.raises(VoiceGenieRetryException):
        pause()
    assert sandbox.status("running") == "running"


@pytest.mark.parametrize("campaign_id", ["ready", "paused"])
def test_ready(sandbox, campaign_id):
    value = poke(campaign_id)
    assert value.is_done
    assert set(value.xcom_value) == {
        "campaign_id",
        "status",
        "total_count",
        "completed_count",
        "failed_count",
        "updated_at",
    }
    assert value.xcom_value == json.loads(json.dumps(value.xcom_value))


@pytest.mark.parametrize(
    ("campaign_id", "prerequisites", "missing"),
    [
        ("no-script", None, "no script"),
        ("no-contacts", None, "no contacts"),
        ("draft", None, "status 'draft'"),
        ("ready", [HasContacts(minimum=100)], "20 of 100 contacts"),
        ("no-contacts", [HasContacts(minimum=100)], "no contacts"),
        ("ready", [closed_hours()], "outside the calling hours"),
    ],
)
def test_not_ready_is_said_once_in_words(sandbox, caplog, campaign_id, prerequisites, missing):
    caplog.set_level("INFO", "airflow_provider_voicegenie.waiting")
    sensor = CampaignReadySensor(task_id="ready", campaign_id=campaign_id, prerequisites=prerequisites)
    assert not sensor.poke(context()).is_done
    assert not sensor.poke(context()).is_done
    (line,) = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("airflow_provider_voicegenie.waiting")
    ]
    assert missing in line
    sandbox.sandbox.store.change(campaign_id, total_count=200, script_id="s", status="scheduled")
    if missing != "outside the calling hours":
        assert sensor.poke(context()).is_done


READY_ENDS = {
    "CAMPAIGN_ALREADY_RUNNING": ("running", "skip", None),
    "CAMPAIGN_COMPLETED": ("stopped", "fail", None),
    "NOT_FOUND": ("nobody", "fail", None),
    "INVALID_CAMPAIGN_ID": ("..", "fail", None),
    "UNAUTHORIZED": ("ready", "fail", {"status": 401}),
    "FORBIDDEN": ("ready", "fail", {"status": 403}),
    "REFUSED": ("ready", "fail", {"status": 404, "body": "<html>Not Found</html>"}),
    "REDIRECTED": ("ready", "fail", {"status": 302, "body": ""}),
}


@pytest.mark.parametrize("condition", READY_ENDS)
def test_what_can_never_come_true_ends_the_wait(sandbox, condition):
    campaign_id, default, fault = READY_ENDS[condition]
    for outcome in (None, "retry"):
        if fault:
            sandbox.inject("status", "get", **fault)
        with pytest.raises(ENDS[outcome or default], match=condition):
            poke(campaign_id, outcomes={condition: outcome} if outcome else None)


def test_the_wait_may_succeed_or_go_on_where_the_campaign_runs(sandbox):
    assert poke("running", outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"}).is_done
    assert not poke("running", outcomes={"CAMPAIGN_ALREADY_RUNNING": "wait"}).is_done
    assert not poke("nobody", outcomes={"NOT_FOUND": "wait"}).is_done


@dataclass(frozen=True)
class NeverOnTuesday(Prerequisite):
    word: str = "never"

    def check(self, campaign, now):
        return Check.impossible(f"{self.word} on a Tuesday")


class KeepsNothing(Prerequisite):
    def __init__(self, word):
        pass

    def check(self, campaign, now):
        return Check.met()


def test_a_prerequisite_of_ones_own(sandbox):
    with pytest.raises(AirflowFailException, match=r"never on a Tuesday \[PREREQUISITE_IMPOSSIBLE"):
        poke(prerequisites=[NeverOnTuesday()])
    path, arguments = NeverOnTuesday("not").serialize()
    assert (path.rpartition(".")[2], arguments) == ("NeverOnTuesday", {"word": "not"})


@dataclass(frozen=True)
class ChecksWrongly(Prerequisite):
    returned: object = True

    def check(self, campaign, now):
        return self.returned


@pytest.mark.parametrize("returned", [True, False, None, "met"])
def test_a_check_that_returns_something_else_is_told_what_to_return(sandbox, returned):
    with pytest.raises(TypeError, match=r"check\(\) of ChecksWrongly\(.*\) returned .*Return Check.met\(\)"):
        poke(prerequisites=[ChecksWrongly(returned)])


@pytest.mark.parametrize(
    ("prerequisites", "words"),
    [
        ([HasContacts], "HasContacts is a class, and an object is needed: write HasContacts(...)."),
        (HasContacts(5), "must be a list: write [HasContacts(minimum=5)]."),
        ([True], "True is not a Prerequisite, such as HasContacts(minimum=100)"),
        ("HasContacts", "must be a list"),
        (HasContacts, "must be a list"),
    ],
)
def test_wrong_prerequisites_are_refused_with_what_to_write(prerequisites, words):
    with pytest.raises(ValueError, match="prerequisites") as caught:
        CampaignReadySensor(task_id="ready", campaign_id="c", prerequisites=prerequisites)
    assert words in str(caught.value)


def test_prerequisites_of_one_class_with_the_same_arguments_are_equal():
    assert HasContacts(5) == HasContacts(minimum=5) != HasContacts(6)
    assert NeverOnTuesday("x") == NeverOnTuesday("x") != NeverOnTuesday("y")
    assert len({HasContacts(5), HasContacts(5), HasScript(), IsStartable()}) == 3
    assert NeverOnTuesday({"a": 1, "b": 2}) == NeverOnTuesday({"b": 2, "a": 1})
    assert [repr(each) for each in (HasContacts(5), HasScript(), NeverOnTuesday("x"))] == [
        "HasContacts(minimum=5)",
        "HasScript()",
        "NeverOnTuesday(word='x')",
    ]
    # Nothing that is wrong with one keeps it from being shown.
    assert repr(KeepsNothing("x")) == "KeepsNothing()"
    assert repr(NeverOnTuesday({1, 2})) == "NeverOnTuesday(...)"


@pytest.mark.parametrize("status", ["cancelled", "verifying"])
def test_an_unknown_status_is_warned_of_before_the_start(sandbox, caplog, status):
    campaign = sandbox.add_campaign(status=status)
    with pytest.raises(AirflowFailException, match="INVALID_CAMPAIGN_STATE"):
        start(campaign.id)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warnings if f"status {status!r} is unknown here" in text]


def test_a_status_is_read_in_any_spelling(sandbox):
    campaign = sandbox.add_campaign(status="In Progress")
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        start(campaign.id)


@pytest.mark.parametrize("campaign_id", ["None", None, "null"])
def test_an_id_that_is_not_there_is_not_a_campaign_that_is_unknown(sandbox, campaign_id):
    tasks = (
        StartCampaignOperator(task_id="t", campaign_id=campaign_id, outcomes={"NOT_FOUND": "skip"}).execute,
        PauseCampaignOperator(task_id="t", campaign_id=campaign_id, outcomes={"NOT_FOUND": "skip"}).execute,
        CampaignReadySensor(task_id="t", campaign_id=campaign_id, outcomes={"NOT_FOUND": "skip"}).poke,
    )
    for run in tasks:
        with pytest.raises(AirflowFailException, match=r"the template gave None.*INVALID_CAMPAIGN_ID"):
            run(context())
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_success_rate": 99}, "min_success_rate: only a task that waits"),
        ({"completion_timeout": 60, "stall_timeout": 50}, "completion_timeout, stall_timeout: only a task that waits"),
        ({"min_success_rate": 0.9, "wait_for_completion": True}, "did you mean 90?"),
        ({"min_success_rate": 0.005, "wait_for_completion": True}, "did you mean 0.5?"),
    ],
)
def test_limits_of_a_wait_are_refused_without_one(arguments, words):
    with pytest.raises(ValueError, match=next(iter(arguments))) as caught:
        StartCampaignOperator(task_id="start", campaign_id="c", **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("rate", [0, 1, 1.5, 100])
def test_percentages(rate):
    operator = StartCampaignOperator(task_id="start", campaign_id="c", wait_for_completion=True, min_success_rate=rate)
    assert operator.min_success_rate == rate


def test_prerequisites_that_are_none_are_refused_when_the_dag_is_parsed():
    class Local(Prerequisite):
        def check(self, campaign, now):
            return Check.met()

    wrong_arguments = [KeepsNothing("x")], [NeverOnTuesday({1, 2})], [NeverOnTuesday(("a",))]
    for wrong in ([Local()], ["HasScript"], [HasContacts], HasContacts(), "x", 5, *wrong_arguments):
        with pytest.raises(ValueError, match="prerequisites"):
            CampaignReadySensor(task_id="ready", campaign_id="c", prerequisites=wrong)
    for minimum in (0, -1, "five", "0", "", True, 2.5, None):
        with pytest.raises(ValueError, match="minimum"):
            HasContacts(minimum)
