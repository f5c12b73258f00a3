# SPDX-License-Identifier: Apache-2.0
"""
What a later try of a task knows of a start by an earlier one.

A try notes its start before it sends it. A *life* of a task instance is the time between two clears by a user: Airflow
raises ``max_tries`` at each. Within one life a campaign is started once at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus, read_time, write_time

#: How far the clocks of Airflow and the service may differ.
_CLOCK_TOLERANCE = timedelta(minutes=2)


class StartPhase(StrEnum):
    """How far the start of a task has come."""

    #: The request may have gone out.
    SENT = "sent"
    #: It took effect.
    STARTED = "started"
    #: It took effect, and the campaign was paused when the task's ``execution_timeout`` was over.
    TIMED_OUT = "timed_out"
    #: It was refused, or a user has ended it by marking or clearing the task: the next try may start anew.
    CLOSED = "closed"


@dataclass(frozen=True)
class Start:
    """
    What a task knows of the start once it is over.

    :param status: The campaign's status.
    :param started_at: When the service says it started the campaign, ISO 8601.
    :param started_by_task: Whether this task, in this try or an earlier one, started it.
    :param seen: When its counters were last seen, and what they were: ``at``, ``completed``, ``failed``.
    """

    status: str
    started_at: str | None = None
    started_by_task: bool = False
    seen: Mapping[str, Any] | None = None

    @classmethod
    def by_task(
        cls, status: CampaignStatus, started_at: datetime | None, seen: Mapping[str, Any] | None = None
    ) -> Start:
        """Return a start that this task made."""
        return cls(status.value, write_time(started_at), True, seen)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class StartRecord:
    """
    The start of a task, as it is kept across tries.

    :param campaign_id: The campaign.
    :param voicegenie_conn_id: The connection.
    :param phase: How far it has come.
    :param life: The task instance's ``max_tries`` at that time.
    :param sent_at: When it was sent, by the service's clock, ISO 8601.
    :param started_at: When the service says it started the campaign, ISO 8601.
    :param before: The campaign's status, counters and last change as they were before.
    """

    campaign_id: str
    voicegenie_conn_id: str
    phase: StartPhase
    life: int
    sent_at: str | None
    started_at: str | None
    before: Mapping[str, Any]

    @classmethod
    def of(
        cls, before: Campaign, campaign_id: str, voicegenie_conn_id: str, life: int, sent_at: datetime
    ) -> StartRecord:
        """Make the record of a start that is about to be sent."""
        kept = {
            "status_text": before.status_text,
            "completed_count": before.completed_count,
            "failed_count": before.failed_count,
            "updated_at": write_time(before.updated_at),
        }
        return cls(campaign_id, voicegenie_conn_id, StartPhase.SENT, life, write_time(sent_at), None, kept)

    def facts(self) -> dict[str, str]:
        """Return the campaign and the connection, as :meth:`CampaignTask.facts` does."""
        return {"campaign_id": self.campaign_id, "voicegenie_conn_id": self.voicegenie_conn_id}

    def in_phase(self, phase: StartPhase, started_at: datetime | None = None) -> StartRecord:
        """Return the record, one phase on."""
        return replace(self, phase=phase, started_at=write_time(started_at) or self.started_at)

    def campaign_before(self) -> Campaign:
        """Return the campaign as it was before the start."""
        text = self.before["status_text"]
        return Campaign(
            self.campaign_id,
            CampaignStatus.read(text),
            text,
            completed_count=self.before["completed_count"],
            failed_count=self.before["failed_count"],
            updated_at=read_time(self.before["updated_at"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "phase": self.phase.value}

    @classmethod
    def from_json(cls, data: object) -> StartRecord | None:
        """Read what :meth:`to_json` wrote; ``None`` for anything else."""
        try:
            record = cls(**data)  # type: ignore[arg-type]
            record = replace(record, phase=StartPhase(record.phase))
            record.campaign_before()
        except (TypeError, ValueError, KeyError, AttributeError):
            return None
        return record


def earlier_start(record: StartRecord | None, life: int) -> StartRecord | None:
    """
    Return the record of a start that an earlier try in this life made, of whichever campaign, if there is one.

    :param record: What is kept.
    :param life: The task instance's ``max_tries``.
    """
    if record is None or record.phase is StartPhase.CLOSED or record.life != life:
        return None
    return record


def was_cleared(record: StartRecord | None, campaign_id: str, life: int) -> bool:
    """
    Tell whether a user cleared the task while a start that it had made was in effect.

    :param record: What is kept.
    :param campaign_id: The campaign this try is about.
    :param life: The task instance's ``max_tries``.
    """
    if record is None or record.phase not in (StartPhase.SENT, StartPhase.STARTED):
        return False
    return record.campaign_id == campaign_id and record.life != life


def was_started_in_run(statistics: CampaignStats, run_began: datetime | None) -> bool:
    """
    Tell whether a campaign was started since a DAG run began: the evidence where nothing is kept across tries.

    :param statistics: The campaign's statistics.
    :param run_began: When the run began, by the service's clock; ``None`` where that is not known.
    """
    if statistics.started_at is None or run_began is None:
        return False
    return statistics.started_at >= run_began - _CLOCK_TOLERANCE
