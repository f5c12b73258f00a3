# SPDX-License-Identifier: Apache-2.0
"""At most one start for one task instance: take over an earlier one, or check, record, send, and find out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.errors import NotFoundError, RateLimitError, VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus, read_time, write_time
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.metrics import count_start
from airflow_provider_voicegenie.rules.calling_hours import DAYS_AHEAD, next_opening
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, Outcome, apply_outcome
from airflow_provider_voicegenie.start.evidence import (
    TookEffect,
    has_started_itself,
    took_effect_by_statistics,
    took_effect_by_status,
    was_started_in_run,
)
from airflow_provider_voicegenie.start.guards import (
    RunFacts,
    check_calling_hours,
    check_campaign,
    check_configuration,
    check_run,
    describe_contacts,
    describe_start,
)
from airflow_provider_voicegenie.start.options import StartOptions
from airflow_provider_voicegenie.start.record import OwnStart, Start, StartPhase, StartRecord
from airflow_provider_voicegenie.start.refusals import PATIENCE, Refusals
from airflow_provider_voicegenie.waiting.killing import (
    KillSwitch,
    PauseResult,
    TaskKilled,
    pause_campaign_of_killed_task,
)

log = logging.getLogger(__name__)

#: Seconds for which Airflow's word that nobody has ended the task counts, while a connection is made.
_FRESH_STATE = 1.0

#: Seconds for which the response to a start is awaited once Airflow has ended the task. Five seconds after it has said
#: so, it ends the process, and by then the campaign has to be paused.
_PATIENCE_WITH_RESPONSE = 1.0

#: Seconds before each look at a campaign whose start got no response: a gateway may give up on a request that the
#: service behind it still carries out.
_LOOK_DELAYS = (0.0, 1.0, 2.0, 4.0)

#: How long after a moment the statistics are sure to be of a later one: they may come from a cache of 30 seconds.
_STATISTICS_LAG = timedelta(seconds=32)

#: How long after it was recorded a start is surely over, and with it what the service does for it.
_LONGEST_START = timedelta(minutes=10)

#: Seconds for which a cleared task leaves whoever followed its campaign the time to pause it; Airflow gives the
#: triggerer no more either.
_PATIENCE_FOR_PAUSE = 30.0


class _NotAllowedError(Exception):
    """A start must not be sent any more."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class StartOnce:
    """
    Starts a campaign at most once for one task instance.

    *How it works.* A start of an earlier try is taken over. Otherwise the run, the campaign and the time are checked,
    the start is recorded in Airflow, and one request is sent. Once its connection is made, right before it is sent, run
    and time are checked again, and that Airflow has not ended the task. If it gets no valid response, the campaign is
    looked at before anything else.

    *What it does not do.* It never repeats a start that may have taken effect, and it starts nothing once Airflow has
    told the task to end.

    *Known limitation.* Airflow before 3.3 keeps nothing across tries. There, the service's own time of the start is
    compared with the begin of the DAG run.

    :param hook: The service.
    :param campaign_id: The campaign.
    :param context: The task's context.
    :param options: What the author wants.
    :param memory: What the task remembers.
    :param kill: Whether Airflow has ended the task.
    :param refusals: The requests of this try that the service has refused so far.
    """

    def __init__(
        self,
        hook: VoiceGenieHook,
        campaign_id: str,
        context: Mapping[str, Any],
        options: StartOptions,
        memory: Memory,
        kill: KillSwitch,
        refusals: Refusals,
    ) -> None:
        self.hook = hook
        self.campaign_id = campaign_id
        self._context = context
        self._options = options
        self._kill = kill
        #: The requests of this try that the service has refused so far.
        self.refusals = refusals
        self._own = OwnStart(memory, campaign_id, hook.voicegenie_conn_id)
        #: Whether a start of this task is in effect, or may be.
        self.may_be_in_effect = False
        #: Whether it is surely in effect.
        self._is_confirmed = False
        # Whether any of this try's start was sent.
        self._is_sent = False
        # When Airflow last said that nobody has ended the task, and when it was first seen to have ended it meanwhile.
        self._asked_airflow_at = 0.0
        self._killed_at: float | None = None

    def start(self) -> Start | datetime:
        """
        Start the campaign, or take over the start of an earlier try; or return when to check everything anew.

        :raises VoiceGenieError: The service refused, or could not be asked.
        """
        if self._options.check_only:
            self._kill.check()
            return self._start()
        return self._take_over() or self._start()

    def resume(self, start: Start) -> None:
        """
        Go on with a start that was made before a deferral, of which the memory has the record.

        :param start: The start.
        """
        self.may_be_in_effect = self._is_confirmed = start.is_paused_on_kill
        self._own.record = StartRecord.of_document(self._own.memory.document)
        if start.started_by_task and self._is_heard_by_triggerer:
            self._own.set_phase(StartPhase.STARTED, must_pause_on_kill=False)

    def before_deferral(self, start: Start) -> dict[str, Any]:
        """
        Record, if that is not done yet, that whoever ends the deferred task wants the campaign paused.

        :param start: The start.
        :returns: What the resumed task has to know.
        """
        if start.started_by_task and self._is_heard_by_triggerer and self._own.owed is None:
            self._own.set_phase(StartPhase.STARTED, must_pause_on_kill=True)
        record = self._own.record
        return {"start": None if record is None else record.to_document()["start"], "wait": start._asdict()}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """
        Let a kill interrupt the reads in this block. Do not call Airflow inside it.

        :raises VoiceGenieError: Airflow did not give the connection, which is asked for beforehand.
        """
        self.hook.get_conn()
        with self._kill.interruptible():
            yield

    def stop_calls(self, phase: StartPhase) -> None:
        """
        Pause the campaign, if a start of this task may be in effect and the author wants it.

        :param phase: How far the start has come with that.
        """
        if not (self.may_be_in_effect and self._options.pause_on_kill):
            return
        self.may_be_in_effect = False
        stop = pause_campaign_of_killed_task(
            self.hook.pause_campaign,
            lambda campaign_id: self.hook.get_campaign(campaign_id, max_attempts=1),
            self.campaign_id,
            may_start_late=not self._is_confirmed,
        )
        # A start that may still take effect stays on record as sent: the next try looks for it.
        if stop is not PauseResult.FAILED or self._is_confirmed:
            self._own.set_phase(phase, must_pause_on_kill=stop is not PauseResult.STOPPED)

    def recognize_earlier_start(self) -> None:
        """Ask the service whether a killed task's earlier try started the campaign, if Airflow keeps nothing of it."""
        if self._options.check_only or self.may_be_in_effect or self._own.tell_all or self._own.memory.is_first_try:
            return
        try:
            campaign = self.hook.get_campaign(self.campaign_id)
            if campaign.status.is_running:
                statistics = self.hook.get_campaign_stats(self.campaign_id)
                was_started = self._was_started_in_run(campaign, statistics) is TookEffect.YES
                is_ours = was_started and not self._has_started_itself(campaign, statistics)
                self.may_be_in_effect = self._is_confirmed = is_ours
        except VoiceGenieError as error:
            log.warning("%s Look in the VoiceGenie dashboard whether it has to be paused.", error)

    # A start of this try.

    def _start(self) -> Start | datetime:
        finding = self._check_run(datetime.now(UTC))
        if finding is not None:
            return self._not_started(finding, CampaignStatus.UNKNOWN)
        self._await_pause_of_another()
        refused: RateLimitError | None = None
        try:
            with self.reading():
                before = self._campaign_before()
        except RateLimitError as error:
            refused = error
        if refused is not None:
            return self._refused(refused, was_start=False)
        if before.status is CampaignStatus.UNKNOWN:
            log.warning(
                "Campaign %r: its status %.40r is unknown here, so the service decides whether it can be started.",
                self.campaign_id,
                before.status_text,
            )
        if (finding := self._check(before)) is not None:
            return self._not_allowed(finding, before)
        if self._options.check_only:
            return self._would_start(before, "")
        sent_at = self._service_time()
        try:
            with self._recorded(before, sent_at):
                return self._send(before, sent_at)
        except _NotAllowedError as error:
            finding = error.finding
        except RateLimitError as error:
            # A response that claims both success and a 429 proves neither.
            if error.may_have_taken_effect:
                raise
            refused = error
        if refused is not None:
            return self._refused(refused, was_start=True)
        assert finding is not None  # noqa: S101
        return self._not_allowed(finding, before)

    def _refused(self, error: RateLimitError, *, was_start: bool) -> Start | datetime:
        """Wait after a 429, as nothing was carried out: as asked, but not for ever, nor past what the task may do."""
        now, maximum = time.time(), self.hook.max_attempts
        self.refusals = self.refusals.one_more(now, was_start=was_start)
        until = self.refusals.earliest_attempt(error.retry_after, now, maximum)
        hours, rules = self._options.calling_hours, self._options.outcome_rules
        closes = rules.outcome(Condition.OUTSIDE_CALLING_HOURS) is not Outcome.WAIT
        if until is None:
            is_over = maximum == 1 or self.refusals.starts >= maximum
            limit = f"max_attempts is {maximum}"
            if not is_over:
                limit = f"it would have to wait longer than {PATIENCE.total_seconds() / 3600:g} hours"
            why = f"{self.refusals} and {limit}"
        elif closes and check_calling_hours(hours, until) is not None:
            why = f"{self.refusals} and its calling hours are over when the service takes requests again"
        elif (too_late := self._check_run(until)) is not None:
            message = f"{error.message.rstrip('.')}; when it is tried again, {too_late.message}"
            return self._not_started(too_late._replace(message=message), CampaignStatus.UNKNOWN)
        else:
            until = self.refusals.spread_out(until)
            log.warning(
                "Campaign %r was not started yet: the service takes no requests for now (429). Trying again at %s "
                "(%s max_attempts is %d).",
                self.campaign_id,
                write_time(until),
                self.refusals,
                maximum,
            )
            return until
        message = f"it was not started. {error.message} It is not tried again, as {why}"
        apply_outcome(rules, Finding.of(error)._replace(message=message), self.campaign_id)
        raise error

    def _check(self, before: Campaign) -> Finding | None:
        """Return the first finding of the guards that look at the campaign and the hours."""
        options, now = self._options, datetime.now(UTC)
        return (
            check_campaign(before, options.max_contacts)
            or (check_configuration(before, now) if options.check_only else None)
            or check_calling_hours(options.calling_hours, now)
        )

    def _not_allowed(self, finding: Finding, before: Campaign) -> Start | datetime:
        if finding.condition is Condition.OUTSIDE_CALLING_HOURS:
            return self._not_now(finding, before)
        return self._not_started(finding, before.status)

    def _check_run(self, now: datetime) -> Finding | None:
        return check_run(
            RunFacts.of(self._context),
            now,
            start_in_backfill=self._options.start_in_backfill,
            max_lateness=self._options.max_lateness,
        )

    def _not_now(self, finding: Finding, before: Campaign) -> Start | datetime:
        """Apply the outcome of being outside the calling hours, which may be to wait for them."""
        hours, rules = self._options.calling_hours, self._options.outcome_rules
        if rules.outcome(finding.condition) is not Outcome.WAIT:
            return self._not_started(finding, before.status)
        opens = next_opening(hours, datetime.now(UTC))
        if opens is None:
            raise AirflowFailException(
                f"Campaign {self.campaign_id!r}: {finding.message}, and they do not open within {DAYS_AHEAD} days. "
                f"Change calling_hours (days, except_dates) [{finding.condition}: the task fails, without retry]."
            )
        if (too_late := self._check_run(opens)) is not None:
            late = too_late._replace(message=f"{finding.message}; when they open, {too_late.message}")
            return self._not_started(late, before.status)
        when = f"{hours[0].local_time(opens)} ({write_time(opens)})"
        if self._options.check_only:
            return self._would_start(before, f"wait until {when}, and then ")
        apply_outcome(rules, finding._replace(message=f"{finding.message}; they open on {when}"), self.campaign_id)
        self.refusals = self.refusals.counted_from(opens)
        return opens

    def _would_start(self, before: Campaign, first: str) -> Start:
        log.info(
            "Campaign %r: would %sstart it: %s. Nothing was sent, as check_only is set.",
            self.campaign_id,
            first,
            describe_start(before, self._options.calling_hours, datetime.now(UTC)),
        )
        return Start(before.status.value)

    @contextmanager
    def _recorded(self, before: Campaign, sent_at: datetime) -> Iterator[None]:
        """Record a start that is about to be sent; and that it has no effect, if it is known to have none."""
        self._is_sent = False
        try:
            self._own.add(before, sent_at)
            if (task_instance := self._context.get("ti")) is not None:
                # Before the start: a task that pauses the campaign after a failure needs it.
                task_instance.xcom_push(key="campaign_id", value=self.campaign_id)
            self._kill.check_with_airflow(self._context)
            self._asked_airflow_at = time.monotonic()
            yield
        except BaseException as error:
            # Also if it was interrupted, as by a kill or by `execution_timeout`.
            is_refused = isinstance(error, VoiceGenieError) and not error.may_have_taken_effect
            if is_refused or not self._is_sent:
                self.may_be_in_effect = self._owes_pause
                self._own.set_phase(StartPhase.CLOSED)
            raise

    def _send(self, before: Campaign, sent_at: datetime) -> Start:
        ambiguous: VoiceGenieError
        try:
            started = self.hook.start_campaign(
                self.campaign_id, on_sending=self._on_sending, while_waiting=self._while_waiting
            )
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                raise
            ambiguous = error
        else:
            self._is_confirmed = True
            self._own.set_phase(StartPhase.STARTED, started.started_at, must_pause_on_kill=self._is_heard_by_triggerer)
            count_start(was_ambiguous=False)
            if not started.status.is_running:
                log.warning(
                    "Campaign %r: the service accepted the start, but its status is %.40r, not running.",
                    self.campaign_id,
                    started.status_text,
                )
            self._log_start(before, started.status)
            seen = {"at": time.time(), "completed": before.completed_count, "failed": before.failed_count}
            return Start.by_task(started.status, started.started_at, {**seen, **self._doubt_pauses(before)})
        log.warning("%s The start may have taken effect; looking at the campaign before anything else.", ambiguous)
        start = self._find_out(before, sent_at, None, f" What went wrong was: {ambiguous.message}")
        if start is None:
            raise ambiguous
        return start

    def _log_start(self, before: Campaign, status: CampaignStatus) -> None:
        log.info(
            "Campaign %r was started: %s, status %s.%s",
            self.campaign_id,
            describe_contacts(before),
            status.value,
            "" if self._options.wait_for_completion else " The task does not wait for its end.",
        )

    def _on_sending(self) -> None:
        """
        Check, now that the connection is made, what must hold when the start is sent.

        :raises TaskKilled: Airflow has ended the task.
        :raises _NotAllowedError: The campaign must not be started any more.
        """
        if time.monotonic() - self._asked_airflow_at > _FRESH_STATE:
            self._kill.check_with_airflow(self._context)
        now = datetime.now(UTC)
        finding = self._check_run(now) or check_calling_hours(self._options.calling_hours, now)
        self._kill.check()
        if finding is not None:
            raise _NotAllowedError(finding)
        self._is_sent = self.may_be_in_effect = True

    def _while_waiting(self) -> None:
        """
        End the start if Airflow has ended the task: at once before it is sent, and soon while the response is awaited.

        :raises TaskKilled: Airflow has ended the task.
        """
        if not self._is_sent:
            self._kill.check()
        elif self._kill.pulled:
            self._killed_at = self._killed_at or time.monotonic()
            if time.monotonic() - self._killed_at > _PATIENCE_WITH_RESPONSE:
                raise TaskKilled

    @property
    def _is_heard_by_triggerer(self) -> bool:
        """Whether a user may end the task while it is deferred; the triggerer that pauses then can record nothing."""
        options = self._options
        return options.wait_for_completion and options.deferrable and options.pause_on_kill

    @property
    def _owes_pause(self) -> bool:
        """Whether an earlier end of this task left the campaign so that it may go on."""
        owed = self._own.owed
        return owed is not None and owed.is_about(self.campaign_id, self.hook.voicegenie_conn_id)

    def _campaign_before(self) -> Campaign:
        """Read the campaign; if a user has cleared this task, once its earlier start is paused."""
        campaign = self._read_unless_limited()
        if not (self._may_be_paused_late and campaign.status.is_running):
            return campaign
        return self._await_pause(self.hook, campaign)

    def _read_unless_limited(self) -> Campaign:
        """Read the campaign. A 429 is not waited out here: the task does that, and may leave its worker for it."""
        attempts = self.hook.max_attempts
        try:
            return self.hook.get_campaign(self.campaign_id, max_attempts=1)
        except VoiceGenieError as error:
            if isinstance(error, RateLimitError) or not error.temporary or attempts == 1:
                raise
            log.warning("%s Trying again.", error)
            delay = poll_delay(0.0, 1, error.retry_after)
        time.sleep(delay)
        return self.hook.get_campaign(self.campaign_id, max_attempts=attempts - 1)

    @property
    def _may_be_paused_late(self) -> bool:
        options = self._options
        return options.wait_for_completion and options.pause_on_kill and self._own.awaits_pause

    def _await_pause(self, hook: VoiceGenieHook, campaign: Campaign) -> Campaign:
        """Wait until a campaign that runs is paused, for as long as that may take; return it as it is then."""
        log.info("Campaign %r: this task was cleared while it ran; waiting for its pause.", campaign.campaign_id)
        deadline = time.monotonic() + _PATIENCE_FOR_PAUSE
        while campaign.status.is_running and time.monotonic() < deadline:
            time.sleep(1)
            campaign = hook.get_campaign(campaign.campaign_id)
        return campaign

    def _await_pause_of_another(self) -> None:
        """Wait for the pause of the campaign that this task started before a user cleared it, if it was another."""
        cleared = self._own.cleared
        if cleared is None or not self._may_be_paused_late:
            return
        if cleared.is_about(self.campaign_id, self.hook.voicegenie_conn_id):
            return
        # Nobody pauses the campaign that comes now.
        self._own.cleared, self._own.awaits_pause = None, False
        hook = VoiceGenieHook(cleared.voicegenie_conn_id)
        try:
            hook.get_conn()
            with self._kill.interruptible():
                campaign = hook.get_campaign(cleared.campaign_id)
                if campaign.status.is_running:
                    campaign = self._await_pause(hook, campaign)
        except VoiceGenieError as error:
            log.warning("%s", error)
            return
        if campaign.status.is_running:
            log.error(
                "Campaign %r: this task started it before it was cleared, and it was not paused. IT MAY GO ON CALLING: "
                "pause it in the VoiceGenie dashboard. This task goes on with campaign %r.",
                cleared.campaign_id,
                self.campaign_id,
            )

    def _not_started(self, finding: Finding, status: CampaignStatus) -> Start:
        apply_outcome(self._options.outcome_rules, finding, self.campaign_id)
        return Start(status.value, must_pause_on_kill=self.may_be_in_effect)

    # A start without a response.

    def _find_out(
        self, before: Campaign, sent_at: datetime, over_at: datetime | None, problem: str = ""
    ) -> Start | None:
        """
        Find out what became of a start that got no valid response; ``None`` if it did not take effect.

        :param before: The campaign as it was before.
        :param sent_at: When the start was sent, by the service's clock.
        :param over_at: When the request was surely over, by the service's clock; ``None`` for just now.
        :param problem: What went wrong, for the message.
        """
        with self.reading():
            looks, statistics = self._look_for_start(before, over_at)
        took_effect = took_effect_by_status(before, looks) if looks else TookEffect.UNKNOWN
        started_at = None
        if took_effect is not TookEffect.YES:
            took_effect = took_effect_by_statistics(
                took_effect, statistics, sent_at, self._service_time(), is_clock_known=self.hook.is_clock_known
            )
            if took_effect is TookEffect.YES and statistics is not None:
                started_at = statistics.started_at
        now = f", is now {_word(looks[-1])}" if looks else ", and it cannot be read now"
        seen = f"status was {_word(before)}{now}"
        if took_effect is TookEffect.UNKNOWN and looks and statistics is None:
            seen += ", and its statistics cannot be read now"
        log.info("Campaign %r: %s (%s).", self.campaign_id, took_effect.value, seen)
        if took_effect is TookEffect.YES:
            self._is_confirmed = True
            self._own.set_phase(StartPhase.STARTED, started_at, must_pause_on_kill=self._is_heard_by_triggerer)
            count_start(was_ambiguous=True)
            self._log_start(before, looks[-1].status)
            return Start.by_task(looks[-1].status, started_at, self._doubt_pauses(before))
        if took_effect is TookEffect.NO:
            # It stays on record as sent: should it take effect after all, the next try finds it.
            self.may_be_in_effect = False
            return None
        return self._unconfirmed(
            f"the start may have been sent, but no valid response came, and {took_effect.value} ({seen})", problem
        )

    def _look_for_start(
        self, before: Campaign, over_at: datetime | None
    ) -> tuple[list[Campaign], CampaignStats | None]:
        """
        Look at the campaign until it shows that the start took effect, and at the statistics if it does not.

        The campaign may be shown as it was before, so only statistics from after the start show that nothing happened.
        """
        looks: list[Campaign] = []
        for delay in _LOOK_DELAYS:
            time.sleep(delay)
            if self._look(before, looks):
                return looks, None
        if not looks:
            return looks, None
        self._await_fresh_statistics(over_at, timedelta(seconds=sum(_LOOK_DELAYS)))
        if self._look(before, looks):
            return looks, None
        try:
            return looks, self.hook.get_campaign_stats(self.campaign_id)
        except VoiceGenieError as error:
            log.warning("%s", error)
            return looks, None

    def _look(self, before: Campaign, looks: list[Campaign]) -> bool:
        """Read the campaign, and say whether it shows that the start took effect."""
        try:
            looks.append(self.hook.get_campaign(self.campaign_id))
        except VoiceGenieError as error:
            log.warning("%s", error)
            return False
        return took_effect_by_status(before, looks) is TookEffect.YES

    def _doubt_pauses(self, before: Campaign | None, sent_at: datetime | None = None) -> dict[str, float]:
        """
        Say from when on the campaign is surely shown as it is after the start, if it may be shown as paused before.

        :param before: The campaign as it was before; ``None`` if nobody knows.
        :param sent_at: When the start was sent, by the service's clock; ``None`` for just now.
        :returns: What the wait is given of that.
        """
        if before is not None and before.status not in (CampaignStatus.PAUSED, CampaignStatus.UNKNOWN):
            return {}
        passed = timedelta() if sent_at is None else max(timedelta(), self._service_time() - sent_at)
        left = _STATISTICS_LAG - passed
        return {"pauses_count_from": time.time() + left.total_seconds()} if left > timedelta() else {}

    def _unconfirmed(self, what: str, problem: str = "") -> NoReturn:
        message = (
            f"{what}. Look at the campaign in the VoiceGenie dashboard: if it was not started, clear this task to "
            f"start it; if it was, mark the task as success.{problem}"
        )
        apply_outcome(self._options.outcome_rules, Finding(Condition.START_UNCONFIRMED, message), self.campaign_id)
        raise AssertionError("START_UNCONFIRMED always ends the task")

    def _await_fresh_statistics(self, over_at: datetime | None = None, waited: timedelta = timedelta()) -> None:
        """
        Wait until statistics read now cannot be from before what was done: the service caches them for 30 s.

        How long to sleep is not for a clock of others to say: it is all of that time, less what was waited.

        :param over_at: When it was surely done, by the service's clock; ``None`` for just now.
        :param waited: How long this process has waited since.
        """
        if over_at is not None and self.hook.is_clock_known and self._service_time() > over_at + _STATISTICS_LAG:
            return
        seconds = (_STATISTICS_LAG - waited).total_seconds()
        if seconds > 0:
            log.info("Campaign %r: its statistics may be old; reading them in %.0f s.", self.campaign_id, seconds)
            time.sleep(seconds)

    # The start of an earlier try.

    def _take_over(self) -> Start | None:
        """Return the start that an earlier try of this task made, if one did."""
        record = self._own.recall()
        owed = self._own.owed
        if (known := record or owed) is not None and self._kill.pulled:
            # The end of a task is about the campaign that it started, even if its templates give another one by now.
            self.campaign_id, self.hook = known.campaign_id, VoiceGenieHook(known.voicegenie_conn_id)
        if record is not None:
            self._refuse_another_campaign(record)
            self.may_be_in_effect = record.phase is not StartPhase.TIMED_OUT
            self._is_confirmed = record.phase is StartPhase.STARTED
        if self._owes_pause:
            self.may_be_in_effect = self._is_confirmed = True
        self._kill.check()
        if record is None:
            if self._own.tell_all or self._own.memory.is_first_try:
                return None
            return self._take_over_by_evidence()
        if record.phase is StartPhase.TIMED_OUT:
            was_paused = "could not pause it" if record.must_pause_on_kill else "paused it"
            raise AirflowFailException(
                f"Campaign {self.campaign_id!r}: an earlier try of this task started it, and {was_paused} when its "
                "execution_timeout was over. A retry does not start it again. To let it go on, clear this task; to "
                "give up waiting without a pause, use completion_timeout."
            )
        if record.phase is StartPhase.SENT:
            log.warning(
                "Campaign %r: an earlier try of this task was ended while it sent the start. Looking at the campaign.",
                self.campaign_id,
            )
            sent_at = read_time(record.sent_at) or datetime.now(UTC)
            return self._find_out(record.campaign_before(), sent_at, sent_at + _LONGEST_START)
        seen = self._doubt_pauses(record.campaign_before(), read_time(record.sent_at))
        return self._taken_over(read_time(record.started_at), seen)

    def _refuse_another_campaign(self, record: StartRecord) -> None:
        """Fail if the start of an earlier try was another campaign's: one task starts one campaign."""
        now = (self.campaign_id, self.hook.voicegenie_conn_id)
        if record.is_about(*now):
            return
        earlier = (record.campaign_id, record.voicegenie_conn_id)
        raise AirflowFailException(
            f"Campaign {now[0]!r:.80} (connection {now[1]!r}): an earlier try of this task started campaign "
            f"{earlier[0]!r:.80} (connection {earlier[1]!r}), so this try starts nothing. The templates of the task "
            "give another campaign at each try: use one that stays the same. To start the new one, clear this task; "
            "the earlier one is not paused by that."
        )

    def _take_over_by_evidence(self) -> Start | None:
        """Ask the service whether an earlier try started the campaign: this Airflow keeps nothing across tries."""
        with self.reading():
            campaign, statistics = self._evidence_of_run()
        if statistics is None:
            return None
        was_started = self._was_started_in_run(campaign, statistics)
        if was_started is TookEffect.YES:
            started_at = write_time(statistics.started_at)
            if self._has_started_itself(campaign, statistics):
                log.info(
                    "Campaign %r: it was started at %s, outside the calling hours, so by no earlier try of this task.",
                    self.campaign_id,
                    started_at,
                )
                return None
            log.warning(
                "Campaign %r: it was started at %s, since this DAG run began, so an earlier try of this task is taken "
                "to have done that. If it has a daily schedule, it may have started itself.",
                self.campaign_id,
                started_at,
            )
            self.may_be_in_effect = self._is_confirmed = True
            return self._taken_over(statistics.started_at, self._doubt_pauses(None, statistics.started_at))
        if was_started is TookEffect.UNKNOWN:
            seen = f"status {_word(campaign)}, but no time of its start that can be compared"
            self._unconfirmed(
                f"an earlier try of this task may have started it, and nothing shows whether it did ({seen})"
            )
        return None

    def _evidence_of_run(self) -> tuple[Campaign, CampaignStats | None]:
        """Read the campaign and statistics that show a start by an earlier try, which may have ended just now."""
        campaign = self.hook.get_campaign(self.campaign_id)
        try:
            statistics = self.hook.get_campaign_stats(self.campaign_id)
            if self._was_started_in_run(campaign, statistics) is not TookEffect.YES:
                self._await_fresh_statistics()
                campaign = self.hook.get_campaign(self.campaign_id)
                statistics = self.hook.get_campaign_stats(self.campaign_id)
        except NotFoundError:
            if campaign.status.may_have_been_started:
                raise
            # It never ran, and the service may have no statistics of such a campaign.
            return campaign, None
        return campaign, statistics

    def _was_started_in_run(self, campaign: Campaign, statistics: CampaignStats) -> TookEffect:
        return was_started_in_run(
            campaign, statistics, self._run_began(), self._service_time(), is_clock_known=self.hook.is_clock_known
        )

    def _has_started_itself(self, campaign: Campaign, statistics: CampaignStats) -> bool:
        try:
            return has_started_itself(campaign, statistics, self._options.calling_hours)
        except ValueError as error:
            # A function of the author's failed: then the campaign counts as the task's own, which a kill pauses.
            log.warning("Campaign %r: %s", self.campaign_id, error)
            return False

    def _taken_over(self, started_at: datetime | None, seen: Mapping[str, Any]) -> Start:
        status = CampaignStatus.UNKNOWN
        try:
            with self.reading():
                status = self.hook.get_campaign(self.campaign_id).status
        except VoiceGenieError as error:
            log.warning("%s", error)
        log.info(
            "Campaign %r: an earlier try of this task started it, so it is not started again; its status is %s.",
            self.campaign_id,
            status.value,
        )
        return Start.by_task(status, started_at, seen)

    def _service_time(self) -> datetime:
        return datetime.fromtimestamp(self.hook.server_time(), UTC)

    def _run_began(self) -> datetime | None:
        """Return when the DAG run began, by the service's clock."""
        began: datetime | None = getattr(self._context["dag_run"], "start_date", None)
        return None if began is None else began + (self._service_time() - datetime.now(UTC))


def _word(campaign: Campaign) -> str:
    """Return the status as we read it; the service's own word if we do not know it."""
    status = campaign.status
    return repr(campaign.status_text[:40]) if status is CampaignStatus.UNKNOWN else status.value
