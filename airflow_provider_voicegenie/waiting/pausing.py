# SPDX-License-Identifier: Apache-2.0
"""Keeping a campaign paused: all its rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError


#: Seconds for which what was last seen of a campaign counts, if it cannot be read at the end.
_FRESH = 300.0


class PauseWatch(Watch):
    """
    The time for which a campaign is kept paused.

    :param campaign_id: The campaign.
    :param rules: What each condition does to the task.
    :param now: When it began, Unix seconds.
    :param before: How it went until now, in another process of the task.
    """

    __slots__ = ("_count", "_is_held", "_is_lost", "_seen_at", "_status", "must_pause")

    def __init__(self, campaign_id: str, rules: OutcomeRules, now: float, before: End | None = None) -> None:
        super().__init__(campaign_id, rules, now)
        seen = {} if before is None or before.result is None else before.result
        self._status: CampaignStatus | None = CampaignStatus(seen["status"]) if seen else None
        self._seen_at = now
        self._count: int = seen.get("paused_again", 0)
        # Whether it did not run, by the last that was heard of it.
        self._is_held = before is not None and before.is_done
        # Whether the response to a pause was lost.
        self._is_lost = False
        #: Whether the campaign was just seen to run, so that a pause is due.
        self.must_pause = False

    def observe(self, reading: Campaign | VoiceGenieError, now: float) -> End | None:
        """
        Take note of a reading.

        :param reading: The campaign as it was just read, or why it could not be.
        :param now: Unix seconds.
        :returns: How it ended; ``None`` while it goes on.
        """
        self.must_pause = False
        if not isinstance(reading, Campaign):
            return self.observe_error(reading, now)
        self._recover(now)
        before, self._status, self._seen_at = self._status, reading.status, now
        # The service refuses the pause of one that does not run, whatever the word means.
        is_unknown = reading.status is CampaignStatus.UNKNOWN
        if is_unknown and before is not CampaignStatus.UNKNOWN:
            self._log(f"status {reading.status_text[:40]!r} is unknown here; trying to pause it", now, logging.WARNING)
        self.must_pause = reading.status.is_running or is_unknown
        self._is_held = not self.must_pause
        if self._is_lost and self._is_held:
            self._was_paused("the pause took effect", now)
        if reading.status.has_ended:
            self._log(f"it is over ({reading.status.value}), so nothing is left to pause", now)
            self._end = End(EndReason.DONE, "it is over", result=self._result(), at=now)
        self._remind(now)
        return self._end

    def observe_pause(self, paused: PausedCampaign | VoiceGenieError, now: float) -> End | None:
        """
        Take note of what came of a pause.

        :param paused: The response, or why there is none.
        :param now: Unix seconds.
        :returns: How it ended; ``None`` while it goes on.
        """
        from airflow_provider_voicegenie.api.errors import CampaignNotRunningError

        self.must_pause = False
        if isinstance(paused, PausedCampaign):
            self._status = paused.status
            self._was_paused("it ran again, so it was paused again", now)
        elif isinstance(paused, CampaignNotRunningError):
            self._is_held = True
        elif paused.may_have_taken_effect:
            self._is_lost = True
            self._log(f"{paused.message.rstrip('.')}; looking at it again", now, logging.WARNING)
        else:
            return self.observe_error(paused, now)
        return self._end

    def time_is_up(self, now: float, reason: EndReason) -> End:
        """
        Return how it ends when its time is over.

        :param now: Unix seconds.
        :param reason: Which time it was.
        """
        end = super().time_is_up(now, reason)
        is_held = self._is_held and (self._trouble is None or now - self._seen_at < _FRESH)
        if end.reason is EndReason.TIMEOUT and is_held:
            return end._replace(reason=EndReason.DONE)
        return end

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        seen = "never seen" if self._status is None else f"last seen{ago(now - self._seen_at)}: {self._status.value}"
        return f"{seen}, paused again {self._count} time(s){self._since_then()}"

    def _was_paused(self, words: str, now: float) -> None:
        self._is_lost, self._is_held = False, True
        self._count += 1
        self._log(f"{words} ({self._count} time(s) so far)", now, logging.WARNING)

    def _result(self) -> Mapping[str, Any]:
        """Return what goes to XCom."""
        return {"status": (self._status or CampaignStatus.PAUSED).value, "paused_again": self._count}
