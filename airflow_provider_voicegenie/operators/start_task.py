# SPDX-License-Identifier: Apache-2.0
"""
One run of a ``StartCampaignOperator`` in a worker: from the guards to the end of the wait.

Apart from the operator, whose module every parse of a DAG file loads.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus, read_time
from airflow_provider_voicegenie.decisions.completion import CompletionWatch
from airflow_provider_voicegenie.decisions.earlier_start import Start, StartPhase, StartRecord, was_started_in_run
from airflow_provider_voicegenie.decisions.final_statistics import FinalStatistics
from airflow_provider_voicegenie.decisions.guards import (
    Finding,
    check_calling_hours,
    check_campaign,
    check_run,
)
from airflow_provider_voicegenie.decisions.outcomes import Condition
from airflow_provider_voicegenie.decisions.settlement import Settlement, settle_by_stats, settle_by_status
from airflow_provider_voicegenie.decisions.waiting import End, EndReason
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.links import keep_link
from airflow_provider_voicegenie.operators.killing import (
    KillSwitch,
    TaskKilled,
    is_ended_in_airflow,
    pause_campaign_of_killed_task,
    was_ended_by_user,
)
from airflow_provider_voicegenie.operators.run_facts import run_facts
from airflow_provider_voicegenie.operators.start_memory import StartMemory
from airflow_provider_voicegenie.task_end import VoiceGenieRetryException, settle_error, settle_task
from airflow_provider_voicegenie.waits import (
    deferral_timeout,
    execution_deadline,
    read_final_statistics,
    wait_for_completion,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

log = logging.getLogger(__name__)

#: Seconds before each look at a campaign whose start was left without an answer: a gateway may give up on a
#: request that the service behind it still carries out.
_LOOK_DELAYS = (0.0, 1.0, 2.0, 4.0)

#: How long after a moment the statistics are sure to be of a later one: they may come from a cache of 30 seconds.
_STATISTICS_LAG = timedelta(seconds=32)

#: Seconds for which a cleared task leaves the triggerer the time to pause the campaign that it followed; Airflow gives
#: the triggerer no more either.
_PATIENCE_FOR_PAUSE = 30.0

#: Statuses in which there is an end to wait for, whoever started the campaign.
_TO_BE_FOLLOWED = (CampaignStatus.RUNNING, CampaignStatus.PAUSED, CampaignStatus.COMPLETED, CampaignStatus.UNKNOWN)


class StartTask:
    """
    One run of the task in this process.

    :param operator: The task.
    :param context: Its context.
    """

    def __init__(self, operator: StartCampaignOperator, context: Context) -> None:
        self._operator = operator
        self._context = context
        self._campaign_id = operator.campaign_id
        self._hook = VoiceGenieHook(operator.voicegenie_conn_id)
        self._memory = StartMemory(context, operator.campaign_id, operator.voicegenie_conn_id)
        self._kill = KillSwitch()
        #: Whether a start of this task is in effect, or may be.
        self._calling = False

    def execute(self) -> dict[str, Any]:
        """Start the campaign, and wait for it if asked to."""
        return self._guarded(self._execute)

    def resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        return self._guarded(lambda: self._resume(event))

    def resume_late(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after Airflow ended the deferral, as no triggerer did in time."""
        return self._guarded(lambda: self._resume_late(Start(**start)))

    def kill(self) -> None:
        """Take note, in a signal handler too, that Airflow ends the task."""
        self._kill.pull()

    def end_before_resuming(self, start: Mapping[str, Any]) -> None:
        """Stop the calls of a deferred task that Airflow 2 ends before it resumes it: out of time, or by a user."""
        is_out_of_time = isinstance(sys.exception(), AirflowTaskTimeout)
        if is_out_of_time or was_ended_by_user(self._context):
            self._calling = Start(**start).started_by_task
            self._stop_calls(StartPhase.TIMED_OUT if is_out_of_time else StartPhase.CLOSED)

    # The start.

    def _execute(self) -> dict[str, Any]:
        try:
            start = self._take_over() or self._start()
        except VoiceGenieError as error:
            # Only "already running" can come back from here: someone else's start came between.
            settle_error(self._operator.outcome_rules, error, self._campaign_id)
            start = Start(CampaignStatus.RUNNING.value)
        finally:
            if not self._kill.pulled:
                keep_link(self._context, self._hook, self._operator)
        self._stop_if_killed()
        is_followed = start.started_by_task or CampaignStatus(start.status) in _TO_BE_FOLLOWED
        if self._operator.wait_for_completion and is_followed:
            return self._wait(start)
        return self._result(start, {})

    def _start(self) -> Start:
        finding = check_run(
            run_facts(self._context),
            datetime.now(UTC),
            start_in_backfill=self._operator.start_in_backfill,
            max_lateness=self._operator.max_lateness,
        )
        if finding is not None:
            return self._not_started(finding, CampaignStatus.UNKNOWN)
        with self._reading():
            before = self._campaign_before()
        if before.status is CampaignStatus.UNKNOWN:
            log.warning(
                "Campaign %r: its status %.40r is unknown here, so whether it can be started is left to the service.",
                self._campaign_id,
                before.status_text,
            )
        finding = check_campaign(before) or check_calling_hours(self._operator.calling_hours, datetime.now(UTC))
        if finding is not None:
            return self._not_started(finding, before.status)
        sent_at = self._service_time()
        self._memory.note_sending(before, sent_at)
        if (task_instance := self._context.get("ti")) is not None:
            # Before anything can go wrong after it: whoever pauses the campaign then has to find it.
            task_instance.xcom_push(key="campaign_id", value=self._campaign_id)
        self._stop_if_ended()
        # Once more: Airflow may have taken its time since.
        finding = check_calling_hours(self._operator.calling_hours, datetime.now(UTC))
        if finding is not None:
            self._memory.note(StartPhase.CLOSED)
            return self._not_started(finding, before.status)
        self._calling = True
        unanswered: VoiceGenieError
        try:
            started = self._hook.start_campaign(self._campaign_id)
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                self._calling = False
                self._memory.note(StartPhase.CLOSED)
                raise
            unanswered = error
        else:
            self._memory.note(StartPhase.STARTED, started.started_at)
            if not started.status.is_running:
                log.warning(
                    "Campaign %r: the service accepted the start, but calls its status %.40r, not running.",
                    self._campaign_id,
                    started.status_text,
                )
            log.info("Campaign %r was started: status %s.", self._campaign_id, started.status.value)
            seen = {"at": time.time(), "completed": before.completed_count, "failed": before.failed_count}
            return Start.by_task(started.status, started.started_at, seen)
        log.warning("%s The start may have taken effect; looking at the campaign before anything else.", unanswered)
        start = self._find_out(before, sent_at, f" What went wrong was: {unanswered.message}")
        if start is None:
            raise unanswered
        return start

    def _campaign_before(self) -> Campaign:
        """Read the campaign; where a user has cleared this task, once the triggerer has paused it."""
        campaign = self._hook.get_campaign(self._campaign_id)
        operator = self._operator
        was_followed = operator.wait_for_completion and operator.deferrable and operator.pause_on_kill
        if not (was_followed and self._memory.was_cleared and campaign.status.is_running):
            return campaign
        log.info("Campaign %r: this task was cleared while it ran; waiting for its pause.", self._campaign_id)
        deadline = time.monotonic() + _PATIENCE_FOR_PAUSE
        while campaign.status.is_running and time.monotonic() < deadline:
            time.sleep(1)
            campaign = self._hook.get_campaign(self._campaign_id)
        return campaign

    def _find_out(self, before: Campaign, sent_at: datetime, problem: str = "") -> Start | None:
        """Find out what became of a start that got no valid answer; ``None`` if it did not take effect."""
        with self._reading():
            looks, statistics = self._look_for_start(before, sent_at)
        settlement = settle_by_status(before, looks) if looks else Settlement.UNKNOWN
        started_at = None
        if statistics is not None:
            settlement = settle_by_stats(settlement, statistics, sent_at)
            started_at = statistics.started_at if settlement is Settlement.STARTED else None
        seen = f"status {before.status.value} before" + (f", {looks[-1].status.value} since" if looks else "")
        log.info("Campaign %r: %s (%s).", self._campaign_id, settlement.value, seen)
        if settlement is Settlement.STARTED:
            self._memory.note(StartPhase.STARTED, started_at)
            return Start.by_task(looks[-1].status, started_at)
        if settlement is Settlement.NOT_STARTED:
            # It stays on record as sent: should it take effect after all, the next try finds it.
            self._calling = False
            return None
        return self._unconfirmed(f"the start was sent but not answered, and {settlement.value} ({seen})", problem)

    def _look_for_start(self, before: Campaign, sent_at: datetime) -> tuple[list[Campaign], CampaignStats | None]:
        """Look at the campaign until it shows that the start took effect, and at the statistics if it does not."""
        looks: list[Campaign] = []
        for delay in _LOOK_DELAYS:
            time.sleep(delay)
            try:
                looks.append(self._hook.get_campaign(self._campaign_id))
            except VoiceGenieError as error:
                log.warning("%s", error)
                continue
            if settle_by_status(before, looks) is Settlement.STARTED:
                return looks, None
        if not looks:
            return looks, None
        if before.status is CampaignStatus.PAUSED:
            # Only the statistics can tell a start that someone has paused again from none.
            self._await_statistics_from_after(sent_at)
        try:
            return looks, self._hook.get_campaign_stats(self._campaign_id)
        except VoiceGenieError as error:
            log.warning("%s", error)
            return looks, None

    def _unconfirmed(self, what: str, problem: str = "") -> NoReturn:
        settle_task(
            self._operator.outcome_rules,
            Condition.START_UNCONFIRMED,
            self._campaign_id,
            f"{what}. Look at the campaign in the VoiceGenie dashboard: if it was not started, clear this task to "
            f"start it; if it was, mark the task as success.{problem}",
        )
        raise AssertionError("START_UNCONFIRMED always ends the task")

    def _await_statistics_from_after(self, moment: datetime) -> None:
        """Wait until the statistics are sure to be of a time after a moment of the service's clock."""
        seconds = (moment + _STATISTICS_LAG).timestamp() - self._hook.server_time()
        if seconds > 0:
            log.info("Campaign %r: its statistics may be old; reading them in %.0f s.", self._campaign_id, seconds)
            time.sleep(seconds)

    def _not_started(self, finding: Finding, status: CampaignStatus) -> Start:
        settle_task(self._operator.outcome_rules, finding.condition, self._campaign_id, finding.message)
        return Start(status.value)

    # The start of an earlier try.

    def _take_over(self) -> Start | None:
        """Return the start that an earlier try of this task made, if one did."""
        record = self._memory.recall()
        if record is not None:
            if self._kill.pulled:
                # What this task started is what its end is about, whatever its templates give by now.
                self._operator.go_on_with(record.facts())
                self._campaign_id, self._hook = record.campaign_id, VoiceGenieHook(record.voicegenie_conn_id)
            self._refuse_another_campaign(record)
            self._calling = record.phase is not StartPhase.TIMED_OUT
        self._stop_if_killed()
        if record is None:
            if self._memory.is_kept or self._memory.is_first_try:
                return None
            return self._take_over_by_evidence()
        if record.phase is StartPhase.TIMED_OUT:
            raise AirflowFailException(
                f"Campaign {self._campaign_id!r}: an earlier try of this task started it, and paused it when its "
                "execution_timeout was over. A retry does not start it again. To let it go on, clear this task; to "
                "give up waiting without a pause, use completion_timeout."
            )
        if record.phase is StartPhase.SENT:
            log.warning(
                "Campaign %r: an earlier try of this task was ended while it sent the start. Looking at the campaign.",
                self._campaign_id,
            )
            return self._find_out(record.campaign_before(), read_time(record.sent_at) or datetime.now(UTC))
        return self._taken_over(read_time(record.started_at))

    def _refuse_another_campaign(self, record: StartRecord) -> None:
        """Fail if the start of an earlier try was another campaign's: one task starts one campaign."""
        earlier = (record.campaign_id, record.voicegenie_conn_id)
        now = (self._campaign_id, self._operator.voicegenie_conn_id)
        if earlier == now:
            return
        raise AirflowFailException(
            f"Campaign {now[0]!r:.80} (connection {now[1]!r}): an earlier try of this task started campaign "
            f"{earlier[0]!r:.80} (connection {earlier[1]!r}), so this try starts nothing. The templates of the task "
            "give another campaign at each try: use one that stays the same. To start the new one, clear this task; "
            "the earlier one is not paused by that."
        )

    def _take_over_by_evidence(self) -> Start | None:
        """Ask the service whether an earlier try started the campaign: this Airflow keeps nothing across tries."""
        with self._reading():
            campaign = self._hook.get_campaign(self._campaign_id)
            if not campaign.status.may_have_been_started:
                return None
            now, began = self._service_time(), self._run_began()
            statistics = self._hook.get_campaign_stats(self._campaign_id)
            if not was_started_in_run(statistics, began):
                # The earlier try may have ended just now.
                self._await_statistics_from_after(now)
                statistics = self._hook.get_campaign_stats(self._campaign_id)
        if was_started_in_run(statistics, began):
            self._calling = True
            return self._taken_over(statistics.started_at)
        if began is None or (statistics.started_at is None and campaign.status is not CampaignStatus.PAUSED):
            seen = f"status {campaign.status.value}, but no time of its start"
            self._unconfirmed(
                f"an earlier try of this task may have started it, and nothing shows whether it did ({seen})"
            )
        return None

    def _service_time(self) -> datetime:
        return datetime.fromtimestamp(self._hook.server_time(), UTC)

    def _run_began(self) -> datetime | None:
        """Return when the DAG run began, by the service's clock."""
        began: datetime | None = getattr(self._context["dag_run"], "start_date", None)
        return None if began is None else began + (self._service_time() - datetime.now(UTC))

    def _recognize_earlier_start(self) -> None:
        """Ask the service whether a killed task's earlier try started the campaign, if Airflow keeps nothing of it."""
        if self._calling or self._memory.is_kept or self._memory.is_first_try:
            return
        try:
            if self._hook.get_campaign(self._campaign_id).status.is_running:
                statistics = self._hook.get_campaign_stats(self._campaign_id)
                self._calling = was_started_in_run(statistics, self._run_began())
        except VoiceGenieError as error:
            log.warning("%s Look in the VoiceGenie dashboard whether it has to be paused.", error)

    def _taken_over(self, started_at: datetime | None) -> Start:
        status = CampaignStatus.UNKNOWN
        try:
            with self._reading():
                status = self._hook.get_campaign(self._campaign_id).status
        except VoiceGenieError as error:
            log.warning("%s", error)
        log.info(
            "Campaign %r: an earlier try of this task started it, so it is not started again; its status is %s.",
            self._campaign_id,
            status.value,
        )
        return Start.by_task(status, started_at)

    # The wait.

    def _wait(self, start: Start) -> dict[str, Any]:
        timeout = self._operator.completion_timeout
        deadline = None if timeout is None else time.time() + timeout
        if self._operator.deferrable:
            self._defer(start, deadline)
        with self._reading():
            end = wait_for_completion(
                self._hook,
                self._watch(start),
                self._campaign_id,
                poll_interval=self._operator.poll_interval,
                deadline=deadline,
            )
        return self._end(start, end)

    def _watch(self, start: Start) -> CompletionWatch:
        seen = start.seen or {}
        return CompletionWatch(
            self._campaign_id,
            self._operator.outcome_rules.while_waiting(),
            seen.get("at", time.time()),
            stall_timeout=self._operator.stall_timeout,
            completed=seen.get("completed"),
            failed=seen.get("failed"),
        )

    def _defer(self, start: Start, deadline: float | None) -> NoReturn:
        from airflow_provider_voicegenie.triggers.campaign import CampaignCompletedTrigger

        operator = self._operator
        execution_ends = execution_deadline(self._context, operator.execution_timeout)
        operator.keep_for_resuming(self._context, start=start.to_json())
        # What a user marked just now, Airflow refuses to defer, and tells nobody.
        self._stop_if_ended()
        operator.defer(
            trigger=CampaignCompletedTrigger(
                **operator.facts(),
                kind=operator.outcome_rules.kind.value,
                outcomes=operator.outcome_rules.changes,
                poll_interval=operator.poll_interval,
                deadline=deadline,
                execution_deadline=execution_ends,
                stall_timeout=operator.stall_timeout,
                seen=None if start.seen is None else dict(start.seen),
                pause_on_kill=operator.pause_on_kill and start.started_by_task,
                start=start.to_json(),
            ),
            method_name="execute_complete",
            timeout=deferral_timeout(deadline, execution_ends),
        )
        raise AssertionError("a deferral ends the execution")

    def _resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        start = Start(**event["deferred"]["start"])
        self._calling = start.started_by_task
        self._stop_if_killed()
        return self._end(start, End.from_json(event))

    def _resume_late(self, start: Start) -> dict[str, Any]:
        self._calling = start.started_by_task
        try:
            with self._reading():
                end = wait_for_completion(
                    self._hook,
                    self._watch(start),
                    self._campaign_id,
                    poll_interval=self._operator.poll_interval,
                    deadline=time.time() + 1,
                )
        except VoiceGenieError as error:
            # Airflow did not give the connection.
            settle_error(self._operator.outcome_rules, error, self._campaign_id)
            raise
        execution_ends = execution_deadline(self._context, self._operator.execution_timeout)
        if end.reason is EndReason.TIMEOUT and execution_ends is not None and time.time() >= execution_ends:
            end = end._replace(reason=EndReason.EXECUTION_TIMEOUT)
        return self._end(start, end)

    def _end(self, start: Start, end: End) -> dict[str, Any]:
        if end.is_done:
            end = self._with_statistics(end)
        if end.reason is EndReason.EXECUTION_TIMEOUT:
            raise AirflowTaskTimeout(f"Campaign {self._campaign_id!r}: execution_timeout: {end.message}.")
        condition = Condition.COMPLETION_TIMEOUT if end.reason is EndReason.TIMEOUT else end.condition
        if condition is None:
            log.info("Campaign %r is completed.", self._campaign_id)
        else:
            rules = self._operator.outcome_rules
            settle_task(rules, condition, self._campaign_id, end.message, retry_after=end.retry_after)
        return self._result(start, end.result or {})

    def _with_statistics(self, end: End) -> End:
        final = FinalStatistics(
            self._campaign_id,
            end,
            time.time(),
            min_success_rate=self._operator.min_success_rate,
            deadline=execution_deadline(self._context, self._operator.execution_timeout),
        )
        try:
            with self._reading():
                return read_final_statistics(self._hook, final, self._campaign_id)
        except VoiceGenieError:
            # Airflow did not give the connection: the statistics are tried for all the same.
            return read_final_statistics(self._hook, final, self._campaign_id)

    def _result(self, start: Start, end: Mapping[str, Any]) -> dict[str, Any]:
        result = {
            "campaign_id": self._campaign_id,
            "status": start.status,
            "started_at": start.started_at,
            "started_by_task": start.started_by_task,
        }
        if self._operator.wait_for_completion:
            result |= {"completed_at": None, "statistics": None, **end}
        return result

    # The end from outside.

    def _guarded(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the task's work; where it is ended from outside, stop the calls as the DAG wants it."""
        try:
            return work()
        except (AirflowFailException, AirflowSkipException):
            raise
        except AirflowTaskTimeout:
            self._stop_calls(StartPhase.TIMED_OUT)
            raise
        except BaseException as error:
            if not self._kill.pulled:
                raise
            is_ended_by_user = was_ended_by_user(self._context)
            if is_ended_by_user:
                self._recognize_earlier_start()
            when = "" if self._calling else " before it started anything"
            if is_ended_by_user:
                self._stop_calls(StartPhase.CLOSED)
            elif self._calling:
                log.warning(
                    "Campaign %r: this worker is being stopped. The campaign goes on; the next try of this task, if it "
                    "has one left, follows it.",
                    self._campaign_id,
                )
            if not isinstance(error, TaskKilled):
                raise
        raise VoiceGenieRetryException(f"Campaign {self._campaign_id!r}: the task was ended from outside{when}.")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """
        Let a kill break off what is read of the service here. Nothing may be asked of Airflow meanwhile.

        :raises VoiceGenieError: Airflow did not give the connection, which is asked for beforehand.
        """
        self._hook.get_conn()
        with self._kill.interruptible():
            yield

    def _stop_if_killed(self) -> None:
        if self._kill.pulled:
            raise TaskKilled

    def _stop_if_ended(self) -> None:
        """Stop if Airflow told the task to end, or has it as ended by a user: its signal may come seconds later."""
        if not self._kill.pulled and is_ended_in_airflow(self._context):
            self._kill.pulled = True
        self._stop_if_killed()

    def _stop_calls(self, phase: StartPhase) -> None:
        if not (self._calling and self._operator.pause_on_kill):
            return
        self._calling = False
        pause_campaign_of_killed_task(self._hook, self._campaign_id)
        self._memory.note(phase)
