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

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import XCom
from asgiref.sync import sync_to_async

from airflow_provider_voicegenie.api.endpoints import campaign, pause, statistics
from airflow_provider_voicegenie.api.errors import CampaignNotRunningError, VoiceGenieError
from airflow_provider_voicegenie.api.models import TIME_TOLERANCE, Campaign, CampaignStatus
from airflow_provider_voicegenie.feed.threads import in_thread, read_settings
from airflow_provider_voicegenie.hooks.connection import make_client
from airflow_provider_voicegenie.memory import KEY
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.timing import timing

#: The XCom by which one triggerer tells another that a wait is over.
_WAIT_IS_OVER = "voicegenie_wait_is_over"

#: Airflow's own word for a task instance that is no longer part of a run; here also if it was deleted.
_REMOVED = "removed"

#: What a running task becomes when a user marks it, clears it (``restarting``), or deletes its run (``removed``). One
#: that was given up for lost, as its heartbeat or its scheduler's was late, is run again, and is something else then.
_ENDED_BY_USER = frozenset({"success", "failed", "skipped", "upstream_failed", _REMOVED, "restarting"})

#: What a deferred task becomes when a user marks it or deletes its run. One that is cleared runs again.
_MARKED = _ENDED_BY_USER - {"restarting"}

#: Seconds since the start of a campaign for which it may be the start of a task that was cleared just now.
_LATELY = 120.0

#: What is said wherever a pause met a campaign that was paused already: the service takes no pause then.
MAY_GO_ON = (
    "If it has a daily schedule, it goes on by itself at its next start time. To prevent that, end its schedule or "
    "stop it in the VoiceGenie dashboard, or keep it paused with PauseCampaignOperator(keep_paused_for=...)."
)

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.endpoints import Request

log = logging.getLogger(__name__)


class TaskKilled(BaseException):
    """Breaks off a wait when Airflow ends the task."""


class KillSwitch:
    """Whether Airflow has ended this task."""

    pulled = False
    _may_interrupt = False

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

        :raises TaskKilled: It has.
        """
        task_instance = context.get("ti")
        is_in_airflow = task_instance is not None and not getattr(task_instance, "test_mode", False)
        if not self.pulled and is_in_airflow and was_ended_by_user(context):
            self.pulled = True
        self.check()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """
        Let a kill interrupt the reads in this block. Do not call Airflow inside it.

        :raises TaskKilled: The task was or is killed.
        """
        self._may_interrupt = True
        try:
            self.check()
            yield
        finally:
            self._may_interrupt = False

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """
        Let no kill interrupt this block, so that it may call Airflow.

        :raises TaskKilled: The task was killed meanwhile, and may be interrupted after the block.
        """
        may_interrupt, self._may_interrupt = self._may_interrupt, False
        try:
            yield
        finally:
            self._may_interrupt = may_interrupt
        if may_interrupt:
            self.check()


def state_in_airflow(task_instance: Any) -> str | None:
    """
    Return the state Airflow has recorded for a task instance; ``None`` if Airflow is about to schedule it.

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
        # Airflow 2 has none.
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


class DeferralEnd(Enum):
    """Why Airflow ends the trigger of a deferred task."""

    #: No user did that: another triggerer follows the campaign, or has done so to its end.
    NOT_BY_USER = "not by a user"
    #: A user has marked the task, or deleted its run: nothing of it will run again.
    MARKED = "marked"
    #: A user has cleared the task: its next try may start the campaign, or another one, and may have done so already.
    CLEARED = "cleared"


def end_of_deferral(
    state: str | None, *, is_wait_over: bool, generation: Sequence[int] | None, generation_now: Sequence[int] | None
) -> DeferralEnd:
    """
    Say why Airflow ends the trigger of a deferred task.

    :param state: The task's state in Airflow.
    :param is_wait_over: Whether a triggerer noted that the wait ended by itself.
    :param generation: The generation of the task that the trigger belongs to.
    :param generation_now: The one in which the task was last deferred.
    """
    if state == "deferred":
        # Cleared, it may be deferred again by now.
        return DeferralEnd.NOT_BY_USER if generation == generation_now else DeferralEnd.CLEARED
    if is_wait_over:
        return DeferralEnd.NOT_BY_USER
    return DeferralEnd.MARKED if state in _MARKED else DeferralEnd.CLEARED


