# SPDX-License-Identifier: Apache-2.0
"""When a task is killed: who ended it, when a pause is tried again, and what the user is told."""

from __future__ import annotations

import logging

import pytest
from waiting import TaskInstance

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.decisions.killing import after_pause
from airflow_provider_voicegenie.operators.killing import KillSwitch, TaskKilled
from airflow_provider_voicegenie.task_state import state_in_airflow


@pytest.mark.parametrize(
    ("outcome", "level", "again"),
    [
        (PausedCampaign("c", CampaignStatus.PAUSED, "paused", None, 0), logging.WARNING, False),
        (errors.CampaignNotRunningError("no"), logging.INFO, False),
        (errors.ConnectionFailedError("no"), logging.WARNING, True),
        (errors.RedirectedError("no", may_have_taken_effect=True), logging.WARNING, True),
        (errors.RedirectedError("no"), logging.ERROR, False),
        (errors.UnauthorizedError("no"), logging.ERROR, False),
    ],
)
def test_after_a_pause(outcome, level, again):
    note = after_pause("c", outcome)
    assert (note.level, note.again) == (level, again)
    assert ("IT MAY GO ON CALLING" in note.text) == (level == logging.ERROR)


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
def test_what_airflow_has_a_task_down_as(kind, map_index, state, told):
    assert state_in_airflow(kind(state=state, map_index=map_index)) == told
