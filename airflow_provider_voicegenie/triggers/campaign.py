# SPDX-License-Identifier: Apache-2.0
"""
Triggers that wait for a campaign.

Their arguments are plain JSON without a secret. All waits of a triggerer on one connection share one poll, see
:mod:`airflow_provider_voicegenie.triggers.feed`. When a wait ends is decided by
:mod:`airflow_provider_voicegenie.waiting`, as it is in a worker.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_voicegenie.api.endpoints import campaign, pause, statistics
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import read_time
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.hooks.connection import make_client
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules, TaskKind
from airflow_provider_voicegenie.rules.prerequisites import Prerequisite, check_readiness, load_prerequisite, needs_of
from airflow_provider_voicegenie.triggers.threads import in_thread, open_client, read_settings, send_unless_cancelled
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.deferral import note_end_of_wait
from airflow_provider_voicegenie.waiting.final_statistics import STATISTICS_DELAY, add_statistics
from airflow_provider_voicegenie.waiting.killing import (
    DeferralEnd,
    NothingToPauseError,
    check_own_start,
    pause_campaign_of_killed_task,
    read_end_of_deferral,
)
from airflow_provider_voicegenie.waiting.pausing import PauseWatch
from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.models import Campaign, PausedCampaign
    from airflow_provider_voicegenie.triggers.feed import Reading
    from airflow_provider_voicegenie.triggers.subscriptions import OnReading, Subscription

#: Seconds in which statistics are read here; otherwise, the task does so.
_PATIENCE_WITH_STATISTICS = 5.0

#: Seconds in which one read that precedes a pause must be over: Airflow gives the whole pause 30.
_PATIENCE_BEFORE_PAUSE = 5.0

#: How many pauses may be under way for their campaigns to be read before.
_FEW_PAUSES = 10

#: The pauses under way. An event loop does not keep its tasks alive.
_PAUSING: set[asyncio.Task[None]] = set()


@dataclass(kw_only=True, eq=False, repr=False)
class _CampaignTrigger(BaseTrigger):
    """Base class of the triggers: one event, with an :class:`~airflow_provider_voicegenie.waiting.watch.End`."""

    campaign_id: str
    voicegenie_conn_id: str
    outcomes: dict[str, str]
    poll_interval: float
    deadline: float | None = None
    execution_deadline: float | None = None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: The wait's part in the feed of its connection.
        self._subscription: Subscription | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and keyword arguments."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        deadline, reason = self.deadline, EndReason.TIMEOUT
        if self.execution_deadline is not None and (deadline is None or self.execution_deadline < deadline):
            deadline, reason = self.execution_deadline, EndReason.EXECUTION_TIMEOUT
        watch = self._watch()
        # Here rather than in a method of its own: with ten thousand waits, each coroutine that waits takes megabytes.
        try:
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.time())) as limit:
                    end = await self._follow(watch)
            except TimeoutError:
                if not limit.expired():
                    raise
                end = watch.time_is_up(time.time(), reason)
            if self._subscription is not None:
                self._subscription.is_over = True
            end = await self._before_end(end)
            service = None if self._subscription is None else self._subscription.service()
        finally:
            if self._subscription is not None:
                self._subscription.close()
        event = {**end.to_json(), "service": service, "deferred": self.serialize()[1]}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    def _subscribe(self, on_reading: OnReading, **more: Any) -> Subscription:
        """Join the feed of the connection; :meth:`run` leaves it."""
        # A worker makes triggers too, and needs none of this.
        from airflow_provider_voicegenie.triggers.subscriptions import subscribe

        self._subscription = subscribe(
            self.voicegenie_conn_id, self.campaign_id, self.poll_interval, on_reading, **more
        )
        return self._subscription

    @abstractmethod
    def _watch(self) -> Watch:
        """Return the rules of this wait."""

    @abstractmethod
    async def _follow(self, watch: Any) -> End:
        """Wait for as long as it takes."""

    async def _before_end(self, end: End) -> End:
        """Do what is to be done before Airflow is told of the end, and return it."""
        return end


@dataclass(kw_only=True, eq=False, repr=False)
class CampaignCompletedTrigger(_CampaignTrigger):
    """
    Waits until a campaign is completed. Its event has the final statistics, if they could be read at once.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param outcomes: The author's changes to the outcome rules.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: When the wait ends in any case, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param kind: The kind of task whose outcome rules apply.
    :param stall_timeout: Seconds without progress that are too many.
    :param seen: What was last known of the campaign: ``at`` (Unix seconds), ``completed`` and ``failed`` (calls), and
        ``pauses_count_from`` (Unix seconds).
    :param pause_on_kill: Whether to pause the campaign when a user ends the task.
    :param generation: The generation of the task that started the campaign: cleared, the task begins another one.
    :param start: What the task knows of the start, handed through to its event.
    """

    kind: str
    stall_timeout: float | None = None
    seen: dict[str, Any] | None = None
    pause_on_kill: bool = False
    generation: list[int] | None = None
    start: dict[str, Any] | None = None

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
        # Airflow itself must be asked in a thread that knows of this event loop.
        end = await sync_to_async(read_end_of_deferral)(self.task_instance, self.generation)
        if end is DeferralEnd.NOT_BY_USER:
            self.log.info(
                "Campaign %r: no user ended this task; another triggerer follows it, or has done so to its end.",
                self.campaign_id,
            )
            return
        loop = asyncio.get_running_loop()

        def client(timeout: float = math.inf) -> VoiceGenieClient:
            settings = asyncio.run_coroutine_threadsafe(read_settings(self.voicegenie_conn_id), loop).result()
            return make_client(replace(settings, timeout=min(timeout, settings.timeout)))

        def look(campaign_id: str) -> Campaign:
            return client().send(campaign(campaign_id), max_attempts=1)

        # Of many, each takes no more of the service's limit than its pause.
        is_checked = end is DeferralEnd.CLEARED and len(_PAUSING) <= _FEW_PAUSES

        def pause_own(campaign_id: str) -> PausedCampaign:
            if is_checked:
                reader = client(_PATIENCE_BEFORE_PAUSE)
                check_own_start(
                    lambda campaign_id: reader.send(campaign(campaign_id), max_attempts=1),
                    lambda campaign_id: reader.send(statistics(campaign_id), max_attempts=1),
                    campaign_id,
                    read_time((self.start or {}).get("started_at")),
                    reader.server_time,
                )
            return client().send(pause(campaign_id))

        try:
            await in_thread(pause_campaign_of_killed_task, pause_own, look, self.campaign_id)
        except NothingToPauseError as reason:
            self.log.warning("Campaign %r: the task was cleared. Nothing is paused: %s", self.campaign_id, reason)

    async def _before_end(self, end: End) -> End:
        end = await self._with_statistics(end)
        if self.pause_on_kill and self._hears_of_kills:
            try:
                await sync_to_async(note_end_of_wait)(self.task_instance)
            except Exception:
                self.log.warning("Airflow did not take the note that this wait is over.", exc_info=True)
        return end

    async def _with_statistics(self, end: End) -> End:
        """Add the final statistics, if they can be read at once, so that the task need not ask the service."""
        if not end.is_done or self._subscription is None:
            return end
        patience = _PATIENCE_WITH_STATISTICS
        if self.execution_deadline is not None:
            patience = min(patience, self.execution_deadline - STATISTICS_DELAY - time.time())
        try:
            found = await self._subscription.read(statistics(self.campaign_id), patience)
        except VoiceGenieError:
            return end
        except Exception:
            self.log.warning("Campaign %r: the task will read its statistics.", self.campaign_id, exc_info=True)
            return end
        return add_statistics(end, found) if found is not None and found.is_final else end

    @property
    def _hears_of_kills(self) -> bool:
        """Whether Airflow would call :meth:`on_kill`, and knows whose trigger this is."""
        return self.task_instance is not None and hasattr(BaseTrigger, "on_kill")

    def _watch(self) -> CompletionWatch:
        rules = _rules(TaskKind(self.kind), tuple(self.outcomes.items()))
        return CompletionWatch(self.campaign_id, rules, time.time(), stall_timeout=self.stall_timeout, seen=self.seen)

    async def _follow(self, watch: CompletionWatch) -> End:
        subscription = self._subscribe(watch.look)
        while not isinstance(update := await subscription.update(), End):
            subscription.poll_now()
        return update


@dataclass(kw_only=True, eq=False, repr=False)
class CampaignPausedTrigger(_CampaignTrigger):
    """
    Keeps a campaign paused until the deadline.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param outcomes: The author's changes to the outcome rules.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: Until when, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param paused: What the task knows of its first pause, handed through to its event.
    """

    paused: dict[str, Any]

    def _watch(self) -> PauseWatch:
        return PauseWatch(self.campaign_id, _rules(TaskKind.PAUSE, tuple(self.outcomes.items())), time.time())

    async def _follow(self, watch: PauseWatch) -> End:
        def on_reading(reading: Reading, in_full: bool, now: float) -> End | bool | None:
            return watch.observe(reading, now) or (True if watch.must_pause else None)

        subscription = self._subscribe(on_reading)
        failures = 0
        while True:
            update = await subscription.update()
            if isinstance(update, End):
                return update
            paused = await self._pause()
            end = watch.observe_pause(paused, time.time())
            if end is not None:
                return end
            failures = failures + 1 if isinstance(paused, VoiceGenieError) else 0
            if isinstance(paused, VoiceGenieError):
                await asyncio.sleep(poll_delay(self.poll_interval, failures, paused.retry_after))
            subscription.forget()

    async def _pause(self) -> PausedCampaign | VoiceGenieError:
        try:
            client = await open_client(await read_settings(self.voicegenie_conn_id))
            return await send_unless_cancelled(client, pause(self.campaign_id))
        except VoiceGenieError as error:
            return error


@dataclass(kw_only=True, eq=False, repr=False)
class CampaignReadyTrigger(_CampaignTrigger):
    """
    Waits until a campaign meets its prerequisites.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param outcomes: The author's changes to the outcome rules.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: When the wait ends in any case, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param prerequisites: Class path and keyword arguments of each prerequisite.
    """

    prerequisites: list[list[Any]]

    def _watch(self) -> ReadinessWatch:
        rules = _rules(TaskKind.READY, tuple(self.outcomes.items()))
        return ReadinessWatch(self.campaign_id, rules, time.time())

    async def _follow(self, watch: ReadinessWatch) -> End:
        # In a thread, as is the checking: a module or a check of the author's own may take its time.
        prerequisites = await in_thread(_load, self.prerequisites)
        # The list does not have scripts.
        subscription = self._subscribe(_as_it_is, needs_single_reads=True, needs=needs_of(prerequisites))
        while True:
            reading = await subscription.update()
            if isinstance(reading, VoiceGenieError):
                end = watch.observe_error(reading, time.time())
            else:
                readiness = await in_thread(check_readiness, prerequisites, reading, datetime.now(UTC))
                end = watch.observe(reading, readiness, time.time())
            if end is not None:
                return end


def _as_it_is(reading: Reading, in_full: bool, now: float) -> Reading:
    return reading


def _load(prerequisites: list[list[Any]]) -> list[Prerequisite]:
    return [load_prerequisite(path, arguments) for path, arguments in prerequisites]


@lru_cache(maxsize=1000)
def _rules(kind: TaskKind, outcomes: tuple[tuple[str, str], ...]) -> OutcomeRules:
    """Return outcome rules; ten thousand waits share the few there are."""
    return OutcomeRules(kind, dict(outcomes)).while_waiting()