def read_end_of_deferral(task_instance: Any, generation: Sequence[int] | None) -> DeferralEnd:
    """
    Ask Airflow why it ends the trigger of a deferred task.

    A triggerer that was late with its heartbeat finds its triggers with another one: their tasks are still deferred, or
    the other one has ended their wait.

    :param task_instance: The trigger's; ``None`` is taken for a user's doing, as is an Airflow that cannot be asked.
    :param generation: The generation of the task that the trigger belongs to.
    """
    if task_instance is None:
        return DeferralEnd.MARKED
    try:
        state = state_in_airflow(task_instance)
    except Exception:
        log.warning("Airflow could not say whether a user ended this task.", exc_info=True)
        return DeferralEnd.CLEARED
    try:
        # Of whichever try.
        copy = XCom.get_one(key=KEY, **_place(task_instance))
        return end_of_deferral(
            state,
            is_wait_over=XCom.get_one(key=_WAIT_IS_OVER, **_place(task_instance)) is True,
            generation=generation,
            generation_now=copy.get("generation") if isinstance(copy, dict) else None,
        )
    except Exception as error:  # noqa: BLE001  Airflow may raise anything here
        # From 3.4 on, a trigger cannot read the XComs of its task instance once that was cleared.
        log.info("The note of this wait cannot be read from XCom (%s); the state of the task is %s.", error, state)
        return DeferralEnd.MARKED if state in _MARKED else DeferralEnd.CLEARED


def note_end_of_wait(task_instance: Any) -> None:
    """
    Note in XCom, from the triggerer, that the wait of a deferred task is over by itself.

    If Airflow took a triggerer for dead, two run the same trigger, and the second is cancelled as if by a user. This
    note tells it otherwise. Airflow removes the note when a further try begins, but not if this try waits once more:
    see :func:`take_back_end_of_wait`.
    """
    XCom.set(_WAIT_IS_OVER, True, **_place(task_instance))


def take_back_end_of_wait(task_instance: Any) -> None:
    """
    Take back what :func:`note_end_of_wait` noted, from a worker, before the same try waits once more.

    Otherwise, the triggerer would take a user's kill in that wait for trouble of Airflow's own, and pause nothing.
    """
    task_instance.xcom_push(key=_WAIT_IS_OVER, value=False)


def _place(task_instance: Any) -> dict[str, Any]:
    return {name: getattr(task_instance, name) for name in ("dag_id", "task_id", "run_id", "map_index")}


class PauseResult(Enum):
    """What came of the pause that follows a kill."""

    #: No call begins any more.
    STOPPED = "stopped"
    #: It was paused before, so the service took no pause: a daily schedule may start it again.
    PAUSED_ALREADY = "paused already"
    #: It may go on calling.
    FAILED = "failed"
    #: It does not run any more by the start that is to be stopped.
    NOTHING_TO_PAUSE = "nothing to pause"


def finding_of_refused_pause(campaign: Campaign) -> Finding | None:
    """
    Say why the service refused a pause, for it has one refusal for all reasons; ``None`` if the campaign runs now.

    :param campaign: The campaign as it was read since.
    """
    status = campaign.status
    if status.is_running:
        return None
    if status is CampaignStatus.PAUSED:
        return Finding(Condition.CAMPAIGN_ALREADY_PAUSED, "it is already paused")
    if status.has_ended:
        return Finding(Condition.CAMPAIGN_COMPLETED, f"it is over ({status.value}), so there is nothing to pause")
    message = f"it does not run yet (status {campaign.status_text!r:.40}), so it cannot be paused"
    return Finding(Condition.CAMPAIGN_NOT_RUNNING, message)


def pause_campaign_of_killed_task(
    campaign_id: str,
    send: Callable[..., Any],
    *,
    may_start_late: bool = False,
    pause_once: Callable[[], str | None] | None = None,
) -> PauseResult:
    """
    Pause the campaign of a task that was killed, and say whether its calls are stopped.

    A pause whose response was lost is sent again: the second one is refused if the first took effect.

    :param send: Sends a request, as :meth:`~airflow_provider_voicegenie.api.client.VoiceGenieClient.send` does.
    :param may_start_late: Whether a start without a response may still take effect, so that a campaign that is not
        running is looked at again.
    :param pause_once: Pauses the campaign, or returns why there is nothing to pause, in a sentence. By default, it
        sends a pause.
    """

    def send_pause() -> None:
        send(pause(campaign_id))

    pause_once = pause_once or send_pause
    try:
        try:
            return _settled(campaign_id, _pause_with_retries(campaign_id, pause_once, may_start_late=may_start_late))
        except CampaignNotRunningError:
            if not may_start_late:
                return _after_refusal(campaign_id, send, pause_once)
    except VoiceGenieError as error:
        log.error(
            "Campaign %r: the task was killed, and the campaign could not be paused: %s IT MAY GO ON CALLING: pause it "
            "in the VoiceGenie dashboard.",
            campaign_id,
            error,
        )
        return PauseResult.FAILED
    log.warning(
        "Campaign %r: the task was killed while it started the campaign. The campaign is not running now; if the start "
        "takes effect late, pause it in the VoiceGenie dashboard.",
        campaign_id,
    )
    return PauseResult.FAILED


