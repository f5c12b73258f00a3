# SPDX-License-Identifier: Apache-2.0
"""
What to do when a task is killed: whether to pause its campaign, and what to do after that.

A campaign is paused when a user ends its task. Trouble of Airflow's own pauses nothing: the next try, or another
triggerer, follows the campaign.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.api.models import PausedCampaign

#: Seconds before each attempt. Airflow ends a killed task by force a few seconds later.
PAUSE_DELAYS = (0.0, 0.5, 1.0, 2.0)

#: What a running task becomes when a user marks it, clears it (``restarting``), or deletes its run (``removed``). One
#: that was given up for lost, as its heartbeat or its scheduler's was late, is run again, and is something else then.
_ENDED_BY_USER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed", "restarting"})


def is_running_task_ended_by_user(state: str | None) -> bool:
    """
    Tell whether a user has ended a task whose process Airflow ends.

    :param state: What Airflow has the task down as by now.
    """
    return state in _ENDED_BY_USER


def is_deferred_task_ended_by_user(state: str | None) -> bool:
    """
    Tell whether a user has ended a deferred task whose trigger Airflow ends.

    A triggerer that was late with its heartbeat finds its triggers with another one; their tasks are deferred still.

    :param state: What Airflow has the task down as by now.
    """
    return state != "deferred"


class PauseNote(NamedTuple):
    """
    What an attempt came to.

    :param level: Level of the ``logging`` module.
    :param text: The line for the task's log.
    :param again: Whether another attempt may help.
    """

    level: int
    text: str
    again: bool


def after_pause(campaign_id: str, outcome: PausedCampaign | VoiceGenieError) -> PauseNote:
    """
    Judge an attempt to pause the campaign of a killed task.

    A pause may be repeated where its answer was lost: the second one is refused if the first took effect.

    :param campaign_id: The campaign.
    :param outcome: The answer, or the error.
    """
    from airflow_provider_voicegenie.api.errors import CampaignNotRunningError, VoiceGenieError

    name = f"Campaign {campaign_id!r}"
    if isinstance(outcome, CampaignNotRunningError):
        return PauseNote(logging.INFO, f"{name}: the task was killed; the campaign does not run, so it is left.", False)
    if isinstance(outcome, VoiceGenieError):
        words = f"{name}: the task was killed, and the campaign could not be paused: {outcome.message} "
        again = outcome.temporary or outcome.may_have_taken_effect
        remedy = "Trying again." if again else "IT MAY GO ON CALLING: pause it in the VoiceGenie dashboard."
        return PauseNote(logging.WARNING if again else logging.ERROR, words + remedy, again)
    return PauseNote(logging.WARNING, f"{name}: the task was killed, so the campaign was paused.", False)


def gave_up(campaign_id: str) -> str:
    """Return the line for when no attempt succeeded."""
    return (
        f"Campaign {campaign_id!r}: it could not be paused in {len(PAUSE_DELAYS)} attempts. "
        "IT MAY GO ON CALLING: pause it in the VoiceGenie dashboard."
    )
