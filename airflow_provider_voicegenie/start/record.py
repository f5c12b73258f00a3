# SPDX-License-Identifier: Apache-2.0
"""
The start that a task instance made, as its memory has it.

A try records its start before it sends it. A campaign is started at most once in each generation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, read_time, write_time
from airflow_provider_voicegenie.memory import Generation, Memory

log = logging.getLogger(__name__)


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


class Start(NamedTuple):
    """
    What a task knows of the start once it is over.

    :param status: The campaign's status.
    :param started_at: When the service says it started the campaign, ISO 8601.
    :param started_by_task: Whether this task, in this try or an earlier one, started it.
    :param seen: What the wait is told: when its counters were last seen, and what they were (``at``, ``completed``,
        ``failed``), and from when on it is not shown as it was before the start (``pauses_count_from``).
    :param must_pause_on_kill: Whether the campaign is to be paused if the task is ended: an earlier try was told to
        pause the campaign, and may have failed.
    """

    status: str
    started_at: str | None = None
    started_by_task: bool = False
    seen: Mapping[str, Any] | None = None
    must_pause_on_kill: bool = False

    @property
    def is_paused_on_kill(self) -> bool:
        """Whether whoever ends the task wants the campaign paused."""
        return self.started_by_task or self.must_pause_on_kill

    @classmethod
    def by_task(
        cls, status: CampaignStatus, started_at: datetime | None, seen: Mapping[str, Any] | None = None
    ) -> Start:
        """Return a start that this task made."""
        return cls(status.value, write_time(started_at), True, seen or None)


class StartRecord(NamedTuple):
    """
    The start of a task, as it is kept across tries.

    :param campaign_id: The campaign.
    :param voicegenie_conn_id: The connection.
    :param phase: How far it has come.
    :param generation: The generation of the task instance that it belongs to.
    :param sent_at: When it was sent, by the service's clock, ISO 8601.
    :param started_at: When the service says it started the campaign, ISO 8601.
    :param before: The campaign's status, counters and last change as they were before.
    :param must_pause_on_kill: Whether the campaign may go on although the task was ended: it could not be paused, or
        the task is deferred. A user who ends the task again wants it paused.
    """

    campaign_id: str
    voicegenie_conn_id: str
    phase: StartPhase
    generation: Generation
    sent_at: str | None
    started_at: str | None
    before: Mapping[str, Any]
    must_pause_on_kill: bool = False

    @classmethod
    def of(
        cls, before: Campaign, campaign_id: str, voicegenie_conn_id: str, generation: Generation, sent_at: datetime
    ) -> StartRecord:
        """Make the record of a start that is about to be sent."""
        kept = {
            "status_text": before.status_text,
            "completed_count": before.completed_count,
            "failed_count": before.failed_count,
            "updated_at": write_time(before.updated_at),
        }
        return cls(campaign_id, voicegenie_conn_id, StartPhase.SENT, generation, write_time(sent_at), None, kept)

    def in_phase(
        self, phase: StartPhase, started_at: datetime | None = None, must_pause_on_kill: bool | None = None
    ) -> StartRecord:
        """Return the record, one phase on."""
        return self._replace(
            phase=phase,
            started_at=write_time(started_at) or self.started_at,
            must_pause_on_kill=self.must_pause_on_kill if must_pause_on_kill is None else must_pause_on_kill,
        )

    def is_about(self, campaign_id: str, voicegenie_conn_id: str) -> bool:
        """Say whether it is the start of this campaign, by this connection."""
        return (self.campaign_id, self.voicegenie_conn_id) == (campaign_id, voicegenie_conn_id)

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

    def to_document(self) -> dict[str, Any]:
        """Return what a memory's document has of it, as plain JSON."""
        start = {"phase": self.phase.value, **{name: getattr(self, name) for name in _OF_THE_START}}
        about = {"campaign_id": self.campaign_id, "voicegenie_conn_id": self.voicegenie_conn_id}
        return {**about, "generation": list(self.generation), "start": start}

    @classmethod
    def of_document(cls, document: Mapping[str, Any] | None) -> StartRecord | None:
        """Read what :meth:`to_document` wrote; ``None`` for anything else."""
        try:
            start = dict(document["start"])  # type: ignore[index]
            phase, generation = StartPhase(start.pop("phase")), Generation(*document["generation"])  # type: ignore[index]
            about = document["campaign_id"], document["voicegenie_conn_id"]  # type: ignore[index]
            record = cls(*about, phase, generation, **start)
            record.campaign_before()
        except (TypeError, ValueError, KeyError, AttributeError):
            return None
        return record


