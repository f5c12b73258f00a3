# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign's prerequisites: all its rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_voicegenie.api.models import Campaign, write_time
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules
from airflow_provider_voicegenie.rules.prerequisites import Readiness
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago


class ReadinessWatch(Watch):
    """
    One wait for a campaign to be ready.

    :param campaign_id: The campaign.
    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds.
    """

    __slots__ = ("_campaign", "_last", "_seen_at")

    def __init__(self, campaign_id: str, rules: OutcomeRules, now: float) -> None:
        super().__init__(campaign_id, rules, now)
        self._campaign: Campaign | None = None
        self._last: Readiness | None = None
        self._seen_at = now

    def observe(self, campaign: Campaign, readiness: Readiness, now: float) -> End | None:
        """
        Take note of the campaign.

        :param campaign: As it was just read.
        :param readiness: What its prerequisites came to.
        :param now: Unix seconds.
        :returns: How the wait ended; ``None`` while it goes on.
        """
        before, self._campaign, self._last, self._seen_at = self._last, campaign, readiness, now
        self._recover(now)
        if readiness.finding is not None:
            self._end = self._meet(readiness.finding, now)
        else:
            self._announced = None
            if readiness != before:
                self._log(readiness.describe(), now)
            if readiness.is_ready:
                self._end = End(EndReason.DONE, "it is ready", result=self._result(), at=now)
        self._remind(now)
        return self._end

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        seen = "never seen" if self._last is None else f"last seen{ago(now - self._seen_at)}: {self._last.describe()}"
        return f"{seen}{self._since_then()}"

    def _result(self) -> Mapping[str, Any] | None:
        """Return what goes to XCom: no name, no contact."""
        campaign = self._campaign
        if campaign is None:
            return None
        return {
            "campaign_id": campaign.campaign_id,
            "status": campaign.status.value,
            "total_count": campaign.total_count,
            "completed_count": campaign.completed_count,
            "failed_count": campaign.failed_count,
            "updated_at": write_time(campaign.updated_at),
        }
