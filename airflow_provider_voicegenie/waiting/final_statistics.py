# SPDX-License-Identifier: Apache-2.0
"""The final statistics of a completed campaign: how long to try to read them, and how the wait ends with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.models import CampaignStats, write_time
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.waiting.watch import End

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

log = logging.getLogger(__name__)

#: Seconds between two reads.
STATISTICS_DELAY = 5.0

#: Statistics may be this many seconds old (30, by the service's page, and some to spare): until then, those of a
#: completed campaign that name no completion are taken for old ones, and read again.
_STATISTICS_AGE = 35.0

#: How many seconds to try while the service fails, and while its responses are invalid. That the campaign is completed
#: is known, and a task must not hang on its numbers.
_PATIENCE = 300.0
_PATIENCE_WITH_INVALID_RESPONSES = 60.0


class FinalStatistics:
    """
    The rules for reading statistics once a campaign is completed. It stays completed, even if they cannot be read.

    :param campaign_id: The campaign.
    :param end: How the wait ended: the campaign is completed.
    :param now: Unix seconds.
    :param min_success_rate: Percentage of successful calls among the finished ones that is wanted; ``None`` for any.
    :param deadline: When to do without statistics, if none are needed, Unix seconds.
    """

    def __init__(
        self,
        campaign_id: str,
        end: End,
        now: float,
        *,
        min_success_rate: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self._campaign_id = campaign_id
        self._end = end
        self._completed_since = now if end.at is None else end.at
        self._min_success_rate = min_success_rate
        self._deadline = deadline if min_success_rate is None else None
        self._failing_since: float | None = None
        self._invalid_since: float | None = None

    @property
    def known(self) -> End | None:
        """How the wait ended, if the triggerer has read the statistics."""
        return self._judge(self._end) if (self._end.result or {}).get("statistics") else None

    def delay(self, failures: int, retry_after: float | None, now: float) -> float:
        """
        Return how many seconds to wait before the next read: not until Airflow ends the task.

        :param failures: How many reads have failed in a row.
        :param retry_after: Seconds the service asked to wait.
        :param now: Unix seconds.
        """
        seconds = poll_delay(STATISTICS_DELAY, failures, retry_after)
        if self._deadline is None:
            return seconds
        return max(0.0, min(seconds, self._deadline - STATISTICS_DELAY - now))

    def observe(self, statistics: CampaignStats, now: float) -> End | None:
        """
        Take note of the statistics.

        :param statistics: As they were just read.
        :param now: Unix seconds.
        :returns: How the wait ended; ``None`` if they look old, and have to be read again.
        """
        self._failing_since = self._invalid_since = None
        if not statistics.is_final and now - self._completed_since < _STATISTICS_AGE:
            return self._go_on_without("are not up to date yet") if self._is_over(now) else None
        return self._judge(add_statistics(self._end, statistics))

    def observe_error(self, error: VoiceGenieError, now: float) -> End | None:
        """
        Take note that the statistics could not be read.

        :param error: Why.
        :param now: Unix seconds.
        :returns: How the wait ended; ``None`` if they are to be read again.
        """
        condition = Condition(error.kind)
        if self._failing_since is None:
            self._failing_since = now
            self._warn(f"its statistics cannot be read yet ({error.message.rstrip('.')}); trying again")
        if condition is not Condition.INVALID_RESPONSE:
            self._invalid_since = None
        elif self._invalid_since is None:
            self._invalid_since = now
        invalid_since = now if self._invalid_since is None else self._invalid_since
        is_patient = now - self._failing_since < _PATIENCE and now - invalid_since < _PATIENCE_WITH_INVALID_RESPONSES
        if error.temporary and is_patient and not self._is_over(now):
            return None
        if self._min_success_rate is None:
            return self._go_on_without(f"cannot be read ({error.message.rstrip('.')})")
        words = f"it is completed, but its statistics, which min_success_rate needs, cannot be read: {error.message}"
        return self._end.of_condition(Finding(condition, words, error.retry_after))

    def _judge(self, end: End) -> End:
        """Return the condition that too few calls were successful, or the end, which has the statistics, as it is."""
        rate: float | None = (end.result or {})["statistics"]["success_rate"]
        wanted = self._min_success_rate
        if wanted is None or (rate is not None and rate >= wanted):
            return end
        ended = "no call has ended" if rate is None else f"{rate:g} % of the finished calls were successful"
        words = f"it is completed, but {ended}, and at least {wanted:g} % is wanted"
        return end.of_condition(Finding(Condition.SUCCESS_RATE_TOO_LOW, words))

    def _is_over(self, now: float) -> bool:
        return self._deadline is not None and now + STATISTICS_DELAY >= self._deadline

    def _go_on_without(self, why: str) -> End:
        self._warn(f"its statistics {why}; it is completed, so the task goes on without them")
        return self._end

    def _warn(self, message: str) -> None:
        log.warning("Campaign %r: %s.", self._campaign_id, message)


def add_statistics(end: End, statistics: CampaignStats) -> End:
    """
    Add to the end of a wait what the statistics say.

    :param end: The campaign is completed.
    :param statistics: As they were just read.
    """
    result = {**(end.result or {}), "statistics": statistics_json(statistics)}
    if statistics.completed_at is not None:
        result["completed_at"] = write_time(statistics.completed_at)
    return end._replace(result=result)


def describe_result(end: End) -> str:
    """
    Say in a few words how the calls of a completed campaign went.

    :param end: The end of the wait, with the statistics if they could be read.
    """
    statistics = (end.result or {}).get("statistics")
    if not statistics:
        return "how its calls went is not known"
    completed, failed = statistics["calls_completed"], statistics["calls_failed"]
    rate = statistics["success_rate"]
    if not completed + failed:
        return "no call has ended"
    # With one failed call, not all were successful.
    percent = "" if rate is None else f" ({min(rate, 99.9) if failed else rate:.1f} %)".replace(".0 %", " %")
    return f"{completed:,} of {completed + failed:,} calls successful{percent}, {failed:,} failed"


def success_rate(statistics: CampaignStats) -> float | None:
    """Return the percentage of successful calls among the finished ones; ``None`` before any finished."""
    if statistics.success_rate is not None:
        return statistics.success_rate
    ended = statistics.calls_completed + statistics.calls_failed
    return 100 * statistics.calls_completed / ended if ended else None


def statistics_json(statistics: CampaignStats) -> Mapping[str, Any]:
    """Return statistics as plain JSON, for XCom: numbers only."""
    return {
        "total_contacts": statistics.total_contacts,
        "calls_completed": statistics.calls_completed,
        "calls_failed": statistics.calls_failed,
        "call_status_breakdown": dict(statistics.call_status_breakdown),
        "success_rate": success_rate(statistics),
        "average_call_duration": statistics.average_call_duration,
        "total_call_duration": statistics.total_call_duration,
    }
