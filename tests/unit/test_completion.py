# SPDX-License-Identifier: Apache-2.0
"""The rules of waiting for completion, by table and without I/O; both ways of waiting go by them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.decisions.completion import CompletionWatch
from airflow_provider_voicegenie.decisions.outcomes import Condition, OutcomeRules, TaskKind
from airflow_provider_voicegenie.decisions.waiting import NOTHING, End, EndReason

T = 1_000_000.0


def campaign(status="running", completed=0, failed=None, total=100, **fields):
    return Campaign(
        "c",
        CampaignStatus.read(status),
        status,
        total_count=total,
        completed_count=completed,
        failed_count=failed,
        **fields,
    )


def watch(kind=TaskKind.COMPLETED, outcomes=None, **arguments):
    return CompletionWatch("c", OutcomeRules(kind, outcomes).while_waiting(), T, **arguments)


def texts(step):
    return [note.text for note in step.notes]


@pytest.mark.parametrize("kind", [TaskKind.COMPLETED, TaskKind.START])
@pytest.mark.parametrize(
    ("status", "condition"),
    [
        ("failed", "CAMPAIGN_FAILED"),
        ("stopped", "CAMPAIGN_STOPPED"),
        ("paused", None),
        ("running", None),
        ("in_progress", None),
        ("scheduled", None),
        ("draft", None),
        ("brand-new-word", None),
    ],
)
def test_what_a_status_does_to_the_wait(kind, status, condition):
    step = watch(kind).see_campaign(campaign(status), T, in_full=True)
    if condition is None:
        assert step.end is None
    else:
        assert (step.end.reason, step.end.condition) == (EndReason.CONDITION, condition)
        assert step.end.result["status"] == status


def test_completion_ends_it_and_what_was_seen_in_time_counts():
    wait = watch()
    step = wait.see_campaign(campaign("completed", 90, ended_at=datetime(2026, 1, 2, tzinfo=UTC)), T, in_full=False)
    assert (step.end.reason, step.end.at) == (EndReason.DONE, T)
    assert step.end.result == {"status": "completed", "completed_at": "2026-01-02T00:00:00Z", "statistics": None}
    for reason in (EndReason.TIMEOUT, EndReason.EXECUTION_TIMEOUT):
        assert wait.time_is_up(T + 60, reason) == step.end


@pytest.mark.parametrize("outcome", ["fail", "skip", "retry", "succeed"])
def test_a_pause_can_end_the_wait(outcome):
    step = watch(outcomes={"CAMPAIGN_PAUSED": outcome}).see_campaign(campaign("paused"), T, in_full=False)
    assert step.end.condition is Condition.CAMPAIGN_PAUSED


def test_a_pause_is_waited_out_and_said_once_each_time():
    wait = watch()
    said = []
    for at, status in enumerate(["running", "paused", "paused", "paused", "running", "paused", "paused"]):
        step = wait.see_campaign(campaign(status), T + at, in_full=False)
        assert step.end is None
        said += [text for text in texts(step) if "CAMPAIGN_PAUSED" in text]
    assert len(said) == 2
    assert "the wait goes on" in said[0]


def test_an_unknown_status_is_said_once():
    wait = watch()
    steps = [wait.see_campaign(campaign("odd"), T + at, in_full=False) for at in range(4)]
    assert ["odd" in text and "unknown" in text for step in steps for text in texts(step)].count(True) == 1


PERMANENT = [
    (errors.NotFoundError, "NOT_FOUND"),
    (errors.UnauthorizedError, "UNAUTHORIZED"),
    (errors.ForbiddenError, "FORBIDDEN"),
    (errors.RefusedError, "REFUSED"),
    (errors.TlsFailedError, "TLS_FAILED"),
    (errors.RedirectedError, "REDIRECTED"),
    (errors.InvalidConnectionError, "INVALID_CONNECTION"),
    (errors.InvalidCampaignIdError, "INVALID_CAMPAIGN_ID"),
]
TEMPORARY = [errors.RateLimitError, errors.ServerError, errors.ConnectionFailedError, errors.InvalidAnswerError]


@pytest.mark.parametrize("kind", [TaskKind.COMPLETED, TaskKind.START])
@pytest.mark.parametrize(("error", "condition"), PERMANENT)
def test_what_will_not_pass_ends_the_wait(kind, error, condition):
    step = watch(kind).see_error(error("No.", retry_after=7), T)
    assert (step.end.condition, step.end.retry_after, step.end.message) == (condition, 7, "No.")


@pytest.mark.parametrize("kind", [TaskKind.COMPLETED, TaskKind.START])
@pytest.mark.parametrize("error", TEMPORARY)
def test_trouble_is_waited_out_and_said_once_until_it_is_over(kind, error):
    wait = watch(kind)
    wait.see_campaign(campaign(), T, in_full=True)
    first, *others = [wait.see_error(error("Not now."), T) for _ in range(50)]
    assert (first.end, len(first.notes)) == (None, 1)
    assert all(step is NOTHING for step in others)
    (over,) = texts(wait.see_campaign(campaign(), T + 60, in_full=True))
    assert "answers again" in over
    assert wait.see_error(error("Not now."), T).notes


def test_an_author_can_end_a_sensor_on_temporary_trouble_but_not_the_wait_of_a_start():
    changes = {"CONNECTION_FAILED": "fail"}
    error = errors.ConnectionFailedError("Broken.")
    assert watch(TaskKind.COMPLETED, changes).see_error(error, T).end.condition is Condition.CONNECTION_FAILED
    assert watch(TaskKind.START, changes).see_error(error, T).end is None


# Stalls.


def stall(wait, at, **fields):
    return wait.see_campaign(campaign(**fields), T + at, in_full=True)


def test_no_progress_in_any_counter_is_a_stall():
    wait = watch(stall_timeout=100)
    assert stall(wait, 0, completed=1, failed=0).end is None
    assert stall(wait, 99, completed=1, failed=0).end is None
    step = stall(wait, 100, completed=1, failed=0)
    assert step.end.condition is Condition.CAMPAIGN_STALLED
    assert "100 s" in step.end.message


@pytest.mark.parametrize("progress", [{"completed": 2, "failed": 0}, {"completed": 1, "failed": 1}])
def test_progress_in_either_counter_begins_the_time_anew(progress):
    wait = watch(stall_timeout=100)
    stall(wait, 0, completed=1, failed=0)
    stall(wait, 90, **progress)
    assert stall(wait, 189, **progress).end is None
    assert stall(wait, 190, **progress).end.condition is Condition.CAMPAIGN_STALLED


def test_a_list_which_does_not_tell_failed_calls_is_no_proof_of_a_stall():
    wait = watch(stall_timeout=100, completed=1, failed=0)
    step = wait.see_campaign(campaign(completed=1), T + 100, in_full=False)
    assert (step.end, step.read_alone) == (None, True)
    assert stall(wait, 100, completed=1, failed=5).end is None
    assert wait.see_campaign(campaign(completed=1), T + 199, in_full=False) is NOTHING
    assert wait.see_campaign(campaign(completed=1), T + 200, in_full=False).read_alone
    assert stall(wait, 200, completed=1, failed=5).end.condition is Condition.CAMPAIGN_STALLED


def test_what_was_seen_before_a_restart_counts():
    wait = watch(stall_timeout=100, completed=1, failed=0)
    assert stall(wait, 100, completed=1, failed=0).end.condition is Condition.CAMPAIGN_STALLED
    again = watch(stall_timeout=100, completed=1, failed=0)
    assert stall(again, 100, completed=2, failed=0).end is None
    assert again.seen() == {"at": T + 100, "completed": 2, "failed": 0}


@pytest.mark.parametrize("status", ["paused", "scheduled", "draft"])
def test_what_does_not_run_does_not_stall(status):
    wait = watch(stall_timeout=100)
    for at in (0, 100, 500):
        assert stall(wait, at, status=status).end is None
    stall(wait, 600, completed=0, failed=0)
    assert stall(wait, 699, completed=0, failed=0).end is None
    assert stall(wait, 700, completed=0, failed=0).end.condition is Condition.CAMPAIGN_STALLED


def test_a_stall_that_is_waited_out_is_said_once_until_it_moves():
    wait = watch(stall_timeout=10, outcomes={"CAMPAIGN_STALLED": "wait"})
    said = [
        sum("CAMPAIGN_STALLED" in text for text in texts(stall(wait, at, completed=done, failed=0)))
        for at, done in [(0, 1), (10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]
    ]
    assert said == [0, 1, 0, 0, 1, 0]


# Time, and what is said.


def test_the_end_of_time_says_what_was_last_seen():
    wait = watch()
    assert "never seen" in wait.time_is_up(T, EndReason.TIMEOUT).message
    wait.see_campaign(campaign(completed=40, failed=2), T, in_full=True)
    wait.see_error(errors.ServerError("Broken."), T)
    end = wait.time_is_up(T + 30, EndReason.EXECUTION_TIMEOUT)
    assert end.reason is EndReason.EXECUTION_TIMEOUT
    for words in ("30 s ago", "'running'", "42 of 100 calls done", "2 failed", "INTERNAL_SERVER_ERROR"):
        assert words in end.message
    assert end.result["status"] == "running"


def test_an_end_goes_through_json():
    for end in (
        watch().time_is_up(T, EndReason.TIMEOUT),
        watch().see_campaign(campaign("completed"), T, in_full=True).end,
        watch().see_error(errors.NotFoundError("None.", retry_after=3), T).end,
    ):
        assert End.from_json(json.loads(json.dumps(end.to_json()))) == end


def lines(sightings, total=100):
    wait = watch()
    said = []
    for at, completed in sightings:
        said += texts(wait.see_campaign(campaign(completed=completed, failed=0, total=total), T + at, in_full=True))
    return said


def test_progress_is_said_when_it_changes_and_at_most_every_few_per_cent_or_minutes():
    assert len(lines([(0, 0), (10, 0), (20, 0), (500, 0)])) == 1
    assert len(lines([(at, at // 10) for at in range(0, 1000, 10)])) == 20
    assert len(lines([(0, 0), (60, 10), (120, 20), (3600, 21)], total=10_000)) == 2
    assert len(lines([(0, 0), (60, 600), (120, 601)], total=10_000)) == 2


def test_a_line_of_progress():
    first, second = lines([(0, 10), (60, 40)])
    assert first == "Campaign 'c': status 'running', 10 of 100 calls done (10 %), 0 failed."
    assert second.startswith(
        "Campaign 'c': status 'running', 40 of 100 calls done (40 %), 0 failed, 30.0 calls a minute"
    )
    assert "expected end 1970-01-12 13:49 UTC" in second


def test_where_failed_calls_are_not_known_nothing_is_said_of_them():
    step = watch().see_campaign(campaign(completed=10), T, in_full=False)
    assert texts(step) == ["Campaign 'c': status 'running', 10 of 100 calls completed (10 %)."]
    step = watch().see_campaign(campaign(completed=None, total=None), T, in_full=False)
    assert texts(step) == ["Campaign 'c': status 'running'."]


@pytest.mark.parametrize("trouble", [None, errors.InvalidAnswerError])
def test_a_wait_of_which_there_is_nothing_new_says_from_time_to_time_that_it_goes_on(trouble):
    wait = watch()
    said = []
    for at in range(0, 3600, 30):
        if trouble is not None and at > 0:
            step = wait.see_error(trouble("Not now."), T + at)
        else:
            step = wait.see_campaign(campaign(completed=1, failed=0), T + at, in_full=True)
        said += [(at, text) for text in texts(step)]
    again = [(at, text) for at, text in said if "still waiting" in text]
    # The first line is one of progress or of trouble.
    first = 0 if trouble is None else 30
    assert [at for at, _ in again] == list(range(first + 600, 3600, 600))
    assert all("status 'running'" in text for _, text in again)
    assert all(("INVALID_ANSWER since then" in text) is (trouble is not None) for _, text in again)
