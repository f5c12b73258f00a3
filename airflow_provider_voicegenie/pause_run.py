# SPDX-License-Identifier: Apache-2.0
"""
One run of a ``PauseCampaignOperator``: pause the campaign, and keep it paused if the author wants that.

It is no part of the operator, because every parse of a DAG file loads the module of that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.endpoints import check_campaign_id
from airflow_provider_voicegenie.api.errors import CampaignNotRunningError, VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, write_time
from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, VoiceGenieRetryException, apply_outcome
from airflow_provider_voicegenie.waiting.pausing import PauseWatch
from airflow_provider_voicegenie.waiting.stop import MAY_GO_ON, finding_of_refused_pause
from airflow_provider_voicegenie.waiting.wait import apply_end, wait_here, wait_on
from airflow_provider_voicegenie.waiting.watch import End

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)


class PauseRun:
    """
    One run of the task in this process.

    :param task: The operator, a ``PauseCampaignOperator``.
    """

    def __init__(self, task: Any, context: Context, hook: VoiceGenieHook, memory: Memory) -> None:
        self._task = task
        self._context = context
        self._hook = hook
        self._memory = memory
        self._campaign_id: str = task.campaign_id

    def execute(self) -> dict[str, Any]:
        """Pause the campaign, and keep it paused if asked to."""
        task = self._task
        until: float | None = (self._memory.document or {}).get("until") if task.keep_paused_for else None
        if until is not None and until <= time.time():
            raise AirflowFailException(
                f"Campaign {self._campaign_id!r}: the time for which an earlier try kept it paused is over, so this "
                "try sends nothing. Look at it in the VoiceGenie dashboard; to pause it again, clear this task."
            )
        result = self._pause()
        if task.keep_paused_for is None:
            return result
        result["paused_again"] = 0
        if CampaignStatus(result["status"]).has_ended:
            return result
        until = until or time.time() + task.keep_paused_for
        task.remember(self._memory, until=until)
        end = datetime.fromtimestamp(until, UTC)
        log.info("Campaign %r is kept paused until %s.", self._campaign_id, f"{end:%Y-%m-%d %H:%M:%S} UTC")
        if task.deferrable:
            self._defer(result, until)
        end_of_wait = wait_here(
            self._hook, self._watch(), poll_interval=task.poll_interval, deadline=until, check=self._check_killed
        )
        return self._end(result, end_of_wait)

    def resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the campaign was kept paused from the triggerer."""
        end = wait_on(self._hook, self._watch(), End.from_json(event), check=self._check_killed)
        return self._end(self._memory.wait, end)

    def _pause(self) -> dict[str, Any]:
        hook, memory, is_later_try = self._hook, self._memory, self._memory.document is not None
        try:
            check_campaign_id(self._campaign_id)
            hook.get_conn()
            if not is_later_try:
                self._task.remember(memory)
            try:
                self._check_killed()
                paused = hook.pause_campaign(self._campaign_id, on_sending=self._check_killed)
            except VoiceGenieRetryException:
                if not is_later_try:
                    memory.clear()
                raise
            except VoiceGenieError as error:
                if not (error.may_have_taken_effect or isinstance(error, CampaignNotRunningError)):
                    if not is_later_try:
                        memory.clear()
                    raise
                log.info("%s Looking at the campaign.", error)
                return self._find_out(hook.get_campaign(self._campaign_id), error)
        except VoiceGenieError as error:
            apply_outcome(self._task.outcome_rules, Finding.of(error), self._campaign_id)
            raise
        finally:
            self._task.keep_link(self._context, hook)
        log.info(
            "Campaign %r was paused: %s call(s) still in progress.",
            self._campaign_id,
            "an unknown number of" if paused.active_calls is None else paused.active_calls,
        )
        return self._result(paused.status, paused.paused_at, paused.active_calls)

    def _find_out(self, campaign: Campaign, error: VoiceGenieError) -> dict[str, Any]:
        """Apply the condition that the campaign's state is, after a refusal or a lost response."""
        status, finding = campaign.status, finding_of_refused_pause(campaign)
        if status is CampaignStatus.PAUSED and error.may_have_taken_effect:
            log.warning("Campaign %r is paused now, by this task or before. %s", self._campaign_id, MAY_GO_ON)
            return self._result(status, None, None)
        if finding is None or (error.may_have_taken_effect and finding.condition is Condition.CAMPAIGN_NOT_RUNNING):
            raise error
        apply_outcome(self._task.outcome_rules, finding, self._campaign_id)
        if finding.condition is Condition.CAMPAIGN_ALREADY_PAUSED and self._task.keep_paused_for is None:
            log.warning("Campaign %r: it was paused already. %s", self._campaign_id, MAY_GO_ON)
        return self._result(status, None, None)

    def _check_killed(self) -> None:
        if self._task.is_killed:
            raise VoiceGenieRetryException(
                f"Campaign {self._campaign_id!r}: the task was ended from outside before it sent the pause."
            )

    def _watch(self) -> PauseWatch:
        return PauseWatch(self._campaign_id, self._task.outcome_rules.while_waiting(), time.time())

    def _defer(self, result: dict[str, Any], until: float) -> NoReturn:
        # A task that waits here, or not at all, needs no trigger.
        from airflow_provider_voicegenie.triggers.wait import defer

        task = self._task
        defer(
            self._memory,
            PauseWatch,
            rules=task.outcome_rules,
            execution_deadline=task.execution_deadline(self._context),
            copied={"wait": result},
            **task.facts(),
            arguments={},
            poll_interval=task.poll_interval,
            deadline=until,
        )

    def _end(self, result: Mapping[str, Any], end: End) -> dict[str, Any]:
        apply_end(self._task.outcome_rules, end, self._campaign_id)
        returned = {**result, **(end.result or {})}
        log.info(
            "Campaign %r is no longer kept paused: status %s, paused again %d time(s).",
            self._campaign_id,
            returned["status"],
            returned["paused_again"],
        )
        return returned

    def _result(self, status: CampaignStatus, paused_at: datetime | None, active_calls: int | None) -> dict[str, Any]:
        return {
            "campaign_id": self._campaign_id,
            "status": status.value,
            "paused_at": write_time(paused_at),
            "active_calls": active_calls,
        }
