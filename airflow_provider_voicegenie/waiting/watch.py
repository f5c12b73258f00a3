# SPDX-License-Identifier: Apache-2.0
"""
What every wait has in common.

A :class:`Watch` names the request that it wants next, takes the response or the error, logs what is worth a line, and
returns how the wait ended, if it did. The loop in a worker and the trigger in the triggerer only send what it wants, so
both ways of waiting go by the same rules.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow_provider_voicegenie.api.models import CampaignStatus
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, Outcome, OutcomeRules

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.rules.prerequisites import Source

log = logging.getLogger(__name__)

#: Seconds of silence after which a wait says again that it goes on, and on what.
REMIND_AFTER = 600.0


class EndReason(StrEnum):
    """Why a wait ended."""

    #: What was waited for is so.
    DONE = "done"
    #: The wait has paused the campaign, as its calling hours closed, and the task starts it again when they open.
    PAUSED = "paused"
    #: A condition whose outcome is not to wait.
    CONDITION = "condition"
    #: The time that the wait was given is over.
    TIMEOUT = "timeout"
    #: The task's ``execution_timeout`` is over.
    EXECUTION_TIMEOUT = "execution_timeout"


class End(NamedTuple):
    """
    How a wait ended.

    :param message: What was seen, in a sentence without its full stop; of a condition, its finding says that.
    :param finding: The condition and what was seen, if that is the reason.
    :param result: What is known of the campaign, as plain JSON for XCom.
    :param at: When that was seen, Unix seconds.
    """

    reason: EndReason
    message: str = ""
    finding: Finding | None = None
    result: Mapping[str, Any] | None = None
    at: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether what was waited for is so."""
        return self.reason is EndReason.DONE

    @property
    def is_out_of_time(self) -> bool:
        """Whether a time limit ended the wait."""
        return self.reason in (EndReason.TIMEOUT, EndReason.EXECUTION_TIMEOUT)

    def of_condition(self, finding: Finding) -> End:
        """
        Return the end by a condition instead, with the same result.

        :param finding: The condition and what was seen.
        """
        return self._replace(reason=EndReason.CONDITION, message="", finding=finding)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, for a trigger's event."""
        return {
            "reason": self.reason.value,
            "message": self.message,
            "finding": self.finding and {**self.finding._asdict(), "condition": self.finding.condition.value},
            "result": None if self.result is None else dict(self.result),
            "at": self.at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> End:
        """Read what :meth:`to_json` wrote."""
        finding = data["finding"] and Finding(
            **{**data["finding"], "condition": Condition(data["finding"]["condition"])}
        )
        return cls(EndReason(data["reason"]), data["message"], finding, data["result"], data["at"])


class Watch:
    """
    A wait for something to become true of a campaign.

    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds.
    """

    __slots__ = ("_announced", "_campaign_id", "_end", "_logged_at", "_rules", "_trouble", "has_read", "is_urgent")

    #: Whether :meth:`take` runs code of the author's, which may take its time, and :meth:`prepare` has to load it.
    runs_code_of_author: ClassVar[bool] = False
    #: Whether the campaign is read together with something else, which the list does not have.
    needs_single_reads: ClassVar[bool] = False

    def __init__(self, campaign_id: str, rules: OutcomeRules, now: float) -> None:
        self._campaign_id = campaign_id
        self._rules = rules
        #: The condition that was said to be waited out, so that it is said once.
        self._announced: Condition | None = None
        self._trouble: Condition | None = None
        self._logged_at = now
        self._end: End | None = None
        #: Whether the campaign could be read.
        self.has_read = False
        #: Whether it wants its next request sent now, even after the deadline.
        self.is_urgent = False

    @property
    def wants(self) -> Request[Any]:
        """The request to send next."""
        raise NotImplementedError

    @property
    def needs(self) -> Collection[Source]:
        """What has to be read besides the campaign, and put into it."""
        return ()

    def prepare(self) -> None:
        """Load the author's code."""

    @property
    def is_list_enough(self) -> bool:
        """Whether what the list says of the campaign is as good as the campaign read by itself."""
        return True

    @property
    def wakes_at(self) -> float | None:
        """When it wants something by itself, whatever can be read by then, Unix seconds; ``None`` for never."""
        return None

    def pass_time(self, now: float) -> None:
        """
        Take note of the time. Once it wakes, it is urgent.

        :param now: Unix seconds.
        """

    @property
    def is_left_to_task(self) -> bool:
        """Whether the request that it wants next is the last one, which the task may send instead of the trigger."""
        return False

    @property
    def is_unsettled(self) -> bool:
        """Whether it wants something that no deadline may cut short."""
        return False

    def do_without(self) -> None:
        """Take note that a read which is not the last one could not be sent now."""
        self.is_urgent = False

    def take(self, response: Any, now: float, *, in_full: bool = True) -> End | None:
        """
        Take what came of the request that it wanted.

        :param response: The response, or a :class:`~airflow_provider_voicegenie.api.errors.VoiceGenieError`.
        :param now: Unix seconds.
        :param in_full: Whether a campaign was read by itself, and not in the list, which does not have all counters.
        :returns: How the wait ended; ``None`` while it goes on.
        """
        raise NotImplementedError

    def resume(self, end: End) -> bool:
        """
        Go on where another process of the task has ended the wait.

        :param end: How it ended there.
        :returns: Whether a request is left to send: a triggerer that came after the deadline has read nothing.
        """
        return end.is_out_of_time and (end.result or {}).get("status") in (None, CampaignStatus.UNKNOWN.value)

    def delay(self, poll_interval: float, failures: int, retry_after: float | None, now: float) -> float:
        """
        Return how many seconds to wait before the next request.

        :param poll_interval: Seconds between two polls.
        :param failures: How many requests have failed in a row.
        :param retry_after: Seconds the service asked to wait.
        :param now: Unix seconds.
        """
        return 0.0 if self.is_urgent else poll_delay(poll_interval, failures, retry_after)

    def _take_error(self, error: VoiceGenieError, now: float) -> End | None:
        """Take note that the service could not be asked, or refused."""
        finding = Finding.of(error)
        condition = finding.condition
        if self._rules.outcome(condition) is not Outcome.WAIT:
            self._end = End(EndReason.CONDITION, finding=finding, result=self._result())
        elif self._trouble is not condition:
            self._trouble = condition
            self._log(f"{error.message.rstrip('.')} [{condition}: the wait goes on]", now, logging.WARNING)
        else:
            self._remind(now)
        return self._end

    def time_is_up(self, now: float, reason: EndReason) -> End:
        """
        Return how the wait ends now that its time is over; a campaign that was read in time counts.

        :param now: Unix seconds.
        :param reason: Which time it was.
        """
        if self._end is None:
            self._end = End(reason, f"timed out ({self.last_seen(now)})", result=self._result(), at=now)
        return self._end

    def counters(self) -> dict[str, Any] | None:
        """Return what a watch that goes on in another process has to know of the campaign, as plain JSON."""
        return None

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        raise NotImplementedError

    def _result(self) -> Mapping[str, Any] | None:
        """Return what is known of the campaign, for XCom."""
        raise NotImplementedError

    def _meet(self, finding: Finding, now: float) -> End | None:
        """End the wait by a condition, unless its outcome is to wait; that is logged once."""
        if self._rules.outcome(finding.condition) is not Outcome.WAIT:
            return End(EndReason.CONDITION, finding=finding, result=self._result())
        if self._announced is not finding.condition:
            self._announced = finding.condition
            self._log(f"{finding.message} [{finding.condition}: the wait goes on]", now, logging.WARNING)
        return None

    def _recover(self, now: float) -> None:
        """Take note that the campaign was read; log that the service responds again, if it did not."""
        self.has_read = True
        if self._trouble is not None:
            self._trouble = None
            self._log("the service responds again", now)

    def _remind(self, now: float) -> None:
        """Log, if nothing was logged for long, that the wait goes on."""
        if self._end is None and now - self._logged_at >= REMIND_AFTER:
            self._log(f"still waiting ({self.last_seen(now)})", now)

    def _since_then(self) -> str:
        return "" if self._trouble is None else f"; {self._trouble} since then"

    def _log(self, message: str, now: float, level: int = logging.INFO) -> None:
        self._logged_at = now
        log.log(level, "Campaign %r: %s.", self._campaign_id, message)


def ago(seconds: float) -> str:
    """Say how long ago something was read, to go behind *last seen*; nothing if that was just now."""
    return "" if seconds < 1 else f" {seconds:.0f} s ago"
