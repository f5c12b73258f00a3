# SPDX-License-Identifier: Apache-2.0
"""
What a condition does to a task: one table, of which a DAG author can change single lines.

The table has a column for each kind of task, because the same condition means different things to them: that a
campaign is already running ends a start, and is what a pause needs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException

from airflow_provider_voicegenie.rules.parameters import did_you_mean

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What a condition does to the task."""

    #: The task is skipped.
    SKIP = "skip"
    #: The task fails at once; its ``retries`` are not used.
    FAIL = "fail"
    #: The task fails in a way that Airflow's ``retries`` apply to.
    RETRY = "retry"
    #: The task succeeds: what it was meant to bring about is already so. An upload or an export goes on.
    SUCCEED = "succeed"
    #: The wait goes on; a start waits for its calling hours.
    WAIT = "wait"


class Condition(StrEnum):
    """Why a task cannot simply go on. The documentation explains each."""

    # What the service says.
    CAMPAIGN_ALREADY_RUNNING = "CAMPAIGN_ALREADY_RUNNING"
    CAMPAIGN_NOT_RUNNING = "CAMPAIGN_NOT_RUNNING"
    NOT_FOUND = "NOT_FOUND"
    INVALID_CAMPAIGN_STATE = "INVALID_CAMPAIGN_STATE"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    REFUSED = "REFUSED"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    INTERNAL_SERVER_ERROR = "INTERNAL_SERVER_ERROR"
    # What happens on the way.
    CONNECTION_FAILED = "CONNECTION_FAILED"
    TLS_FAILED = "TLS_FAILED"
    REDIRECTED = "REDIRECTED"
    INVALID_RESPONSE = "INVALID_RESPONSE"
    # What we see ourselves.
    CAMPAIGN_COMPLETED = "CAMPAIGN_COMPLETED"
    CAMPAIGN_ALREADY_PAUSED = "CAMPAIGN_ALREADY_PAUSED"
    START_UNCONFIRMED = "START_UNCONFIRMED"
    COMPLETION_TIMEOUT = "COMPLETION_TIMEOUT"
    CAMPAIGN_FAILED = "CAMPAIGN_FAILED"
    CAMPAIGN_STOPPED = "CAMPAIGN_STOPPED"
    CAMPAIGN_PAUSED = "CAMPAIGN_PAUSED"
    CAMPAIGN_STALLED = "CAMPAIGN_STALLED"
    SUCCESS_RATE_TOO_LOW = "SUCCESS_RATE_TOO_LOW"
    CALLING_HOURS_OVER = "CALLING_HOURS_OVER"
    CALL_LIMIT_REACHED = "CALL_LIMIT_REACHED"
    BACKFILL_RUN = "BACKFILL_RUN"
    RUN_TOO_LATE = "RUN_TOO_LATE"
    OUTSIDE_CALLING_HOURS = "OUTSIDE_CALLING_HOURS"
    TOO_MANY_CONTACTS = "TOO_MANY_CONTACTS"
    NO_CONTACTS = "NO_CONTACTS"
    CONTACTS_MISSING = "CONTACTS_MISSING"
    CONTACTS_UNREADABLE = "CONTACTS_UNREADABLE"
    CONTACTS_REJECTED = "CONTACTS_REJECTED"
    EXCLUSIONS_MISSING = "EXCLUSIONS_MISSING"
    CAMPAIGN_NAME_TAKEN = "CAMPAIGN_NAME_TAKEN"
    CREATION_UNCONFIRMED = "CREATION_UNCONFIRMED"
    CAMPAIGN_STILL_RUNNING = "CAMPAIGN_STILL_RUNNING"
    HISTORY_INCOMPLETE = "HISTORY_INCOMPLETE"
    PREREQUISITE_IMPOSSIBLE = "PREREQUISITE_IMPOSSIBLE"
    INVALID_CAMPAIGN_ID = "INVALID_CAMPAIGN_ID"
    INVALID_CONNECTION = "INVALID_CONNECTION"


class Finding(NamedTuple):
    """
    A condition, and what was seen.

    :param message: What was seen, in a sentence without its full stop.
    :param retry_after: Seconds the service asked to wait; ``None`` if it did not.
    """

    condition: Condition
    message: str
    retry_after: float | None = None

    @classmethod
    def of(cls, error: VoiceGenieError) -> Finding:
        """
        Return the finding that an error is.

        :param error: Why the service did not do what was asked.
        """
        return cls(Condition(error.kind), error.message, error.retry_after)


