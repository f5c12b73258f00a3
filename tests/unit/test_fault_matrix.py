# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at each request, over real HTTP and TLS; ``fault_matrix.md`` says what it comes to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.clock import now
from helpers.faults import ANSWERS, CONNECTIONS, Front
from helpers.leaks import MARKED_PERSON, check_exception, check_for_people
from helpers.raw_server import raw_server
from helpers.tasks import WAYS, Store, context, meanwhile, shorten_times, wait_trigger

from airflow_provider_voicegenie.api import rate_limit, retries
from airflow_provider_voicegenie.operators import campaign as operators
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import Condition, OutcomeRules, TaskKind, VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator
from airflow_provider_voicegenie.waiting import completion, watch

ENDS = {AirflowSkipException: "skip", AirflowFailException: "fail", VoiceGenieRetryException: "retry"}


WAITS = ("ready", "wait", "wait: list", "wait: statistics")


def read_table():
    """Put the tables side by side: all have the same faults."""
    rows = {}
    for line in (Path(__file__).parent / "fault_matrix.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            fault, class_of_fault, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            rows.setdefault((fault, class_of_fault), []).extend(cells)
    (_, columns), *faults = rows.items()
    return (
        columns,
        {fault: its_class for (fault, its_class), _ in faults},
        {fault: cells for (fault, _), cells in faults},
    )


COLUMNS, CLASSES, TABLE = read_table()
CELLS = [
    pytest.param(fault, column, expected, id=f"{fault} @ {column}")
    for fault, row in TABLE.items()
    for column, expected in zip(COLUMNS, row, strict=True)
    if expected != "-" and (column not in WAITS or CLASSES[fault].endswith("*"))
]


def ended(work):
    """Say how a task ended, the way the table does."""
    try:
        result = work()
    except tuple(ENDS) as error:
        check_exception(error)
        check_for_people(error)
        (condition,) = re.findall(r"\[([A-Z_]+): ", str(error))
        return f"{ENDS[type(error)]} {condition}"
    if "statistics" in result and result["statistics"] is None:
        return "success without statistics"
    return "success"


def start(sandbox):
    ending = ended(lambda: StartCampaignOperator(task_id="start", campaign_id="ready").execute(context()))
    assert sandbox.start_count("ready") == (ending == "success")
    assert sandbox.request_count("start") <= 1
    return ending


def pause(sandbox):
    ending = ended(lambda: PauseCampaignOperator(task_id="pause", campaign_id="running").execute(context()))
    assert sandbox.status("running") == ("paused" if ending == "success" else "running")
    assert sandbox.request_count("pause") <= 1
    return ending


def hours(*windows):
    return [
        CallingHours(
            (now() + timedelta(seconds=a)).time(), (now() + timedelta(seconds=b)).time(), "UTC", over_midnight=True
        )
        for a, b in windows
    ]


def closing(sandbox):
    operator = StartCampaignOperator(
        task_id="start",
        campaign_id="ready",
        wait_for_completion=True,
        calling_hours=hours((-600, 0.5)),
        outcomes={"CALLING_HOURS_OVER": "succeed"},
        poll_interval=60,
    )
    ending = ended(lambda: {**operator.execute(context()), "statistics": {}})
    assert sandbox.status("ready") == ("paused" if ending == "success" else "running")
    assert sandbox.start_count("ready") == 1
    return ending


def opening(sandbox):
    operator = StartCampaignOperator(
        task_id="start",
        campaign_id="ready",
        wait_for_completion=True,
        calling_hours=hours((-600, 1), (4, 600)),
        at_closing="pause_and_resume",
        poll_interval=60,
    )
    store = sandbox.sandbox.store
    original = store.start

    def start_and_be_over(campaign_id):
        started = original(campaign_id)
        if sandbox.start_count("ready") == 2:
            store.change("ready", status="completed", ended_at=now())
        return started

    store.start = start_and_be_over
    with meanwhile(lambda: sandbox.status("ready") == "paused", sandbox.fault):
        ending = ended(lambda: operator.execute(context(Store())))
    assert sandbox.start_count("ready") == (2 if ending == "success" else 1)
    return ending


def plan(sandbox):
    operator = StartCampaignOperator(task_id="plan", campaign_id="ready", check_only=True, read_quota=True)
    ending = ended(lambda: operator.execute(context()))
    assert sandbox.request_count("start") == 0
    return ending


def upload(sandbox):
    campaign_id = sandbox.add_campaign(id="filled", total_count=0).id
    contacts = [{**MARKED_PERSON, "phone_number": f"+491519081726{digit}"} for digit in range(3)]
    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign_id, contacts=contacts)
    ending = ended(lambda: operator.execute(context()))
    assert len(sandbox.uploaded(campaign_id)) == (3 if ending == "success" else 0)
    assert sandbox.request_count("upload") <= 1
    return ending


def history(sandbox):
    sandbox.sandbox.store.upload("completed", [MARKED_PERSON])
    with tempfile.TemporaryDirectory() as folder:
        operator = CallHistoryToObjectStorageOperator(
            task_id="history", campaign_id="completed", path=f"{folder}/calls.csv"
        )
        ending = ended(lambda: operator.execute(context()))
        assert len(list(Path(folder).iterdir())) == (ending == "success")
    return ending


def in_both_ways(sensor, **arguments):
    def run(sandbox):
        def make(*, deferrable):
            return sensor(task_id="task", poke_interval=0.1, timeout=20, deferrable=deferrable, **arguments)

        endings = []
        for way in WAYS.values():
            sandbox.fault()
            endings.append(ended(lambda way=way: way(make, context()) or {}))
            sandbox.sandbox.faults.clear()
        assert len(set(endings)) == 1, endings
        return endings[0]

    run.campaign_id = arguments["campaign_id"]
    return run


