# SPDX-License-Identifier: Apache-2.0
"""
The trigger of every wait for a campaign, and how a task defers to it.

All waits of a triggerer on one connection share one poll, see :mod:`airflow_provider_voicegenie.feed`. When a wait
ends is decided by its :class:`~airflow_provider_voicegenie.waiting.watch.Watch`, as it is in a worker.
"""

from __future__ import annotations

import asyncio
import pkgutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_voicegenie.api.endpoints import campaign
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import read_time
from airflow_provider_voicegenie.feed.threads import in_thread, open_client, read_settings, send_unless_cancelled
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules, TaskKind
from airflow_provider_voicegenie.waiting.completion import STATISTICS_DELAY
from airflow_provider_voicegenie.waiting.deferral import (
    deferral_timeout,
    execution_deadline,
)
from airflow_provider_voicegenie.waiting.stop import note_end_of_wait, pause_campaign_of_deferred_task
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.models import Campaign
    from airflow_provider_voicegenie.feed.feed import Subscription
    from airflow_provider_voicegenie.memory import Memory

#: Seconds in which a request that is read once must be answered here; otherwise, the task reads it.
_PATIENCE = 5.0

#: How many pauses may be under way for their campaigns to be read before.
_FEW_PAUSES = 10

#: The pauses under way. An event loop does not keep its tasks alive.
_PAUSING: set[asyncio.Task[None]] = set()


@dataclass(kw_only=True, eq=False, repr=False)
class WaitTrigger(BaseTrigger):
    """
    Waits for what a watch waits for. It has one event, with an :class:`~airflow_provider_voicegenie.waiting.watch.End`.

    What is polled comes from the feed of the connection; what changes something is sent here; what is read once, such
    as the final statistics, is read here if that takes seconds, and is left to the task otherwise. The arguments are
    plain JSON without a secret.

    :param campaign_id: Id of the campaign.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param watch: Class path of the watch.
    :param arguments: Its keyword arguments.
    :param kind: The kind of task whose outcome rules apply.
    :param outcomes: The author's changes to these rules.
    :param poll_interval: Seconds between reads of the campaign, at most.
    :param deadline: When the wait ends in any case, Unix seconds.
    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param pause_on_kill: Whether to pause the campaign when a user ends the task.
    :param generation: The generation of the task that deferred: cleared, the task begins another one.
    :param started_at: When the service says that the task started the campaign, if it did, ISO 8601.
    :param remembered: What the resumed task has to know besides.
    """

    campaign_id: str
    voicegenie_conn_id: str
    watch: str
    arguments: dict[str, Any]
    kind: str
    outcomes: dict[str, str]
    poll_interval: float
    deadline: float | None = None
    execution_deadline: float | None = None
    pause_on_kill: bool = False
    generation: list[int] | None = None
    started_at: str | None = None
    remembered: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch: Watch
        #: The wait's part in the feed of its connection.
        self._subscription: Subscription
        # Whether what the feed reads is what the watch wants.
        self._is_polling = True
        self._failures = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and keyword arguments."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        deadline, reason = self.deadline, EndReason.TIMEOUT
        if self.execution_deadline is not None and (deadline is None or self.execution_deadline < deadline):
            deadline, reason = self.execution_deadline, EndReason.EXECUTION_TIMEOUT
        rules = _rules(TaskKind(self.kind), tuple(self.outcomes.items()))
        watch = self._watch = pkgutil.resolve_name(self.watch)(self.campaign_id, rules, time.time(), **self.arguments)
        subscription, service = None, None
        # Here rather than in a method of its own: with ten thousand waits, each coroutine that waits takes megabytes.
        try:
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.time())) as limit:
                    if watch.runs_code_of_author:
                        await in_thread(watch.prepare)
                    subscription = self._subscription = self._subscribe(watch)
                    end = None
                    while end is None:
                        update = await subscription.update()
                        end = update if isinstance(update, End) else await self._act(update)
            except TimeoutError:
                if not limit.expired():
                    raise
                end = watch.time_is_up(time.time(), reason)
            self._is_polling = False
            await self._note_end()
            service = None if subscription is None else subscription.service()
        finally:
            if subscription is not None:
                subscription.close()
        deferred = {name: getattr(self, name) for name in ("campaign_id", "voicegenie_conn_id", "generation")}
        # Airflow prints it into the task's log.
        event = {**end.to_json(), "service": service, "deferred": {**deferred, **(self.remembered or {})}}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    def _subscribe(self, watch: Watch) -> Subscription:
        """Join the feed of the connection; :meth:`run` leaves it."""
        # A worker makes triggers too, and needs none of this.
        from airflow_provider_voicegenie.feed.feed import subscribe
        from airflow_provider_voicegenie.triggers.sources import CampaignWithSources

        if watch.needs_single_reads:
            return CampaignWithSources(self.voicegenie_conn_id, self.campaign_id, self.poll_interval, watch.needs)
        return subscribe(self.voicegenie_conn_id, campaign(self.campaign_id), self.poll_interval, self._on_reading)

    def _on_reading(
        self, reading: Campaign | VoiceGenieError, in_full: bool, now: float
    ) -> End | Campaign | VoiceGenieError | None:
        """Show the watch what the feed read. If there is more to do than the feed may wait for, that is an update."""
        if not self._is_polling:
            return None
        end = self._watch.take(reading, now, in_full=in_full)
        return reading if end is None and self._watch.is_urgent else end

    async def _act(self, reading: Campaign | VoiceGenieError) -> End | None:
        """Do what the watch wants at once, after a reading."""
        watch, subscription = self._watch, self._subscription
        if watch.runs_code_of_author:
            # In a thread: a check of the author's own may take its time.
            end = await in_thread(watch.take, reading, time.time())
            if end is not None or not watch.is_urgent:
                return end
        request = watch.wants
        if request == campaign(self.campaign_id):
            subscription.poll_now()
            return None
        self._is_polling = False
        if not request.has_effect:
            return await self._read_once(request)
        response = await self._send(request)
        end = watch.take(response, time.time())
        if end is None:
            is_error = isinstance(response, VoiceGenieError)
            self._failures = self._failures + 1 if is_error else 0
            if isinstance(response, VoiceGenieError):
                delay = watch.delay(self.poll_interval, self._failures, response.retry_after, time.time())
                await asyncio.sleep(delay)
            subscription.forget()
            self._is_polling = True
            if is_error:
                subscription.poll_now()
        return end

    async def _send(self, request: Request[Any]) -> Any | VoiceGenieError:
        try:
            client = await open_client(await read_settings(self.voicegenie_conn_id))
            return await send_unless_cancelled(client, request)
        except VoiceGenieError as error:
            return error

    async def _read_once(self, request: Request[Any]) -> End:
        """Read something besides, if that takes seconds; otherwise leave it to the task, as after an error."""
        patience = _PATIENCE
        if self.execution_deadline is not None:
            # The task needs some seconds of its own.
            patience = min(patience, self.execution_deadline - STATISTICS_DELAY - time.time())
        response = None
        try:
            response = await self._subscription.read_once(request, patience)
        except VoiceGenieError:
            pass
        except Exception:
            self.log.warning("Campaign %r: the task will read its %s.", self.campaign_id, request.name, exc_info=True)
        end = None if response is None else self._watch.take(response, time.time())
        return end or self._watch.time_is_up(time.time(), EndReason.TIMEOUT)

    async def _note_end(self) -> None:
        # If Airflow would call `on_kill`, and knows whose trigger this is.
        if self.pause_on_kill and self.task_instance is not None and hasattr(BaseTrigger, "on_kill"):
            try:
                await sync_to_async(note_end_of_wait)(self.task_instance)
            except Exception:
                self.log.warning("Airflow did not take the note that this wait is over.", exc_info=True)

    async def on_kill(self) -> None:
        """Pause the campaign, if a user ended the deferred task. Called by Airflow 3.3 and later."""
        if not self.pause_on_kill:
            return
        pausing = asyncio.create_task(
            pause_campaign_of_deferred_task(
                self.task_instance,
                self.campaign_id,
                self.voicegenie_conn_id,
                generation=self.generation,
                started_at=read_time(self.started_at),
                # Of many, each takes no more of the service's limit than its pause.
                may_read=lambda: len(_PAUSING) <= _FEW_PAUSES,
            )
        )
        _PAUSING.add(pausing)
        pausing.add_done_callback(_PAUSING.discard)
        while not pausing.done():
            # Airflow cancels a trigger again in each of its rounds until it has ended, and what `on_kill` does with it.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([pausing])
        pausing.result()


