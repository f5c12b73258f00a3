# SPDX-License-Identifier: Apache-2.0
"""Sensors that wait for a campaign."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import (
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.rules.calling_hours import CallingHours, with_one_open
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Outcome,
    OutcomeRules,
    TaskKind,
    VoiceGenieRetryException,
    apply_outcome,
)
from airflow_provider_voicegenie.rules.parameters import check_flags, read_optional_seconds, read_percent
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
    check_readiness,
    effective_prerequisites,
    needs_of,
)
from airflow_provider_voicegenie.waiting.deferral import (
    default_deferrable,
    deferral_timeout,
    execution_deadline,
    keep_for_resuming,
    kept_for_resuming,
    late_reason,
    was_ended_by_airflow,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_voicegenie.waiting.completion import CompletionWatch
    from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch
    from airflow_provider_voicegenie.waiting.watch import End, Watch

_AIRFLOW = tuple(int(part) for part in airflow_version.split(".")[:2])

#: Whether this Airflow keeps anything of a task between its pokes and tries.
_KEEPS_TASK_STATE = _AIRFLOW >= (3, 3)

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

    #: What an earlier process of this task knew of the counters.
    _seen: Mapping[str, Any] | None = None
    #: Whether this process has taken up what earlier ones kept, and whether it has kept its own.
    _has_begun = False
    _is_kept = False

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
        deferrable = default_deferrable() if deferrable is None else deferrable
        check_flags(deferrable=deferrable)
        self.deferrable = deferrable
        self._has_link = False

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the campaign once; defer, if the sensor does and the wait is not over."""
        from airflow_provider_voicegenie.waiting.killing import was_ended_by_user

        if not self._has_begun:
            self._has_begun = True
            if (kept := self.kept_for_later(context)) is not None:
                self.go_on_with(kept)
                # A retry counts from its own begin.
                self._seen = kept.get("seen") if kept.get("try_number") == _try_number(context) else None
                self._is_kept = True
        if self.is_killed and was_ended_by_user(context):
            raise VoiceGenieRetryException(f"Campaign {self.campaign_id!r}: the task was ended from outside.")
        end = self._look(context)
        if not self._has_link:
            self._has_link = True
            self.keep_link(context, self._hook)
        outcome = PokeReturnValue(False) if end is None else self._apply(end)
        if self.deferrable and not outcome.is_done:
            self._defer(context, time.time() + self.timeout)
        return outcome

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        from airflow_provider_voicegenie.waiting.watch import End

        deferred = event["deferred"]
        self.go_on_after(event)
        self._seen = deferred.get("seen")
        outcome = self._apply(self._finished(End.from_json(event), context))
        if not outcome.is_done:
            self._defer(context, deferred["deadline"])
        return outcome.xcom_value

    def execute_late(self, context: Context) -> Any:
        """Look once more, after Airflow ended the deferral as no triggerer did in time."""
        if kept := kept_for_resuming(context):
            self.go_on_with(kept)
            self._seen = kept.get("seen")
        end = self._look(context)
        if end is None:
            end = self._watch.time_is_up(time.time(), late_reason(context, self.execution_timeout))
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
        from airflow_provider_voicegenie.waiting.watch import EndReason

        if end.reason is EndReason.TIMEOUT:
            raise AirflowSensorTimeout(f"Campaign {self.campaign_id!r}: the sensor's timeout: {end.message}.")
        if end.reason is EndReason.EXECUTION_TIMEOUT:
            message = f"Campaign {self.campaign_id!r}: execution_timeout: {end.message}."
            if self.soft_fail:  # which Airflow heeds in a poke, but not after a deferral
                raise AirflowSkipException(message)
            raise AirflowTaskTimeout(message)
        if end.finding is not None:
            outcome = apply_outcome(self.outcome_rules, end.finding, self.campaign_id)
            if outcome is Outcome.WAIT:
                return PokeReturnValue(False)
        return PokeReturnValue(True, self._xcom(end))

    def _defer(self, context: Context, deadline: float) -> None:
        execution_ends = execution_deadline(context, self.execution_timeout)
        shared = {
            **self.facts(),
            "outcomes": self.outcome_rules.changes,
            "poll_interval": max(self.poke_interval, _SHORTEST_INTERVAL),
            "deadline": deadline,
            "execution_deadline": execution_ends,
        }
        trigger = self._trigger(shared)
        keep_for_resuming(context, {**self.facts(), "seen": getattr(trigger, "seen", None)})
        self.defer(trigger=trigger, method_name="execute_complete", timeout=deferral_timeout(deadline, execution_ends))

    def _keep(self, context: Context, seen: Mapping[str, Any] | None = None) -> None:
        """Keep, once the campaign was read, that it is what the task is about; and what was seen of it."""
        if seen is not None or not self._is_kept:
            self._is_kept = True
            self.keep_for_later(context, seen=seen, try_number=_try_number(context))

    @cached_property
    @abstractmethod
    def _watch(self) -> Watch:
        """The decisions of this wait, kept from poke to poke."""

    @abstractmethod
    def _look(self, context: Context) -> End | None:
        """Look at the campaign once, and return how the wait ended, if it did."""

    @abstractmethod
    def _trigger(self, shared: dict[str, Any]) -> BaseTrigger:
        """Return what waits in the triggerer."""

    def _finished(self, end: End, context: Context) -> End:
        """Add what has to be read once the wait is over."""
        return end

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
        place. A sensor that defers needs them in modules that the triggerer can import.
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
            check_importable(self.prerequisites, None if _AIRFLOW < (3,) else conf.get("core", "dags_folder"))

    @cached_property
    def _watch(self) -> ReadinessWatch:
        from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch

        return ReadinessWatch(self.campaign_id, self.outcome_rules, time.time())

    def _look(self, context: Context) -> End | None:
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        try:
            campaign = self._hook.get_campaign(self.campaign_id)
            needs = needs_of(self.prerequisites)
            if Source.QUOTA in needs:
                campaign = replace(campaign, quota=self._hook.get_quota())
            if Source.LIST in needs:
                listed = (each for each in self._hook.list_campaigns() if each.campaign_id == self.campaign_id)
                campaign = campaign.with_listed(next(listed, None))
        except VoiceGenieError as error:
            return self._watch.observe_error(error, time.time())
        self._keep(context)
        readiness = check_readiness(self.prerequisites, campaign, datetime.now(UTC))
        return self._watch.observe(campaign, readiness, time.time())

    def _trigger(self, shared: dict[str, Any]) -> BaseTrigger:
        from airflow_provider_voicegenie.triggers.campaign import CampaignReadyTrigger

        prerequisites = [list(prerequisite.serialize()) for prerequisite in self.prerequisites]
        return CampaignReadyTrigger(**shared, prerequisites=prerequisites)


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
        if self.stall_timeout is not None and self.reschedule and not self.deferrable and not _KEEPS_TASK_STATE:
            raise ValueError(
                'stall_timeout needs mode="poke" or deferrable=True before Airflow 3.3: a rescheduled sensor forgets '
                "what it has seen."
            )

    @cached_property
    def _watch(self) -> CompletionWatch:
        from airflow_provider_voicegenie.waiting.completion import CompletionWatch

        return CompletionWatch(
            self.campaign_id, self.outcome_rules, time.time(), stall_timeout=self.stall_timeout, seen=self._seen
        )

    def _look(self, context: Context) -> End | None:
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        try:
            campaign = self._hook.get_campaign(self.campaign_id)
        except VoiceGenieError as error:
            end = self._watch.observe_error(error, time.time())
        else:
            end = self._watch.observe(campaign, time.time())
            has_to_last = self.reschedule and self.stall_timeout is not None
            self._keep(context, self._watch.seen() if has_to_last else None)
        return None if end is None else self._finished(end, context)

    def _trigger(self, shared: dict[str, Any]) -> BaseTrigger:
        from airflow_provider_voicegenie.triggers.campaign import CampaignCompletedTrigger

        return CampaignCompletedTrigger(
            **shared, kind=self.outcome_rules.kind.value, stall_timeout=self.stall_timeout, seen=self._watch.seen()
        )

    def _finished(self, end: End, context: Context) -> End:
        from airflow_provider_voicegenie.waiting.final_statistics import FinalStatistics, describe_result
        from airflow_provider_voicegenie.waiting.worker import read_final_statistics

        if not end.is_done:
            return end
        final = FinalStatistics(
            self.campaign_id,
            end,
            time.time(),
            min_success_rate=self.min_success_rate,
            deadline=execution_deadline(context, self.execution_timeout),
        )
        end = final.known or read_final_statistics(self._hook, final, self.campaign_id)
        if end.is_done:
            self.log.info("Campaign %r is completed: %s.", self.campaign_id, describe_result(end))
        return end

    def _xcom(self, end: End) -> Any:
        return {"campaign_id": self.campaign_id, **(end.result or {})}
