# SPDX-License-Identifier: Apache-2.0
"""The statistics of a completed campaign: how long they are tried for, and what the wait comes to, without I/O."""

from __future__ import annotations

import json

import pytest

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus
from airflow_provider_voicegenie.rules.outcomes import Condition, OutcomeRules, TaskKind
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.progress import describe_result, statistics_json
from airflow_provider_voicegenie.waiting.watch import End, EndReason

T = 1_000_000.0
COMPLETED = End(
    EndReason.DONE, "it is completed", result={"status": "completed", "completed_at": None, "statistics": None}, at=T
)


def stats(completed_at="2026-01-01T00:00:00Z", **changed):
    return CampaignStats.from_json(
        {
            "campaign_id": "c",
            "total_contacts": 10,
            "calls_completed": 8,
            "calls_failed": 2,
            "calls_in_progress": 0,
            "calls_pending": 0,
            "success_rate": 80.0,
            "average_call_duration": 30.0,
            "total_call_duration": 300,
            "call_status_breakdown": {"answered": 8},
            "started_at": None,
            "completed_at": completed_at,
            **changed,
        }
    )


def final(**arguments):
    wait = CompletionWatch("c", OutcomeRules(TaskKind.START).while_waiting(), T, **arguments)
    assert wait.resume(COMPLETED)
    assert wait.wants.name == "statistics"
    return wait


def test_the_final_statistics():
    end = final().take(stats(), T)
    assert end.reason is EndReason.DONE
    assert json.loads(json.dumps(end.result)) == {
        "status": "completed",
        "completed_at": "2026-01-01T00:00:00Z",
        "statistics": {
            "total_contacts": 10,
            "calls_completed": 8,
            "calls_failed": 2,
            "call_status_breakdown": {"answered": 8},
            "success_rate": 80.0,
            "average_call_duration": 30.0,
            "total_call_duration": 300,
        },
    }


@pytest.mark.parametrize(
    ("numbers", "wanted", "is_low"),
    [
        ({"success_rate": 80.0}, 80, False),
        ({"success_rate": "80.0"}, 80, False),
        ({"success_rate": 79.9}, 80, True),
        ({"success_rate": None}, 80, False),
        ({"success_rate": None}, 81, True),
        ({"success_rate": None, "calls_completed": 0, "calls_failed": 0}, 1, True),
        ({"success_rate": 0.0}, 0, False),
    ],
)
def test_the_success_rate(numbers, wanted, is_low):
    end = final(min_success_rate=wanted).take(stats(**numbers), T)
    assert (end.finding and end.finding.condition) is (Condition.SUCCESS_RATE_TOO_LOW if is_low else None)
    assert end.reason is (EndReason.CONDITION if is_low else EndReason.DONE)
    assert end.result["statistics"]["total_contacts"] == 10


@pytest.mark.parametrize("minimum", [None, 50])
def test_old_statistics_are_read_again_for_32_seconds(minimum):
    wait = final(min_success_rate=minimum)
    for at in (0, 10, 31):
        assert wait.take(stats(completed_at=None), T + at) is None
    assert wait.take(stats(completed_at=None), T + 32).result["statistics"]["calls_completed"] == 8


@pytest.mark.parametrize("completed_at", ["2024-01-17:00:00Z", "yesterday", 17])
def test_a_completion_whose_time_cannot_be_read_is_one(completed_at):
    end = final().take(stats(completed_at=completed_at), T)
    assert (end.reason, end.result["completed_at"]) == (EndReason.DONE, None)
    assert end.result["statistics"]["calls_completed"] == 8


@pytest.mark.parametrize("error", [errors.NotFoundError, errors.ForbiddenError, errors.RefusedError])
def test_statistics_that_are_refused_do_not_hide_the_completion(said, error):
    end = final().take(error("None."), T)
    assert (end, end.result["statistics"]) == (COMPLETED, None)
    assert any("cannot be read (None)" in line for line in said())
    end = final(min_success_rate=1).take(error("None."), T)
    assert (end.reason, end.finding.condition) == (EndReason.CONDITION, error.kind)
    assert "min_success_rate needs" in end.finding.message


#: Seconds for which each kind of trouble is waited out: minutes, and then the campaign is completed all the same.
PATIENCE = {
    errors.ServerError: 300,
    errors.ConnectionFailedError: 300,
    errors.RateLimitError: 300,
    errors.InvalidResponseError: 60,
}


