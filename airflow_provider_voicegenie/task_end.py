# SPDX-License-Identifier: Apache-2.0
"""Where a task ends: the one place that turns a condition's outcome into Airflow's exception."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException

from airflow_provider_voicegenie.decisions.outcomes import Condition, Outcome, OutcomeRules

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

log = logging.getLogger(__name__)

_CONSEQUENCES = {
    Outcome.SKIP: "the task is skipped",
    Outcome.FAIL: "the task fails, without retry",
    Outcome.RETRY: "the task fails, and is retried if it has retries left",
    Outcome.SUCCEED: "the task succeeds",
    Outcome.WAIT: "the wait goes on",
}


class VoiceGenieRetryException(AirflowException):
    """
    The task failed in a way that may pass: Airflow's ``retries`` decide.

    :param message: What happened.
    :param condition: The condition it is in the outcome table.
    :param retry_after: Seconds the service asked to wait, for a retry policy to heed; ``None`` where it did not.
    """

    def __init__(self, message: str, condition: Condition | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.condition = condition
        self.retry_after = retry_after


def settle_task(
    rules: OutcomeRules,
    condition: Condition,
    campaign_id: object,
    message: str,
    *,
    retry_after: float | None = None,
) -> Outcome:
    """
    Apply a condition's outcome: raise what ends the task, or return ``SUCCEED`` or ``WAIT``.

    :param rules: The task's outcome rules.
    :param condition: What came up.
    :param campaign_id: The campaign, for the message.
    :param message: What was seen, in a sentence without its full stop.
    :param retry_after: Seconds the service asked to wait.
    :raises AirflowSkipException: The outcome is ``skip``.
    :raises AirflowFailException: The outcome is ``fail``.
    :raises VoiceGenieRetryException: The outcome is ``retry``.
    """
    outcome = rules.outcome(condition)
    sentence = f"Campaign {campaign_id!r:.80}: {message.rstrip('.')} [{condition}: {_CONSEQUENCES[outcome]}]."
    if outcome is Outcome.SKIP:
        # Airflow's own line about it stands in a part of the log that its UI folds.
        log.info("%s", sentence)
        raise AirflowSkipException(sentence)
    if outcome is Outcome.FAIL:
        raise AirflowFailException(sentence)
    if outcome is Outcome.RETRY:
        raise VoiceGenieRetryException(sentence, condition, retry_after)
    log.log(logging.INFO if outcome is Outcome.SUCCEED else logging.WARNING, "%s", sentence)
    return outcome


def settle_error(rules: OutcomeRules, error: VoiceGenieError, campaign_id: object) -> Outcome:
    """Apply the outcome of the condition that an error is; like :func:`settle_task`."""
    return settle_task(rules, Condition(error.kind), campaign_id, error.message, retry_after=error.retry_after)
