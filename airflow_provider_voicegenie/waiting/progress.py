# SPDX-License-Identifier: Apache-2.0
"""When the progress of a campaign is worth a line in the task's log, and what the line says."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow_provider_voicegenie.api.models import Campaign

#: A line is due when this many percent more are done, ...
_PERCENT = 5.0
#: ... or when anything changed and the last line is this many seconds old.
_SECONDS = 300.0


class ProgressLog:
    """The progress of one campaign, as far as it was logged."""

    __slots__ = ("_began_at", "_began_with", "_logged_at", "_logged_done", "_logged_status")

    def __init__(self) -> None:
        self._began_at = 0.0
        self._began_with: int | None = None
        self._logged_at = 0.0
        self._logged_done = 0
        self._logged_status = ""

    def line(self, campaign: Campaign, failed: int | None, now: float) -> str | None:
        """
        Return the line that is due, if one is.

        :param campaign: The campaign as it was just read.
        :param failed: The failed calls as they were last known; the list does not have them.
        :param now: Unix seconds.
        """
        done = (campaign.completed_count or 0) + (failed or 0)
        if self._began_with is None:
            self._began_at, self._began_with = now, done
        elif campaign.status_text == self._logged_status and not self._is_due(done, campaign.total_count, now):
            return None
        self._logged_at, self._logged_done, self._logged_status = now, done, campaign.status_text
        forecast = self._forecast(done, campaign.total_count, now) if campaign.status.is_running else ""
        return describe(campaign.status_text, campaign.completed_count, failed, campaign.total_count) + forecast

    def _is_due(self, done: int, total: int | None, now: float) -> bool:
        change = abs(done - self._logged_done)
        if change == 0:
            return False
        return 100 * change >= _PERCENT * (total or done) or now - self._logged_at >= _SECONDS

    def _forecast(self, done: int, total: int | None, now: float) -> str:
        seconds = now - self._began_at
        made = done - (self._began_with or 0)
        if seconds <= 0 or made <= 0:
            return ""
        rate = made / seconds
        words = f", {60 * rate:.1f} calls a minute"
        if total is not None and total > done:
            try:
                end = datetime.fromtimestamp(now + (total - done) / rate, UTC)
            except (OverflowError, ValueError, OSError):
                return words
            words += f", expected end {end:%Y-%m-%d %H:%M} UTC"
        return words


def describe(status_text: str, completed: int | None, failed: int | None, total: int | None) -> str:
    """Say in a few words how far a campaign has come."""
    words = f"status {status_text[:40]!r}"
    if completed is None:
        return words
    # If the failed calls are not known, those that were completed are not all that are done.
    done, verb = completed + (failed or 0), "completed" if failed is None else "done"
    if total:
        words += f", {done} of {total} calls {verb} ({100 * done / total:.0f} %)"
    else:
        words += f", {done} calls {verb}"
    return words if failed is None else f"{words}, {failed} failed"
