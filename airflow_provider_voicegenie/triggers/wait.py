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
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_voicegenie.api.endpoints import campaign
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Model, read_time
from airflow_provider_voicegenie.feed.threads import in_thread, open_client, send_unless_cancelled
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules, TaskKind
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting.stop import note_end_of_wait, pause_campaign_of_deferred_task
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.models import Campaign
    from airflow_provider_voicegenie.feed.feed import Subscription
    from airflow_provider_voicegenie.memory import Memory

#: Grace in seconds before Airflow ends the deferral. It matters only if no triggerer is running.
_GRACE = 60.0

#: How many pauses may be under way for their campaigns to be read before.
_FEW_PAUSES = 10

#: How many requests that change something an event loop sends over a connection at a time.
_MAX_CONCURRENT = 8

#: What a trigger is shown instead of a reading, once its watch woke.
_AWAKE = object()

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
        self._alarm: asyncio.TimerHandle | None = None

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
                        self._set_alarm()
                        update = await subscription.update()
                        end = update if isinstance(update, End) else await self._act(update)
            except TimeoutError:
                if not limit.expired():
                    raise
                if reason is EndReason.TIMEOUT:
                    # The end of the time must not cut a pause short.
                    await self._send_wanted(is_over=True)
                end = watch.time_is_up(time.time(), reason)
            self._is_polling = False
            await self._note_end()
            service = None if subscription is None else subscription.feed.service()
        finally:
            self._cancel_alarm()
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
        return subscribe(
            self.voicegenie_conn_id,
            campaign(self.campaign_id),
            self.poll_interval,
            self._on_reading,
            is_list_enough=watch.is_list_enough,
        )

    def _set_alarm(self) -> None:
        """Have the watch woken when it wants something by itself, whatever the feed can read by then."""
        self._cancel_alarm()
        if (at := self._watch.wakes_at) is not None:
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - time.time()), self._wake)

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _wake(self) -> None:
        self._watch.pass_time(time.time())
        if self._watch.is_urgent:
            self._is_polling = False
            self._subscription.show(_AWAKE)
        else:
            self._set_alarm()

    def _on_reading(
        self, reading: Campaign | VoiceGenieError, in_full: bool, now: float
    ) -> End | Campaign | VoiceGenieError | None:
        """Show the watch what the feed read. If there is more to do than the feed may wait for, that is an update."""
        if not self._is_polling:
            return None
        end = self._watch.take(reading, now, in_full=in_full)
        return reading if end is None and self._watch.is_urgent else end

    async def _act(self, reading: Campaign | VoiceGenieError) -> End | None:
        """Do what the watch wants at once, after a reading, or as it woke."""
        watch, subscription = self._watch, self._subscription
        if watch.runs_code_of_author:
            # In a thread: a check of the author's own may take its time.
            end = await in_thread(watch.take, reading, time.time())
            if end is not None or not watch.is_urgent:
                return end
        self._cancel_alarm()
        end, failures, retry_after = await self._send_wanted()
        if end is not None:
            return end
        if failures and not watch.is_urgent:
            await self._sleep(failures, retry_after)
        if not self._is_polling:
            # What was read meanwhile predates what was sent.
            subscription.forget()
            self._is_polling = True
        if watch.is_urgent or failures:
            subscription.poll_now()
        return None

    async def _send_wanted(self, *, is_over: bool = False) -> tuple[End | None, int, float | None]:
        """
        Send what the watch wants at once, until the feed is to read the campaign for it.

        :param is_over: Whether the wait's time is over: then what is unsettled is sent here until it is settled.
        :returns: How the wait ended, if it did; how many requests have failed in a row; and how many seconds the
            service asked to wait.
        """
        watch, failures, retry_after = self._watch, 0, None
        while watch.is_unsettled if is_over else watch.is_urgent:
            request = watch.wants
            if request == campaign(self.campaign_id) and not is_over:
                break
            self._is_polling = False
            is_last = watch.is_left_to_task
            await self._sleep(failures, retry_after if request.has_effect else None)
            is_sent_here = request.has_effect or is_over
            response = await (self._send(request) if is_sent_here else self._read_once(request))
            end = None if response is None else watch.take(response, time.time())
            if end is not None or is_last:
                # An end may be there already, without the last read.
                return end or watch.time_is_up(time.time(), EndReason.TIMEOUT), failures, retry_after
            if response is None:
                watch.do_without()
            failures = 0 if isinstance(response, Model) else failures + 1
            retry_after = response.retry_after if isinstance(response, VoiceGenieError) else None
            if not request.has_effect and not watch.is_urgent:
                # Statistics that could not be read hold up nothing.
                failures = 0
            if not is_over:
                watch.pass_time(time.time())
        return None, failures, retry_after

    async def _sleep(self, failures: int, retry_after: float | None) -> None:
        """Wait as long as the watch does before its next request, but not beyond when it wakes."""
        now, watch = time.time(), self._watch
        seconds = watch.delay(self.poll_interval, failures, retry_after, now)
        if watch.wakes_at is not None:
            seconds = min(seconds, watch.wakes_at - now)
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _send(self, request: Request[Any]) -> Any | VoiceGenieError:
        """Send a request that changes something, with few others: a thousand hours may close in one second."""
        try:
            async with _few_at_a_time(self.voicegenie_conn_id):
                client = await open_client(self.voicegenie_conn_id)
                return await send_unless_cancelled(client, request)
        except VoiceGenieError as error:
            return error

    async def _read_once(self, request: Request[Any]) -> Any | VoiceGenieError | None:
        """Read something besides, if that takes seconds. Otherwise, and for an error of the last read, say ``None``."""
        patience = timing.single_read_patience
        if (wakes_at := self._watch.wakes_at) is not None:
            patience = min(patience, wakes_at - time.time())
        if self.execution_deadline is not None:
            # The task needs some seconds of its own.
            patience = min(patience, self.execution_deadline - timing.statistics_delay - time.time())
        try:
            return await self._subscription.read_once(request, patience)
        except VoiceGenieError as error:
            return None if self._watch.is_left_to_task else error
        except Exception:
            self.log.warning("Campaign %r: its %s could not be read.", self.campaign_id, request.name, exc_info=True)
            return None

    async def _note_end(self) -> None:
        # Only if Airflow calls `on_kill`, and knows the task instance.
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
    memory: Memory,
    watch: type[Watch],
    *,
    rules: OutcomeRules,
    copied: Mapping[str, Any],
    check: Callable[[], None] | None = None,
    **arguments: Any,
) -> NoReturn:
    """
    Defer a task until its wait is over.

    What it needs to go on is in the trigger, and in XCom too, as Airflow may end the deferral without an event.

    :param watch: The class of its watch.
    :param copied: What the resumed task has to know besides what it is about, plain JSON.
    :param check: Called at last; raises what ends the task.
    :param arguments: Of the :class:`WaitTrigger`.
    """
    trigger = WaitTrigger(
        watch=f"{watch.__module__}.{watch.__name__}",
        kind=rules.kind.value,
        outcomes=rules.changes,
        generation=list(memory.generation),
        remembered=copied,
        **arguments,
    )
    about = {"campaign_id": trigger.campaign_id, "voicegenie_conn_id": trigger.voicegenie_conn_id}
    memory.write_copy(**about, **copied)
    if check is not None:
        check()
    deadlines = [each for each in (trigger.deadline, trigger.execution_deadline) if each is not None]
    seconds = max(0.0, min(deadlines) - time.time()) + _GRACE if deadlines else None
    timeout = None if seconds is None else timedelta(seconds=seconds)
    raise TaskDeferred(trigger=trigger, method_name="execute_complete", timeout=timeout)


def _few_at_a_time(voicegenie_conn_id: str) -> asyncio.Semaphore:
    """Return what lets few requests that change something under way in this event loop, over one connection."""
    of_loop = _semaphores.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(voicegenie_conn_id, asyncio.Semaphore(_MAX_CONCURRENT))


_semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()


@lru_cache(maxsize=1000)
def _rules(kind: TaskKind, outcomes: tuple[tuple[str, str], ...]) -> OutcomeRules:
    """Return outcome rules; ten thousand waits share the few there are."""
    return OutcomeRules(kind, dict(outcomes)).while_waiting()
