# SPDX-License-Identifier: Apache-2.0
"""
What happens when Airflow ends a task: who ended it, and the pause that follows.

A campaign is paused when a user ends its task. Trouble of Airflow's own pauses nothing: the next try, or another
triggerer, follows the campaign. Airflow ends the process, or the trigger, in both cases; the state that the task has
in Airflow by then shows which it was.

``on_kill`` of a running task is called from a signal handler, in which nothing may be asked of Airflow: the interrupted
code may hold the lock of the channel. So it only sets a flag, or breaks off a wait; what to do is decided outside of
the handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.waiting.deferral import is_wait_over

#: Airflow's own word for a task instance that is no longer part of a run; here also for one that was deleted.
_REMOVED = "removed"

#: What a running task becomes when a user marks it, clears it (``restarting``), or deletes its run (``removed``). One
#: that was given up for lost, as its heartbeat or its scheduler's was late, is run again, and is something else then.
_ENDED_BY_USER = frozenset({"success", "failed", "skipped", "upstream_failed", _REMOVED, "restarting"})

#: Seconds before each further attempt to pause. Airflow ends a killed task by force a few seconds later.
_PAUSE_DELAYS = (0.5, 1.0, 2.0)

#: What is said wherever a pause met a campaign that was paused already: the service takes no pause then.
MAY_GO_ON = (
    "If it has a daily schedule, it goes on by itself at its next start time. To prevent that, end its schedule or "
    "stop it in the VoiceGenie dashboard, or keep it paused with PauseCampaignOperator(keep_paused_for=...)."
)

log = logging.getLogger(__name__)


class TaskKilled(BaseException):
    """Breaks off a wait when Airflow ends the task."""


class KillSwitch:
    """Whether Airflow has ended this task."""

    def __init__(self) -> None:
        self.pulled = False
        self._may_interrupt = False

    def pull(self) -> None:
        """
        Take note that Airflow ends the task.

        :raises TaskKilled: The task was waiting.
        """
        self.pulled = True
        if self._may_interrupt:
            self._may_interrupt = False
            raise TaskKilled

    def check(self) -> None:
        """
        Stop if Airflow has ended the task.

        :raises TaskKilled: It has.
        """
        if self.pulled:
            raise TaskKilled

    def check_with_airflow(self, context: Mapping[str, Any]) -> None:
        """
        Stop if Airflow has ended the task, or knows that a user has: its signal may come seconds later.

        :param context: The task's context.
        :raises TaskKilled: It has.
        """
        if not self.pulled and _is_ended_in_airflow(context):
            self.pulled = True
        self.check()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """
        Let a kill break off what is done here. Nothing may be asked of Airflow meanwhile.

        :raises TaskKilled: The task was or is killed.
        """
        self._may_interrupt = True
        try:
            self.check()
            yield
        finally:
            self._may_interrupt = False


def state_in_airflow(task_instance: Any) -> str | None:
    """
    Return the state Airflow has recorded for a task instance; ``None`` is one that Airflow is about to schedule.

    Makes a request: do not call it from a signal handler or an event loop.

    :param task_instance: What knows its DAG, run, task and map index, in a worker or in the triggerer.
    """
    dag_id, run_id, task_id = task_instance.dag_id, task_instance.run_id, task_instance.task_id
    map_index = task_instance.map_index
    state: str | None
    if hasattr(task_instance, "current_state"):  # Airflow 2
        state = task_instance.current_state()
        if state is None and task_instance.get_task_instance(dag_id, run_id, task_id, map_index) is None:
            return _REMOVED
        return state
    if not hasattr(task_instance, "get_task_states"):  # in the triggerer
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance as task_instance  # noqa: N813
    states = task_instance.get_task_states(dag_id, map_index=map_index, task_ids=[task_id], run_ids=[run_id])
    name = task_id if map_index < 0 else f"{task_id}_{map_index}"
    state = states.get(run_id, {}).get(name, _REMOVED)
    return state


def was_ended_by_user(context: Mapping[str, Any]) -> bool:
    """Say whether someone has marked or cleared a running task; a worker or a scheduler may be in trouble instead."""
    task_instance = context.get("ti")
    if task_instance is None:
        return True
    try:
        return state_in_airflow(task_instance) in _ENDED_BY_USER
    except Exception:
        log.warning("Airflow could not say whether a user ended this task.", exc_info=True)
        return False


def _is_ended_in_airflow(context: Mapping[str, Any]) -> bool:
    """Say whether someone has marked or cleared a task that was not told so yet."""
    task_instance = context.get("ti")
    if task_instance is None or getattr(task_instance, "test_mode", False):
        return False
    return was_ended_by_user(context)


def was_deferred_task_ended_by_user(task_instance: Any) -> bool:
    """
    Say whether a user has ended a deferred task whose trigger Airflow ends.

    A triggerer that was late with its heartbeat finds its triggers with another one: their tasks are still deferred, or
    the other one has ended their wait.

    :param task_instance: The trigger's; ``None`` is taken for a user's doing, as is an Airflow that cannot be asked.
    """
    if task_instance is None:
        return True
    try:
        return state_in_airflow(task_instance) != "deferred" and not is_wait_over(task_instance)
    except Exception:
        log.warning("Airflow could not say whether a user ended this task.", exc_info=True)
        return True


class Stop(Enum):
    """What came of the pause that follows a kill."""

    #: No call begins any more.
    STOPPED = "stopped"
    #: It was paused before, so the service took no pause: a daily schedule may start it again.
    PAUSED_ALREADY = "paused already"
    #: It may go on calling.
    FAILED = "failed"


def pause_campaign_of_killed_task(
    pause: Callable[[str], object],
    look: Callable[[str], Campaign],
    campaign_id: str,
    *,
    may_start_late: bool = False,
) -> Stop:
    """
    Pause the campaign of a task that was killed, and say whether its calls are stopped.

    A pause whose response was lost is sent again: the second one is refused if the first took effect.

    :param pause: Sends one pause.
    :param look: Reads the campaign once.
    :param campaign_id: The campaign.
    :param may_start_late: Whether a start without a response may still take effect, so that a campaign that is not
        running is looked at again.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

    from airflow_provider_voicegenie.api.errors import CampaignNotRunningError, VoiceGenieError

    def may_help(error: BaseException) -> bool:
        if isinstance(error, CampaignNotRunningError):
            return may_start_late
        return isinstance(error, VoiceGenieError) and (error.temporary or error.may_have_taken_effect)

    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "Campaign %r: the task was killed, and the campaign could not be paused: %s Trying again.",
            campaign_id,
            error,
        )

    retrying = Retrying(
        stop=stop_after_attempt(1 + len(_PAUSE_DELAYS)),
        wait=wait_chain(*map(wait_fixed, _PAUSE_DELAYS)),
        retry=retry_if_exception(may_help),
        before_sleep=warn,
        reraise=True,
    )
    try:
        try:
            retrying(pause, campaign_id)
        except CampaignNotRunningError:
            if may_start_late:
                log.warning(
                    "Campaign %r: the task was killed while it started the campaign. The campaign is not running now; "
                    "if the start takes effect late, pause it in the VoiceGenie dashboard.",
                    campaign_id,
                )
                return Stop.FAILED
            campaign = _look(look, campaign_id)
            if campaign is None or campaign.status is CampaignStatus.PAUSED:
                return _paused_already(campaign, campaign_id)
            if campaign.status.has_ended:
                log.info("Campaign %r: the task was killed; the campaign is over, so it needs no pause.", campaign_id)
                return Stop.STOPPED
            if not campaign.status.is_running:
                # A start that was accepted may take effect late.
                return pause_campaign_of_killed_task(pause, look, campaign_id, may_start_late=True)
            # It began to run just now.
            pause(campaign_id)
    except VoiceGenieError as error:
        log.error(
            "Campaign %r: the task was killed, and the campaign could not be paused: %s IT MAY GO ON CALLING: pause it "
            "in the VoiceGenie dashboard.",
            campaign_id,
            error,
        )
        return Stop.FAILED
    else:
        log.warning("Campaign %r: the task was killed, so the campaign was paused.", campaign_id)
    return Stop.STOPPED


def _look(look: Callable[[str], Campaign], campaign_id: str) -> Campaign | None:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

    try:
        return look(campaign_id)
    except VoiceGenieError as error:
        log.warning("%s", error)
        return None


def _paused_already(campaign: Campaign | None, campaign_id: str) -> Stop:
    seen = "says that it is not running, so it may be" if campaign is None else "took no pause, as it is"
    log.warning("Campaign %r: the task was killed. The service %s paused already. %s", campaign_id, seen, MAY_GO_ON)
    return Stop.PAUSED_ALREADY