class TaskKind(StrEnum):
    """The kinds of task that have a column in the table."""

    START = "start"
    PAUSE = "pause"
    READY = "ready"
    COMPLETED = "completed"
    UPLOAD = "upload"
    HISTORY = "history"


_C = Condition
_SKIP, _FAIL, _RETRY, _SUCCEED, _WAIT = Outcome.SKIP, Outcome.FAIL, Outcome.RETRY, Outcome.SUCCEED, Outcome.WAIT

#: Condition -> default outcome for each kind of task, in the order of :class:`TaskKind`; ``None`` if it cannot come up
#: there.
_DEFAULTS: Mapping[Condition, tuple[Outcome | None, ...]] = {
    _C.CAMPAIGN_ALREADY_RUNNING: (_SKIP, None, _SKIP, None, _FAIL, None),
    _C.CAMPAIGN_NOT_RUNNING: (None, _FAIL, None, None, None, None),
    _C.CAMPAIGN_ALREADY_PAUSED: (None, _SUCCEED, None, None, None, None),
    _C.CAMPAIGN_COMPLETED: (_FAIL, _FAIL, _FAIL, None, _FAIL, None),
    _C.INVALID_CAMPAIGN_STATE: (_FAIL, _FAIL, None, None, _FAIL, None),
    _C.NOT_FOUND: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.UNAUTHORIZED: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.FORBIDDEN: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.REFUSED: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.RATE_LIMIT_EXCEEDED: (_RETRY, _RETRY, _WAIT, _WAIT, _RETRY, _RETRY),
    _C.INTERNAL_SERVER_ERROR: (_RETRY, _RETRY, _WAIT, _WAIT, _RETRY, _RETRY),
    _C.CONNECTION_FAILED: (_RETRY, _RETRY, _WAIT, _WAIT, _RETRY, _RETRY),
    _C.TLS_FAILED: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.REDIRECTED: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.INVALID_RESPONSE: (_RETRY, _RETRY, _WAIT, _WAIT, _RETRY, _RETRY),
    _C.START_UNCONFIRMED: (_FAIL, None, None, None, None, None),
    _C.COMPLETION_TIMEOUT: (_FAIL, None, None, None, None, None),
    _C.CAMPAIGN_FAILED: (_FAIL, None, None, _FAIL, None, None),
    _C.CAMPAIGN_STOPPED: (_FAIL, None, None, _FAIL, None, None),
    _C.CAMPAIGN_PAUSED: (_WAIT, None, None, _WAIT, None, None),
    _C.CAMPAIGN_STALLED: (_FAIL, None, None, _FAIL, None, None),
    _C.SUCCESS_RATE_TOO_LOW: (_FAIL, None, None, _FAIL, None, None),
    _C.CALLING_HOURS_OVER: (_FAIL, None, None, None, None, None),
    _C.CALL_LIMIT_REACHED: (_SUCCEED, None, None, None, None, None),
    _C.BACKFILL_RUN: (_SKIP, None, None, None, _SKIP, None),
    _C.RUN_TOO_LATE: (_SKIP, None, None, None, None, None),
    _C.OUTSIDE_CALLING_HOURS: (_FAIL, None, None, None, None, None),
    _C.TOO_MANY_CONTACTS: (_FAIL, None, None, None, None, None),
    _C.NO_CONTACTS: (None, None, None, None, _SKIP, None),
    _C.CONTACTS_MISSING: (None, None, None, None, _RETRY, None),
    _C.CONTACTS_UNREADABLE: (None, None, None, None, _FAIL, None),
    _C.CONTACTS_REJECTED: (None, None, None, None, _FAIL, None),
    _C.EXCLUSIONS_MISSING: (None, None, None, None, _FAIL, None),
    _C.CAMPAIGN_NAME_TAKEN: (None, None, None, None, _FAIL, None),
    _C.CREATION_UNCONFIRMED: (None, None, None, None, _FAIL, None),
    _C.CAMPAIGN_STILL_RUNNING: (None, None, None, None, None, _FAIL),
    _C.HISTORY_INCOMPLETE: (None, None, None, None, None, _FAIL),
    _C.PREREQUISITE_IMPOSSIBLE: (None, None, _FAIL, None, None, None),
    _C.INVALID_CAMPAIGN_ID: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
    _C.INVALID_CONNECTION: (_FAIL, _FAIL, _FAIL, _FAIL, _FAIL, _FAIL),
}

