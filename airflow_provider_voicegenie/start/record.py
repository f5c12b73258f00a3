# SPDX-License-Identifier: Apache-2.0
"""
The start that a task instance made, as its memory has it.

A try records its start before it sends it. A campaign is started at most once in each generation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, read_time, write_time
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.memory import Generation, Memory
from airflow_provider_voicegenie.rules.outcomes import Finding, apply_outcome
from airflow_provider_voicegenie.start.guards import check_run
from airflow_provider_voicegenie.start.refusals import Refusals
from airflow_provider_voicegenie.waiting.stop import (
    KillSwitch,
    PauseResult,
    pause_campaign_of_killed_task,
)

log = logging.getLogger(__name__)

#: A start that was recorded longer ago than this can no longer take effect.
LONGEST_START = timedelta(minutes=10)


class StartPhase(StrEnum):
    """How far the start of a task has come."""

    #: The request may have gone out.
    SENT = "sent"
    #: It took effect.
    STARTED = "started"
    #: It took effect, and the campaign was paused when the task's ``execution_timeout`` was over.
    TIMED_OUT = "timed_out"
    #: It took effect, and the task paused the campaign as its calling hours closed: it starts it again when they open.
    PAUSED = "paused"
    #: It was refused, or a user has ended it by marking or clearing the task: the next try may start anew.
    CLOSED = "closed"


class Start(NamedTuple):
    """
    What came of the attempt to start. The campaign may still run.

    :param started_at: When the service says it started the campaign, ISO 8601.
    :param started_by_task: Whether this task, in this try or an earlier one, started it.
    :param counters: What the wait begins with: when its counters were last read, and what they were (``at``,
        ``completed``, ``failed``), how many contacts it has (``total``), and from when on it is not shown as it was
        before the start (``pauses_count_from``).
    :param must_pause_on_kill: Whether the campaign is to be paused if the task is ended: an earlier try was told to
        pause the campaign, and may have failed.
    """

    status: str
    started_at: str | None = None
    started_by_task: bool = False
    counters: Mapping[str, Any] | None = None
    must_pause_on_kill: bool = False

    @property
    def is_paused_on_kill(self) -> bool:
        """Whether a user who ends the task wants the campaign paused."""
        return self.started_by_task or self.must_pause_on_kill

    @classmethod
    def by_task(
        cls, status: CampaignStatus, started_at: datetime | None, counters: Mapping[str, Any] | None = None
    ) -> Start:
        """Return a start that this task made."""
        return cls(status.value, write_time(started_at), True, counters or None)


class StartRecord(NamedTuple):
    """
    The start of a task, as it is kept across tries.

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
        fields = {
            "status_text": before.status_text,
            "completed_count": before.completed_count,
            "failed_count": before.failed_count,
            "updated_at": write_time(before.updated_at),
        }
        return cls(campaign_id, voicegenie_conn_id, StartPhase.SENT, generation, write_time(sent_at), None, fields)

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
    The start of a task instance: what is remembered of it, whether it may be in effect, and the pause that ends it.

    :param task: The operator, a ``StartCampaignOperator``.
    """

    def __init__(self, task: Any, context: Mapping[str, Any], hook: VoiceGenieHook, memory: Memory) -> None:
        self.task = task
        self.context = context
        self.memory = memory
        self.campaign_id: str = task.campaign_id
        #: Whether Airflow has ended the task.
        self.kill = KillSwitch()
        self.hook = hook
        hook.asking_airflow = self.kill.uninterrupted
        #: The requests of this try that the service has refused so far.
        self.refusals = Refusals(*memory.wait.get("refusals", ()))
        #: The start of this generation, as far as this process knows it.
        self.record: StartRecord | None = None
        #: The start of a campaign that this task paused as its calling hours closed, and is to start again; set by
        #: :meth:`recall`.
        self.paused: StartRecord | None = None
        #: The start of a campaign that may go on although this task was ended before; set by :meth:`recall`.
        self.owed: StartRecord | None = None
        #: The start of an earlier generation: as a user has cleared the task, the triggerer may pause its campaign any
        #: moment. Set by :meth:`recall`.
        self.cleared: StartRecord | None = None
        #: Whether such a pause may come, even if Airflow has deleted the record of that start.
        self.awaits_pause = False
        #: Whether this try has waited for the pause of a campaign without a record, in this process or before.
        self.has_waited_for_pause = bool(memory.wait)
        #: Whether Airflow keeps records, and they can be read: without one, no start was sent; set by :meth:`recall`.
        self.keeps_records = memory.is_kept
        #: Whether a start of this task is in effect, or may be.
        self.may_be_in_effect = False
        #: Whether it is surely in effect.
        self.is_confirmed = False

    def hook_of(self, record: StartRecord) -> VoiceGenieHook:
        """Return a hook for the campaign of a record, which may be of another account."""
        hook = VoiceGenieHook(record.voicegenie_conn_id)
        hook.asking_airflow = self.kill.uninterrupted
        return hook

    @property
    def about(self) -> dict[str, str]:
        """The campaign and the connection: the task's, or after a kill those of the start that is to be stopped."""
        return {"campaign_id": self.campaign_id, "voicegenie_conn_id": self.hook.voicegenie_conn_id}

    @property
    def hours(self) -> Mapping[str, Any]:
        """
        What is remembered of the days so far, once there was a pause at closing.

        When the wait ends in any case (``deadline``), the ``pauses``, when the hours open (``opens_at``, Unix seconds),
        and how many calls had finished before the first start (``calls_before``).
        """
        return (self.memory.document or {}).get("hours") or {}

    @property
    def is_out_of_time(self) -> bool:
        """
        Whether ``completion_timeout`` of all days is over, once there was a pause at closing.

        Half a second early is over, too: a time is rounded on its way.
        """
        deadline = self.hours.get("deadline")
        return bool(self.hours.get("pauses")) and deadline is not None and time.time() + 0.5 >= deadline

    @property
    def must_pause_on_kill(self) -> bool:
        """Whether an earlier end of this task left the campaign so that it may go on."""
        return self.owed is not None and self.owed.is_about(**self.about)

    @property
    def _triggerer_pauses_on_kill(self) -> bool:
        """
        Whether the triggerer pauses the campaign if a user ends the deferred task.

        It cannot record that, so the worker records it before.
        """
        task = self.task
        return bool(task.wait_for_completion and task.deferrable and task.pause_on_kill)

    def check_run(self, now: datetime | None = None) -> Finding | None:
        """
        Check the DAG run, unless the campaign goes on at an opening of its hours: it was due before then.

        :param now: The time; ``None`` for just now.
        """
        return None if self.hours.get("pauses") else check_run(self.task, self.context, now or datetime.now(UTC))

    def service_time(self) -> datetime:
        """Return the time by the service's clock."""
        return datetime.fromtimestamp(self.hook.server_time(), UTC)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """
        Let a kill interrupt the reads in this block. Do not call Airflow inside it.

        :raises VoiceGenieError: Airflow did not give the connection, which is asked for beforehand.
        """
        self.hook.get_conn()
        with self.kill.interruptible():
            yield

    def not_started(self, finding: Finding, status: CampaignStatus) -> Start:
        """Do to the task what a condition before the start does; return what it goes on with if it is a success."""
        apply_outcome(self.task.outcome_rules, finding, self.campaign_id)
        return Start(status.value, must_pause_on_kill=self.may_be_in_effect)

    # What the task remembers of it.

    def recall(self) -> StartRecord | None:
        """Return the start that an earlier try of this generation made, if there is one; of whichever campaign."""
        self.record = self.owed = self.cleared = self.paused = None
        memory = self.memory
        document = memory.read() or memory.cleared
        record = StartRecord.of_document(document)
        is_unreadable = record is None and (memory.is_unreadable or document is not None)
        self.keeps_records = memory.is_kept and not is_unreadable
        if record is None:
            # Airflow 3.4 deletes the record when a user clears the task.
            self.awaits_pause = memory.is_kept and memory.is_first_try and memory.generation.try_number > 1
            return None
        self.owed = record if record.must_pause_on_kill else None
        if memory.cleared is None:
            self.record = None if record.phase is StartPhase.CLOSED else record
            self.paused = record if record.phase is StartPhase.PAUSED else None
        elif record.phase in (StartPhase.SENT, StartPhase.STARTED):
            self.awaits_pause, self.cleared = True, record
            self._close(record)
        return self.record

    def _close(self, record: StartRecord) -> None:
        """Close the start of an earlier generation: a later process of this try may not see the signs of the clear."""
        try:
            closed = record.in_phase(StartPhase.CLOSED)._replace(generation=self.memory.generation)
            self.memory.write(**closed.to_document())
        except Exception:
            log.warning(
                "Campaign %r: Airflow could not record that a user has cleared this task.",
                record.campaign_id,
                exc_info=True,
            )

    def add_record(self, before: Campaign, sent_at: datetime) -> None:
        """
        Record that a start is about to be sent.

        :param before: The campaign as it is now.
        :param sent_at: The time by the service's clock.
        :raises Exception: It could not be recorded; the start must not be sent then.
        """
        record = StartRecord.of(before, **self.about, generation=self.memory.generation, sent_at=sent_at)
        self.record = record._replace(must_pause_on_kill=self.must_pause_on_kill)
        self.memory.write(**self.record.to_document())

    def set_phase(
        self, phase: StartPhase, started_at: datetime | None = None, *, must_pause_on_kill: bool | None = None
    ) -> None:
        """
        Record how far the start has come, if there is one. A failure to record is logged, never raised.

        :param started_at: When the service says it started the campaign.
        :param must_pause_on_kill: Whether the campaign may go on after the task was ended; ``None`` if that has not
            changed.
        """
        try:
            record = self.record or self.recall() or self.owed
            if record is not None:
                self.record = record.in_phase(phase, started_at, must_pause_on_kill)
                self.owed = self.record if self.record.must_pause_on_kill else None
                self.memory.write(**self.record.to_document())
        except Exception:
            # The task instance that a user has cleared is gone, and with it what its start would mean to the next try.
            expected = phase is StartPhase.CLOSED
            log.log(
                logging.INFO if expected else logging.WARNING,
                "Campaign %r: could not record in Airflow that its start is %s.",
                self.campaign_id,
                phase.value,
                exc_info=not expected,
            )

    def follow_again(self, status: CampaignStatus) -> Start:
        """Follow the campaign again which this task had paused at closing: somebody else has started it."""
        log.warning("Campaign %r: somebody has started it since this task paused it; it is followed.", self.campaign_id)
        self.may_be_in_effect = self.is_confirmed = True
        return Start.by_task(status, None if self.paused is None else read_time(self.paused.started_at))

    def take_back(self) -> None:
        """Record that the start which was about to be sent has no effect. A failure is logged, never raised."""
        if self.paused is None:
            self.set_phase(StartPhase.CLOSED)
            return
        self.record = self.paused
        self.set_phase(StartPhase.PAUSED)

    def confirm(self, started_at: datetime | None) -> None:
        """
        Record that the start took effect.

        :param started_at: When the service says it started the campaign.
        """
        self.is_confirmed = True
        self.set_phase(StartPhase.STARTED, started_at, must_pause_on_kill=self._triggerer_pauses_on_kill)

    # A deferral.

    def before_deferral(self, start: Start, deadline: float | None) -> dict[str, Any]:
        """
        Record, if that is not done yet, that a user who ends the deferred task wants the campaign paused.

        :param deadline: When the wait ends in any case, Unix seconds.
        :returns: What the resumed task has to know.
        """
        if start.started_by_task and self._triggerer_pauses_on_kill and self.owed is None:
            self.set_phase(StartPhase.STARTED, must_pause_on_kill=True)
        return {
            "start": self.record and self.record.to_document()["start"],
            "wait": start._asdict(),
            "hours": {"pauses": [], **self.hours, "deadline": deadline},
        }

    @property
    def calls_before(self) -> int:
        """How many calls of the campaign had finished before this task started it."""
        if (known := self.hours.get("calls_before")) is not None:
            return int(known)
        before = {} if self.record is None else self.record.before
        return (before.get("completed_count") or 0) + (before.get("failed_count") or 0)

    def pause_until_opening(self, opens: datetime, deadline: float | None, pauses: Sequence[Mapping[str, Any]]) -> None:
        """
        Record that the task has paused the campaign, and is to start it again when the calling hours open.

        :param opens: When that is.
        :param deadline: When the wait ends in any case, Unix seconds.
        :raises Exception: It could not be recorded; the campaign stays paused then.
        """
        self.may_be_in_effect = False
        record = self.record or self.recall()
        if record is None:
            raise AirflowFailException(
                f"Campaign {self.campaign_id!r}: it is paused, as its calling hours are over, and Airflow has lost the "
                "record of its start, so this task does not start it again."
            )
        hours = {
            "deadline": deadline,
            "pauses": [dict(pause) for pause in pauses],
            "opens_at": opens.timestamp(),
            "calls_before": self.calls_before,
        }
        self.paused = self.record = record.in_phase(StartPhase.PAUSED, must_pause_on_kill=False)
        # What was refused yesterday does not count today.
        self.refusals = Refusals().counted_from(opens)
        self.memory.write(**self.record.to_document(), hours=hours, wait=None)

    def after_deferral(self) -> Start:
        """Go on with the start that was made before the deferral, and return it."""
        start = Start(**self.memory.wait)
        self.may_be_in_effect = self.is_confirmed = start.is_paused_on_kill
        self.record = StartRecord.of_document(self.memory.document)
        if start.started_by_task and self._triggerer_pauses_on_kill:
            self.set_phase(StartPhase.STARTED, must_pause_on_kill=False)
        return start

    # Its end.

    def stop_calls(self, phase: StartPhase) -> None:
        """
        Pause the campaign, if a start of this task may be in effect and the author wants it.

        :param phase: How far the start has come with that.
        """
        if not (self.may_be_in_effect and self.task.pause_on_kill):
            return
        self.may_be_in_effect = False
        result = pause_campaign_of_killed_task(self.campaign_id, self.hook.send, may_start_late=not self.is_confirmed)
        # A start that may still take effect stays on record as sent: the next try looks for it.
        if result is not PauseResult.FAILED or self.is_confirmed:
            self.set_phase(phase, must_pause_on_kill=result is not PauseResult.STOPPED)
