# SPDX-License-Identifier: Apache-2.0
"""When a task is killed: who ended it, when a pause is tried again, and what the user is told."""

from __future__ import annotations

import logging
import time

import pytest
from helpers.tasks import TaskInstance

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.waiting.stop import (
    DeferralEnd,
    KillSwitch,
    PauseResult,
    TaskKilled,
    end_of_deferral,
    pause_campaign_of_killed_task,
    state_in_airflow,
)

OK = PausedCampaign("c", CampaignStatus.PAUSED, "paused", None, 0)
NOT_RUNNING = errors.CampaignNotRunningError("no")
LOST = errors.RedirectedError("lost", may_have_taken_effect=True)
BUSY = errors.ConnectionFailedError("busy")


def to_pause(results, looks=()):
    """Return a campaign and what sends its pauses and reads, which return or raise one result after the other."""

    def send(request, **options):
        assert (request.campaign_id, options) in (("c", {}), ("c", {"max_attempts": 1}))
        result = {"pause": results, "get": looks}[request.name].pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return "c", send


def looks_like(word):
    return Campaign("c", CampaignStatus.read(word), word)


@pytest.mark.parametrize(
    ("results", "look", "stop", "level", "words"),
    [
        ([OK], None, PauseResult.STOPPED, logging.WARNING, "so the campaign was paused"),
        ([errors.RedirectedError("no")], None, PauseResult.FAILED, logging.ERROR, "IT MAY GO ON CALLING"),
        ([errors.UnauthorizedError("no")], None, PauseResult.FAILED, logging.ERROR, "IT MAY GO ON CALLING"),
        # What may pass, or may have taken effect, is tried again: a second pause does no harm.
        ([BUSY, LOST, OK], None, PauseResult.STOPPED, logging.WARNING, "so the campaign was paused"),
        (
            [LOST, NOT_RUNNING],
            looks_like("paused"),
            PauseResult.PAUSED_ALREADY,
            logging.WARNING,
            "paused already. If it has",
        ),
        (
            [BUSY, BUSY, BUSY, BUSY],
            None,
            PauseResult.FAILED,
            logging.ERROR,
            "could not be paused: busy IT MAY GO ON CALLING",
        ),
        # What was paused already may go on by itself.
        (
            [NOT_RUNNING],
            looks_like("Paused"),
            PauseResult.PAUSED_ALREADY,
            logging.WARNING,
            "If it has a daily schedule",
        ),
        (
            [NOT_RUNNING],
            BUSY,
            PauseResult.PAUSED_ALREADY,
            logging.WARNING,
            "it may be paused already. If it has a daily",
        ),
        ([NOT_RUNNING], looks_like("completed"), PauseResult.STOPPED, logging.INFO, "needs no pause"),
        # It was taken in, and may begin later.
        (
            [NOT_RUNNING] * 5,
            looks_like("pending"),
            PauseResult.FAILED,
            logging.WARNING,
            "if the start takes effect late, pause",
        ),
        (
            [NOT_RUNNING] * 2 + [OK],
            looks_like("queued"),
            PauseResult.STOPPED,
            logging.WARNING,
            "so the campaign was paused",
        ),
        # It started itself between the refusal and the look.
        ([NOT_RUNNING, OK], looks_like("active"), PauseResult.STOPPED, logging.WARNING, "so the campaign was paused"),
        ([NOT_RUNNING, BUSY], looks_like("running"), PauseResult.FAILED, logging.ERROR, "IT MAY GO ON CALLING"),
    ],
)
def test_the_pause_of_a_killed_task(monkeypatch, caplog, results, look, stop, level, words):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    caplog.set_level("INFO", "airflow_provider_voicegenie")
    pending, looks = list(results), [] if look is None else [look]
    assert pause_campaign_of_killed_task(*to_pause(pending, looks)) is stop
    assert not pending
    assert not looks
    last = caplog.records[-1]
    assert last.levelno == level
    assert words in last.getMessage()
    again = [record for record in caplog.records if "Trying again" in record.getMessage()]
    assert all(record.levelno == logging.WARNING for record in again)
    assert waits == [0.5, 1.0, 2.0][: len(again)]


