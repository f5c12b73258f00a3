# SPDX-License-Identifier: Apache-2.0
"""The final statistics of a completed campaign: what they add to the end of a wait, as plain JSON and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_voicegenie.api.models import CampaignStats, write_time
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.waiting.watch import End


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


def find_low_success_rate(end: End, minimum: float | None) -> Finding | None:
    """
    Return the finding that too few calls were successful, if that is so.

    :param end: The end of the wait, with the statistics.
    :param minimum: Percentage of successful calls among the finished ones that is wanted; ``None`` for any.
    """
    rate: float | None = (end.result or {})["statistics"]["success_rate"]
    if minimum is None or (rate is not None and rate >= minimum):
        return None
    ended = "no call has ended" if rate is None else f"{rate:g} % of the finished calls were successful"
    message = f"it is completed, but {ended}, and at least {minimum:g} % is wanted"
    return Finding(Condition.SUCCESS_RATE_TOO_LOW, message)


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
