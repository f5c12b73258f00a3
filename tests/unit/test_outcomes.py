# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from helpers.tasks import Following, Starting, both_ways, context, deferred
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Finding,
    Outcome,
    OutcomeRules,
    TaskKind,
    VoiceGenieRetryException,
    apply_outcome,
)
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"not_found": "skip"}, "'not_found' is not a condition of this task; did you mean 'NOT_FOUND'? Valid: "),
        ({"Not Found": "skip"}, "did you mean 'NOT_FOUND'?"),
        ({"CAMPAIGN_PAUSE": "fail"}, "did you mean 'CAMPAIGN_PAUSED'?"),
        ({"CAMPAIGN-STALED": "fail"}, "did you mean 'CAMPAIGN_STALLED'?"),
        ({"EVERYTHING": "skip"}, "'EVERYTHING' is not a condition of this task. Valid: "),
        ({"NOT_FOUND": "Skip"}, "outcomes['NOT_FOUND']: 'Skip' is not a valid outcome; did you mean 'skip'? Valid: "),
        ({"NOT_FOUND": "failed"}, "did you mean 'fail'?"),
        ({"NOT_FOUND": "explode"}, "'explode' is not a valid outcome. Valid: skip, fail, retry"),
        ({"NOT_FOUND": None}, "None is not a valid outcome."),
        ({5: "skip"}, "5 is not a condition of this task."),
    ],
)
def test_a_misspelled_outcome_is_refused_with_what_was_meant(changes, words):
    with pytest.raises(ValueError, match="outcomes") as caught:
        OutcomeRules(TaskKind.START, changes)
    assert words in str(caught.value)


PAUSED_BY_THE_TASK = ("CALLING_HOURS_OVER", "CALL_LIMIT_REACHED")
ENDS = ("FAILED", "STOPPED", "PAUSED", "STALLED")
ROOT = Path(__file__).parents[2]


def all_errors(cls=errors.VoiceGenieError):
    for sub in cls.__subclasses__():
        yield sub
        yield from all_errors(sub)


def test_every_error_is_a_condition():
    assert {error.kind for error in all_errors()} <= set(Condition)


@pytest.mark.parametrize("kind", TaskKind)
def test_a_default_is_among_what_is_allowed(kind):
    rules = OutcomeRules(kind)
    for condition in Condition:
        assert rules.outcome(condition) in rules.allowed(condition)


@pytest.mark.parametrize("kind", TaskKind)
def test_what_may_count_as_success_or_be_waited_out(kind):
    """As the notes in docs/conditions.md say."""
    ends = {"COMPLETION_TIMEOUT", "SUCCESS_RATE_TOO_LOW", *(f"CAMPAIGN_{end}" for end in ENDS)}
    rules = OutcomeRules(kind)
    may_succeed = {condition for condition in Condition if Outcome.SUCCEED in rules.allowed(condition)}
    may_wait = {condition for condition in Condition if Outcome.WAIT in rules.allowed(condition)}
    assert (
        may_succeed
        == {
            TaskKind.START: {"CAMPAIGN_ALREADY_RUNNING", "CAMPAIGN_COMPLETED", *PAUSED_BY_THE_TASK} | ends,
            TaskKind.PAUSE: {"CAMPAIGN_ALREADY_PAUSED", "CAMPAIGN_NOT_RUNNING", "CAMPAIGN_COMPLETED"},
            TaskKind.READY: {"CAMPAIGN_ALREADY_RUNNING", "CAMPAIGN_COMPLETED"},
            TaskKind.COMPLETED: ends,
            TaskKind.UPLOAD: {
                "CAMPAIGN_ALREADY_RUNNING",
                "NO_CONTACTS",
                "CONTACTS_REJECTED",
                "EXCLUSIONS_MISSING",
                "CAMPAIGN_NAME_TAKEN",
            },
            TaskKind.HISTORY: {"CAMPAIGN_STILL_RUNNING", "HISTORY_INCOMPLETE"},
        }[kind]
    )
    patient = set(Condition) - {"INVALID_CAMPAIGN_ID", "PREREQUISITE_IMPOSSIBLE", "SUCCESS_RATE_TOO_LOW"}
    waits = {
        TaskKind.START: {"CALLING_HOURS_OVER", "CAMPAIGN_PAUSED", "CAMPAIGN_STALLED", "OUTSIDE_CALLING_HOURS"},
        TaskKind.READY: patient,
        TaskKind.COMPLETED: patient,
    }
    assert may_wait == waits.get(kind, set())


def test_what_a_task_cannot_meet_fails_it():
    assert OutcomeRules(TaskKind.PAUSE).outcome(Condition.BACKFILL_RUN) is Outcome.FAIL


def table_of_conditions(page, columns):
    """Return the cells of each condition in a page's table."""
    rows = {}
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == columns and re.fullmatch(r"`[A-Z_]+`", cells[0]):
            rows[cells[0].strip("`")] = cells
    return rows