@pytest.mark.parametrize(
    ("results", "is_stopped"),
    [
        ([NOT_RUNNING, NOT_RUNNING, OK], True),
        ([NOT_RUNNING] * 4, False),
        ([LOST, NOT_RUNNING, BUSY, NOT_RUNNING], False),
    ],
)
def test_a_start_that_may_take_effect_late_is_waited_for(monkeypatch, caplog, results, is_stopped):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    pending = list(results)
    stop = pause_campaign_of_killed_task(*to_pause(pending), may_start_late=True)
    assert stop is (PauseResult.STOPPED if is_stopped else PauseResult.FAILED)
    assert not pending
    assert ("if the start takes effect late, pause it" in caplog.text) is not is_stopped


def test_what_is_not_of_the_service_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        pause_campaign_of_killed_task(*to_pause([ZeroDivisionError()]))


def break_off(kill, *, at_once=False):
    """Be killed while that may break off what is done; say whether it did."""
    try:
        with kill.interruptible():
            if not at_once:
                kill.pull()
            return False
    except TaskKilled:
        return True


def test_a_kill_breaks_off_only_what_may_be_broken_off():
    kill = KillSwitch()
    with kill.interruptible():
        pass
    # What asks Airflow for something goes on.
    kill.pull()
    assert kill.pulled
    assert break_off(kill, at_once=True)
    kill.pull()
    again = KillSwitch()
    assert break_off(again)
    again.pull()


class TaskInstanceOfAirflow2(TaskInstance):
    """In Airflow 2, a task asks the database."""

    get_task_states = property()

    def current_state(self):
        return None if self.state == "deleted" else self.state

    def get_task_instance(self, dag_id, run_id, task_id, map_index):
        assert (dag_id, run_id, task_id, map_index) == (self.dag_id, self.run_id, self.task_id, self.map_index)
        return None if self.state == "deleted" else self


@pytest.mark.parametrize("kind", [TaskInstance, TaskInstanceOfAirflow2])
@pytest.mark.parametrize("map_index", [-1, 0, 7])
@pytest.mark.parametrize(
    ("state", "told"), [("running", "running"), ("restarting", "restarting"), (None, None), ("deleted", "removed")]
)
def test_state_of_a_task_in_airflow(kind, map_index, state, told):
    assert state_in_airflow(kind(state=state, map_index=map_index)) == told


@pytest.mark.parametrize(
    ("state", "is_wait_over", "generation_now", "end"),
    [
        # Another triggerer has its trigger.
        ("deferred", False, [2, 0, 1], DeferralEnd.NOT_BY_USER),
        # Cleared, and deferred again.
        ("deferred", False, [3, 1, 2], DeferralEnd.CLEARED),
        ("deferred", True, [3, 1, 2], DeferralEnd.CLEARED),
        # Deferred again for another reason, without a start.
        ("deferred", False, None, DeferralEnd.CLEARED),
        # Another triggerer has ended the wait.
        ("scheduled", True, [2, 0, 1], DeferralEnd.NOT_BY_USER),
        ("failed", True, [2, 0, 1], DeferralEnd.NOT_BY_USER),
        ("failed", False, [2, 0, 1], DeferralEnd.MARKED),
        ("success", False, [2, 0, 1], DeferralEnd.MARKED),
        ("removed", False, [2, 0, 1], DeferralEnd.MARKED),
        # Cleared, and not deferred again yet.
        (None, False, [2, 0, 1], DeferralEnd.CLEARED),
        ("scheduled", False, [2, 0, 1], DeferralEnd.CLEARED),
        ("running", False, None, DeferralEnd.CLEARED),
        ("up_for_retry", False, None, DeferralEnd.CLEARED),
    ],
)
def test_why_airflow_ends_a_trigger(state, is_wait_over, generation_now, end):
    told = end_of_deferral(state, is_wait_over=is_wait_over, generation=[2, 0, 1], generation_now=generation_now)
    assert told is end