@pytest.mark.parametrize("minimum", [None, 50])
@pytest.mark.parametrize("error", PATIENCE)
def test_trouble_that_may_pass_is_waited_out_for_some_minutes(said, error, minimum):
    wait, patience = final(min_success_rate=minimum), PATIENCE[error]
    assert wait.take(error("Later.", retry_after=7), T) is None
    assert len(said()) == 1
    assert wait.take(error("Later."), T + patience - 1) is None
    assert said() == []
    end = wait.take(error("Later.", retry_after=7), T + patience)
    if minimum is None:
        assert end == COMPLETED
        assert "the task goes on without them" in said()[0]
    else:
        assert (end.finding.condition, end.finding.retry_after) == (error.kind, 7)
        assert end.result["status"] == "completed"


def test_each_outage_has_its_own_patience():
    wait = final()
    wait.take(errors.ServerError("Later."), T)
    assert wait.take(stats(completed_at=None), T + 20) is None
    assert wait.take(errors.ServerError("Later."), T + 301) is None
    assert wait.take(errors.ServerError("Later."), T + 601) == COMPLETED


def test_invalid_answers_have_their_own_minute():
    wait = final()
    for at in (0, 70):
        assert wait.take(errors.ServerError("Later."), T + at) is None
    assert wait.take(errors.InvalidResponseError("What?"), T + 71) is None
    assert wait.take(errors.ServerError("Later."), T + 130) is None
    assert wait.take(errors.InvalidResponseError("What?"), T + 135) is None
    assert wait.take(errors.InvalidResponseError("What?"), T + 195) == COMPLETED


def test_no_wait_for_the_next_read_is_longer_than_there_is_time():
    def delay(failures, retry_after, **arguments):
        wait = final(**arguments)
        # The first read is at once.
        assert wait.delay(60, 0, None, T) == 0
        wait.take(stats(completed_at=None), T)
        return wait.delay(60, failures, retry_after, T)

    assert delay(0, None) == 5
    assert delay(1, 30) == 30
    assert delay(1, 30, statistics_until=T + 100) == 30
    assert delay(1, 30, statistics_until=T + 20) == 15
    assert delay(0, None, statistics_until=T + 2) == 0
    assert delay(1, 30, statistics_until=T + 20, min_success_rate=50) == 30


def test_the_execution_timeout_is_not_waited_for_without_need():
    for_none, for_some = (final(min_success_rate=minimum, statistics_until=T + 20) for minimum in (None, 50))
    assert for_none.take(errors.ServerError("Later."), T + 14) is None
    assert for_none.take(errors.ServerError("Later."), T + 15) == COMPLETED
    assert for_none.take(stats(completed_at=None), T + 15) == COMPLETED
    assert for_some.take(errors.ServerError("Later."), T + 15) is None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({}, "8 of 10 calls successful (80 %), 2 failed"),
        ({"success_rate": 83.33}, "8 of 10 calls successful (83.3 %), 2 failed"),
        ({"calls_completed": 9, "calls_failed": 0, "success_rate": 100}, "9 of 9 calls successful (100 %), 0 failed"),
        (
            {"success_rate": None, "calls_completed": 2000, "calls_failed": 1},
            "2,000 of 2,001 calls successful (99.9 %), 1 failed",
        ),
        ({"success_rate": None, "calls_completed": 0, "calls_failed": 0}, "no call has ended"),
        (None, "how its calls went is not known"),
    ],
)
def test_how_the_calls_went_in_words(numbers, words):
    statistics = None if numbers is None else statistics_json(stats(**numbers))
    assert describe_result(COMPLETED._replace(result={"statistics": statistics})) == words


def test_statistics_that_the_triggerer_has_read_are_not_read_again():
    wait = CompletionWatch("c", OutcomeRules(TaskKind.START).while_waiting(), T)
    assert not wait.resume(COMPLETED._replace(result={"statistics": statistics_json(stats())}))


def test_a_sensor_that_waits_out_what_is_wrong_with_the_statistics_reads_the_campaign_again():
    wait = CompletionWatch("c", OutcomeRules(TaskKind.COMPLETED), T, min_success_rate=50)
    for at in (0, 1000):
        assert wait.take(Campaign("c", CampaignStatus.COMPLETED, "completed"), T + at) is None
        assert wait.take(errors.ServerError("Later."), T + at) is None
        end = wait.take(errors.ServerError("Later."), T + at + 300)
        assert end.finding.condition is Condition.INTERNAL_SERVER_ERROR
        assert (wait.wants.name, wait.is_urgent) == ("get", False)
