# SPDX-License-Identifier: Apache-2.0
"""Operators that start and pause a campaign."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import get_current_context

from airflow_provider_voicegenie.campaign_task import CampaignTask, read_deferrable, was_ended_by_airflow
from airflow_provider_voicegenie.memory import KEEPS_TASK_STATE, Memory
from airflow_provider_voicegenie.rules.calling_hours import AtClosing, CallingHours, read_at_closing, read_calling_hours
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Outcome,
    OutcomeRules,
    TaskKind,
    VoiceGenieRetryException,
)
from airflow_provider_voicegenie.rules.parameters import (
    NOT_GIVEN,
    NotGiven,
    check_flags,
    is_template,
    read_flag,
    read_interval,
    read_optional_seconds,
    read_percent,
    read_rendered_number,
    read_whole_number,
)

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_voicegenie.pause_run import PauseRun
    from airflow_provider_voicegenie.start.run import StartRun

log = logging.getLogger(__name__)

__all__ = ["CallingHours", "Condition", "Outcome", "PauseCampaignOperator", "StartCampaignOperator"]


class StartCampaignOperator(CampaignTask):
    """
    Start a VoiceGenie campaign: people are phoned at once. Optionally, follow it to its end.

    The task checks the DAG run, reads the campaign, checks it and the time, and then sends one start (``GET
    /startCampaign/{id}``, the service's Start Campaign page). A start is never repeated blindly. If its response is
    lost, the task looks at the campaign and succeeds if the start took effect. A later try of the task takes over the
    start of an earlier one, and starts nothing. A start that the service refuses with a 429 was not carried out: the
    task waits as asked and starts over, until it has sent as many as the connection's ``max_attempts``, or two
    hours are over. It does not begin to wait if its calling hours are over by then.

    Anything that prevents the start is a *condition*; every condition has an *outcome*: *skip*, *fail* (at once,
    without retry), *retry* (Airflow's ``retries`` decide), *succeed*, or *wait*. The documentation has a table of the
    defaults; ``outcomes`` changes single lines. While the task waits for completion, temporary trouble never ends the
    wait.

    Once the task has looked at a campaign, it stays with it and with its connection, whatever the templates give after
    a deferral. A retry whose campaign differs from the one that an earlier try started fails (Airflow 3.3).

    Returns to XCom, as plain JSON, and each field under its own key too; ``campaign_id`` already before the start:

    - ``campaign_id``: the id.
    - ``status``: the campaign's status after the start, ``running`` as a rule; at the end, if the task waited.
    - ``started_at``: when the service says it was started, ISO 8601 in UTC; null if it did not say.
    - ``started_by_task``: false if the campaign was running or over already, and the outcome for that is *succeed*.

    and with ``wait_for_completion`` also

    - ``completed_at``: when the service says it was completed, ISO 8601 in UTC; null if it did not say.
    - ``statistics``: ``total_contacts``, ``calls_completed``, ``calls_failed``, ``call_status_breakdown`` (calls by
      outcome), ``success_rate`` (percentage of successful calls among the finished ones), ``average_call_duration``
      and ``total_call_duration`` (seconds); from ``GET /getCampaignStats/{id}``. Null if they cannot be read within
      some minutes, or the wait ended otherwise.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"NOT_FOUND": "skip"}``; conditions and outcomes as
        text or as the enums.
    :param calling_hours: When the start is allowed, as :class:`CallingHours` or a list of them, of which one has to be
        open; checked right before the start is sent. Any time by default. With the outcome *wait* for
        ``OUTSIDE_CALLING_HOURS``, the task waits until they open, 14 days at most, and starts over then: it reads the
        campaign, and all guards hold.
    :param at_closing: What to do when the calling hours close while the campaign runs. ``pause`` pauses it, which is
        the condition ``CALLING_HOURS_OVER``; it needs ``wait_for_completion``, and is the default then, if there are
        calling hours. ``pause_and_resume`` pauses it, and starts it again when they open, and so on until it is
        completed or ``completion_timeout`` is over (Airflow 3.3). ``go_on`` does nothing. Windows that adjoin or
        overlap are one.
    :param max_contacts: How many contacts the campaign may have at most. More, or a number that the service does not
        say, is the condition ``TOO_MANY_CONTACTS``. No limit if it is left out. A template may give the number that
        somebody has approved; if it gives no number, or ``None``, the task fails. (templated)
    :param check_only: Whether to do everything but the start: the reads and guards apply, the log says whom the start
        would phone, and nothing is sent or waited for. In XCom, ``check_only`` is true then, ``started_by_task`` is
        false, and the plan is there: ``contacts`` (how many people the start would phone), ``name`` (the campaign's),
        ``starts_at`` (when it would be started, if it would have to wait for its calling hours), ``closes_at`` (when
        those hours, or the present ones, close) and ``quota_left`` (calls). Times are ISO 8601 in UTC. What nobody
        knows is null. (templated)
    :param read_quota: Whether the plan of ``check_only`` has ``quota_left``, which takes a request (``GET
        /fetchQuota``).
    :param start_in_backfill: Whether backfill runs start the campaign too, and runs that asset events of backfill runs
        alone have triggered. They do not by default.
    :param max_lateness: How late a scheduled run may come after it was due, catch-up included, as a ``timedelta``
        or a number of seconds. Any lateness by default. Manual and asset-triggered runs are never late.
    :param wait_for_completion: Whether to wait until the campaign is completed.
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot, if the task waits at all: for its
        calling hours, for the service to take requests again, or for completion. Airflow's ``[operators]
        default_deferrable`` by default.
    :param poll_interval: Time between two looks at the campaign, at most, as a ``timedelta`` or a number of seconds.
    :param completion_timeout: How long to wait, counted from the start or, in a later try, from when it took the start
        over; as a ``timedelta`` or a number of seconds; then the condition
        ``COMPLETION_TIMEOUT`` holds, and the campaign goes on. No limit by default. Needs ``wait_for_completion``.
        Airflow's ``execution_timeout`` counts the whole task, and pauses the campaign.
    :param pause_on_kill: Whether to pause the campaign when the task is ended from outside: marked or cleared by a
        user, or by its ``execution_timeout``. A campaign is paused only if this task started it, and never because a
        worker, a triggerer or a scheduler goes down. While the task is deferred, Airflow reports marking and clearing
        from 3.3 on.
    :param stall_timeout: How long the campaign may run without progress in any counter before the condition
        ``CAMPAIGN_STALLED`` holds, as a ``timedelta`` or a number of seconds. No limit by default. Needs
        ``wait_for_completion``.
    :param min_success_rate: Percentage (0 to 100) of successful calls among the finished ones, below which a completed
        campaign is the condition ``SUCCESS_RATE_TOO_LOW``. If the statistics cannot be read within some minutes, the
        outcome of that error applies. Needs ``wait_for_completion``.
    :param stop_after_calls: Once so many calls have finished, the campaign is paused, and the condition
        ``CALL_LIMIT_REACHED`` holds, a success by default. A call has finished if the service counts it as completed or
        as failed. It is exceeded by the calls that finish until the next look, and by those in progress. No limit by
        default. Needs ``wait_for_completion``.
    :param judge_success_rate_after: After so many finished calls, ``min_success_rate`` is judged while the campaign
        runs, too: below it, the campaign is paused, and the condition ``SUCCESS_RATE_TOO_LOW`` holds. From then on,
        each look takes one more request (``GET /getCampaignStats/{id}``), whose numbers may be 30 seconds old. Not
        before the end by default.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields = (*CampaignTask.template_fields, "check_only", "max_contacts")
    ui_color = "#d9f2e6"
    asset_event_fields = ("status", "started_at", "completed_at", "statistics")

    #: Set while the task runs in this process.
    _running: StartRun | None = None

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        calling_hours: CallingHours | Iterable[CallingHours] | None = None,
        at_closing: AtClosing | str | None = None,
        max_contacts: int | str | XComArg | NotGiven = NOT_GIVEN,
        check_only: bool | str | XComArg = False,
        read_quota: bool = False,
        start_in_backfill: bool = False,
        max_lateness: timedelta | float | None = None,
        wait_for_completion: bool = False,
        deferrable: bool | None = None,
        poll_interval: timedelta | float = 60,
        completion_timeout: timedelta | float | None = None,
        pause_on_kill: bool = True,
        stall_timeout: timedelta | float | None = None,
        min_success_rate: float | None = None,
        stop_after_calls: int | None = None,
        judge_success_rate_after: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.START, outcomes),
            **kwargs,
        )
        check_flags(
            read_quota=read_quota,
            start_in_backfill=start_in_backfill,
            wait_for_completion=wait_for_completion,
            pause_on_kill=pause_on_kill,
        )
        if not wait_for_completion:
            _refuse_limits_of_a_wait(
                completion_timeout=completion_timeout,
                stall_timeout=stall_timeout,
                min_success_rate=min_success_rate,
                stop_after_calls=stop_after_calls,
                judge_success_rate_after=judge_success_rate_after,
            )
        self.calling_hours = read_calling_hours(calling_hours)
        self.at_closing = read_at_closing(at_closing, self.calling_hours, is_followed=wait_for_completion)
        if self.at_closing is AtClosing.PAUSE_AND_RESUME and not KEEPS_TASK_STATE:
            raise ValueError(
                "at_closing='pause_and_resume' needs Airflow 3.3, which keeps across tries what was paused."
            )
        if not (max_contacts is NOT_GIVEN or is_template(max_contacts)):
            read_rendered_number("max_contacts", max_contacts, minimum=0)
        self.max_contacts = max_contacts
        if not is_template(check_only):
            read_flag("check_only", check_only)
        self.check_only = check_only
        if read_quota and check_only is False:
            raise ValueError("read_quota: only a task that checks returns the quota. Add check_only, or leave it out.")
        self.read_quota = read_quota
        self.start_in_backfill = start_in_backfill
        self.max_lateness = read_optional_seconds("max_lateness", max_lateness)
        self.wait_for_completion = wait_for_completion
        self.deferrable = read_deferrable(deferrable)
        self.poll_interval = read_interval("poll_interval", poll_interval)
        self.completion_timeout = read_optional_seconds("completion_timeout", completion_timeout)
        self.pause_on_kill = pause_on_kill
        self.stall_timeout = read_optional_seconds("stall_timeout", stall_timeout)
        self.min_success_rate = read_percent("min_success_rate", min_success_rate)
        if judge_success_rate_after is not None and min_success_rate is None:
            raise ValueError("judge_success_rate_after needs min_success_rate, below which the campaign is paused.")
        self.stop_after_calls = _read_optional_number("stop_after_calls", stop_after_calls)
        self.judge_success_rate_after = _read_optional_number("judge_success_rate_after", judge_success_rate_after)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the campaign, wait for it if asked to, and return the XCom value described in the class docstring."""
        if not self.is_killed:
            self.keep_link(context, self._hook)
        return self.add_to_asset_events(context, self._begin(context, Memory(context)).execute())

    def execute_again(self, context: Context, event: object = None) -> dict[str, Any]:
        """Begin anew, after a wait in the triggerer: for the calling hours, or for the service to take requests."""
        memory = self.recall_after_deferral(context, remedy="The task starts nothing. To start over, clear it.")
        return self.add_to_asset_events(context, self._begin(context, memory).execute_again())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        return self.add_to_asset_events(context, self._begin_after_deferral(context, event).resume(event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait in the triggerer, or after Airflow ended it for having taken too long."""
        if was_ended_by_airflow(next_method, next_kwargs):
            return self.add_to_asset_events(context, self._begin_after_deferral(context).resume_late())
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Stop the calls, as ``pause_on_kill`` says, when Airflow ends the task."""
        super().on_kill()
        if self._running is not None:
            self._running.kill()
        elif (context := _context_of_resumed_task_on_airflow_2()) is not None:
            memory = self.go_on_after_deferral(context)
            if memory.document is not None:
                self._begin(context, memory).end_before_resuming()

    def _begin(self, context: Context, memory: Memory) -> StartRun:
        # Parsing a DAG file needs no run.
        from airflow_provider_voicegenie.start.run import StartRun

        # What was started before a deferral is followed, whatever a template gives by now.
        is_started = "status" in memory.wait
        is_rehearsal = not is_started and read_flag("check_only", self.check_only)
        self._running = StartRun(self, context, self._hook, memory, is_rehearsal=is_rehearsal)
        if self.is_killed:
            self._running.kill()
        return self._running

    def _begin_after_deferral(self, context: Context, event: Mapping[str, Any] | None = None) -> StartRun:
        remedy = "Look at the campaign in the VoiceGenie dashboard, and pause it if it must not go on."
        memory = self.recall_after_deferral(context, event, remedy=remedy)
        return self._begin(context, memory)


def _read_optional_number(name: str, value: object) -> int | None:
    return None if value is None else read_whole_number(name, value, minimum=1)


def _refuse_limits_of_a_wait(**limits: object) -> None:
    given = [name for name, value in limits.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: only a task that waits obeys this. Add wait_for_completion=True, or leave it out."
        )


def _context_of_resumed_task_on_airflow_2() -> Context | None:
    """Return the context of a task that Airflow 2 ends before it resumes it; Airflow 3 goes on into the task."""
    try:
        context = get_current_context()
    except Exception:  # noqa: BLE001  there is none yet, which each Airflow says in another way
        return None
    return context if getattr(context.get("ti"), "next_method", None) else None


#: Seconds for which a campaign can be kept paused.
_LONGEST_HOLD = timedelta(days=366).total_seconds()


class PauseCampaignOperator(CampaignTask):
    """
    Pause a VoiceGenie campaign: no new call begins, calls in progress run to their end. Optionally, keep it paused.

    Sends one pause (``GET /pauseTheCampaign/{id}``, the service's Pause Campaign page). The service gives one
    refusal for every campaign that does not run; the task then reads the campaign to distinguish a paused one, which is
    a success by default, from one that is over or was not started yet, which fails. If the response is lost, it reads
    the campaign too.

    A campaign with a daily schedule pauses itself at night and goes on by itself the next day; one that was paused
    already takes no pause, so the task warns of that. With ``keep_paused_for``, the task stays with the campaign, looks
    at it every ``poll_interval``, and pauses it again whenever it runs, whoever has started it. Temporary trouble does
    not end that; the end of the campaign does.

    Returns to XCom, as plain JSON:

    - ``campaign_id``: the id.
    - ``status``: the campaign's status after the pause, ``paused`` as a rule.
    - ``paused_at``: when the service says it was paused, ISO 8601 in UTC; null if it did not say.
    - ``active_calls``: calls that were still going on; null if the service did not say.

    and with ``keep_paused_for`` also

    - ``paused_again``: how often it was paused again, since the last try of the task began, or a triggerer last took
      the task up.

    :param campaign_id: Id of the campaign. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param outcomes: Changes to the outcome table, such as ``{"CAMPAIGN_COMPLETED": "skip"}``.
    :param keep_paused_for: How long to keep the campaign paused, from the first pause on, as a ``timedelta`` or a
        number of seconds. It is paused once by default. A later try goes on until the same time (Airflow 3.3), or
        starts over.
    :param poll_interval: Time between two looks at the campaign that is kept paused, at most, as a ``timedelta`` or a
        number of seconds: for so long it may run.
    :param deferrable: Whether to keep it paused from the triggerer, which takes no worker slot. Airflow's
        ``[operators] default_deferrable`` by default.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    ui_color = "#fdf0d5"

    def __init__(
        self,
        *,
        campaign_id: str,
        voicegenie_conn_id: str = "voicegenie_default",
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        keep_paused_for: timedelta | float | None = None,
        poll_interval: timedelta | float = 60,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.PAUSE, outcomes),
            **kwargs,
        )
        self.keep_paused_for = read_optional_seconds("keep_paused_for", keep_paused_for)
        if self.keep_paused_for is not None and not 0 < self.keep_paused_for <= _LONGEST_HOLD:
            raise ValueError(
                f"keep_paused_for must be above 0 and a year at most; got {keep_paused_for!r}. Leave it out to pause "
                "the campaign once."
            )
        self.poll_interval = read_interval("poll_interval", poll_interval)
        self.deferrable = read_deferrable(deferrable)

    def execute(self, context: Context) -> dict[str, Any]:
        """Pause the campaign, keep it so if asked to, and return the XCom value described in the class docstring."""
        memory = Memory(context)
        if (remembered := memory.read()) is not None:
            self.keep_campaign(remembered)
        return self.add_to_asset_events(context, self._begin(context, memory).execute())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the campaign was kept paused from the triggerer."""
        memory = self.recall_after_deferral(context, event, remedy="Look at the campaign in the VoiceGenie dashboard.")
        return self.add_to_asset_events(context, self._begin(context, memory).resume(event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral, or say that no triggerer has kept the campaign paused."""
        if was_ended_by_airflow(next_method, next_kwargs):
            raise VoiceGenieRetryException(
                f"Campaign {self.campaign_id!r}: no triggerer has kept it paused to the end, so it may have run "
                "meanwhile. Look at it in the VoiceGenie dashboard, and see that a triggerer runs."
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def _begin(self, context: Context, memory: Memory) -> PauseRun:
        # Parsing a DAG file needs no run.
        from airflow_provider_voicegenie.pause_run import PauseRun

        return PauseRun(self, context, self._hook, memory)
