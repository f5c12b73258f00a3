# SPDX-License-Identifier: Apache-2.0
"""Sensors that wait for a campaign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_voicegenie.decisions.calling_hours import CallingHours
from airflow_provider_voicegenie.decisions.outcomes import Condition, Outcome, OutcomeRules, TaskKind
from airflow_provider_voicegenie.decisions.prerequisites import (
    Check,
    HasContacts,
    HasScript,
    IsStartable,
    Prerequisite,
    Verdict,
    effective_prerequisites,
)
from airflow_provider_voicegenie.task_end import settle_error, settle_task

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.api.models import Campaign
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

__all__ = [
    "CallingHours",
    "CampaignReadySensor",
    "Check",
    "Condition",
    "HasContacts",
    "HasScript",
    "IsStartable",
    "Outcome",
    "Prerequisite",
]


class CampaignReadySensor(BaseSensorOperator):
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
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields: Sequence[str] = ("campaign_id", "voicegenie_conn_id")
    ui_color = "#e3ecfb"

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        prerequisites: Iterable[Prerequisite] | None = None,
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.campaign_id = campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.prerequisites = effective_prerequisites(prerequisites)
        self.outcome_rules = OutcomeRules(TaskKind.READY, outcomes)
        self._last_missing: list[str] | None = None

    def poke(self, context: Context) -> PokeReturnValue:
        """Read the campaign once and check every prerequisite."""
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        try:
            campaign = self._hook.get_campaign(self.campaign_id)
        except VoiceGenieError as error:
            settle_error(self.outcome_rules, error, self.campaign_id)
            return PokeReturnValue(is_done=False)
        now = datetime.now(UTC)
        checks = [prerequisite.check(campaign, now) for prerequisite in self.prerequisites]
        for check in checks:
            if check.verdict is Verdict.IMPOSSIBLE:
                condition = check.condition or Condition.PREREQUISITE_IMPOSSIBLE
                outcome = settle_task(self.outcome_rules, condition, self.campaign_id, check.why)
                return PokeReturnValue(outcome is Outcome.SUCCEED, _summary(campaign))
        missing = [check.why for check in checks if check.verdict is Verdict.WAITING]
        if missing != self._last_missing:
            self.log.info(
                "Campaign %r is %s.", self.campaign_id, f"not ready: {'; '.join(missing)}" if missing else "ready"
            )
        self._last_missing = missing
        return PokeReturnValue(not missing, _summary(campaign))

    @cached_property
    def _hook(self) -> VoiceGenieHook:
        from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

        return VoiceGenieHook(self.voicegenie_conn_id)


def _summary(campaign: Campaign) -> dict[str, Any]:
    """What goes to XCom: no name, no contact."""
    from airflow_provider_voicegenie.api.models import write_time

    return {
        "campaign_id": campaign.campaign_id,
        "status": campaign.status.value,
        "total_count": campaign.total_count,
        "completed_count": campaign.completed_count,
        "failed_count": campaign.failed_count,
        "updated_at": write_time(campaign.updated_at),
    }