def waits_that_share_the_list(sandbox):
    names = [sandbox.add_campaign(status="completed").id for _ in range(3)]

    async def first_event(name):
        trigger = wait_trigger(campaign_id=name, outcomes={}, poll_interval=0.2)
        async with asyncio.timeout(20), contextlib.aclosing(trigger.run()) as events:
            return (await anext(events)).payload

    async def all_events():
        return await asyncio.gather(*map(first_event, names))

    findings = [payload["finding"] for payload in asyncio.run(all_events())]
    conditions = {finding and finding["condition"] for finding in findings}
    assert len(conditions) == 1, conditions
    (condition,) = conditions
    if condition is None:
        return "success"
    return f"{OutcomeRules(TaskKind.COMPLETED).outcome(Condition(condition))} {condition}"


def names_for(task, sandbox):
    """Return the campaigns that a fault is about, the one that the task is about first."""
    names = {start: "ready", plan: "ready", closing: "ready", opening: "ready", pause: "running", upload: "filled"}
    first = names.get(task) or getattr(task, "campaign_id", "completed")
    return [first, *(campaign.id for campaign in sandbox.sandbox.store.all() if campaign.id != first)]


def forever(number):
    return True


#: Column -> the request that goes wrong, whether it took effect, how often, on which connections, and the task.
TASKS = {
    "start: look before": ("get", False, None, forever, start),
    "start": ("start", False, 1, lambda number: number == 1, start),
    "start, took effect": ("start", True, 1, None, start),
    "pause": ("pause", False, 1, lambda number: number == 0, pause),
    "pause, took effect": ("pause", True, 1, None, pause),
    "ready": ("get", False, 2, lambda number: number < 2, in_both_ways(CampaignReadySensor, campaign_id="ready")),
    "wait": (
        "get",
        False,
        2,
        lambda number: number < 2,
        in_both_ways(CampaignCompletedSensor, campaign_id="completed"),
    ),
    "wait: list": ("list", False, 2, lambda number: number < 2, waits_that_share_the_list),
    "wait: statistics": (
        "stats",
        False,
        2,
        lambda number: number in (1, 2),
        in_both_ways(CampaignCompletedSensor, campaign_id="completed"),
    ),
    "upload": ("upload", False, 1, lambda number: number == 1, upload),
    "history": ("history", False, 1, lambda number: number == 1, history),
    "closing": ("pause", False, 1, None, closing),
    "closing, took effect": ("pause", True, 1, None, closing),
    "opening": ("start", False, 1, None, opening),
    "opening, took effect": ("start", True, 1, None, opening),
    "plan: quota": ("quota", False, 1, lambda number: number == 1, plan),
}


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    monkeypatch.setattr(operators, "KEEPS_TASK_STATE", True)
    clock.end_requests_that_are_held(monkeypatch)
    shorten_times(monkeypatch)
    monkeypatch.setattr(timing, "connection_interval_after_error", 0.0)
    monkeypatch.setattr(rate_limit, "MAX_WAIT", 1.5)
    for waits in (watch, completion):
        monkeypatch.setattr(waits, "poll_delay", lambda *arguments: min(retries.poll_delay(*arguments), 0.1))
    return voicegenie_sandbox


@pytest.mark.parametrize(("fault", "column", "expected"), CELLS)
def test_each_fault_at_each_call(sandbox, monkeypatch, tmp_path, fault, column, expected):
    operation, after_acting, times, which, task = TASKS[column]
    if task is waits_that_share_the_list and expected != "success":
        operation, times, which = "*", None, forever  # lest the waits come to different ends
    # Long enough that a slow machine is no fault: what takes too long is over by a sign of it.
    extra = {"timeout": 60, "max_attempts": 1, "requests_per_minute": 60_000}
    with contextlib.ExitStack() as stack:
        sandbox.fault = lambda: None
        elsewhere = []
        if fault in ANSWERS:
            port, elsewhere = stack.enter_context(raw_server(lambda stream, request: None))
            made = ANSWERS[fault]
            kind, fields = made(names_for(task, sandbox), f"http://127.0.0.1:{port}/") if callable(made) else made
            sandbox.fault = lambda: sandbox.inject(kind, operation, after_acting=after_acting, times=times, **fields)
            if task in (start, plan, pause, closing, waits_that_share_the_list, upload, history):
                sandbox.fault()
            url = sandbox.url
        else:
            front = stack.enter_context(Front(sandbox.url, fault, which, tmp_path))
            sandbox.fault = front.begin
            url, extra["verify"] = f"https://localhost:{front.port}", front.bundle
        connection = {"conn_type": "voicegenie", "host": url, "password": sandbox.api_key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))
        assert task(sandbox) == expected
        # A test of a real Airflow may still look for its API server at a port that was given to this one since.
        assert not [request for request in elsewhere if b"User-Agent: Python-urllib" not in request]


def test_a_class_comes_to_the_same_in_all_waits():
    seen = {}
    for fault, row in TABLE.items():
        cells = dict(zip(COLUMNS, row, strict=True))
        # A refusal ends a wait with the condition that a single read shows.
        shown = tuple("as read" if cells[wait] == cells["start: look before"] else cells[wait] for wait in WAITS)
        seen.setdefault(CLASSES[fault].removesuffix(" *"), set()).add(shown)
    assert {name: len(ways) for name, ways in seen.items()} == dict.fromkeys(seen, 1)
    assert {name + " *" for name in seen} <= set(CLASSES.values())


def test_the_table_is_complete():
    assert list(TABLE) == [*ANSWERS, *CONNECTIONS]
    assert set(TASKS) == set(COLUMNS)
    assert {len(row) for row in TABLE.values()} == {len(COLUMNS)}
