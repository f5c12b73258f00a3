# SPDX-License-Identifier: Apache-2.0
"""Sensors that wait for a campaign."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
)

from airflow_provider_voicegenie.decisions.calling_hours import CallingHours
from airflow_provider_voicegenie.decisions.outcomes import Condition, Outcome, OutcomeRules, TaskKind
from airflow_provider_voicegenie.decisions.parameters import check_flags, read_optional_seconds, read_percent
from airflow_provider_voicegenie.decisions.prerequisites import (
    Check,
    HasContacts,
    HasScript,
    IsStartable,
    Prerequisite,
    check_importable,
    check_readiness,
    effective_prerequisites,
)
from airflow_provider_voicegenie.links import CampaignLink, keep_link
from airflow_provider_voicegenie.task_end import settle_task
from airflow_provider_voicegenie.waits import (
    default_deferrable,
    deferral_timeout,
    execution_deadline,
    has_read_statistics,
    look_for_completion,
    read_final_statistics,
    was_ended_by_airflow,
    write_notes,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_voicegenie.decisions.completion import CompletionWatch
    from airflow_provider_voicegenie.decisions.readiness import ReadinessWatch
    from airflow_provider_voicegenie.decisions.waiting import End, Step, Watch
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

#: Whether this Airflow keeps anything of a task between its runs.
_KEEPS_TASK_STATE = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)

_SEEN_KEY = "voicegenie_seen"

#: The least time between reads in the triggerer; a sensor may have ``poke_interval=0``.
_SHORTEST_INTERVAL = 0.1

__all__ = [
    "CallingHours",
    "CampaignCompletedSensor",
    "CampaignReadySensor",
    "Check",
    "Condition",
    "HasContacts",
    "HasScript",
    "IsStartable",
    "Outcome",
    "Prerequisite",
]


class _CampaignSensor(BaseSensorOperator):
    """What the sensors have in common: a look that ends in a step, in a worker or, when deferred, in the triggerer."""

    template_fields: Sequence[str] = ("campaign_id", "voicegenie_conn_id")
    operator_extra_links = (CampaignLink(),)
    ui_color = "#e3ecfb"

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str,
        outcome_rules: OutcomeRules,
        deferrable: bool | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        deferrable = default_deferrable() if deferrable is None else deferrable
        check_flags(deferrable=deferrable)
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.outcome_rules = outcome_rules
        self.deferrable = deferrable
        self._has_link = False

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the campaign once; defer, where the sensor does and the wait is not over."""
        step = self._look(context)
        if not self._has_link:
            self._has_link = True
            keep_link(context, self._hook, self.campaign_id)
        if step.end is not None:
            return PokeReturnValue(True, self._settle(step.end))
        if self.deferrable:
            deadline, execution_ends = time.time() + self.timeout, execution_deadline(context, self.execution_timeout)
            self._defer(deadline, execution_ends, with_statistics=step.need is not None)
        return PokeReturnValue(is_done=False)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        from airflow_provider_voicegenie.decisions.waiting import End

        deferred = event["deferred"]
        end = self._complete(End.from_json(event), deferred)
        if end is None:
            # Its statistics are not to be had now: the triggerer tries for as long as it takes.
            return self._defer(deferred["deadline"], deferred["execution_deadline"], with_statistics=True)
        return self._settle(end)

    def execute_late(self, context: Context) -> Any:
        """Look once more, after Airflow ended the deferral as no triggerer did in time."""
        from airflow_provider_voicegenie.decisions.waiting import EndReason

        end = self._look(context).end
        if end is None:
            execution_ends = execution_deadline(context, self.execution_timeout)
            is_over = execution_ends is not None and time.time() >= execution_ends
            reason = EndReason.EXECUTION_TIMEOUT if is_over else EndReason.TIMEOUT
            end = self._watch.time_is_up(time.time(), reason)
        return self._settle(end)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait in the triggerer, or after Airflow ended it for having taken too long."""
        if was_ended_by_airflow(next_method, next_kwargs):
            return super().resume_execution("execute_late", {}, context)
        return super().resume_execution(next_method, next_kwargs, context)

    def _settle(self, end: End) -> Any:
        """Return what goes to XCom, or raise what ends the task otherwise."""
        from airflow_provider_voicegenie.decisions.waiting import EndReason

        if end.reason is EndReason.TIMEOUT:
            raise AirflowSensorTimeout(f"Campaign {self.campaign_id!r}: the sensor's timeout: {end.message}.")
        if end.reason is EndReason.EXECUTION_TIMEOUT:
            message = f"Campaign {self.campaign_id!r}: execution_timeout: {end.message}."
            if self.soft_fail:  # which Airflow heeds in a poke, but not after a deferral
                raise AirflowSkipException(message)
            raise AirflowTaskTimeout(message)
        if end.condition is not None:
            settle_task(self.outcome_rules, end.condition, self.campaign_id, end.message, retry_after=end.retry_after)
        return self._xcom(end)

    def _defer(self, deadline: float, execution_ends: float | None, *, with_statistics: bool) -> None:
        shared = {
            "campaign_id": self.campaign_id,
            "voicegenie_conn_id": self.voicegenie_conn_id,
            "outcomes": self.outcome_rules.changes,
            "poll_interval": max(self.poke_interval, _SHORTEST_INTERVAL),
            "deadline": deadline,
            "execution_deadline": execution_ends,
        }
        self.defer(
            trigger=self._trigger(shared, with_statistics=with_statistics),
            method_name="execute_complete",
            timeout=deferral_timeout(deadline, execution_ends),
        )

    @cached_property
    def _hook(self) -> VoiceGenieHook:
        from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

        return VoiceGenieHook(self.voicegenie_conn_id)

    @cached_property
    @abstractmethod
    def _watch(self) -> Watch:
        """The decisions of this wait, kept from poke to poke."""

    @abstractmethod
    def _look(self, context: Context) -> Step:
        """Look at the campaign once."""

    @abstractmethod
    def _trigger(self, shared: dict[str, Any], *, with_statistics: bool) -> BaseTrigger:
        """Return what waits in the triggerer."""

    def _complete(self, end: End, deferred: Mapping[str, Any]) -> End | None:
        """Add what the triggerer has not read; ``None`` where it is not to be had now."""
        return end

    def _xcom(self, end: End) -> Any:
        """Return what goes to XCom."""
        return None if end.result is None else dict(end.result)


class CampaignReadySensor(_CampaignSensor):
    """
    Wait until a VoiceGenie campaign can be started.

    Reads the campaign (``GET /campaign/{id}``, the service's Get Campaign page) until it has a script, has
    contacts, has a status from which it can be started (paused or scheduled), and meets every further
    prerequisite. What is missing is logged when it changes.

    What can never come true ends the wait through the outcome table of the README: an unknown id, a key that is
    not accepted and a campaign that is over *fail*, one that runs already *skips*. Temporary trouble (rate limit,
    5xx, a broken connection) does not end it. As in every sensor, ``timeout`` does, and ``poke_interval``,
    ``mode``, ``soft_fail`` mean what they always mean.

    Returns to XCom, as plain JSON: ``campaign_id``, ``status``, ``total_count`` (contacts), ``completed_count``
    and ``failed_count`` (calls), ``updated_at`` (ISO 8601 in UTC). Numbers and time are null where the service
    gave none.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param prerequisites: What must hold besides the three above, such as ``[HasContacts(minimum=100)]``: objects
        of this module or subclasses of :class:`Prerequisite` of your own. One of a class named above takes its
        place.
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
        self.prerequisites = effective_prerequisites(prerequisites)
        if self.deferrable:
            check_importable(self.prerequisites)

    @cached_property
    def _watch(self) -> ReadinessWatch:
        from airflow_provider_voicegenie.decisions.readiness import ReadinessWatch

        return ReadinessWatch(self.campaign_id, self.outcome_rules)

    def _look(self, context: Context) -> Step:
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        try:
            campaign = self._hook.get_campaign(self.campaign_id)
        except VoiceGenieError as error:
            step = self._watch.see_error(error)
        else:
            readiness = check_readiness(self.prerequisites, campaign, datetime.now(UTC))
            step = self._watch.see_campaign(campaign, readiness)
        write_notes(step.notes)
        return step

    def _trigger(self, shared: dict[str, Any], *, with_statistics: bool) -> BaseTrigger:
        from airflow_provider_voicegenie.triggers.campaign import CampaignReadyTrigger

        prerequisites = [list(prerequisite.serialize()) for prerequisite in self.prerequisites]
        return CampaignReadyTrigger(**shared, prerequisites=prerequisites)


class CampaignCompletedSensor(_CampaignSensor):
    """
    Wait until a VoiceGenie campaign that was started elsewhere is completed.

    Reads the campaign (``GET /campaign/{id}``, the service's Get Campaign page; deferred, ``GET /fetchCampaignData``
    where that takes fewer requests) until its status is ``completed``, and then its statistics
    (``GET /getCampaignStats/{id}``). Progress is logged when it changes.

    What else may come ends the wait through the outcome table of the README: a campaign that ended as ``failed`` or was
    stopped, an unknown id and a key that is not accepted *fail*; a paused campaign is waited for. Temporary trouble
    (rate limit, 5xx, a broken connection) does not end it. As in every sensor, ``timeout`` does, and
    ``poke_interval``, ``mode``, ``soft_fail`` mean what they always mean. The campaign is never paused by this task.

    Returns to XCom, as plain JSON: ``campaign_id``, ``status``, ``completed_at`` (ISO 8601 in UTC), and ``statistics``:
    ``total_contacts``, ``calls_completed``, ``calls_failed``, ``call_status_breakdown`` (calls by outcome),
    ``success_rate`` (per cent of the ended calls), ``average_call_duration`` and ``total_call_duration`` (seconds).
    What the service does not tell is null.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"CAMPAIGN_PAUSED": "fail"}``. Besides *skip*, *fail*,
        *retry* and *succeed* there is *wait* here.
    :param stall_timeout: How long the campaign may run without progress in any counter before the condition
        ``CAMPAIGN_STALLED`` holds, as a ``timedelta`` or a number of seconds. For ever by default. With
        ``mode="reschedule"``, it needs Airflow 3.3, which keeps what a sensor has seen.
    :param min_success_rate: Per cent of the ended calls that must have ended well for a completed campaign not to be
        the condition ``SUCCESS_RATE_TOO_LOW``.
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
        return self._watch_since({})

    def _watch_since(self, seen: Mapping[str, Any]) -> CompletionWatch:
        from airflow_provider_voicegenie.decisions.completion import CompletionWatch

        return CompletionWatch(
            self.campaign_id,
            self.outcome_rules,
            seen.get("at", time.time()),
            stall_timeout=self.stall_timeout,
            min_success_rate=self.min_success_rate,
            with_statistics=True,
            completed=seen.get("completed"),
            failed=seen.get("failed"),
        )

    def _look(self, context: Context) -> Step:
        store = context.get("task_state_store") if self.stall_timeout is not None and self.reschedule else None
        if store is not None:
            seen = store.get(_SEEN_KEY)
            if isinstance(seen, dict) and seen.get("campaign_id") == self.campaign_id:
                self._watch = self._watch_since(seen)
        step = look_for_completion(self._hook, self._watch, self.campaign_id, patient=not self.deferrable)
        if store is not None:
            store.set(_SEEN_KEY, {"campaign_id": self.campaign_id, **self._watch.seen()})
        return step

    def _trigger(self, shared: dict[str, Any], *, with_statistics: bool) -> BaseTrigger:
        from airflow_provider_voicegenie.triggers.campaign import CampaignCompletedTrigger

        return CampaignCompletedTrigger(
            **shared,
            kind=self.outcome_rules.kind.value,
            stall_timeout=self.stall_timeout,
            min_success_rate=self.min_success_rate,
            with_statistics=with_statistics,
            seen=self._watch.seen(),
        )

    def _complete(self, end: End, deferred: Mapping[str, Any]) -> End | None:
        if end.is_done and not has_read_statistics(deferred):
            return read_final_statistics(self._hook, self._watch, self.campaign_id, end)
        return end

    def _xcom(self, end: End) -> Any:
        return {"campaign_id": self.campaign_id, **(end.result or {})}