def _pause_with_retries(campaign_id: str, pause_once: Callable[[], str | None], *, may_start_late: bool) -> str | None:
    """Send a pause, and repeat it while that may help."""
    # Few tasks come here, and Airflow's SDK no longer loads it.
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

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
        stop=stop_after_attempt(1 + len(timing.kill_pause_delays)),
        wait=wait_chain(*map(wait_fixed, timing.kill_pause_delays)),
        retry=retry_if_exception(may_help),
        before_sleep=warn,
        reraise=True,
    )
    return retrying(pause_once)


def _after_refusal(campaign_id: str, send: Callable[..., Any], pause_once: Callable[[], str | None]) -> PauseResult:
    """Find out why the service refused a pause, and pause the campaign if it runs after all."""
    seen = "took no pause, as it is"
    try:
        finding = finding_of_refused_pause(send(campaign(campaign_id), max_attempts=1))
    except VoiceGenieError as error:
        log.warning("%s", error)
        seen = "says that it is not running, so it may be"
    else:
        if finding is None:
            # It began to run just now.
            return _settled(campaign_id, pause_once())
        if finding.condition is Condition.CAMPAIGN_NOT_RUNNING:
            # A start that was accepted may take effect late.
            return pause_campaign_of_killed_task(campaign_id, send, may_start_late=True, pause_once=pause_once)
        if finding.condition is Condition.CAMPAIGN_COMPLETED:
            log.info("Campaign %r: the task was killed; the campaign is over, so it needs no pause.", campaign_id)
            return PauseResult.STOPPED
    log.warning("Campaign %r: the task was killed. The service %s paused already. %s", campaign_id, seen, MAY_GO_ON)
    return PauseResult.PAUSED_ALREADY


def _settled(campaign_id: str, reason: str | None) -> PauseResult:
    if reason is not None:
        log.warning("Campaign %r: the task was cleared. Nothing is paused: %s", campaign_id, reason)
        return PauseResult.NOTHING_TO_PAUSE
    log.warning("Campaign %r: the task was killed, so the campaign was paused.", campaign_id)
    return PauseResult.STOPPED


# The pause in the triggerer.


async def pause_campaign_of_deferred_task(
    task_instance: Any,
    campaign_id: str,
    voicegenie_conn_id: str,
    *,
    generation: Sequence[int] | None,
    started_at: datetime | None,
    may_read: Callable[[], bool],
) -> None:
    """
    Pause the campaign of a deferred task, if a user has ended the task.

    :param generation: The generation of the task that the trigger belongs to.
    :param started_at: When the service says that it was started for the task, if it said so.
    :param may_read: Says whether the service's limit leaves room for reads before the pause.
    """
    # Airflow itself must be asked in a thread that knows of this event loop.
    end = await sync_to_async(read_end_of_deferral)(task_instance, generation)
    if end is DeferralEnd.NOT_BY_USER:
        log.info(
            "Campaign %r: no user ended this task; another triggerer follows it, or has done so to its end.",
            campaign_id,
        )
        return
    loop = asyncio.get_running_loop()

    def client(timeout: float) -> VoiceGenieClient:
        settings = asyncio.run_coroutine_threadsafe(read_settings(voicegenie_conn_id), loop).result()
        return make_client(replace(settings, timeout=min(timeout, settings.timeout)))

    def send(request: Request[Any], **options: Any) -> Any:
        return client(math.inf).send(request, **options)

    attempts = count(1)

    def pause_once() -> str | None:
        return _pause_after_clear(campaign_id, client, started_at, attempt=next(attempts))

    is_checked = end is DeferralEnd.CLEARED and may_read()
    await in_thread(pause_campaign_of_killed_task, campaign_id, send, pause_once=pause_once if is_checked else None)


def _pause_after_clear(
    campaign_id: str, client: Callable[[float], VoiceGenieClient], started_at: datetime | None, *, attempt: int
) -> str | None:
    """
    Pause the campaign of a task that was cleared, only while it still runs by the start of that task.

    :param client: Returns a client whose requests take so many seconds at most.
    :param started_at: When the service says that it was started for the task, if it said so.
    :returns: Why there is nothing to pause, in a sentence.
    """
    reader = client(timing.read_before_pause)
    try:
        if reader.send(campaign(campaign_id), max_attempts=1).status is CampaignStatus.PAUSED:
            # Of a later attempt: the pause whose response was lost took effect.
            return f"it is paused already. {MAY_GO_ON}" if attempt == 1 else None
        if started_at is not None:
            latest = reader.send(statistics(campaign_id), max_attempts=1).started_at
            is_later = latest is not None and latest > started_at + TIME_TOLERANCE
            # One with a daily schedule starts itself again, which is no reason to leave it.
            if latest is not None and is_later and latest.timestamp() > reader.server_time() - _LATELY:
                return f"it was started again at {latest.isoformat()}, since the task was cleared."
    except VoiceGenieError as error:
        # What cannot be read is taken to run by the task's own start.
        log.warning("%s", error)
    client(math.inf).send(pause(campaign_id))
    return None
