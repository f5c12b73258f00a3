# SPDX-License-Identifier: Apache-2.0
"""Operators that start and pause a campaign."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_voicegenie.decisions.calling_hours import CallingHours
from airflow_provider_voicegenie.decisions.durations import read_seconds
from airflow_provider_voicegenie.decisions.guards import (
    RunFacts,
    check_calling_hours,
    check_campaign,
    check_run,
)
from airflow_provider_voicegenie.decisions.outcomes import Condition, Outcome, OutcomeRules, TaskKind
from airflow_provider_voicegenie.task_end import settle_error, settle_task

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
    from airflow_provider_voicegenie.decisions.guards import Finding
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

__all__ = ["CallingHours", "Condition", "Outcome", "PauseCampaignOperator", "StartCampaignOperator"]

#: Seconds before each look at a campaign whose start was left without an answer: a gateway may give up on a
#: request that the service behind it still carries out.
_LOOK_DELAYS = (0.0, 1.0, 2.0, 4.0)


class StartCampaignOperator(BaseOperator):
    """
    Start a VoiceGenie campaign: people are phoned at once.

    The task checks the DAG run, reads the campaign, checks it and the time, and then sends one start
    (``GET /startCampaign/{id}``, the service's Start Campaign page). A start is never repeated blindly. Where its
    answer is lost, the task looks at the campaign and succeeds if the start took effect.

    Whatever stands in the way is a condition, and each condition has an outcome: *skip*, *fail* (at once, without
    retry), *retry* (Airflow's ``retries`` decide) or *succeed*. The defaults stand in the README's table;
    ``outcomes`` changes single lines.

    Returns to XCom, as plain JSON:

    - ``campaign_id``: the id.
    - ``status``: the campaign's status after the start, ``running`` as a rule.
    - ``started_at``: when the service says it was started, ISO 8601 in UTC; null where it did not say.
    - ``started_by_task``: false where the campaign was running or over already, and the outcome for that is
      *succeed*.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"NOT_FOUND": "skip"}``; conditions and outcomes as
        text or as the enums.
    :param calling_hours: When the start is allowed; checked right before it. Any time by default.
    :param start_in_backfill: Whether backfill runs start the campaign too. They do not by default.
    :param max_lateness: How late a scheduled run may come after it was due, catch-up included, as a ``timedelta``
        or a number of seconds. Any lateness by default. Manual and asset-triggered runs are never late.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields: Sequence[str] = ("campaign_id", "voicegenie_conn_id")
    ui_color = "#d9f2e6"

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        calling_hours: CallingHours | None = None,
        start_in_backfill: bool = False,
        max_lateness: timedelta | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if calling_hours is not None and not isinstance(calling_hours, CallingHours):
            raise ValueError(
                f"calling_hours must be CallingHours(start, end, timezone, days), not {calling_hours!r:.80}."
            )
        if not isinstance(start_in_backfill, bool):
            raise ValueError(f"start_in_backfill must be True or False, not {start_in_backfill!r:.80}.")
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.outcome_rules = OutcomeRules(TaskKind.START, outcomes)
        self.calling_hours = calling_hours
        self.start_in_backfill = start_in_backfill
        self.max_lateness = None if max_lateness is None else read_seconds("max_lateness", max_lateness)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the campaign, and return what is documented above."""
        from airflow_provider_voicegenie.api.errors import VoiceGenieError
        from airflow_provider_voicegenie.api.models import CampaignStatus
        from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

        finding = check_run(
            RunFacts.of(context),
            datetime.now(UTC),
            start_in_backfill=self.start_in_backfill,
            max_lateness=self.max_lateness,
        )
        if finding is not None:
            return self._not_started(finding, CampaignStatus.UNKNOWN)
        try:
            return self._start(VoiceGenieHook(self.voicegenie_conn_id))
        except VoiceGenieError as error:
            # Only "already running" can come back from here: someone else's start came between.
            settle_error(self.outcome_rules, error, self.campaign_id)
            return self._result(CampaignStatus.RUNNING, None, started_by_task=False)

    def _start(self, hook: VoiceGenieHook) -> dict[str, Any]:
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        before = hook.get_campaign(self.campaign_id)
        finding = check_campaign(before) or check_calling_hours(self.calling_hours, datetime.now(UTC))
        if finding is not None:
            return self._not_started(finding, before.status)
        sent_at = datetime.fromtimestamp(hook.server_time(), UTC)
        unanswered: VoiceGenieError
        try:
            started = hook.start_campaign(self.campaign_id)
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                raise
            unanswered = error
        else:
            if not started.status.is_running:
                self.log.warning(
                    "Campaign %r: the service accepted the start, but calls its status %.40r, not running.",
                    self.campaign_id,
                    started.status_text,
                )
            self.log.info("Campaign %r was started: status %s.", self.campaign_id, started.status.value)
            return self._result(started.status, started.started_at, started_by_task=True)
        return self._find_out(hook, before, unanswered, sent_at)

    def _find_out(
        self, hook: VoiceGenieHook, before: Campaign, error: VoiceGenieError, sent_at: datetime
    ) -> dict[str, Any]:
        """Find out what became of a start that got no valid answer."""
        from airflow_provider_voicegenie.api.errors import VoiceGenieError
        from airflow_provider_voicegenie.decisions.settlement import Settlement, settle_by_stats, settle_by_status

        self.log.warning("%s The start may have taken effect; looking at the campaign before anything else.", error)
        settlement = Settlement.UNKNOWN
        started_at = None
        looks: list[Campaign] = []
        for delay in _LOOK_DELAYS:
            time.sleep(delay)
            try:
                looks.append(hook.get_campaign(self.campaign_id))
            except VoiceGenieError as problem:
                self.log.warning("%s", problem)
                continue
            settlement = settle_by_status(before, looks)
            if settlement is Settlement.STARTED:
                break
        if looks and settlement is not Settlement.STARTED:
            try:
                stats = hook.get_campaign_stats(self.campaign_id)
            except VoiceGenieError as problem:
                self.log.warning("%s", problem)
            else:
                settlement = settle_by_stats(settlement, stats, sent_at)
                started_at = stats.started_at if settlement is Settlement.STARTED else None
        seen = f"status {before.status.value} before" + (f", {looks[-1].status.value} since" if looks else "")
        self.log.info("Campaign %r: %s (%s).", self.campaign_id, settlement.value, seen)
        if settlement is Settlement.STARTED:
            return self._result(looks[-1].status, started_at, started_by_task=True)
        if settlement is Settlement.NOT_STARTED:
            raise error
        settle_task(
            self.outcome_rules,
            Condition.START_UNCONFIRMED,
            self.campaign_id,
            f"the start was sent but not answered, and {settlement.value} ({seen}). Look at the campaign in the "
            "VoiceGenie dashboard: if it was not started, clear this task to start it; if it was, mark the task as "
            f"success. What went wrong was: {error.message}",
        )
        raise AssertionError("START_UNCONFIRMED always ends the task")

    def _not_started(self, finding: Finding, status: CampaignStatus) -> dict[str, Any]:
        settle_task(self.outcome_rules, finding.condition, self.campaign_id, finding.message)
        return self._result(status, None, started_by_task=False)

    def _result(self, status: CampaignStatus, started_at: datetime | None, *, started_by_task: bool) -> dict[str, Any]:
        from airflow_provider_voicegenie.api.models import write_time

        return {
            "campaign_id": self.campaign_id,
            "status": status.value,
            "started_at": write_time(started_at),
            "started_by_task": started_by_task,
        }


class PauseCampaignOperator(BaseOperator):
    """
    Pause a VoiceGenie campaign: no new call begins, calls in progress run to their end.

    Sends one pause (``GET /pauseTheCampaign/{id}``, the service's Pause Campaign page). The service gives one
    refusal for every campaign that does not run; the task then reads the campaign to tell a paused one, which is
    a success by default, from one that is over or was not started yet, which fails. Where the answer is lost, it
    reads the campaign too.

    Returns to XCom, as plain JSON:

    - ``campaign_id``: the id.
    - ``status``: the campaign's status after the pause, ``paused`` as a rule.
    - ``paused_at``: when the service says it was paused, ISO 8601 in UTC; null where it did not say.
    - ``active_calls``: calls that were still going on; null where the service did not say.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"CAMPAIGN_COMPLETED": "skip"}``.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields: Sequence[str] = ("campaign_id", "voicegenie_conn_id")
    ui_color = "#fdf0d5"

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.outcome_rules = OutcomeRules(TaskKind.PAUSE, outcomes)

    def execute(self, context: Context) -> dict[str, Any]:
        """Pause the campaign, and return what is documented above."""
        from airflow_provider_voicegenie.api.errors import CampaignNotRunningError, VoiceGenieError
        from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

        hook = VoiceGenieHook(self.voicegenie_conn_id)
        try:
            try:
                paused = hook.pause_campaign(self.campaign_id)
            except VoiceGenieError as error:
                if not (error.may_have_taken_effect or isinstance(error, CampaignNotRunningError)):
                    raise
                self.log.info("%s Looking at the campaign.", error)
                return self._find_out(hook.get_campaign(self.campaign_id), error)
        except VoiceGenieError as error:
            settle_error(self.outcome_rules, error, self.campaign_id)
            raise
        self.log.info(
            "Campaign %r was paused: %s call(s) still in progress.",
            self.campaign_id,
            "an unknown number of" if paused.active_calls is None else paused.active_calls,
        )
        return self._result(paused.status, paused.paused_at, paused.active_calls)

    def _find_out(self, campaign: Campaign, error: VoiceGenieError) -> dict[str, Any]:
        """Tell the states apart that the service refuses a pause for, or in which a lost answer left the campaign."""
        from airflow_provider_voicegenie.api.models import CampaignStatus

        status = campaign.status
        if status is CampaignStatus.PAUSED and error.may_have_taken_effect:
            self.log.info("Campaign %r is paused now.", self.campaign_id)
        elif status is CampaignStatus.PAUSED:
            self._settle(Condition.CAMPAIGN_ALREADY_PAUSED, "it was paused already")
        elif status.has_ended:
            self._settle(Condition.CAMPAIGN_COMPLETED, f"it is over ({status.value}), so there is nothing to pause")
        elif error.may_have_taken_effect or status.is_running:
            raise error
        else:
            self._settle(
                Condition.CAMPAIGN_NOT_RUNNING,
                f"it does not run yet (status {campaign.status_text!r:.40}), so it cannot be paused",
            )
        return self._result(status, None, None)

    def _settle(self, condition: Condition, message: str) -> None:
        settle_task(self.outcome_rules, condition, self.campaign_id, message)

    def _result(self, status: CampaignStatus, paused_at: datetime | None, active_calls: int | None) -> dict[str, Any]:
        from airflow_provider_voicegenie.api.models import write_time

        return {
            "campaign_id": self.campaign_id,
            "status": status.value,
            "paused_at": write_time(paused_at),
            "active_calls": active_calls,
        }
