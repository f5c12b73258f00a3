# SPDX-License-Identifier: Apache-2.0
"""How far a campaign has come: when that is worth a line in the task's log, what the line says, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStats
from airflow_provider_voicegenie.waiting.watch import End

#: A line is due when this many percent more are done, ...
_PERCENT = 5.0
#: ... or when anything changed and the last line is this many seconds old.
_SECONDS = 300.0


class ProgressLog:
    """
    The progress of one campaign, as far as it was logged.

    A line has only numbers of the reading that it is about. A list does not have the failed calls: then the line says
    nothing of them, nor of what follows from them.
    """

    __slots__ = ("_first", "_first_in_full", "_logged", "_logged_at", "_logged_failed", "_logged_status")

    def __init__(self) -> None:
        #: When calls were first counted, and how many were completed; and of these, when failed ones too, and how many
        #: were done.
        self._first: tuple[float, int] | None = None
        self._first_in_full: tuple[float, int] | None = None
        self._logged_at = 0.0
        self._logged = 0
        self._logged_failed: int | None = None
        self._logged_status = ""

    def line(self, campaign: Campaign, now: float) -> str | None:
        """
        Return the line that is due, if one is.

        :param campaign: The campaign as it was just read.
        :param now: Unix seconds.
        """
        completed, failed = campaign.completed_count or 0, campaign.failed_count
        is_first = self._first is None
        self._first = self._first or (now, completed)
        if failed is not None:
            self._first_in_full = self._first_in_full or (now, completed + failed)
            if self._logged_failed is None:
                self._logged_failed = failed
        if not is_first and campaign.status_text == self._logged_status and not self._is_due(campaign, now):
            return None
        self._logged_at, self._logged, self._logged_status = now, completed, campaign.status_text
        self._logged_failed = self._logged_failed if failed is None else failed
        forecast = self._forecast(campaign, now) if campaign.status.is_running else ""
        return describe(campaign.status_text, campaign.completed_count, failed, campaign.total_count) + forecast

    def _is_due(self, campaign: Campaign, now: float) -> bool:
        completed, failed = campaign.completed_count or 0, campaign.failed_count
        change = completed - self._logged
        if failed is not None and self._logged_failed is not None:
            change += failed - self._logged_failed
        if change == 0:
            return False
        all_calls = campaign.total_count or completed + (failed or 0)
        return 100 * abs(change) >= _PERCENT * all_calls or now - self._logged_at >= _SECONDS

    def _forecast(self, campaign: Campaign, now: float) -> str:
        failed, total = campaign.failed_count, campaign.total_count
        done = (campaign.completed_count or 0) + (failed or 0)
        since, before = (self._first if failed is None else self._first_in_full) or (now, done)
        seconds, made = now - since, done - before
        if seconds <= 0 or made <= 0:
            return ""
        rate = made / seconds
        message = f", {60 * rate:.1f} {'calls' if failed is not None else 'completed'} a minute"
        if failed is not None and total is not None and total > done:
            try:
                end = datetime.fromtimestamp(now + (total - done) / rate, UTC)
            except (OverflowError, ValueError, OSError):
                return message
            message += f", expected end {end:%Y-%m-%d %H:%M} UTC"
        return message


def describe(status_text: str, completed: int | None, failed: int | None, total: int | None) -> str:
    """Say in a few words how far a campaign has come."""
    message = f"status {status_text[:40]!r}"
    if completed is None:
        return message
    # If the failed calls are not known, those that were completed are not all that are done.
    done, verb = completed + (failed or 0), "completed" if failed is None else "done"
    if total:
        message += f", {done} of {total} calls {verb} ({100 * done / total:.0f} %)"
    else:
        message += f", {done} calls {verb}"
    return message if failed is None else f"{message}, {failed} failed"


# The result.


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
