# SPDX-License-Identifier: Apache-2.0
"""Sensors that wait for a campaign."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.memory import AIRFLOW_VERSION, KEEPS_TASK_STATE, Memory
from airflow_provider_voicegenie.rules.calling_hours import CallingHours, with_one_open
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Outcome,
    OutcomeRules,
    TaskKind,
    VoiceGenieRetryException,
)
from airflow_provider_voicegenie.rules.parameters import read_optional_seconds, read_percent
from airflow_provider_voicegenie.rules.prerequisites import (
    Check,
    ContactsRegistered,
    HasContacts,
    HasQuota,
    HasScript,
    IsStartable,
    Prerequisite,
    Source,
    check_importable,
    effective_prerequisites,
)
from airflow_provider_voicegenie.waiting.deferral import execution_deadline, read_deferrable, was_ended_by_airflow

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.waiting.watch import End, Watch

#: The least time between reads in the triggerer; a sensor may have ``poke_interval=0``.
_SHORTEST_INTERVAL = 0.1

__all__ = [
    "CallingHours",
    "CampaignCompletedSensor",
    "CampaignReadySensor",
    "Check",
    "Condition",
    "ContactsRegistered",
    "HasContacts",
    "HasQuota",
    "HasScript",
    "IsStartable",
    "Outcome",
    "Prerequisite",
    "Source",
]


def _try_number(context: Context) -> int | None:
    return getattr(context.get("ti"), "try_number", None)


class _CampaignSensor(CampaignTask, BaseSensorOperator):
    """Base class of the campaign sensors: polls in the worker, or defers to a trigger."""

    ui_color = "#e3ecfb"

    stall_timeout: float | None = None
    #: The decisions of this wait, from poke to poke.
    _watch: Watch | None = None
    #: What an earlier process of this task knew of the counters.
    _seen: Mapping[str, Any] | None = None
    #: What the task remembers, once this process has read it.
    _memory: Memory | None = None

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str,
        outcome_rules: OutcomeRules,
        deferrable: bool | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id, voicegenie_conn_id=voicegenie_conn_id, outcome_rules=outcome_rules, **kwargs
        )
        self.deferrable = read_deferrable(deferrable)
        self._has_link = False

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the campaign once; defer, if the sensor does and the wait is not over."""
        from airflow_provider_voicegenie.waiting.stop import was_ended_by_user
        from airflow_provider_voicegenie.waiting.wait import poll_here

        memory = self._remembered(context)
        if self.is_killed and was_ended_by_user(context):
            raise VoiceGenieRetryException(f"Campaign {self.campaign_id!r}: the task was ended from outside.")
        watch = self._watch_of(context)
        end = poll_here(self._hook, watch, max_attempts=None, after_read=lambda: self._keep(context, memory, watch))
        if not self._has_link:
            self._has_link = True
            self.keep_link(context, self._hook)
        outcome = PokeReturnValue(False) if end is None else self._apply(end)
        if self.deferrable and not outcome.is_done:
            self._defer(context, memory, time.time() + self.timeout)
        return outcome

    def _remembered(self, context: Context) -> Memory:
        if self._memory is None:
            self._memory = Memory(context)
            if (document := self._memory.read()) is not None:
                self.go_on_with(document)
                # A retry counts from its own begin.
                self._seen = document.get("seen") if document.get("try_number") == _try_number(context) else None
        return self._memory

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        from airflow_provider_voicegenie.waiting.wait import wait_on
        from airflow_provider_voicegenie.waiting.watch import End

        memory = self.recall_after_deferral(context, event, remedy="To wait again, clear the task.")
        self._seen = memory.wait["seen"]
        outcome = self._apply(wait_on(self._hook, self._watch_of(context), End.from_json(event)))
        if not outcome.is_done:
            self._defer(context, memory, memory.wait["deadline"])
        return outcome.xcom_value

    def execute_late(self, context: Context) -> Any:
        """Poll once more, after Airflow ended the deferral as no triggerer did in time."""
        from airflow_provider_voicegenie.waiting.wait import wait_late

        self._seen = self.go_on_after_deferral(context).wait.get("seen")
        watch = self._watch_of(context)
        end = wait_late(self._hook, watch, context, self.execution_timeout, max_attempts=None)
        return self._apply(end).xcom_value

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait in the triggerer, or after Airflow ended it for having taken too long."""
        if was_ended_by_airflow(next_method, next_kwargs):
            next_method, next_kwargs = "execute_late", {}
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skip:
            # Airflow's soft_fail spares a retry in a poke, but not after a deferral.
            if isinstance(skip.__cause__, VoiceGenieRetryException):
                raise skip.__cause__ from None
            raise

    def _apply(self, end: End) -> PokeReturnValue:
        """Return whether the wait is over and what goes to XCom, or raise what ends the task otherwise."""
        from airflow_provider_voicegenie.waiting.wait import apply_end

        try:
            outcome = apply_end(self.outcome_rules, end, self.campaign_id)
        except AirflowTaskTimeout as error:
            if self.soft_fail:  # which Airflow heeds in a poke, but not after a deferral
                raise AirflowSkipException(str(error)) from None
            raise
        return PokeReturnValue(False) if outcome is Outcome.WAIT else PokeReturnValue(True, self._xcom(end))

    def _defer(self, context: Context, memory: Memory, deadline: float) -> NoReturn:
        from airflow_provider_voicegenie.triggers.wait import defer

        seen = self._watch_of(context).seen()
        defer(
            context,
            memory,
            self._watch_class(),
            rules=self.outcome_rules,
            execution_timeout=self.execution_timeout,
            copied={"wait": {"seen": seen, "deadline": deadline}},
            **self.facts(),
            arguments=self._watch_arguments(context, seen, are_stored=True),
            poll_interval=max(self.poke_interval, _SHORTEST_INTERVAL),
            deadline=deadline,
        )

    def _keep(self, context: Context, memory: Memory, watch: Watch) -> None:
        """Remember, once the campaign was read, that it is what the task is about; and what was seen of it."""
        # A rescheduled sensor forgets what it has seen.
        seen = watch.seen() if self.reschedule and self.stall_timeout is not None else None
        if watch.has_read and (seen is not None or memory.document is None):
            self.remember(memory, seen=seen, try_number=_try_number(context))

    def _watch_of(self, context: Context) -> Watch:
        if self._watch is None:
            arguments = self._watch_arguments(context, self._seen)
            self._watch = self._watch_class()(self.campaign_id, self.outcome_rules, time.time(), **arguments)
        return self._watch

    @abstractmethod
    def _watch_class(self) -> type[Watch]:
        """Return the class of the watch."""

    @abstractmethod
    def _watch_arguments(
        self, context: Context, seen: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        """Return the watch's own arguments; as plain JSON if they are stored."""

    def _xcom(self, end: End) -> Any:
        """Return what goes to XCom."""
        return None if end.result is None else dict(end.result)


