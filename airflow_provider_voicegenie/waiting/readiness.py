# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign's prerequisites: all its rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_voicegenie.api.endpoints import campaign
from airflow_provider_voicegenie.api.models import Campaign, write_time
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules
from airflow_provider_voicegenie.rules.prerequisites import (
    Prerequisite,
    Readiness,
    Source,
    check_readiness,
    load_prerequisite,
    needs_of,
)
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request


class ReadinessWatch(Watch):
    """
    One wait for a campaign to be ready.

    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds.
    :param prerequisites: What must hold; until :meth:`prepare`, class path and keyword arguments of each will do.
    """

    __slots__ = ("_campaign", "_last", "_prerequisites", "_seen_at")

    runs_code_of_author: ClassVar[bool] = True
    # The list does not have scripts.
    needs_single_reads: ClassVar[bool] = True

    def __init__(self, campaign_id: str, rules: OutcomeRules, now: float, *, prerequisites: Sequence[Any]) -> None:
        super().__init__(campaign_id, rules, now)
        self._prerequisites = prerequisites
        self._campaign: Campaign | None = None
        self._last: Readiness | None = None
        self._seen_at = now

    @property
    def wants(self) -> Request[Any]:
        """The request to send next: read the campaign."""
        return campaign(self._campaign_id)

    @property
    def needs(self) -> Collection[Source]:
        """What has to be read besides the campaign, and put into it."""
        return needs_of(self._prerequisites)

    def prepare(self) -> None:
        """
        Load the prerequisites.

        :raises ValueError: A class path does not lead to a prerequisite.
        """
        self._prerequisites = [
            each if isinstance(each, Prerequisite) else load_prerequisite(*each) for each in self._prerequisites
        ]

    def take(self, response: Any, now: float, *, in_full: bool = True) -> End | None:
        """Take the campaign, and check whether it meets its prerequisites, or take why it could not be read."""
        if not isinstance(response, Campaign):
            return self._take_error(response, now)
        self.has_read = True
        readiness = check_readiness(self._prerequisites, response, datetime.fromtimestamp(now, UTC))
        if self._end is not None:
            # The check went on in its thread after the wait's time was over.
            return self._end
        before, self._campaign, self._last, self._seen_at = self._last, response, readiness, now
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
        seen = (
            "it could not be read so far"
            if self._last is None
            else f"last seen{ago(now - self._seen_at)}: {self._last.describe()}"
        )
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
