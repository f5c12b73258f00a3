# SPDX-License-Identifier: Apache-2.0
"""
One run of a ``StartCampaignOperator``: take over or send, follow, return; or be stopped.

It is no part of the operator, because every parse of a DAG file loads the module of that.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_voicegenie.api.errors import VoiceGenieError, unchained
from airflow_provider_voicegenie.api.models import CampaignStatus, read_time
from airflow_provider_voicegenie.memory import Memory, note_end_by_user
from airflow_provider_voicegenie.metrics import time_end
from airflow_provider_voicegenie.rules.calling_hours import DAYS_AHEAD, AtClosing, next_opening, open_times
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, VoiceGenieRetryException, apply_outcome
from airflow_provider_voicegenie.start.record import OwnStart, Start, StartPhase
from airflow_provider_voicegenie.start.send import Plan, rehearse, start
from airflow_provider_voicegenie.start.take_over import recognize_earlier_start, take_over
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.progress import describe_result
from airflow_provider_voicegenie.waiting.stop import TaskKilled, take_back_end_of_wait, was_ended_by_user
from airflow_provider_voicegenie.waiting.wait import apply_end, wait_here, wait_late, wait_on
from airflow_provider_voicegenie.waiting.watch import End, EndReason

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

#: Statuses in which there is an end to wait for, even if the task has not started the campaign.
_TO_BE_FOLLOWED = (CampaignStatus.RUNNING, CampaignStatus.PAUSED, CampaignStatus.COMPLETED, CampaignStatus.UNKNOWN)


class StartRun:
    """
    One run of the task in this process: at most one start for one task instance.

    *How it works.* A start of an earlier try is taken over. Otherwise the run, the campaign and the time are checked,
    the start is recorded in Airflow, and one request is sent. If it gets no valid response, the campaign is looked at
    before anything else. Then the campaign is followed, if the author wants it.

    *What it does not do.* It never repeats a start that may have taken effect, and it starts nothing once Airflow has
    told the task to end.

    *Known limitation.* Airflow before 3.3 keeps nothing across tries. There, the service's own time of the start is
    compared with the begin of the DAG run.

    :param task: The operator, a ``StartCampaignOperator``.
    :param is_rehearsal: Whether to do everything but the start: the reads and guards. A rehearsal is about no earlier
        start either.
    """

    def __init__(
        self, task: Any, context: Context, hook: VoiceGenieHook, memory: Memory, *, is_rehearsal: bool = False
    ) -> None:
        self._task = task
        self._context = context
        self._is_rehearsal = is_rehearsal
        self._memory = memory
        self._own = OwnStart(task, context, hook, memory)

    def execute(self) -> dict[str, Any]:
        """Start the campaign, and wait for it if asked to."""
        with self._guarded():
            return self._execute()

    def execute_again(self) -> dict[str, Any]:
        """Start over, after a deferral before anything was started."""
        with self._guarded():
            self._own.recall()
            self._check_execution_time()
            log.info("Campaign %r: starting over, after the wait before its start.", self._own.campaign_id)
            return self._execute()

    def resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        own = self._own
        with self._guarded():
            end = End.from_json(event)
            started = own.after_deferral()
            own.kill.check()
            watch = self._watch(started)
            try:
                end = wait_on(own.hook, watch, end, reading=own.reading)
            except VoiceGenieError:
                # Airflow did not give the connection: what is left to read is tried all the same.
                end = wait_on(own.hook, watch, end)
            return self._end(started, end)

    def resume_late(self) -> dict[str, Any]:
        """Go on after Airflow ended the deferral, as no triggerer did in time."""
        own = self._own
        with self._guarded():
            if not self._was_started_before_deferral:
                raise self._out_of_time_before_start()
            started = own.after_deferral()
            watch = self._watch(started)
            try:
                with own.reading():
                    end = wait_late(own.hook, watch, self._task.execution_deadline(self._context))
            except VoiceGenieError as error:
                # Airflow did not give the connection.
                apply_outcome(self._task.outcome_rules, Finding.of(error), own.campaign_id)
                raise
            return self._end(started, end)

    def kill(self) -> None:
        """Take note, in a signal handler too, that Airflow ends the task."""
        self._own.kill.pull()

    def end_before_resuming(self) -> None:
        """Pause the campaign if Airflow 2 times out or kills a deferred task before it resumes it."""
        is_out_of_time = isinstance(sys.exception(), AirflowTaskTimeout)
        if self._was_started_before_deferral and (is_out_of_time or was_ended_by_user(self._context)):
            self._own.after_deferral()
            self._own.stop_calls(StartPhase.TIMED_OUT if is_out_of_time else StartPhase.CLOSED)

    # The start, and the wait for the calling hours, or for the service to take requests again.

    def _execute(self) -> dict[str, Any]:
        if self._is_rehearsal:
            return self._rehearse()
        while isinstance(started := self._start(), datetime):
            # That is when to try again.
            self._wait_before_start(started)
        self._own.kill.check()
        is_followed = started.started_by_task or CampaignStatus(started.status) in _TO_BE_FOLLOWED
        if self._task.wait_for_completion and is_followed:
            return self._wait(started)
        return self._result(started, {})

    def _start(self) -> Start | datetime:
        try:
            return take_over(self._own) or start(self._own)
        except VoiceGenieError as error:
            if self._own.paused is not None and Finding.of(error).condition is Condition.CAMPAIGN_ALREADY_RUNNING:
                return self._own.follow_again(CampaignStatus.RUNNING)
            apply_outcome(self._task.outcome_rules, Finding.of(error), self._own.campaign_id)
            # Only "already running" can be a success: someone else's start came between.
            return Start(CampaignStatus.RUNNING.value, must_pause_on_kill=self._own.may_be_in_effect)

    def _wait_before_start(self, until: datetime) -> None:
        """Wait in this process, or defer; the task's time may be over before."""
        ends = self._task.execution_deadline(self._context)
        at = until.timestamp() if ends is None else min(ends, until.timestamp())
        seconds = max(0.0, at - time.time())
        if self._task.deferrable:
            self._defer_before_start(seconds)
        log.info("Campaign %r: waiting here for %d s.", self._own.campaign_id, round(seconds))
        with self._own.kill.interruptible():
            while (left := at - time.time()) > 0:
                time.sleep(left)
        self._check_execution_time()

    def _defer_before_start(self, seconds: float) -> NoReturn:
        # Loads the triggers of Airflow's standard provider, which few tasks need.
        from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

        own = self._own
        trigger = TimeDeltaTrigger(timedelta(seconds=seconds))
        # Not as arguments of the method, which `dag.test()` drops.
        paused_start = None if own.paused is None else own.paused.to_document()["start"]
        self._memory.write_copy(**own.about, start=paused_start, wait={"refusals": list(own.refusals)})
        own.kill.check_with_airflow(self._context)
        raise TaskDeferred(trigger=trigger, method_name="execute_again")

    def _check_execution_time(self) -> None:
        """Airflow 3 does not count the time that a task is deferred."""
        deadline = self._task.execution_deadline(self._context)
        if deadline is not None and time.time() >= deadline:
            raise self._out_of_time_before_start()

    def _out_of_time_before_start(self) -> AirflowTaskTimeout:
        return AirflowTaskTimeout(
            f"Campaign {self._own.campaign_id!r}: execution_timeout was over before the campaign could be started"
            f"{'' if self._own.paused is None else ' again, so it stays paused'}; nothing was started."
        )

    @property
    def _was_started_before_deferral(self) -> bool:
        return "status" in self._memory.wait

    # The rehearsal.

    def _rehearse(self) -> dict[str, Any]:
        while isinstance(plan := self._plan(), datetime):
            self._wait_before_start(plan)
        self._own.kill.check()
        return {
            **self._result(Start(plan.status), {}),
            **plan.to_json(self._task.calling_hours),
            "check_only": True,
        }

    def _plan(self) -> Plan | datetime:
        try:
            return rehearse(self._own)
        except VoiceGenieError as error:
            apply_outcome(self._task.outcome_rules, Finding.of(error), self._own.campaign_id)
            raise

    # The wait for its end.

    def _wait(self, started: Start) -> dict[str, Any]:
        task, own = self._task, self._own
        deadline = None if task.completion_timeout is None else time.time() + task.completion_timeout
        if own.hours.get("pauses"):
            deadline = own.hours["deadline"]
        if task.deferrable:
            self._defer(started, deadline)
        watch = self._watch(started)
        with own.reading():
            end = wait_here(own.hook, watch, poll_interval=task.poll_interval, deadline=deadline, check=own.kill.check)
        return self._end(started, end, deadline)

    def _watch_arguments(self, started: Start) -> dict[str, Any]:
        return {
            "stall_timeout": self._task.stall_timeout,
            "counters": None if started.counters is None else dict(started.counters),
            "min_success_rate": self._task.min_success_rate,
            "statistics_until": self._task.execution_deadline(self._context),
            "limits": self._limits(started),
        }

    def _limits(self, started: Start) -> dict[str, Any]:
        """Return what the campaign may do while it is followed, as plain JSON; empty for anything."""
        task, own = self._task, self._own
        if own.is_out_of_time or not started.started_by_task:
            # Its time is over at night; or it is somebody else's.
            return {}
        numbers = {name: getattr(task, name) for name in ("stop_after_calls", "judge_success_rate_after")}
        limits: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
        if "stop_after_calls" in limits:
            limits["stop_after_calls"] += own.calls_before
        if task.at_closing is not AtClosing.GO_ON:
            limits["open_times"] = self._open_times()
            limits["resumes"] = task.at_closing is AtClosing.PAUSE_AND_RESUME
        return limits

    def _open_times(self) -> list[list[float | None]]:
        """Return when the hours open and close. A calendar that fails ends the list only: the campaign runs by now."""
        now = datetime.now(UTC)
        times: list[list[float | None]] = []
        try:
            for opens, closes in open_times(self._task.calling_hours, now):
                # One that is open has opened before, also by the clock of another machine.
                times.append(
                    [None if opens <= now else opens.timestamp(), None if closes is None else closes.timestamp()]
                )
        except ValueError as error:
            log.error(
                "Campaign %r: %s. Its calling hours are known until that date only.", self._own.campaign_id, error
            )
        return times

    def _watch(self, started: Start) -> CompletionWatch:
        rules = self._task.outcome_rules.while_waiting()
        return CompletionWatch(self._own.campaign_id, rules, time.time(), **self._watch_arguments(started))

    def _defer(self, started: Start, deadline: float | None) -> NoReturn:
        # Loads the client and the feed.
        from airflow_provider_voicegenie.triggers.wait import defer

        task, own = self._task, self._own
        if own.hours.get("pauses"):
            # The wait until they closed was one of this try, too.
            take_back_end_of_wait(self._context["ti"])
        defer(
            self._memory,
            CompletionWatch,
            rules=task.outcome_rules,
            execution_deadline=task.execution_deadline(self._context),
            copied=own.before_deferral(started, deadline),
            # Airflow silently refuses to defer a task that a user has just marked.
            check=lambda: own.kill.check_with_airflow(self._context),
            **own.about,
            arguments=self._watch_arguments(started),
            poll_interval=task.poll_interval,
            deadline=deadline,
            pause_on_kill=task.pause_on_kill and started.is_paused_on_kill,
            started_at=started.started_at,
        )

    def _end(self, started: Start, end: End, deadline: float | None = None) -> dict[str, Any]:
        result, campaign_id = dict(end.result or {}), self._own.campaign_id
        if "pauses" in result or self._own.hours.get("pauses"):
            result["pauses"] = [*self._own.hours.get("pauses", ()), *result.get("pauses", ())]
        if end.reason is EndReason.PAUSED:
            return self._go_on_at_opening(started, end._replace(result=result), deadline)
        if (completed_at := read_time(result.get("completed_at"))) is not None:
            time_end(self._own.hook.server_time() - completed_at.timestamp())
        apply_end(self._task.outcome_rules, end, campaign_id)
        if end.is_done:
            log.info("Campaign %r is completed: %s.", campaign_id, describe_result(end))
        return self._result(started, result)

    def _go_on_at_opening(self, started: Start, end: End, deadline: float | None) -> dict[str, Any]:
        """Start the campaign again when its calling hours open; each time is a start, with its own record."""
        own, hours, result = self._own, self._task.calling_hours, end.result or {}
        # The clock of this machine may be behind that of the triggerer, by which they have closed.
        closed = datetime.fromtimestamp(max(time.time(), end.at or 0.0), UTC)
        opens = next_opening(hours, closed)
        if opens is None:
            raise AirflowFailException(
                f"Campaign {own.campaign_id!r}: {end.message}. They do not open within {DAYS_AHEAD} days, so it stays "
                "paused. Change calling_hours (days, except_dates)."
            )
        own.pause_until_opening(opens, own.hours.get("deadline", deadline), result["pauses"])
        at = f"{hours[0].local_time(opens)} {hours[0].timezone}"
        latest = own.hours["deadline"]
        if latest is not None and latest <= opens.timestamp():
            message = f"{end.message}; it stays so, as completion_timeout is over before they open ({at})"
            apply_outcome(self._task.outcome_rules, Finding(Condition.COMPLETION_TIMEOUT, message), own.campaign_id)
            return self._result(started, result)
        log.info("Campaign %r: %s. It is started again when they open: %s.", own.campaign_id, end.message, at)
        self._wait_before_start(opens)
        return self._execute()

    def _result(self, started: Start, end: Mapping[str, Any]) -> dict[str, Any]:
        result = {
            "campaign_id": self._own.campaign_id,
            "status": started.status,
            "started_at": started.started_at,
            "started_by_task": started.started_by_task,
        }
        if self._task.wait_for_completion:
            result |= {"completed_at": None, "statistics": None, **end}
        return result

    # The end from outside.

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Stop the calls as the author wants it, if the task is ended from outside while this block runs."""
        with unchained():
            try:
                yield
            except (AirflowFailException, AirflowSkipException):
                raise
            except AirflowTaskTimeout:
                self._own.stop_calls(StartPhase.TIMED_OUT)
                if self._own.record is not None and self._own.record.phase is StartPhase.PAUSED:
                    # No later try starts it again.
                    self._own.set_phase(StartPhase.TIMED_OUT)
                raise
            except BaseException as error:
                if not self._own.kill.pulled:
                    raise
                message = self._stop()
                if isinstance(error, TaskKilled):
                    raise VoiceGenieRetryException(message) from None
                raise

    def _stop(self) -> str:
        """Stop the calls, if a user has ended the task; return what has ended, and when."""
        own = self._own
        is_ended_by_user = was_ended_by_user(self._context)
        if is_ended_by_user:
            note_end_by_user(self._context)
            if not self._is_rehearsal:
                recognize_earlier_start(self._own)
        when = "" if own.may_be_in_effect or own.paused is not None else " before it started anything"
        if is_ended_by_user:
            own.stop_calls(StartPhase.CLOSED)
        elif own.may_be_in_effect:
            log.warning(
                "Campaign %r: this worker is being stopped. The campaign goes on; the next try of this task, if it has "
                "one left, follows it.",
                own.campaign_id,
            )
        return f"Campaign {own.campaign_id!r}: the task was ended from outside{when}."