#: What may come up in a wait for completion and leaves something to go on with.
_ENDS_OF_A_WAIT = frozenset(
    {
        _C.COMPLETION_TIMEOUT,
        _C.CAMPAIGN_FAILED,
        _C.CAMPAIGN_STOPPED,
        _C.CAMPAIGN_PAUSED,
        _C.CAMPAIGN_STALLED,
        _C.SUCCESS_RATE_TOO_LOW,
    }
)

#: What the author may call a success: what was wanted is already so, or is good enough.
_MAY_SUCCEED: Mapping[TaskKind, frozenset[Condition]] = {
    TaskKind.START: _ENDS_OF_A_WAIT
    | {_C.CALLING_HOURS_OVER, _C.CALL_LIMIT_REACHED, _C.CAMPAIGN_ALREADY_RUNNING, _C.CAMPAIGN_COMPLETED},
    TaskKind.PAUSE: frozenset({_C.CAMPAIGN_ALREADY_PAUSED, _C.CAMPAIGN_NOT_RUNNING, _C.CAMPAIGN_COMPLETED}),
    TaskKind.READY: frozenset({_C.CAMPAIGN_ALREADY_RUNNING, _C.CAMPAIGN_COMPLETED}),
    TaskKind.COMPLETED: _ENDS_OF_A_WAIT,
    # The task goes on with what it was about to do.
    TaskKind.UPLOAD: frozenset(
        {
            _C.CAMPAIGN_ALREADY_RUNNING,
            _C.NO_CONTACTS,
            _C.CONTACTS_REJECTED,
            _C.EXCLUSIONS_MISSING,
            _C.CAMPAIGN_NAME_TAKEN,
        }
    ),
    TaskKind.HISTORY: frozenset({_C.CAMPAIGN_STILL_RUNNING, _C.HISTORY_INCOMPLETE}),
}

#: What no waiting changes.
_NEVER_WAITS = frozenset({_C.INVALID_CAMPAIGN_ID, _C.PREREQUISITE_IMPOSSIBLE, _C.SUCCESS_RATE_TOO_LOW})

_MAY_WAIT: Mapping[TaskKind, frozenset[Condition]] = {
    TaskKind.START: frozenset(
        {_C.CALLING_HOURS_OVER, _C.CAMPAIGN_PAUSED, _C.CAMPAIGN_STALLED, _C.OUTSIDE_CALLING_HOURS}
    ),
    TaskKind.PAUSE: frozenset(),
    TaskKind.READY: frozenset(Condition) - _NEVER_WAITS,
    TaskKind.COMPLETED: frozenset(Condition) - _NEVER_WAITS,
    TaskKind.UPLOAD: frozenset(),
    TaskKind.HISTORY: frozenset(),
}

#: Trouble that passes. It never ends the wait of a start or a pause, whatever it does to that itself.
_TEMPORARY = (_C.RATE_LIMIT_EXCEEDED, _C.INTERNAL_SERVER_ERROR, _C.CONNECTION_FAILED, _C.INVALID_RESPONSE)


