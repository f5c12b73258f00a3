# SPDX-License-Identifier: Apache-2.0
"""The rules of waiting for completion, by table and without I/O; both ways of waiting go by them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.rules.outcomes import Condition, OutcomeRules, TaskKind
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.watch import End, EndReason

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


def end_of_completed(wait, at, reading=None, *, in_full=True):
    """Show a wait that the campaign is completed; return what its end is without the statistics."""
    assert wait.take(reading or campaign("completed"), at, in_full=in_full) is None
    assert (wait.wants.name, wait.is_urgent) == ("statistics", True)
    return wait.time_is_up(at, EndReason.TIMEOUT)


def watch(kind=TaskKind.COMPLETED, outcomes=None, **arguments):
    return CompletionWatch("c", OutcomeRules(kind, outcomes).while_waiting(), T, **arguments)


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
    end = watch(kind).take(campaign(status), T)
    if condition is None:
        assert end is None
    else:
        assert (end.reason, end.finding.condition) == (EndReason.CONDITION, condition)
        assert end.result["status"] == status


def test_completion_ends_it_and_what_was_seen_in_time_counts():
    wait = watch()
    assert wait.wants.name == "get"
    completed = campaign("completed", 90, ended_at=datetime(2026, 1, 2, tzinfo=UTC))
    end = end_of_completed(wait, T, completed, in_full=False)
    assert (end.reason, end.at) == (EndReason.DONE, T)
    assert end.result == {"status": "completed", "completed_at": "2026-01-02T00:00:00Z", "statistics": None}
    for reason in (EndReason.TIMEOUT, EndReason.EXECUTION_TIMEOUT):
        assert wait.time_is_up(T + 60, reason) == end


@pytest.mark.parametrize("outcome", ["fail", "skip", "retry", "succeed"])
def test_a_pause_can_end_the_wait(outcome):
    end = watch(outcomes={"CAMPAIGN_PAUSED": outcome}).take(campaign("paused"), T, in_full=False)
    assert end.finding.condition is Condition.CAMPAIGN_PAUSED


def test_a_pause_is_waited_out_and_said_once_each_time(said):
    wait = watch()
    for at, status in enumerate(["running", "paused", "paused", "paused", "running", "paused", "paused"]):
        assert wait.take(campaign(status), T + at, in_full=False) is None
    lines = [line for line in said() if "CAMPAIGN_PAUSED" in line]
    assert len(lines) == 2
    assert "the wait goes on" in lines[0]


def test_a_pause_from_before_the_start_does_not_count(said):
    wait = watch(outcomes={"CAMPAIGN_PAUSED": "fail"}, counters={"at": T, "pauses_count_from": T + 32})
    for at in (0, 1, 31.9):
        assert wait.take(campaign("paused"), T + at, in_full=False) is None
    assert [line for line in said() if "paused" in line] == [
        "Campaign 'c': it is shown as paused, which may be from before its start, so the wait goes on."
    ]
    end = wait.time_is_up(T + 31.9, EndReason.TIMEOUT)
    assert end.message == "timed out (last seen: paused, which may be from before its start)"
    # One that runs, and is shown by another machine of the service as it was.
    assert wait.take(campaign("running"), T + 10) is None
    assert wait.take(campaign("paused"), T + 20) is None
    assert wait.take(campaign("paused"), T + 32).finding.condition is Condition.CAMPAIGN_PAUSED


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_other_ends_count_at_once(status):
    assert watch(counters={"at": T, "pauses_count_from": T + 32}).take(campaign(status), T) is not None
    end_of_completed(watch(counters={"at": T, "pauses_count_from": T + 32}), T)


def test_an_unknown_status_is_said_once(said):
    wait = watch()
    for at in range(4):
        assert wait.take(campaign("odd"), T + at, in_full=False) is None
    assert ["odd" in line and "unknown" in line for line in said()].count(True) == 1


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
TEMPORARY = [errors.RateLimitError, errors.ServerError, errors.ConnectionFailedError, errors.InvalidResponseError]


@pytest.mark.parametrize("kind", [TaskKind.COMPLETED, TaskKind.START])
@pytest.mark.parametrize(("error", "condition"), PERMANENT)
def test_what_will_not_pass_ends_the_wait(kind, error, condition):
    end = watch(kind).take(error("No.", retry_after=7), T)
    assert end.finding == (condition, "No.", 7)


@pytest.mark.parametrize("kind", [TaskKind.COMPLETED, TaskKind.START])
@pytest.mark.parametrize("error", TEMPORARY)
def test_trouble_is_waited_out_and_said_once_until_it_is_over(said, kind, error):
    wait = watch(kind)
    wait.take(campaign(), T)
    said()
    for _ in range(50):
        assert wait.take(error("Not now."), T) is None
    assert len(said()) == 1
    wait.take(campaign(), T + 60)
    (over,) = said()
    assert "responds again" in over
    wait.take(error("Not now."), T)
    assert len(said()) == 1


def test_outcomes_can_end_a_sensor_on_temporary_trouble_but_not_the_wait_of_a_start():
    changes = {"CONNECTION_FAILED": "fail"}
    error = errors.ConnectionFailedError("Broken.")
    assert watch(TaskKind.COMPLETED, changes).take(error, T).finding.condition is Condition.CONNECTION_FAILED
    assert watch(TaskKind.START, changes).take(error, T) is None


# Stalls.


def stall(wait, at, **fields):
    return wait.take(campaign(**fields), T + at)


def test_no_progress_in_any_counter_is_a_stall():
    wait = watch(stall_timeout=100)
    assert stall(wait, 0, completed=1, failed=0) is None
    assert stall(wait, 99, completed=1, failed=0) is None
    end = stall(wait, 100, completed=1, failed=0)
    assert end.finding.condition is Condition.CAMPAIGN_STALLED
    assert "100 s" in end.finding.message


@pytest.mark.parametrize("progress", [{"completed": 2, "failed": 0}, {"completed": 1, "failed": 1}])
def test_progress_in_either_counter_begins_the_time_anew(progress):
    wait = watch(stall_timeout=100)
    stall(wait, 0, completed=1, failed=0)
    stall(wait, 90, **progress)
    assert stall(wait, 189, **progress) is None
    assert stall(wait, 190, **progress).finding.condition is Condition.CAMPAIGN_STALLED


def test_list_without_failed_calls_does_not_prove_a_stall():
    wait = watch(stall_timeout=100, counters={"at": T, "completed": 1, "failed": 0})
    assert wait.take(campaign(completed=1), T + 100, in_full=False) is None
    assert wait.is_urgent
    assert stall(wait, 100, completed=1, failed=5) is None
    assert not wait.is_urgent
    assert wait.take(campaign(completed=1), T + 199, in_full=False) is None
    assert not wait.is_urgent
    assert wait.take(campaign(completed=1), T + 200, in_full=False) is None
    assert wait.is_urgent
    assert stall(wait, 200, completed=1, failed=5).finding.condition is Condition.CAMPAIGN_STALLED


def test_what_was_seen_before_a_restart_counts():
    wait = watch(stall_timeout=100, counters={"at": T, "completed": 1, "failed": 0})
    assert stall(wait, 100, completed=1, failed=0).finding.condition is Condition.CAMPAIGN_STALLED
    again = watch(stall_timeout=100, counters={"at": T, "completed": 1, "failed": 0})
    assert stall(again, 100, completed=2, failed=0) is None
    assert again.counters() == {"at": T + 100, "completed": 2, "failed": 0}


@pytest.mark.parametrize("status", ["paused", "scheduled", "draft"])
def test_what_does_not_run_does_not_stall(status):
    wait = watch(stall_timeout=100)
    for at in (0, 100, 500):
        assert stall(wait, at, status=status) is None
    stall(wait, 600, completed=0, failed=0)
    assert stall(wait, 699, completed=0, failed=0) is None
    assert stall(wait, 700, completed=0, failed=0).finding.condition is Condition.CAMPAIGN_STALLED


def test_a_stall_that_is_waited_out_is_said_once_until_it_moves(said):
    wait = watch(stall_timeout=10, outcomes={"CAMPAIGN_STALLED": "wait"})
    counts = []
    for at, done in [(0, 1), (10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]:
        stall(wait, at, completed=done, failed=0)
        counts.append(sum("CAMPAIGN_STALLED" in line for line in said()))
    assert counts == [0, 1, 0, 0, 1, 0]


# Time, and what is said.


def test_the_end_of_time_says_what_was_last_seen():
    wait = watch()
    assert "could not be read so far" in wait.time_is_up(T, EndReason.TIMEOUT).message
    wait.take(campaign(completed=40, failed=2), T)
    wait.take(errors.ServerError("Broken."), T)
    end = wait.time_is_up(T + 30, EndReason.EXECUTION_TIMEOUT)
    assert end.reason is EndReason.EXECUTION_TIMEOUT
    for words in ("30 s ago", "'running'", "42 of 100 calls done", "2 failed", "INTERNAL_SERVER_ERROR"):
        assert words in end.message
    assert end.result["status"] == "running"


def test_an_end_goes_through_json():
    for end in (
        watch().time_is_up(T, EndReason.TIMEOUT),
        end_of_completed(watch(), T),
        watch().take(errors.NotFoundError("None.", retry_after=3), T),
    ):
        assert End.from_json(json.loads(json.dumps(end.to_json()))) == end


@pytest.fixture
def lines(said):
    def lines(readings, total=100):
        wait = watch()
        for at, completed in readings:
            wait.take(campaign(completed=completed, failed=0, total=total), T + at)
        return said()

    return lines


def test_progress_is_logged_every_five_percent_or_five_minutes(lines):
    assert len(lines([(0, 0), (10, 0), (20, 0), (500, 0)])) == 1
    assert len(lines([(at, at // 10) for at in range(0, 1000, 10)])) == 20
    assert len(lines([(0, 0), (60, 10), (120, 20), (3600, 21)], total=10_000)) == 2
    assert len(lines([(0, 0), (60, 600), (120, 601)], total=10_000)) == 2


def test_a_line_of_progress(lines):
    first, second = lines([(0, 10), (60, 40)])
    assert first == "Campaign 'c': status 'running', 10 of 100 calls done (10 %), 0 failed."
    assert second.startswith(
        "Campaign 'c': status 'running', 40 of 100 calls done (40 %), 0 failed, 30.0 calls a minute"
    )
    assert "expected end 1970-01-12 13:49 UTC" in second


def test_if_failed_calls_are_not_known_nothing_is_said_of_them(said):
    watch().take(campaign(completed=10), T, in_full=False)
    assert said() == ["Campaign 'c': status 'running', 10 of 100 calls completed (10 %)."]
    watch().take(campaign(completed=None, total=None), T, in_full=False)
    assert said() == ["Campaign 'c': status 'running'."]


def test_a_line_has_no_number_that_was_not_read_now(said):
    """A list does not have the failed calls; what was known of them is not what is so."""
    wait = watch(counters={"at": T, "completed": 0, "failed": 0})
    wait.take(campaign(completed=0, failed=0, total=20), T)
    wait.take(campaign(completed=16, total=20), T + 60, in_full=False)
    end = wait.time_is_up(T + 90, EndReason.TIMEOUT)
    assert said()[1:] == ["Campaign 'c': status 'running', 16 of 20 calls completed (80 %), 16.0 completed a minute."]
    assert end.message == "timed out (last seen 30 s ago: status 'running', 16 of 20 calls completed (80 %))"
    wait.take(campaign(completed=16, failed=4, total=20), T + 120)
    assert said() == ["Campaign 'c': status 'running', 20 of 20 calls done (100 %), 4 failed, 10.0 calls a minute."]
    wait.take(campaign(status="brand-new", completed=None, total=None), T + 150, in_full=False)
    assert wait.last_seen(T + 150) == "last seen: status 'brand-new'"


def test_a_pause_that_is_not_waited_out_has_only_numbers_that_were_read_now():
    wait = watch(outcomes={"CAMPAIGN_PAUSED": "fail"})
    wait.take(campaign(completed=1, failed=0), T)
    end = wait.take(campaign("paused", completed=16), T + 60, in_full=False)
    assert "(last seen: status 'paused', 16 of 100 calls completed (16 %))" in end.finding.message


def test_a_list_and_single_reads_in_turn_are_no_progress(said):
    wait = watch()
    for at in range(0, 3000, 10):
        wait.take(campaign(completed=50, failed=None if at % 20 else 40), T + at, in_full=not at % 20)
    assert len([line for line in said() if "still waiting" not in line]) == 1
    # If only failed calls are new, that is progress too.
    wait.take(campaign(completed=50, failed=45), T + 3000)
    assert len(said()) == 1


@pytest.mark.parametrize("trouble", [None, errors.InvalidResponseError])
def test_a_wait_without_news_says_from_time_to_time_that_it_goes_on(said, trouble):
    wait = watch()
    heard = []
    for at in range(0, 3600, 30):
        wait.take(trouble("Not now.") if trouble and at > 0 else campaign(completed=1, failed=0), T + at)
        heard += [(at, line) for line in said()]
    again = [(at, line) for at, line in heard if "still waiting" in line]
    # The first line is one of progress or of trouble.
    first = 0 if trouble is None else 30
    assert [at for at, _ in again] == list(range(first + 600, 3600, 600))
    assert all("status 'running'" in line for _, line in again)
    assert all(("INVALID_RESPONSE since then" in line) is (trouble is not None) for _, line in again)


# What counts as progress, and when it is said.


@pytest.mark.parametrize("status", ["paused", "scheduled", "draft"])
def test_the_time_in_which_no_call_is_expected_is_no_stall(status):
    wait = watch(stall_timeout=100)
    assert stall(wait, 0, status=status, completed=5, failed=0) is None
    assert stall(wait, 1000, status=status, completed=5, failed=0) is None
    assert stall(wait, 1001, completed=5, failed=0) is None
    assert stall(wait, 1100, completed=5, failed=0) is None
    assert stall(wait, 1101, completed=5, failed=0).finding.condition is Condition.CAMPAIGN_STALLED


def test_what_another_process_has_seen_of_a_stall_counts():
    wait = watch(stall_timeout=100, counters={"at": T - 60, "completed": 5, "failed": 0})
    # Its first look sees no change of the status: it knew none.
    assert stall(wait, 39, completed=5, failed=0) is None
    assert stall(wait, 40, completed=5, failed=0).finding.condition is Condition.CAMPAIGN_STALLED


def test_failed_calls_that_were_not_known_may_have_been_progress():
    wait = watch(stall_timeout=100)
    assert wait.take(campaign(completed=5), T, in_full=False) is None
    assert wait.take(campaign(completed=5, failed=0), T + 50) is None
    # From then on, they are known, and do not change.
    assert wait.take(campaign(completed=5, failed=0), T + 149) is None
    assert wait.take(campaign(completed=5, failed=0), T + 150).finding.condition is Condition.CAMPAIGN_STALLED


def test_a_list_alone_shows_no_stall():
    wait = watch(stall_timeout=100)
    wait.take(campaign(completed=5, failed=1), T)
    assert wait.take(campaign(completed=5), T + 100, in_full=False) is None
    assert wait.is_urgent
    # The failed calls have changed, which the list does not show.
    assert wait.take(campaign(completed=5, failed=2), T + 101) is None
    assert not wait.is_urgent
    assert wait.take(campaign(completed=5), T + 200, in_full=False) is None
    assert not wait.is_urgent
    # One that cannot be read is no reason to read it at once again.
    assert wait.take(campaign(completed=5), T + 201, in_full=False) is None
    assert wait.is_urgent
    assert wait.take(errors.ServerError("no"), T + 202) is None
    assert not wait.is_urgent


def test_no_failed_call_is_known_as_well_as_some():
    wait = watch()
    wait.take(campaign(completed=5, failed=3), T)
    wait.take(campaign(completed=5, failed=0), T + 1)
    assert wait.counters()["failed"] == 0
    wait.take(campaign(completed=5), T + 2, in_full=False)
    assert wait.counters() == {"at": T + 1, "completed": 5, "failed": 0}


def test_each_kind_of_trouble_is_said(said):
    wait = watch()
    for error in (errors.ServerError, errors.ServerError, errors.RateLimitError, errors.ServerError):
        wait.take(error("Not now."), T)
    assert len(said()) == 3


def test_a_wait_that_goes_on_says_so_every_ten_minutes_and_not_more_often(said):
    wait = watch()
    wait.take(campaign(), T)
    said()
    for seconds in range(0, 3601, 60):
        wait.take(campaign(), T + seconds)
    assert [line.endswith("calls done (0 %)).") or "still waiting" in line for line in said()] == [True] * 6


@pytest.mark.parametrize(
    ("reason", "at", "words"),
    [(EndReason.TIMEOUT, 0, "timed out (last seen: "), (EndReason.EXECUTION_TIMEOUT, 7, "last seen 7 s ago: ")],
)
def test_what_was_last_seen_is_said_at_the_end(reason, at, words):
    wait = watch()
    wait.take(campaign(completed=5, failed=1), T)
    end = wait.time_is_up(T + at, reason)
    assert end.reason is reason
    assert words in end.message
    assert "6 of 100 calls done (6 %), 1 failed" in end.message
    assert end.result["completed_at"] is None