def test_the_short_table_of_the_readme_holds_the_defaults_of_a_start():
    rules = OutcomeRules(TaskKind.START)
    rows = table_of_conditions(ROOT / "README.md", 3)
    assert len(rows) == 10
    assert {name: rules.outcome(Condition(name)) for name in rows} == {
        name: row[2].split()[0] for name, row in rows.items()
    }


@pytest.mark.parametrize("kind", TaskKind)
def test_the_documentation_has_the_table(kind):
    """The table in docs/conditions.md is the table of the code, line by line."""
    column = 1 + list(TaskKind).index(kind)
    rows = {name: row[column] for name, row in table_of_conditions(ROOT / "docs" / "conditions.md", 8).items()}
    rules = OutcomeRules(kind)
    assert set(rows) == set(Condition)
    for name, documented in rows.items():
        if documented == "-":
            with pytest.raises(ValueError, match="not a condition"):
                OutcomeRules(kind, {name: "skip"})
        else:
            assert rules.outcome(Condition(name)) == documented, name


def test_temporary_trouble_never_ends_the_wait_of_a_start():
    rules = OutcomeRules(TaskKind.START, {"CONNECTION_FAILED": "fail", "NOT_FOUND": "skip"})
    waiting = rules.while_waiting()
    for name in ("RATE_LIMIT_EXCEEDED", "INTERNAL_SERVER_ERROR", "CONNECTION_FAILED", "INVALID_RESPONSE"):
        assert waiting.outcome(Condition(name)) is Outcome.WAIT
    assert waiting.outcome(Condition.NOT_FOUND) is Outcome.SKIP
    assert rules.outcome(Condition.CONNECTION_FAILED) is Outcome.FAIL
    sensor = OutcomeRules(TaskKind.COMPLETED, {"CONNECTION_FAILED": "fail"})
    assert sensor.while_waiting().outcome(Condition.CONNECTION_FAILED) is Outcome.FAIL


def test_outcome_changes_go_through_json():
    changes = {"NOT_FOUND": "skip", Condition.CAMPAIGN_PAUSED: Outcome.FAIL}
    rules = OutcomeRules(TaskKind.COMPLETED, changes)
    assert json.loads(json.dumps(rules.changes)) == {"NOT_FOUND": "skip", "CAMPAIGN_PAUSED": "fail"}
    again = OutcomeRules(TaskKind.COMPLETED, rules.changes)
    assert all(again.outcome(condition) is rules.outcome(condition) for condition in Condition)


def test_single_lines_change_by_text_or_enum():
    rules = OutcomeRules(TaskKind.START, {"NOT_FOUND": "skip", Condition.UNAUTHORIZED: Outcome.RETRY})
    assert rules.outcome(Condition.NOT_FOUND) is Outcome.SKIP
    assert rules.outcome(Condition.UNAUTHORIZED) is Outcome.RETRY
    assert rules.outcome(Condition.FORBIDDEN) is Outcome.FAIL
    assert OutcomeRules(TaskKind.START).outcome(Condition.NOT_FOUND) is Outcome.FAIL


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (TaskKind.START, {"NOT_FOUNT": "skip"}, ["NOT_FOUNT", "NOT_FOUND", "BACKFILL_RUN"]),
        (TaskKind.START, {"not_found": "skip"}, ["not_found"]),
        (TaskKind.START, {404: "skip"}, ["404"]),
        (TaskKind.START, {"NOT_FOUND": "ignore"}, ["ignore", "skip, fail, retry"]),
        (TaskKind.START, {"NOT_FOUND": "succeed"}, ["succeed", "skip, fail, retry"]),
        (TaskKind.START, {"NOT_FOUND": None}, ["None"]),
        (TaskKind.START, {"RATE_LIMIT_EXCEEDED": "wait"}, ["wait"]),
        (TaskKind.READY, {"INVALID_CAMPAIGN_ID": "wait"}, ["wait"]),
        (TaskKind.START, {"CAMPAIGN_FAILED": "wait"}, ["wait"]),
        (TaskKind.COMPLETED, {"SUCCESS_RATE_TOO_LOW": "wait"}, ["wait"]),
        (TaskKind.COMPLETED, {"COMPLETION_TIMEOUT": "skip"}, ["COMPLETION_TIMEOUT"]),
        (TaskKind.PAUSE, {"BACKFILL_RUN": "skip"}, ["BACKFILL_RUN"]),
        (TaskKind.START, ["NOT_FOUND"], ["mapping", "list"]),
        (TaskKind.START, "NOT_FOUND", ["mapping", "str"]),
    ],
)
def test_a_wrong_change_is_refused_and_the_valid_ones_named(kind, changes, words):
    with pytest.raises(ValueError, match="outcomes") as caught:
        OutcomeRules(kind, changes)
    for word in words:
        assert word in str(caught.value)


