# SPDX-License-Identifier: Apache-2.0
"""
One run of a campaign sensor: poll by poll in the worker, or deferred.

It is no part of the sensors, because every parse of a DAG file loads the module of those.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowSkipException, AirflowTaskTimeout, PokeReturnValue

from airflow_provider_voicegenie.memory import Generation, Memory
from airflow_provider_voicegenie.rules.outcomes import Outcome, TaskKind, VoiceGenieRetryException
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.progress import describe_result
from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch
from airflow_provider_voicegenie.waiting.stop import was_ended_by_user
from airflow_provider_voicegenie.waiting.wait import apply_end, poll_here, wait_late, wait_on
from airflow_provider_voicegenie.waiting.watch import End, Watch

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

_WATCHES: Mapping[TaskKind, type[Watch]] = {TaskKind.READY: ReadinessWatch, TaskKind.COMPLETED: CompletionWatch}

#: The least seconds between reads in the triggerer; a sensor may have ``poke_interval=0``.
_SHORTEST_INTERVAL = 0.1


class SensorRun:
    """
    One run of a sensor in this process.

    :param sensor: A sensor of :mod:`airflow_provider_voicegenie.sensors.campaign`.
    :param counters: The campaign's counters, as an earlier process of this task read them.
    """

    def __init__(
        self, sensor: Any, context: Context, hook: VoiceGenieHook, memory: Memory, counters: Mapping[str, Any] | None
    ) -> None:
        self._sensor = sensor
        self._context = context
        self._hook = hook
        self._memory = memory
        self._has_link = False
        self._watch_class = _WATCHES[sensor.outcome_rules.kind]
        self._watch = self._watch_class(
            sensor.campaign_id, sensor.outcome_rules, time.time(), **sensor.watch_arguments(context, counters)
        )

    def poke(self) -> PokeReturnValue:
        """Poll once; defer, if the sensor does and the wait is not over."""
        sensor = self._sensor
        if sensor.is_killed and was_ended_by_user(self._context):
            raise VoiceGenieRetryException(f"Campaign {sensor.campaign_id!r}: the task was ended from outside.")
        end = poll_here(self._hook, self._watch, max_attempts=None, after_read=self._remember)
        if not self._has_link:
            self._has_link = True
            sensor.keep_link(self._context, self._hook)
        outcome = PokeReturnValue(False) if end is None else self._apply(end)
        if sensor.deferrable and not outcome.is_done:
            self._defer(time.time() + sensor.timeout)
        return outcome

    def resume(self, event: Mapping[str, Any]) -> Any:
        """Go on after the wait in the triggerer; return what goes to XCom."""
        outcome = self._apply(wait_on(self._hook, self._watch, End.from_json(event)))
        if not outcome.is_done:
            self._defer(self._memory.wait["deadline"])
        return outcome.xcom_value

    def resume_late(self) -> Any:
        """Poll once more, after Airflow ended the deferral as no triggerer did in time; return what goes to XCom."""
        end = wait_late(self._hook, self._watch, self._sensor.execution_deadline(self._context), max_attempts=None)
        return self._apply(end).xcom_value

    def _apply(self, end: End) -> PokeReturnValue:
        """Return whether the wait is over and what goes to XCom, or raise what ends the task otherwise."""
        sensor = self._sensor
        try:
            outcome = apply_end(sensor.outcome_rules, end, sensor.campaign_id)
        except AirflowTaskTimeout as error:
            if sensor.soft_fail:  # which Airflow heeds in a poke, but not after a deferral
                raise AirflowSkipException(str(error)) from None
            raise
        if end.is_done and self._watch_class is CompletionWatch:
            log.info("Campaign %r is completed: %s.", sensor.campaign_id, describe_result(end))
        if outcome is Outcome.WAIT:
            return PokeReturnValue(False)
        return PokeReturnValue(True, None if end.result is None else {"campaign_id": sensor.campaign_id, **end.result})

    def _defer(self, deadline: float) -> NoReturn:
        # A sensor that pokes needs no trigger.
        from airflow_provider_voicegenie.triggers.wait import defer

        sensor, counters = self._sensor, self._watch.counters()
        defer(
            self._memory,
            self._watch_class,
            rules=sensor.outcome_rules,
            execution_deadline=sensor.execution_deadline(self._context),
            copied={"wait": {"counters": counters, "deadline": deadline}},
            **sensor.facts(),
            arguments=sensor.watch_arguments(self._context, counters, are_stored=True),
            poll_interval=max(sensor.poke_interval, _SHORTEST_INTERVAL),
            deadline=deadline,
        )

    def _remember(self) -> None:
        """Remember, once the campaign was read, that it is what the task is about; and what was seen of it."""
        sensor = self._sensor
        # A rescheduled sensor forgets what it has seen.
        counters = self._watch.counters() if sensor.reschedule and sensor.stall_timeout is not None else None
        if self._watch.has_read and (counters is not None or self._memory.document is None):
            sensor.remember(self._memory, counters=counters, try_number=Generation.of(self._context).try_number)
