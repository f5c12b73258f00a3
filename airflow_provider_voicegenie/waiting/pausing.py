# SPDX-License-Identifier: Apache-2.0
"""Keeping a campaign paused: all its rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.endpoints import campaign, pause
from airflow_provider_voicegenie.api.errors import CampaignNotRunningError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

#: Seconds for which what was last seen of a campaign counts, if it cannot be read at the end.
_FRESH = 300.0


class PauseWatch(Watch):
    """
    The time for which a campaign is kept paused.

    :param rules: What each condition does to the task.
    :param now: When it began, Unix seconds.
    """

    __slots__ = ("_count", "_is_held", "_is_lost", "_seen_at", "_status")

    def __init__(self, campaign_id: str, rules: OutcomeRules, now: float) -> None:
        super().__init__(campaign_id, rules, now)
        self._status: CampaignStatus | None = None
        self._seen_at = now
        self._count = 0
        # Whether it did not run, by the last that was heard of it.
        self._is_held = False
        # Whether the response to a pause was lost.
        self._is_lost = False

    @property
    def wants(self) -> Request[Any]:
        """The request to send next: read the campaign, and pause it if it was just seen to run."""
        return (pause if self.is_urgent else campaign)(self._campaign_id)

    def take(self, response: Any, now: float, *, in_full: bool = True) -> End | None:
        """Take the campaign or the response to a pause, or why there is none."""
        was_pause, self.is_urgent = self.is_urgent, False
        if was_pause:
            return self._take_pause(response, now)
        if isinstance(response, Campaign):
            return self._take_campaign(response, now)
        return self._take_error(response, now)

    def resume(self, end: End) -> bool:
        """Go on where the triggerer has ended: return whether to read once more, as its reading is an interval old."""
        result = end.result or {}
        self._status, self._count = CampaignStatus(result["status"]), result["paused_again"]
        self._is_held = end.is_done
        return end.reason in (EndReason.TIMEOUT, EndReason.DONE) and not self._status.has_ended

    def _take_campaign(self, reading: Campaign, now: float) -> End | None:
        self._recover(now)
        before, self._status, self._seen_at = self._status, reading.status, now
        # If it does not run, the service refuses the pause, whatever the word means.
        is_unknown = reading.status is CampaignStatus.UNKNOWN
        if is_unknown and before is not CampaignStatus.UNKNOWN:
            self._log(f"status {reading.status_text[:40]!r} is unknown here; trying to pause it", now, logging.WARNING)
        self.is_urgent = reading.status.is_running or is_unknown
        self._is_held = not self.is_urgent
        if self._is_lost and self._is_held:
            self._was_paused("the pause took effect", now)
        if reading.status.has_ended:
            self._log(f"it is over ({reading.status.value}), so nothing is left to pause", now)
            self._end = End(EndReason.DONE, "it is over", result=self._result(), at=now)
        self._remind(now)
        return self._end

    def _take_pause(self, paused: PausedCampaign | VoiceGenieError, now: float) -> End | None:
        if isinstance(paused, PausedCampaign):
            self._status = paused.status
            self._was_paused("it ran again, so it was paused again", now)
        elif isinstance(paused, CampaignNotRunningError):
            self._is_held = True
        elif paused.may_have_taken_effect:
            self._is_lost = True
            self._log(f"{paused.message.rstrip('.')}; looking at it again", now, logging.WARNING)
        else:
            return self._take_error(paused, now)
        return self._end

    def time_is_up(self, now: float, reason: EndReason) -> End:
        """Return how it ends when its time is over: well if the campaign did not run by what was last read."""
        end = super().time_is_up(now, reason)
        is_held = self._is_held and (self._trouble is None or now - self._seen_at < _FRESH)
        if end.reason is EndReason.TIMEOUT and is_held:
            return end._replace(reason=EndReason.DONE)
        return end

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        seen = (
            "it could not be read so far"
            if self._status is None
            else f"last seen{ago(now - self._seen_at)}: {self._status.value}"
        )
        return f"{seen}, paused again {self._count} time(s){self._since_then()}"

    def _was_paused(self, message: str, now: float) -> None:
        self._is_lost, self._is_held = False, True
        self._count += 1
        self._log(f"{message} ({self._count} time(s) so far)", now, logging.WARNING)

    def _result(self) -> Mapping[str, Any]:
        """Return what goes to XCom."""
        return {"status": (self._status or CampaignStatus.PAUSED).value, "paused_again": self._count}
