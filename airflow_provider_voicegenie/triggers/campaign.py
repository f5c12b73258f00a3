# SPDX-License-Identifier: Apache-2.0
"""
Triggers that wait for a campaign.

Their arguments are plain JSON without a secret. All waits of a triggerer on one connection share one poll, see
:mod:`airflow_provider_voicegenie.triggers.feed`; what ends a wait is decided by
:mod:`airflow_provider_voicegenie.decisions`, as it is in a worker.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_voicegenie.api.endpoints import pause
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign
from airflow_provider_voicegenie.decisions.completion import CompletionWatch
from airflow_provider_voicegenie.decisions.killing import (
    PAUSE_DELAYS,
    after_pause,
    gave_up,
    is_deferred_task_ended_by_user,
)
from airflow_provider_voicegenie.decisions.outcomes import OutcomeRules, TaskKind
from airflow_provider_voicegenie.decisions.prerequisites import Prerequisite, check_readiness
from airflow_provider_voicegenie.decisions.readiness import ReadinessWatch
from airflow_provider_voicegenie.decisions.waiting import End, EndReason, Note, Watch
from airflow_provider_voicegenie.task_state import state_in_airflow
from airflow_provider_voicegenie.triggers.feed import subscribe
from airflow_provider_voicegenie.triggers.loading import load_prerequisite
from airflow_provider_voicegenie.triggers.threads import in_thread, open_client, read_settings

#: The pauses under way. An event loop does not keep its tasks alive.
_PAUSING: set[asyncio.Task[None]] = set()


class _CampaignTrigger(BaseTrigger):
    """
    What the waits have in common: one event, with an :class:`~airflow_provider_voicegenie.decisions.waiting.End`.

    Each argument is kept as the attribute of its name, as it was given.
    """

    #: The names of the arguments.
    _arguments: ClassVar[tuple[str, ...]]

    deadline: float | None
    execution_deadline: float | None
    outcomes: dict[str, str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._arguments = tuple(inspect.signature(cls).parameters)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and keyword arguments."""
        return f"{type(self).__module__}.{type(self).__name__}", {name: getattr(self, name) for name in self._arguments}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        deadline, reason = _earliest(self.deadline, self.execution_deadline)
        watch = self._watch()
        end = await (self._wait(watch) if deadline is None else self._wait_until(deadline, reason, watch))
        payload = {**end.to_json(), "deferred": self.serialize()[1]}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _wait_until(self, deadline: float, reason: EndReason, watch: Watch) -> End:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.time())) as limit:
                return await self._wait(watch)
        except TimeoutError:
            if not limit.expired():
                raise
        return watch.time_is_up(time.time(), reason)

    @abstractmethod
    def _watch(self) -> Watch:
        """Return the decisions of this wait."""

    @abstractmethod
    async def _wait(self, watch: Any) -> End:
        """Wait for as long as it takes."""

    def _rules(self, kind: TaskKind) -> OutcomeRules:
        return _rules(kind, tuple(self.outcomes.items()))

    def _write(self, notes: Sequence[Note]) -> None:
        for note in notes:
            self.log.log(note.level, "%s", note.text)


