# SPDX-License-Identifier: Apache-2.0
"""
One run of a ``StartCampaignOperator``: start, wait, return, or be killed.

Apart from the operator, whose module every parse of a DAG file loads.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import CampaignStatus, read_time
from airflow_provider_voicegenie.memory import Memory, note_end_by_user
from airflow_provider_voicegenie.metrics import time_end
from airflow_provider_voicegenie.rules.outcomes import (
    Finding,
    VoiceGenieRetryException,
    apply_outcome,
)
from airflow_provider_voicegenie.start.once import StartOnce
from airflow_provider_voicegenie.start.record import Start, StartPhase
from airflow_provider_voicegenie.start.refusals import Refusals
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.deferral import execution_deadline
from airflow_provider_voicegenie.waiting.final_statistics import describe_result
from airflow_provider_voicegenie.waiting.killing import KillSwitch, TaskKilled, was_ended_by_user
from airflow_provider_voicegenie.waiting.wait import apply_end, wait_here, wait_late, wait_on
from airflow_provider_voicegenie.waiting.watch import End, EndReason

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.start.options import StartOptions

log = logging.getLogger(__name__)

#: Statuses in which there is an end to wait for, whoever started the campaign.
_TO_BE_FOLLOWED = (CampaignStatus.RUNNING, CampaignStatus.PAUSED, CampaignStatus.COMPLETED, CampaignStatus.UNKNOWN)


class StartTask:
    """
    One run of the task in this process.

    :param hook: The service.
    :param campaign_id: The campaign.
    :param context: The task's context.
    :param options: What the author wants.
    :param memory: What the task remembers.
    """

    def __init__(
        self,
        hook: VoiceGenieHook,
        campaign_id: str,
        context: Context,
        options: StartOptions,
        memory: Memory,
    ) -> None:
        self._campaign_id = campaign_id
        self._context = context
        self._options = options
        self._memory = memory
        self._kill = KillSwitch()
        refusals = Refusals(*self._wait_before.get("refusals", ()))
        self._once = StartOnce(hook, campaign_id, context, options, memory, self._kill, refusals)

    def execute(self) -> dict[str, Any]:
        """Start the campaign, and wait for it if asked to."""
        return self._guarded(self._execute)

    def execute_again(self) -> dict[str, Any]:
        """Begin anew, after a deferral before anything was started."""

        def begin() -> dict[str, Any]:
            self._check_execution_time()
            log.info("Campaign %r: beginning anew, after the wait before its start.", self._campaign_id)
            return self._execute()

        return self._guarded(begin)

    def resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        return self._guarded(lambda: self._resume(event))

    def resume_late(self) -> dict[str, Any]:
        """Go on after Airflow ended the deferral, as no triggerer did in time."""
        return self._guarded(self._resume_late)

    def kill(self) -> None:
        """Take note, in a signal handler too, that Airflow ends the task."""
        self._kill.pull()

    def end_before_resuming(self) -> None:
        """Pause the campaign if Airflow 2 times out or kills a deferred task before it resumes it."""
        if "status" not in self._wait_before:
            # It was deferred before it started anything.
            return
        is_out_of_time = isinstance(sys.exception(), AirflowTaskTimeout)
        if is_out_of_time or was_ended_by_user(self._context):
            self._once.resume(self._start_before_deferral())
            self._once.stop_calls(StartPhase.TIMED_OUT if is_out_of_time else StartPhase.CLOSED)

    @property
    def _wait_before(self) -> Mapping[str, Any]:
        """What the process before a deferral wrote down for this one."""
        return (self._memory.document or {}).get("wait") or {}

    @property
    def _about(self) -> dict[str, str]:
        return {"campaign_id": self._campaign_id, "voicegenie_conn_id": self._once.hook.voicegenie_conn_id}

    def _execute(self) -> dict[str, Any]:
        while isinstance(start := self._start(), datetime):
            self._wait_before_start(start)
        self._kill.check()
        is_followed = start.started_by_task or CampaignStatus(start.status) in _TO_BE_FOLLOWED
        if self._options.wait_for_completion and is_followed and not self._options.check_only:
            return self._wait(start)
        return self._result(start, {})

    def _start(self) -> Start | datetime:
        try:
            return self._once.start()
        except VoiceGenieError as error:
            # Only "already running" can come back from here: someone else's start came between.
            apply_outcome(self._options.outcome_rules, Finding.of(error), self._campaign_id)
            return Start(CampaignStatus.RUNNING.value, must_pause_on_kill=self._once.may_be_in_effect)

    # The wait for the calling hours, or for the service to take requests again. This try has started nothing yet.

    def _wait_before_start(self, until: datetime) -> None:
        """Wait in this process, or defer; the task's time may be over before."""
        ends = execution_deadline(self._context, self._options.execution_timeout)
        at = until.timestamp() if ends is None else min(ends, until.timestamp())
        seconds = max(0.0, at - time.time())
        if self._options.deferrable:
            self._defer_before_start(seconds)
        log.info("Campaign %r: waiting here for %d s.", self._campaign_id, round(seconds))
        with self._kill.interruptible():
            while (left := at - time.time()) > 0:
                time.sleep(left)
        self._check_execution_time()

    def _defer_before_start(self, seconds: float) -> NoReturn:
        from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

        trigger = TimeDeltaTrigger(timedelta(seconds=seconds))
        # Not as arguments of the method, which `dag.test()` drops.
        self._memory.write_copy(**self._about, start=None, wait={"refusals": list(self._once.refusals)})
        self._kill.check_with_airflow(self._context)
        raise TaskDeferred(trigger=trigger, method_name="execute_again")

    def _check_execution_time(self) -> None:
        """Airflow 3 does not count the time that a task is deferred."""
        deadline = execution_deadline(self._context, self._options.execution_timeout)
        if deadline is not None and time.time() >= deadline:
            raise self._out_of_time_before_start()

    def _out_of_time_before_start(self) -> AirflowTaskTimeout:
        return AirflowTaskTimeout(
            f"Campaign {self._campaign_id!r}: execution_timeout was over before the campaign could be started; nothing "
            "was started."
        )

    # The wait.

    def _wait(self, start: Start) -> dict[str, Any]:
        timeout = self._options.completion_timeout
        deadline = None if timeout is None else time.time() + timeout
        if self._options.deferrable:
            self._defer(start, deadline)
        watch, interval = self._watch(start), self._options.poll_interval
        with self._once.reading():
            end = wait_here(self._once.hook, watch, poll_interval=interval, deadline=deadline)
        return self._end(start, end or watch.time_is_up(time.time(), EndReason.TIMEOUT))

    def _watch_arguments(self, start: Start) -> dict[str, Any]:
        return {
            "stall_timeout": self._options.stall_timeout,
            "seen": None if start.seen is None else dict(start.seen),
            "min_success_rate": self._options.min_success_rate,
            "statistics_until": execution_deadline(self._context, self._options.execution_timeout),
        }

    def _watch(self, start: Start) -> CompletionWatch:
        rules = self._options.outcome_rules.while_waiting()
        return CompletionWatch(self._campaign_id, rules, time.time(), **self._watch_arguments(start))

    def _defer(self, start: Start, deadline: float | None) -> NoReturn:
        from airflow_provider_voicegenie.triggers.wait import defer

        options = self._options
        defer(
            self._context,
            self._memory,
            CompletionWatch,
            rules=options.outcome_rules,
            execution_timeout=options.execution_timeout,
            copied=self._once.before_deferral(start),
            # Airflow silently refuses to defer a task that a user has just marked.
            check=lambda: self._kill.check_with_airflow(self._context),
            **self._about,
            arguments=self._watch_arguments(start),
            poll_interval=options.poll_interval,
            deadline=deadline,
            pause_on_kill=options.pause_on_kill and start.is_paused_on_kill,
            started_at=start.started_at,
        )

    def _resume(self, event: Mapping[str, Any]) -> dict[str, Any]:
        start, end = self._start_before_deferral(), End.from_json(event)
        self._once.resume(start)
        self._kill.check()
        watch = self._watch(start)
        try:
            end = wait_on(self._once.hook, watch, end, reading=self._once.reading)
        except VoiceGenieError:
            # Airflow did not give the connection: what is left to read is tried all the same.
            end = wait_on(self._once.hook, watch, end)
        return self._end(start, end)

    def _resume_late(self) -> dict[str, Any]:
        if "status" not in self._wait_before:
            raise self._out_of_time_before_start()
        start = self._start_before_deferral()
        self._once.resume(start)
        watch, timeout = self._watch(start), self._options.execution_timeout
        try:
            with self._once.reading():
                end = wait_late(self._once.hook, watch, self._context, timeout)
        except VoiceGenieError as error:
            # Airflow did not give the connection.
            apply_outcome(self._options.outcome_rules, Finding.of(error), self._campaign_id)
            raise
        return self._end(start, end)

    def _start_before_deferral(self) -> Start:
        return Start(**self._wait_before)

    def _end(self, start: Start, end: End) -> dict[str, Any]:
        result = end.result or {}
        if (completed_at := read_time(result.get("completed_at"))) is not None:
            time_end(self._once.hook.server_time() - completed_at.timestamp())
        apply_end(self._options.outcome_rules, end, self._campaign_id)
        if end.is_done:
            log.info("Campaign %r is completed: %s.", self._campaign_id, describe_result(end))
        return self._result(start, result)

    def _result(self, start: Start, end: Mapping[str, Any]) -> dict[str, Any]:
        result = {
            "campaign_id": self._campaign_id,
            "status": start.status,
            "started_at": start.started_at,
            "started_by_task": start.started_by_task,
        }
        if self._options.check_only:
            result["check_only"] = True
        if self._options.wait_for_completion:
            result |= {"completed_at": None, "statistics": None, **end}
        return result

    # The end from outside.

    def _guarded(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the task's work; if it is ended from outside, stop the calls as the author wants it."""
        try:
            return work()
        except (AirflowFailException, AirflowSkipException):
            raise
        except AirflowTaskTimeout:
            self._once.stop_calls(StartPhase.TIMED_OUT)
            raise
        except BaseException as error:
            if not self._kill.pulled:
                raise
            is_ended_by_user = was_ended_by_user(self._context)
            if is_ended_by_user:
                note_end_by_user(self._context)
                self._once.recognize_earlier_start()
            campaign_id = self._once.campaign_id
            when = "" if self._once.may_be_in_effect else " before it started anything"
            if is_ended_by_user:
                self._once.stop_calls(StartPhase.CLOSED)
            elif self._once.may_be_in_effect:
                log.warning(
                    "Campaign %r: this worker is being stopped. The campaign goes on; the next try of this task, if it "
                    "has one left, follows it.",
                    campaign_id,
                )
            if not isinstance(error, TaskKilled):
                raise
        raise VoiceGenieRetryException(f"Campaign {campaign_id!r}: the task was ended from outside{when}.")