@given(
    kind=st.sampled_from(TaskKind),
    changes=st.dictionaries(
        st.sampled_from(Condition) | st.sampled_from(Condition).map(str) | st.text(max_size=5),
        st.sampled_from(Outcome) | st.sampled_from(Outcome).map(str) | st.text(max_size=5) | st.none(),
        max_size=4,
    ),
)
def test_any_changes_are_taken_whole_or_refused(kind, changes):
    default = OutcomeRules(kind)
    rules = None
    with contextlib.suppress(ValueError):
        rules = OutcomeRules(kind, changes)
    if rules is None:
        with pytest.raises(ValueError, match=r"^outcomes.*Valid: "):
            OutcomeRules(kind, changes)
        return
    for condition in Condition:
        wanted = changes.get(condition, default.outcome(condition))
        assert rules.outcome(condition) == wanted
        assert rules.outcome(condition) in rules.allowed(condition)
    # What a trigger keeps makes the same rules again.
    again = OutcomeRules(TaskKind(kind.value), json.loads(json.dumps(rules.changes)))
    assert [again.outcome(condition) for condition in Condition] == [rules.outcome(each) for each in Condition]


def test_the_reason_of_a_skip_is_logged(caplog):
    with pytest.raises(AirflowSkipException) as caught:
        apply_outcome(OutcomeRules(TaskKind.START), Finding(Condition.BACKFILL_RUN, "this is a backfill"), "c")
    assert [record.getMessage() for record in caplog.records] == [str(caught.value)]
    assert "this is a backfill [BACKFILL_RUN: the task is skipped]" in caplog.text


# What the service asked to wait, for a user's policy of retries.


@pytest.mark.parametrize("kind", TaskKind)
def test_what_the_service_asked_to_wait_is_kept_for_a_retry(kind):
    rules = OutcomeRules(kind, {"RATE_LIMIT_EXCEEDED": "retry"})
    error = errors.RateLimitError("no", retry_after=17.0)
    with pytest.raises(VoiceGenieRetryException) as caught:
        apply_outcome(rules, Finding.of(error), "c")
    assert (caught.value.condition, caught.value.retry_after) == (Condition.RATE_LIMIT_EXCEEDED, 17.0)
    with pytest.raises(VoiceGenieRetryException) as caught:
        apply_outcome(rules, Finding(Condition.RATE_LIMIT_EXCEEDED, "no", 7.0), "c")
    assert caught.value.retry_after == 7.0


RETRY = {"INTERNAL_SERVER_ERROR": "retry"}
TASKS = {
    "start": ("get", lambda path: Starting()),
    "pause": (
        "pause",
        lambda path: (
            lambda *, deferrable: PauseCampaignOperator(task_id="pause", campaign_id="followed", deferrable=deferrable)
        ),
    ),
    "sensor": ("get", lambda path: Following(outcomes=RETRY)),
    "statistics": ("stats", lambda path: Following(campaign_id="completed", min_success_rate=1, outcomes=RETRY)),
    "upload": (
        "upload",
        lambda path: (
            lambda *, deferrable: UploadContactsOperator(
                task_id="upload", campaign_id="paused", contacts=[{"phone_number": "+4915190817263"}]
            )
        ),
    ),
    "history": (
        "history",
        lambda path: (
            lambda *, deferrable: CallHistoryToObjectStorageOperator(
                task_id="export", campaign_id="completed", path=f"{path}/x.csv"
            )
        ),
    ),
}


@both_ways
@pytest.mark.parametrize("name", TASKS)
def test_each_task_tells_a_policy_what_the_service_asked_to_wait(sandbox, way, name, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "statistics_patience", 0.0)
    operation, make = TASKS[name]
    body = '{"success": false, "message": "No", "error": "INTERNAL_SERVER_ERROR"}'
    # A pause that failed so may have taken effect, unless the refusal says that it did not.
    status = 429 if name == "pause" else 503
    sandbox.inject("status", operation, status=status, body=body, headers={"Retry-After": "17"}, times=None)
    with pytest.raises(VoiceGenieRetryException) as caught:
        way(make(tmp_path), context())
    assert caught.value.retry_after == 17


def test_a_wait_in_the_triggerer_tells_it_too(sandbox):
    """The first look, in the worker, is fine."""
    sandbox.inject("delay", "get", seconds=0)
    for operation in ("get", "list"):
        sandbox.inject("status", operation, status=503, headers={"Retry-After": "17"}, times=None)
    with pytest.raises(VoiceGenieRetryException) as caught:
        deferred(Following(outcomes=RETRY), context())
    assert caught.value.retry_after == 17


@pytest.mark.parametrize("kind", TaskKind)
def test_trouble_that_passes_ends_no_wait_of_a_start_or_a_pause(kind):
    changes = dict.fromkeys(("RATE_LIMIT_EXCEEDED", "CONNECTION_FAILED"), "fail")
    rules = OutcomeRules(kind, changes)
    waits = kind in (TaskKind.START, TaskKind.PAUSE)
    for name in changes:
        assert rules.while_waiting().outcome(Condition(name)) is (Outcome.WAIT if waits else Outcome.FAIL)
        # The start or the pause itself goes by what the author wants.
        assert rules.outcome(Condition(name)) is Outcome.FAIL