class CampaignReadySensor(_CampaignSensor):
    """
    Wait until a VoiceGenie campaign can be started.

    Reads the campaign (``GET /campaign/{id}``, the service's Get Campaign page) until it has a script, has
    contacts, has a status from which it can be started (paused, scheduled, or not started yet), and meets every further
    prerequisite. What is missing is logged when it changes.

    What can never come true ends the wait through the outcome table of the documentation: an unknown id, a key that is
    not accepted and a campaign that is over *fail*, one that is already running *skips*. Temporary trouble (rate limit,
    5xx, a broken connection) does not end it. As in every sensor, ``timeout`` does, and ``poke_interval``, ``mode``,
    ``soft_fail`` mean what they always mean.

    Returns to XCom, as plain JSON: ``campaign_id``, ``status``, ``total_count`` (contacts), ``completed_count``
    and ``failed_count`` (calls), ``updated_at`` (ISO 8601 in UTC). Numbers and time are null if the service gave none.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param prerequisites: What must hold besides the three above, such as ``[HasContacts(minimum=100)]``: objects
        of this module or subclasses of :class:`Prerequisite` of your own. One of a class named above takes its
        place. Their numbers may be templates. A sensor that defers needs them in modules that the triggerer can
        import.
    :param outcomes: Changes to the outcome table, such as ``{"CAMPAIGN_ALREADY_RUNNING": "succeed"}``. Besides
        *skip*, *fail*, *retry* and *succeed* there is *wait* here.
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot; ``mode`` and
        ``exponential_backoff`` mean nothing then. Airflow's ``[operators] default_deferrable`` by default.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        prerequisites: Iterable[Prerequisite] | None = None,
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.READY, outcomes),
            deferrable=deferrable,
            **kwargs,
        )
        self.prerequisites = with_one_open(effective_prerequisites(prerequisites))
        if self.deferrable and prerequisites:
            # Airflow 2 has the DAG folder on the import path of every process.
            check_importable(self.prerequisites, None if AIRFLOW_VERSION < (3,) else conf.get("core", "dags_folder"))

    def _watch_class(self) -> type[Watch]:
        from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch

        return ReadinessWatch

    def _watch_arguments(
        self, context: Context, seen: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        # Not with the other templates: Airflow renders those of a mapped task by a way of its own.
        wanted = [each.rendered(lambda value: self.render_template(value, context)) for each in self.prerequisites]
        return {"prerequisites": [list(each.serialize()) if are_stored else each for each in wanted]}


class CampaignCompletedSensor(_CampaignSensor):
    """
    Wait until a VoiceGenie campaign that was started elsewhere is completed.

    Reads the campaign (``GET /campaign/{id}``, the service's Get Campaign page; deferred, ``GET /fetchCampaignData``
    if that takes fewer requests) until its status is ``completed``, and then its statistics
    (``GET /getCampaignStats/{id}``). Progress is logged when it changes.

    Anything else ends the wait through the outcome table of the documentation: a campaign that ended as ``failed`` or
    was stopped, an unknown id and a key that is not accepted *fail*; a paused campaign is waited for. Temporary trouble
    (rate limit, 5xx, a broken connection) does not end it. As in every sensor, ``timeout`` does, and ``poke_interval``,
    ``mode``, ``soft_fail`` mean what they always mean. The campaign is never paused by this task.

    Returns to XCom, as plain JSON: ``campaign_id``, ``status``, ``completed_at`` (ISO 8601 in UTC), and ``statistics``:
    ``total_contacts``, ``calls_completed``, ``calls_failed``, ``call_status_breakdown`` (calls by outcome),
    ``success_rate`` (percentage of successful calls among the finished ones), ``average_call_duration`` and
    ``total_call_duration`` (seconds). What the service does not give is null, as are statistics that cannot be read
    within some minutes.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"CAMPAIGN_PAUSED": "fail"}``. Besides *skip*, *fail*,
        *retry* and *succeed* there is *wait* here.
    :param stall_timeout: How long the campaign may run without progress in any counter before the condition
        ``CAMPAIGN_STALLED`` holds, as a ``timedelta`` or a number of seconds. No limit by default. With
        ``mode="reschedule"``, it needs Airflow 3.3, which keeps what a sensor has seen.
    :param min_success_rate: Percentage (0 to 100) of successful calls among the finished ones, below which a completed
        campaign is the condition ``SUCCESS_RATE_TOO_LOW``. If the statistics cannot be read within some minutes, the
        outcome of that error applies.
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot; ``mode`` and
        ``exponential_backoff`` mean nothing then. Airflow's ``[operators] default_deferrable`` by default.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        stall_timeout: timedelta | float | None = None,
        min_success_rate: float | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.COMPLETED, outcomes),
            deferrable=deferrable,
            **kwargs,
        )
        self.stall_timeout = read_optional_seconds("stall_timeout", stall_timeout)
        self.min_success_rate = read_percent("min_success_rate", min_success_rate)
        if self.stall_timeout is not None and self.reschedule and not self.deferrable and not KEEPS_TASK_STATE:
            raise ValueError(
                'stall_timeout needs mode="poke" or deferrable=True before Airflow 3.3: a rescheduled sensor forgets '
                "what it has seen."
            )

    def _watch_class(self) -> type[Watch]:
        from airflow_provider_voicegenie.waiting.completion import CompletionWatch

        return CompletionWatch

    def _watch_arguments(
        self, context: Context, seen: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        return {
            "stall_timeout": self.stall_timeout,
            "seen": seen,
            "min_success_rate": self.min_success_rate,
            "statistics_until": execution_deadline(context, self.execution_timeout),
        }

    def _apply(self, end: End) -> PokeReturnValue:
        from airflow_provider_voicegenie.waiting.final_statistics import describe_result

        outcome = super()._apply(end)
        if end.is_done:
            self.log.info("Campaign %r is completed: %s.", self.campaign_id, describe_result(end))
        return outcome

    def _xcom(self, end: End) -> Any:
        return {"campaign_id": self.campaign_id, **(end.result or {})}
