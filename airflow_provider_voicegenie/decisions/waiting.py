# SPDX-License-Identifier: Apache-2.0
"""
What every wait has in common, as a machine without I/O.

Whoever waits, in a worker or in the triggerer, shows a :class:`Watch` what the service says, and does what the returned
:class:`Step` asks for. So both ways of waiting go by the same rules.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_voicegenie.decisions.outcomes import Condition, Outcome, OutcomeRules

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError


class EndReason(StrEnum):
    """Why a wait ended."""

    #: What was waited for is so.
    DONE = "done"
    #: A condition whose outcome is not to wait.
    CONDITION = "condition"
    #: The time that the wait was given is over.
    TIMEOUT = "timeout"
    #: The task's ``execution_timeout`` is over.
    EXECUTION_TIMEOUT = "execution_timeout"


class End(NamedTuple):
    """
    How a wait ended.

    :param reason: Why it ended.
    :param message: What was seen, in a sentence without its full stop.
    :param condition: The condition, where that is the reason.
    :param retry_after: Seconds the service asked to wait.
    :param result: What is known of the campaign, as plain JSON for XCom.
    """

    reason: EndReason
    message: str
    condition: Condition | None = None
    retry_after: float | None = None
    result: Mapping[str, Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether what was waited for is so."""
        return self.reason is EndReason.DONE

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, for a trigger's event."""
        return {
            "reason": self.reason.value,
            "message": self.message,
            "condition": None if self.condition is None else self.condition.value,
            "retry_after": self.retry_after,
            "result": None if self.result is None else dict(self.result),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> End:
        """Read what :meth:`to_json` wrote."""
        condition = data["condition"]
        return cls(
            EndReason(data["reason"]),
            data["message"],
            None if condition is None else Condition(condition),
            data["retry_after"],
            data["result"],
        )


class Need(Enum):
    """What has to be read before the wait can go on."""

    #: The campaign by itself: a list does not tell all its counters.
    CAMPAIGN = "campaign"
    #: Its statistics.
    STATISTICS = "statistics"


class Note(NamedTuple):
    """
    A line for the task's log.

    :param level: Level of the ``logging`` module.
    :param text: The line.
    """

    level: int
    text: str


class Step(NamedTuple):
    """
    What follows from a sighting; nothing, as a rule.

    :param notes: Lines for the task's log.
    :param need: What has to be read at once.
    :param end: How the wait ended, where it did.
    """

    notes: tuple[Note, ...] = ()
    need: Need | None = None
    end: End | None = None


#: The wait just goes on.
NOTHING = Step()


class Watch:
    """
    A wait for something to become true of a campaign.

    :param campaign_id: The campaign.
    :param rules: What each condition does to the wait.
    """

    __slots__ = ("_announced", "_campaign_id", "_rules", "_trouble")

    def __init__(self, campaign_id: str, rules: OutcomeRules) -> None:
        self._campaign_id = campaign_id
        self._rules = rules
        #: The condition that was said to be waited out, so that it is said once.
        self._announced: Condition | None = None
        self._trouble: Condition | None = None

    def see_error(self, error: VoiceGenieError) -> Step:
        """Take note that the campaign could not be read."""
        condition = Condition(error.kind)
        if self._rules.outcome(condition) is not Outcome.WAIT:
            end = End(EndReason.CONDITION, error.message, condition, error.retry_after, self._result())
            return Step(end=end)
        if self._trouble is condition:
            return NOTHING
        self._trouble = condition
        return Step((self._warning(f"{error.message.rstrip('.')} [{condition}: the wait goes on]"),))

    def time_is_up(self, now: float, reason: EndReason) -> End:
        """
        Return how a wait ends whose time is over.

        :param now: Unix seconds.
        :param reason: Which time it was.
        """
        return End(reason, f"its time was over ({self.last_seen(now)})", result=self._result())

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        raise NotImplementedError

    def _result(self) -> Mapping[str, Any] | None:
        """Return what is known of the campaign, for XCom."""
        raise NotImplementedError

    def _meet(self, condition: Condition, message: str, notes: tuple[Note, ...]) -> Step:
        """Apply the outcome of a condition, and say once that it is waited out."""
        if self._rules.outcome(condition) is not Outcome.WAIT:
            return Step(notes, end=End(EndReason.CONDITION, message, condition, result=self._result()))
        if self._announced is not condition:
            self._announced = condition
            notes = (*notes, self._warning(f"{message} [{condition}: the wait goes on]"))
        return Step(notes) if notes else NOTHING

    def _recovered(self) -> tuple[Note, ...]:
        """Note that the service can be read again, where it could not."""
        if self._trouble is None:
            return ()
        self._trouble = None
        return (self._info("the service answers again"),)

    def _since_then(self) -> str:
        return "" if self._trouble is None else f"; {self._trouble} since then"

    def _info(self, message: str) -> Note:
        return Note(logging.INFO, f"Campaign {self._campaign_id!r}: {message}.")

    def _warning(self, message: str) -> Note:
        return Note(logging.WARNING, f"Campaign {self._campaign_id!r}: {message}.")