def defer(
    context: Mapping[str, Any],
    memory: Memory,
    watch: type[Watch],
    *,
    rules: OutcomeRules,
    execution_timeout: timedelta | None,
    copied: Mapping[str, Any],
    check: Callable[[], None] | None = None,
    **arguments: Any,
) -> NoReturn:
    """
    Defer a task until its wait is over.

    What it needs to go on is in the trigger, and in XCom too, as Airflow may end the deferral without an event.

    :param context: The task's context.
    :param memory: What the task remembers.
    :param watch: The class of its watch.
    :param rules: Its outcome rules.
    :param execution_timeout: Its ``execution_timeout``.
    :param copied: What the resumed task has to know besides what it is about, plain JSON.
    :param check: Called at last; raises what ends the task.
    :param arguments: Of the :class:`WaitTrigger`.
    """
    trigger = WaitTrigger(
        watch=f"{watch.__module__}.{watch.__name__}",
        kind=rules.kind.value,
        outcomes=rules.changes,
        execution_deadline=execution_deadline(context, execution_timeout),
        generation=list(memory.generation),
        remembered=copied,
        **arguments,
    )
    about = {"campaign_id": trigger.campaign_id, "voicegenie_conn_id": trigger.voicegenie_conn_id}
    memory.write_copy(**about, **copied)
    if check is not None:
        check()
    timeout = deferral_timeout(trigger.deadline, trigger.execution_deadline)
    raise TaskDeferred(trigger=trigger, method_name="execute_complete", timeout=timeout)


@lru_cache(maxsize=1000)
def _rules(kind: TaskKind, outcomes: tuple[tuple[str, str], ...]) -> OutcomeRules:
    """Return outcome rules; ten thousand waits share the few there are."""
    return OutcomeRules(kind, dict(outcomes)).while_waiting()
