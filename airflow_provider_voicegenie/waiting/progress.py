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
