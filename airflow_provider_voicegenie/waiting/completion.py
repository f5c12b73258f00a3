# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign's end, and then for its final statistics: all its rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.endpoints import campaign, pause, statistics
from airflow_provider_voicegenie.api.errors import CampaignNotRunningError
from airflow_provider_voicegenie.api.models import (
    Campaign,
    CampaignStats,
    CampaignStatus,
    PausedCampaign,
    write_time,
)
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, Outcome, OutcomeRules
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting.limits import HOURS_OVER, Limits, PauseOrder
from airflow_provider_voicegenie.waiting.progress import ProgressLog, describe, statistics_json
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

#: After how many failures the delay before a pause grows no more.
_MAXIMUM_PAUSE_FAILURES = 4

#: Conditions that pause a campaign; their message and result need its statistics.
_PAUSED_WITH_STATISTICS = (Condition.CALL_LIMIT_REACHED, Condition.SUCCESS_RATE_TOO_LOW)

_CONDITIONS: Mapping[CampaignStatus, tuple[Condition, str]] = {
    CampaignStatus.FAILED: (Condition.CAMPAIGN_FAILED, "it ended as failed"),
    CampaignStatus.STOPPED: (Condition.CAMPAIGN_STOPPED, "it was stopped"),
    CampaignStatus.PAUSED: (
        Condition.CAMPAIGN_PAUSED,
        "it was paused, by someone or, when a quota is used up, by the service",
    ),
}

#: The description of a campaign if the service may still show it as it was before its start.
_OLD_PAUSE = "paused, which may be from before its start"

#: Statuses in which calls are expected to go on, as far as we know.
_MOVING = (CampaignStatus.RUNNING, CampaignStatus.UNKNOWN)