class CampaignCompletedTrigger(_CampaignTrigger):
    """
    Waits until a campaign is completed. Its statistics are read in the worker, once the task is resumed.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param kind: The kind of task whose outcome rules apply.
    :param outcomes: The author's changes to them.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: When the wait ends in any case, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param stall_timeout: Seconds without progress that are too many.
    :param seen: What was last known of the campaign: ``at`` (Unix seconds), ``completed`` and ``failed`` (calls).
    :param pause_on_kill: Whether to pause the campaign when a user ends the task.
    :param start: What the task knows of the start, handed through to its event.
    """

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str,
        kind: str,
        outcomes: dict[str, str],
        poll_interval: float,
        deadline: float | None = None,
        execution_deadline: float | None = None,
        stall_timeout: float | None = None,
        seen: dict[str, Any] | None = None,
        pause_on_kill: bool = False,
        start: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.kind = kind
        self.outcomes = outcomes
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.execution_deadline = execution_deadline
        self.stall_timeout = stall_timeout
        self.seen = seen
        self.pause_on_kill = pause_on_kill
        self.start = start

    async def on_kill(self) -> None:
        """Pause the campaign, if a user ended the deferred task. Called by Airflow 3.3 and later."""
        if not self.pause_on_kill:
            return
        pausing = asyncio.create_task(self._pause_after_kill())
        _PAUSING.add(pausing)
        pausing.add_done_callback(_PAUSING.discard)
        while not pausing.done():
            # Airflow cancels a trigger again in each of its rounds until it has ended, and what `on_kill` does with it.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([pausing])
        pausing.result()

    async def _pause_after_kill(self) -> None:
        if not await self._was_ended_by_user():
            return
        for delay in PAUSE_DELAYS:
            await asyncio.sleep(delay)
            try:
                client = await open_client(await read_settings(self.voicegenie_conn_id))
                note = after_pause(self.campaign_id, await in_thread(client.send, pause(self.campaign_id)))
            except VoiceGenieError as error:
                note = after_pause(self.campaign_id, error)
            self.log.log(note.level, "%s", note.text)
            if not note.again:
                return
        self.log.error("%s", gave_up(self.campaign_id))

    async def _was_ended_by_user(self) -> bool:
        if self.task_instance is None:
            return True
        try:
            state = await sync_to_async(state_in_airflow)(self.task_instance)
        except Exception:
            self.log.warning("Airflow cannot be asked who ended this task.", exc_info=True)
            return True
        ended_by_user = is_deferred_task_ended_by_user(state)
        if not ended_by_user:
            self.log.info("Campaign %r: the task is deferred still, so another triggerer follows it.", self.campaign_id)
        return ended_by_user

    def _watch(self) -> CompletionWatch:
        seen = self.seen or {}
        return CompletionWatch(
            self.campaign_id,
            self._rules(TaskKind(self.kind)),
            seen.get("at", time.time()),
            stall_timeout=self.stall_timeout,
            completed=seen.get("completed"),
            failed=seen.get("failed"),
        )

    async def _wait(self, watch: CompletionWatch) -> End:
        subscription = subscribe(self.voicegenie_conn_id, self.campaign_id, self.poll_interval, watch.see)
        try:
            while True:
                step = await subscription.news()
                self._write(step.notes)
                if step.end is not None:
                    end: End = step.end
                    return end
                if step.read_alone:
                    subscription.read_alone()
        finally:
            subscription.close()


class CampaignReadyTrigger(_CampaignTrigger):
    """
    Waits until a campaign meets its prerequisites.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param prerequisites: Class path and keyword arguments of each prerequisite.
    :param outcomes: The author's changes to the outcome rules.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: When the wait ends in any case, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    """

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str,
        prerequisites: list[list[Any]],
        outcomes: dict[str, str],
        poll_interval: float,
        deadline: float | None = None,
        execution_deadline: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.prerequisites = prerequisites
        self.outcomes = outcomes
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.execution_deadline = execution_deadline

    def _watch(self) -> ReadinessWatch:
        return ReadinessWatch(self.campaign_id, self._rules(TaskKind.READY), time.time())

    async def _wait(self, watch: ReadinessWatch) -> End:
        # In a thread, as is the checking: a module or a check of the author's own may take its time.
        prerequisites = await in_thread(_load, self.prerequisites)
        # Alone, as the list tells nothing of scripts.
        subscription = subscribe(self.voicegenie_conn_id, self.campaign_id, self.poll_interval, _as_it_is, alone=True)
        try:
            while True:
                sighting = await subscription.news()
                if isinstance(sighting, VoiceGenieError):
                    step = watch.see_error(sighting, time.time())
                else:
                    found = await in_thread(check_readiness, prerequisites, sighting, datetime.now(UTC))
                    step = watch.see_campaign(sighting, found, time.time())
                self._write(step.notes)
                if step.end is not None:
                    return step.end
        finally:
            subscription.close()


def _as_it_is(sighting: Campaign | VoiceGenieError, in_full: bool, now: float) -> Campaign | VoiceGenieError:
    return sighting


def _load(prerequisites: list[list[Any]]) -> list[Prerequisite]:
    return [load_prerequisite(path, arguments) for path, arguments in prerequisites]


@lru_cache(maxsize=1000)
def _rules(kind: TaskKind, outcomes: tuple[tuple[str, str], ...]) -> OutcomeRules:
    """Return outcome rules; ten thousand waits share the few there are."""
    return OutcomeRules(kind, dict(outcomes)).while_waiting()


def _earliest(deadline: float | None, execution_deadline: float | None) -> tuple[float | None, EndReason]:
    if deadline is not None and (execution_deadline is None or deadline <= execution_deadline):
        return deadline, EndReason.TIMEOUT
    return execution_deadline, EndReason.EXECUTION_TIMEOUT