class OutcomeRules:
    """
    The table's column for one kind of task, with the author's changes.

    :param changes: Condition -> outcome, as the enums or their texts; ``None`` changes nothing.
    :raises ValueError: A condition or an outcome is not one that this kind of task has; the message names those
        that are.
    """

    def __init__(self, kind: TaskKind, changes: Mapping[Condition | str, Outcome | str] | None = None) -> None:
        self.kind = kind
        #: The condition that came up last, if one did.
        self.applied: Condition | None = None
        #: The author's changes, as plain text.
        self.changes: dict[str, str] = {}
        column = list(TaskKind).index(kind)
        self._outcomes = {condition: row[column] for condition, row in _DEFAULTS.items()}
        if changes is None:
            return
        if not isinstance(changes, Mapping):
            raise ValueError(
                f'outcomes must be a mapping such as {{"NOT_FOUND": "skip"}}, not {type(changes).__name__}.'
            )
        for name, outcome in changes.items():
            condition = self._condition(name)
            checked = self._outcomes[condition] = self._checked(condition, outcome)
            self.changes[condition.value] = checked.value

    def while_waiting(self) -> OutcomeRules:
        """Return the rules for waiting: temporary trouble is waited out, whatever it does to a start or a pause."""
        if self.kind not in (TaskKind.START, TaskKind.PAUSE):
            return self
        rules = copy.copy(self)
        rules._outcomes = self._outcomes | dict.fromkeys(_TEMPORARY, Outcome.WAIT)
        return rules

    def outcome(self, condition: Condition) -> Outcome:
        """Return what a condition does to the task; it fails if this kind of task should not meet it."""
        return self._outcomes[condition] or Outcome.FAIL

    def allowed(self, condition: Condition) -> tuple[Outcome, ...]:
        """Return the outcomes that an author may choose for a condition."""
        allowed = [Outcome.SKIP, Outcome.FAIL, Outcome.RETRY]
        if condition in _MAY_SUCCEED[self.kind]:
            allowed.append(Outcome.SUCCEED)
        if condition in _MAY_WAIT[self.kind]:
            allowed.append(Outcome.WAIT)
        return tuple(allowed)

    def _condition(self, name: object) -> Condition:
        conditions = [condition for condition, outcome in self._outcomes.items() if outcome is not None]
        for condition in conditions:
            if name == condition:
                return condition
        raise ValueError(
            f"outcomes: {name!r} is not a condition of this task{_hint(name, conditions)} "
            f"Valid: {', '.join(conditions)}."
        )

    def _checked(self, condition: Condition, outcome: object) -> Outcome:
        allowed = self.allowed(condition)
        for candidate in allowed:
            if outcome == candidate:
                return candidate
        raise ValueError(
            f"outcomes[{condition.value!r}]: {outcome!r} is not a valid outcome{_hint(outcome, allowed)} "
            f"Valid: {', '.join(allowed)}."
        )


def _hint(word: object, known: Iterable[str]) -> str:
    hint = did_you_mean(word, known)
    return f"; {hint}" if hint else "."


class VoiceGenieRetryException(AirflowException):
    """
    The task failed in a way that may pass: Airflow's ``retries`` decide.

    :param condition: The condition it is in the outcome table.
    :param retry_after: Seconds the service asked to wait, for a retry policy to heed; ``None`` if it did not.
    """

    def __init__(self, message: str, condition: Condition | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.condition = condition
        self.retry_after = retry_after


_CONSEQUENCES = {
    Outcome.SKIP: "the task is skipped",
    Outcome.FAIL: "the task fails, without retry",
    Outcome.RETRY: "the task fails, and is retried if it has retries left",
    Outcome.SUCCEED: "the task succeeds",
    Outcome.WAIT: "the task waits",
}


def apply_outcome(rules: OutcomeRules, finding: Finding, campaign_id: object) -> Outcome:
    """
    Apply a condition's outcome: raise what ends the task, or return ``SUCCEED`` or ``WAIT``.

    What it raises chains no error that was being handled: the finding says what there is to say of that.

    :param finding: The condition, and what was seen.
    :param campaign_id: The campaign, for the message.
    :raises AirflowSkipException: The outcome is ``skip``.
    :raises AirflowFailException: The outcome is ``fail``.
    :raises VoiceGenieRetryException: The outcome is ``retry``.
    """
    condition, message, retry_after = finding
    outcome = rules.outcome(condition)
    rules.applied = condition
    sentence = f"Campaign {campaign_id!r:.80}: {message.rstrip('.')} [{condition}: {_CONSEQUENCES[outcome]}]."
    if outcome is Outcome.SKIP:
        # Airflow's own line about it is in a part of the log that its UI folds.
        log.info("%s", sentence)
        raise AirflowSkipException(sentence) from None
    if outcome is Outcome.FAIL:
        raise AirflowFailException(sentence) from None
    if outcome is Outcome.RETRY:
        raise VoiceGenieRetryException(sentence, condition, retry_after) from None
    log.log(logging.INFO if outcome is Outcome.SUCCEED else logging.WARNING, "%s", sentence)
    return outcome
