# SPDX-License-Identifier: Apache-2.0
"""Sensors that wait for a campaign."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_voicegenie.campaign_task import CampaignTask, read_deferrable, was_ended_by_airflow
from airflow_provider_voicegenie.memory import AIRFLOW_VERSION, KEEPS_TASK_STATE, Generation, Memory
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

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.sensor_run import SensorRun

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


class _CampaignSensor(CampaignTask, BaseSensorOperator):
    """Base class of the campaign sensors: polls in the worker, or defers to a trigger."""

    ui_color = "#e3ecfb"

    stall_timeout: float | None = None
    #: Its run in this process, from poke to poke.
    _running: SensorRun | None = None

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

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the campaign once; defer, if the sensor does and the wait is not over."""
        if self._running is None:
            memory, counters = Memory(context), None
            if (document := memory.read()) is not None:
                self.keep_campaign(document)
                # A retry counts from its own begin.
                is_same_try = document.get("try_number") == Generation.of(context).try_number
                counters = document.get("counters") if is_same_try else None
            self._running = self._begin(context, memory, counters)
        return self._running.poke()

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        memory = self.recall_after_deferral(context, event, remedy="To wait again, clear the task.")
        return self._begin(context, memory, memory.wait["counters"]).resume(event)

    def execute_late(self, context: Context) -> Any:
        """Poll once more, after Airflow ended the deferral as no triggerer did in time."""
        memory = self.go_on_after_deferral(context)
        return self._begin(context, memory, memory.wait.get("counters")).resume_late()

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

    def _begin(self, context: Context, memory: Memory, counters: Mapping[str, Any] | None) -> SensorRun:
        # Parsing a DAG file needs no run.
        from airflow_provider_voicegenie.sensor_run import SensorRun

        return SensorRun(self, context, self._hook, memory, counters)

    @abstractmethod
    def watch_arguments(
        self, context: Context, counters: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        """Return the watch's own arguments; as plain JSON if they are stored."""


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

    def watch_arguments(
        self, context: Context, counters: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        """Return the prerequisites."""
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

    def watch_arguments(
        self, context: Context, counters: Mapping[str, Any] | None, *, are_stored: bool = False
    ) -> dict[str, Any]:
        """Return what the campaign must keep to, and what was seen of it."""
        return {
            "stall_timeout": self.stall_timeout,
            "counters": counters,
            "min_success_rate": self.min_success_rate,
            "statistics_until": self.execution_deadline(context),
        }