class CompletionWatch(Watch):
    """
    One wait for a campaign's end, and then for its final statistics.

    Once the campaign is completed, it stays so: the wait ends well even if the statistics cannot be read.

    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds.
    :param stall_timeout: Seconds without progress in any counter that are too many; ``None`` for any number.
    :param counters: The campaign so far: when its counters last changed (``at``, Unix seconds), what they were
        (``completed``, ``failed``), and how many contacts it has (``total``). If the task has started a
        campaign that was paused, the service may show it so for a while: ``pauses_count_from`` (Unix seconds) is when
        that is over.
    :param min_success_rate: Percentage of successful calls among the finished ones that is wanted; ``None`` for any.
    :param statistics_until: When to do without statistics, if none are needed, Unix seconds.
    :param limits: What the campaign may do meanwhile, as keyword arguments of
        :class:`~airflow_provider_voicegenie.waiting.limits.Limits`; beyond that, it is paused. ``None`` for anything.
    """

    __slots__ = (
        "_completed",
        "_counts_seen",
        "_ended_at",
        "_failed",
        "_failing_since",
        "_invalid_since",
        "_is_own_pause",
        "_is_pause_doubted",
        "_judges",
        "_known_in_full",
        "_limits",
        "_min_success_rate",
        "_moved_at",
        "_order",
        "_pauses",
        "_pauses_count_from",
        "_progress",
        "_seen_at",
        "_stall_timeout",
        "_statistics_since",
        "_statistics_until",
        "_status",
        "_status_text",
    )

    def __init__(
        self,
        campaign_id: str,
        rules: OutcomeRules,
        now: float,
        *,
        stall_timeout: float | None = None,
        counters: Mapping[str, Any] | None = None,
        min_success_rate: float | None = None,
        statistics_until: float | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(campaign_id, rules, now)
        counters = counters or {}
        self._stall_timeout = stall_timeout
        self._completed: int | None = counters.get("completed")
        self._failed: int | None = counters.get("failed")
        self._known_in_full = self._completed is not None and self._failed is not None
        self._moved_at: float = counters.get("at", now)
        self._pauses_count_from: float | None = counters.get("pauses_count_from")
        self._is_pause_doubted = False
        self._seen_at = now
        # Of the campaign only what is needed: there may be ten thousand waits.
        self._status: CampaignStatus | None = None
        self._status_text = ""
        #: Calls completed and failed, and contacts, as the last reading had them: a list does not have the failed ones.
        self._counts_seen: tuple[int | None, int | None, int | None]
        self._counts_seen = (self._completed, self._failed, counters.get("total"))
        self._ended_at: datetime | None = None
        self._progress = ProgressLog()
        self._min_success_rate = min_success_rate
        self._statistics_until = statistics_until if min_success_rate is None else None
        #: When the statistics were first read, and since when reads of them fail, or are invalid.
        self._statistics_since: float | None = None
        self._failing_since: float | None = None
        self._invalid_since: float | None = None
        self._limits = Limits(now, min_success_rate=min_success_rate, **limits) if limits else None
        #: The pause that is wanted, and those that took effect, as plain JSON.
        self._order: PauseOrder | None = None
        self._pauses: tuple[dict[str, Any], ...] = ()
        #: Whether it is paused by this wait; and whether the statistics are read to judge the calls so far.
        self._is_own_pause = False
        self._judges = False

    @property
    def wants(self) -> Request[Any]:
        """The request to send next: read the campaign or its statistics, or pause it."""
        if self._order is not None:
            return (campaign if self._order.must_read else pause)(self._campaign_id)
        return (statistics if self._judges or self.is_left_to_task else campaign)(self._campaign_id)

    @property
    def is_list_enough(self) -> bool:
        """Whether the list will do: it does not have the failed calls."""
        return self._limits is None or not self._limits.counts_calls

    @property
    def is_unsettled(self) -> bool:
        """Whether a pause is wanted, which no deadline may cut short."""
        return self._order is not None

    @property
    def is_left_to_task(self) -> bool:
        """Whether nothing but the final statistics is left to read."""
        return self._end is not None and (self._end.is_done or self._end.finding is not None)

    @property
    def wakes_at(self) -> float | None:
        """When the calling hours close."""
        return None if self._limits is None or self._order is not None or self._end else self._limits.closes_at

    def pass_time(self, now: float) -> None:
        """Want a pause once the calling hours have closed, but a look at it first if it was last seen to be paused."""
        closes_at = self.wakes_at
        if self._limits is not None and closes_at is not None and now >= closes_at:
            self._want_pause(HOURS_OVER, must_read=self._status is CampaignStatus.PAUSED)

    def take(self, response: Any, now: float, *, in_full: bool = True) -> End | None:
        """Take the campaign or its statistics, the response to a pause, or why there is none."""
        if self._order is not None and not self._order.must_read:
            return self._take_pause(response, self._order, now)
        if self._end is not None and self.is_left_to_task:
            return self._take_statistics(response, self._end, now)
        if self._judges:
            return self._judge(response, now)
        self.is_urgent = False
        if not isinstance(response, Campaign):
            if self._order is None:
                return self._take_error(response, now)
            # Nobody can say whether it is paused, so a pause is sent.
            self._log(f"{response.message.rstrip('.')}; pausing it", now, logging.WARNING)
            self._order.failures += 1
            self._order.must_read, self.is_urgent = False, True
            return None
        end = self._take_campaign(response, now, in_full=in_full)
        # An end that waits for statistics is there already.
        if end is not None or not self.is_urgent:
            self._end = end
        self._remind(now)
        if end is None or not end.is_done:
            return end
        self.is_urgent = True
        return None

    def resume(self, end: End) -> bool:
        """
        Go on where another process has ended the wait.

        :param end: How it ended there.
        :returns: Whether the statistics are left to read; or the campaign, if that process began after the deadline.
        """
        if super().resume(end):
            return True
        self._end = end
        is_paused = end.finding is not None and end.finding.condition in _PAUSED_WITH_STATISTICS
        self.is_urgent = (end.is_done or is_paused) and not (end.result or {}).get("statistics")
        return self.is_urgent

    def delay(self, poll_interval: float, failures: int, retry_after: float | None, now: float) -> float:
        """Return how many seconds to wait before the next request; for statistics, not until Airflow ends the task."""
        if self._order is not None:
            times = min(self._order.failures, _MAXIMUM_PAUSE_FAILURES)
            return poll_delay(timing.pause_delay, times, retry_after) if times and not self._order.must_read else 0.0
        if self._statistics_since is None:
            return super().delay(poll_interval, failures, retry_after, now)
        seconds = poll_delay(timing.statistics_delay, failures, retry_after)
        if self._statistics_until is None:
            return seconds
        return max(0.0, min(seconds, self._statistics_until - timing.statistics_delay - now))

    def _take_campaign(self, campaign: Campaign, now: float, *, in_full: bool) -> End | None:
        status = campaign.status
        if status is CampaignStatus.PAUSED and self._pauses_count_from is not None and now < self._pauses_count_from:
            self._recover(now)
            self._doubt_pause(now)
            return None
        self._note(campaign, now, in_full=in_full)
        if self._order is not None:
            return self._settle_pause(self._order, now)
        if status is CampaignStatus.COMPLETED:
            return self._completed_now(now)
        if self._is_own_pause:
            return None
        if self._limits is not None and self._limits.began_closed and self._limits.closes_at is not None:
            if status.is_running:
                self._want_pause(HOURS_OVER)
                return None
            if status is CampaignStatus.PAUSED:
                # By this task, in a process that could not say so any more, or by somebody else.
                return self._was_paused(PauseOrder(HOURS_OVER), now, is_known=False)
        if status in _CONDITIONS:
            return self._meet(self._finding_of(status, now), now)
        if status not in _MOVING:
            self._moved_at = now
        elif self._stall_timeout is not None and now - self._moved_at >= self._stall_timeout:
            if not in_full:
                self.is_urgent = True
                return None
            message = f"no counter has changed for {now - self._moved_at:.0f} s ({self.last_seen(now)})"
            return self._meet(Finding(Condition.CAMPAIGN_STALLED, message), now)
        if self._limits is not None and self._limits.counts_calls and in_full:
            self._check_calls(self._limits)
        return None

    def _doubt_pause(self, now: float) -> None:
        """Take note that the campaign is shown as paused, which may be from before its start."""
        if self._order is not None:
            # It proves nothing of the pause that was sent.
            self._order.must_read, self.is_urgent = False, True
            self._order.failures += 1
        elif not self._is_pause_doubted:
            self._is_pause_doubted = True
            self._log(f"it is shown as {_OLD_PAUSE}, so the wait goes on", now)

    def _note(self, campaign: Campaign, now: float, *, in_full: bool) -> None:
        """Take note of status and counters, and log what has changed."""
        before, self._status = self._status, campaign.status
        self._status_text, self._ended_at = campaign.status_text, campaign.ended_at
        self._counts_seen = (campaign.completed_count, campaign.failed_count, campaign.total_count)
        self._seen_at = now
        self._recover(now)
        if before is not campaign.status:
            self._announced, self._is_own_pause = None, False
            self._moved_at = now if before is not None else self._moved_at
            if campaign.status is CampaignStatus.UNKNOWN:
                self._log(f"status {campaign.status_text[:40]!r} is unknown here; still waiting", now, logging.WARNING)
        self._count(campaign, now, in_full=in_full)
        if line := self._progress.line(campaign, now):
            self._log(line, now)

    def _finding_of(self, status: CampaignStatus, now: float) -> Finding:
        condition, message = _CONDITIONS[status]
        return Finding(condition, f"{message} ({self.last_seen(now)})")

    def _completed_now(self, now: float) -> End:
        self._failing_since = None
        return End(EndReason.DONE, "it is completed", result=self._result(), at=now)

    # The limits, and the pause that follows.

    def _check_calls(self, limits: Limits) -> None:
        finished = (self._counts_seen[0] or 0) + (self._counts_seen[1] or 0)
        if (finding := limits.too_many_calls(finished)) is not None:
            self._want_pause(finding)
        elif limits.is_to_be_judged(finished):
            self._judges = self.is_urgent = True

    def _judge(self, response: CampaignStats | VoiceGenieError, now: float) -> End | None:
        self.do_without()
        if isinstance(response, CampaignStats):
            self._failing_since = None
            finding = None if self._limits is None else self._limits.too_few_successes(response)
            if finding is not None:
                self._want_pause(finding)
        elif self._failing_since is None:
            self._failing_since = now
            problem = response.message.rstrip(".")
            self._log(f"its statistics cannot be read ({problem}), so its calls are not judged", now, logging.WARNING)
        return None

    def do_without(self) -> None:
        """Do without the statistics by which the calls so far would be judged, or without a look before a pause."""
        self._judges, self.is_urgent = False, self._order is not None
        if self._order is not None:
            self._order.must_read = False

    def _want_pause(self, finding: Finding, *, must_read: bool = False) -> None:
        self._order = PauseOrder(finding)
        self._order.must_read = must_read
        self._judges, self.is_urgent = False, True

    def _take_pause(self, response: PausedCampaign | VoiceGenieError, order: PauseOrder, now: float) -> End | None:
        """Take what came of a pause. It is sent until the service refuses it, or the campaign is seen to be paused."""
        order.was_sent = True
        if isinstance(response, PausedCampaign):
            return self._was_paused(order, now)
        problem = response.message.rstrip(".")
        order.failures += 1
        if isinstance(response, CampaignNotRunningError):
            order.must_read = True
            if order.failures == 1:
                self._log(f"{order.finding.message}, and the service says that it does not run; looking at it", now)
            return None
        may_go_on = f"{order.finding.message}, and it could not be paused: {problem}. IT MAY GO ON CALLING"
        if response.may_have_taken_effect:
            order.is_lost = order.must_read = True
            self._log(f"{may_go_on}; looking at it", now, logging.WARNING)
            return None
        finding = Finding.of(response)
        if response.temporary or self._rules.outcome(finding.condition) is Outcome.WAIT:
            self._log(f"{may_go_on}; trying again", now, logging.WARNING)
            return None
        self._order, self.is_urgent = None, False
        self._end = End(
            EndReason.CONDITION, finding=finding._replace(message=f"{may_go_on}: pause it"), result=self._result()
        )
        return self._end

    def _settle_pause(self, order: PauseOrder, now: float) -> End | None:
        """Settle a pause by the campaign as it was just read."""
        status = self._status
        if status is CampaignStatus.PAUSED and not order.was_sent and self._limits is not None:
            # It is as it was seen before the hours closed.
            self._order = None
            self._limits.go_on_after_closing(now)
            return None
        if status is CampaignStatus.PAUSED:
            return self._was_paused(order, now, is_known=order.is_lost)
        if status is CampaignStatus.COMPLETED:
            self._order = None
            return self._completed_now(now)
        if status is not None and status in _CONDITIONS:
            self._order = None
            return self._meet(self._finding_of(status, now), now)
        order.must_read, self.is_urgent = False, True
        return None

    def _was_paused(self, order: PauseOrder, now: float, *, is_known: bool = True) -> End | None:
        """
        Take note that the campaign is paused.

        :param is_known: Whether this wait has paused it.
        """
        self._order, self.is_urgent = None, False
        self._status, self._status_text, self._announced = CampaignStatus.PAUSED, CampaignStatus.PAUSED.value, None
        self._is_own_pause = is_known
        if self._limits is not None:
            self._limits.go_on_after_closing(now)
        condition, message, _ = order.finding
        at = write_time(datetime.fromtimestamp(now, UTC))
        self._pauses += ({"at": at, "why": condition.value, "was_paused_already": not is_known},)
        message += ", so it was paused" if is_known else ", and it was paused already"
        finding = Finding(condition, f"{message}; {self._left()}")
        if condition is Condition.CALLING_HOURS_OVER and is_known and self._limits is not None and self._limits.resumes:
            self._end = End(EndReason.PAUSED, finding.message, result=self._result(), at=now)
            return self._end
        if condition not in _PAUSED_WITH_STATISTICS:
            return self._meet(finding, now)
        self._log(f"{message}; reading its statistics, which may take half a minute", now)
        self._end = End(EndReason.CONDITION, finding=finding, result=self._result(), at=now)
        self._failing_since, self.is_urgent = None, True
        return None

    def _left(self) -> str:
        """Say how many contacts have no finished call."""
        completed, _, total = self._counts_seen
        if total is None or completed is None:
            return "how many contacts are left is not known"
        # The list does not have the failed ones.
        return f"{max(0, total - completed - (self._failed or 0)):,} of {total:,} contacts were left at the last look"

    # The statistics at the end.

    def _take_statistics(self, response: CampaignStats | VoiceGenieError, completed: End, now: float) -> End | None:
        if self._statistics_since is None:
            self._statistics_since = now
        if not isinstance(response, CampaignStats):
            return self._take_statistics_error(response, completed, now)
        self._failing_since = self._invalid_since = None
        if not response.is_final and now - (completed.at or 0.0) < timing.statistics_lag:
            return self._do_without(completed, "are not up to date yet", now) if self._is_late(now) else None
        result = {**(completed.result or {}), "statistics": statistics_json(response)}
        if response.completed_at is not None:
            result["completed_at"] = write_time(response.completed_at)
        end = completed._replace(result=result)
        rate, minimum = result["statistics"]["success_rate"], self._min_success_rate
        if not completed.is_done or minimum is None or (rate is not None and rate >= minimum):
            return end
        ended = "no call has ended" if rate is None else f"{rate:g} % of the finished calls were successful"
        message = f"it is completed, but {ended}, and at least {minimum:g} % is wanted"
        return self._finish(end, Finding(Condition.SUCCESS_RATE_TOO_LOW, message))

    def _take_statistics_error(self, error: VoiceGenieError, completed: End, now: float) -> End | None:
        problem = error.message.rstrip(".")
        condition = Condition(error.kind)
        if self._failing_since is None:
            self._failing_since = now
            self._log(f"its statistics cannot be read yet ({problem}); trying again", now, logging.WARNING)
        if condition is not Condition.INVALID_RESPONSE:
            self._invalid_since = None
        elif self._invalid_since is None:
            self._invalid_since = now
        invalid_since = now if self._invalid_since is None else self._invalid_since
        is_patient = (
            now - self._failing_since < timing.statistics_patience
            and now - invalid_since < timing.invalid_statistics_patience
        )
        if error.temporary and is_patient and not self._is_late(now):
            return None
        if self._min_success_rate is None or not completed.is_done:
            return self._do_without(completed, f"cannot be read ({problem})", now)
        message = f"it is completed, but its statistics, which min_success_rate needs, cannot be read: {error.message}"
        return self._finish(completed, Finding(condition, message, error.retry_after))

    def _is_late(self, now: float) -> bool:
        return self._statistics_until is not None and now + timing.statistics_delay >= self._statistics_until

    def _do_without(self, completed: End, why: str, now: float) -> End:
        state = "completed" if completed.is_done else "paused"
        self._log(f"its statistics {why}; it is {state}, so the task goes on without them", now, logging.WARNING)
        return completed

    def _finish(self, end: End, finding: Finding) -> End:
        """End the wait by a condition. If its outcome is to wait, the sensor goes on by reading the campaign."""
        self._end = self._statistics_since = self._failing_since = self._invalid_since = None
        self.is_urgent = False
        return end.of_condition(finding)

    def counters(self) -> dict[str, Any]:
        """Return when the counters were last seen to change, and what they are, as plain JSON."""
        return {"at": self._moved_at, "completed": self._completed, "failed": self._failed}

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        if self._status is None:
            seen = f"last seen: {_OLD_PAUSE}" if self._is_pause_doubted else "it could not be read so far"
            return f"{seen}{self._since_then()}"
        progress = describe(self._status_text, *self._counts_seen)
        return f"last seen{ago(now - self._seen_at)}: {progress}{self._since_then()}"

    def _result(self) -> Mapping[str, Any]:
        ended_at = self._ended_at if self._status is CampaignStatus.COMPLETED else None
        return {
            "status": (self._status or CampaignStatus.UNKNOWN).value,
            "completed_at": write_time(ended_at),
            "statistics": None,
            **({} if self._limits is None else {"pauses": list(self._pauses)}),
        }

    def _count(self, campaign: Campaign, now: float, *, in_full: bool) -> None:
        """Compare the counters with what was known of them."""
        moved = _differ(self._completed, campaign.completed_count)
        if in_full:
            # Before the failed calls were known, nobody can say that they did not change.
            moved = moved or _differ(self._failed, campaign.failed_count) or not self._known_in_full
            self._known_in_full = True
        if campaign.completed_count is not None:
            self._completed = campaign.completed_count
        if campaign.failed_count is not None:
            self._failed = campaign.failed_count
        if moved:
            self._moved_at = now
            if self._announced is Condition.CAMPAIGN_STALLED:
                self._announced = None


def _differ(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and before != after