#: What of a record a memory's document has as ``start``, besides the phase.
_OF_THE_START = ("sent_at", "started_at", "before", "must_pause_on_kill")


class OwnStart:
    """
    The start that one task instance made.

    :param memory: What the task remembers.
    :param campaign_id: The campaign that this try is about.
    :param voicegenie_conn_id: Its connection.
    """

    def __init__(self, memory: Memory, campaign_id: str, voicegenie_conn_id: str) -> None:
        self.memory = memory
        self._campaign_id = campaign_id
        self._voicegenie_conn_id = voicegenie_conn_id
        #: The start of this generation, as far as this process knows it.
        self.record: StartRecord | None = None
        #: The start of an earlier end of this task, whose campaign may go on; known after :meth:`recall`.
        self.owed: StartRecord | None = None
        # Whether Airflow keeps a record that this version cannot read; known after :meth:`recall`.
        self._is_unreadable = False
        #: Whether a user has cleared the task, so that the campaign it had started may be paused any moment; known
        #: after :meth:`recall`.
        self.awaits_pause = False
        #: The start of which that is so, if Airflow has kept it.
        self.cleared: StartRecord | None = None

    @property
    def tell_all(self) -> bool:
        """Whether Airflow keeps records, and they can be read: without one, no start was sent."""
        return self.memory.is_kept and not self._is_unreadable

    def recall(self) -> StartRecord | None:
        """Return the start that an earlier try of this generation made, if there is one; of whichever campaign."""
        self.record = self.owed = self.cleared = None
        memory = self.memory
        document = memory.read() or memory.cleared
        record = StartRecord.of_document(document)
        self._is_unreadable = record is None and (memory.is_unreadable or document is not None)
        if record is None:
            # Airflow 3.4 deletes the record when a user clears the task.
            self.awaits_pause = memory.is_kept and memory.is_first_try and memory.generation.try_number > 1
            return None
        self.owed = record if record.must_pause_on_kill else None
        if memory.cleared is None:
            self.record = None if record.phase is StartPhase.CLOSED else record
        elif record.phase in (StartPhase.SENT, StartPhase.STARTED):
            self.awaits_pause, self.cleared = True, record
            self._close(record)
        return self.record

    def _close(self, record: StartRecord) -> None:
        """Close the start of an earlier generation: a later process of this try may not see the signs of the clear."""
        try:
            self._keep(record.in_phase(StartPhase.CLOSED)._replace(generation=self.memory.generation))
        except Exception:
            log.warning(
                "Campaign %r: Airflow could not record that a user has cleared this task.",
                record.campaign_id,
                exc_info=True,
            )

    def add(self, before: Campaign, sent_at: datetime) -> None:
        """
        Record that a start is about to be sent.

        :param before: The campaign as it is now.
        :param sent_at: The time by the service's clock.
        :raises Exception: It could not be recorded; the start must not be sent then.
        """
        about = self._campaign_id, self._voicegenie_conn_id
        record = StartRecord.of(before, *about, self.memory.generation, sent_at)
        self.record = record._replace(must_pause_on_kill=self.owed is not None and self.owed.is_about(*about))
        self._keep(self.record)

    def set_phase(
        self, phase: StartPhase, started_at: datetime | None = None, *, must_pause_on_kill: bool | None = None
    ) -> None:
        """
        Record how far the start has come, if there is one. A failure to record is logged, never raised.

        :param phase: How far.
        :param started_at: When the service says it started the campaign.
        :param must_pause_on_kill: Whether the campaign may go on after the task was ended; ``None`` if that has not
            changed.
        """
        try:
            record = self.record or self.recall() or self.owed
            if record is not None:
                self.record = record.in_phase(phase, started_at, must_pause_on_kill)
                self.owed = self.record if self.record.must_pause_on_kill else None
                self._keep(self.record)
        except Exception:
            # The task instance that a user has cleared is gone, and with it what its start would mean to the next try.
            expected = phase is StartPhase.CLOSED
            log.log(
                logging.INFO if expected else logging.WARNING,
                "Campaign %r: could not record in Airflow that its start is %s.",
                self._campaign_id,
                phase.value,
                exc_info=not expected,
            )

    def _keep(self, record: StartRecord) -> None:
        self.memory.write(**record.to_document())
