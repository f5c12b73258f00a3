# SPDX-License-Identifier: Apache-2.0
"""The wait for completion in a worker, and what operators and sensors that defer have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

if TYPE_CHECKING:
    from airflow_provider_voicegenie.decisions.completion import CompletionWatch
    from airflow_provider_voicegenie.decisions.final_statistics import FinalStatistics
    from airflow_provider_voicegenie.decisions.waiting import End, Note
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

#: Seconds after a deadline until Airflow's scheduler ends a deferral by itself: the trigger does so in time, unless no
#: triggerer runs.
_TRIGGER_GRACE = 60.0


def default_deferrable() -> bool:
    """Return Airflow's setting ``[operators] default_deferrable``."""
    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


def execution_deadline(context: Mapping[str, Any], execution_timeout: timedelta | None) -> float | None:
    """
    Return when a task's ``execution_timeout`` is over, in Unix seconds; ``None`` where it has none.

    Airflow 3 does not count the time that a task is deferred, so waits have to.
    """
    task_instance = context.get("ti")
    if execution_timeout is None or task_instance is None or task_instance.start_date is None:
        return None
    return float((task_instance.start_date + execution_timeout).timestamp())


def deferral_timeout(*deadlines: float | None) -> timedelta | None:
    """Return the time after which Airflow itself ends a deferral."""
    given = [deadline for deadline in deadlines if deadline is not None]
    if not given:
        return None
    return timedelta(seconds=max(0.0, min(given) - time.time()) + _TRIGGER_GRACE)


def was_ended_by_airflow(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Tell whether Airflow's scheduler resumes a task because its deferral took too long."""
    # Airflow 2 says "Trigger/execution timeout", Airflow 3 "Trigger timeout".
    return next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower()


def write_notes(notes: Iterable[Note]) -> None:
    """Write a wait's lines into the task's log."""
    for note in notes:
        log.log(note.level, "%s", note.text)


def wait_for_completion(
    hook: VoiceGenieHook,
    watch: CompletionWatch,
    campaign_id: str,
    *,
    poll_interval: float,
    deadline: float | None,
) -> End:
    """
    Wait in this process for as long as it takes.

    :param hook: The service.
    :param watch: The decisions.
    :param campaign_id: The campaign.
    :param poll_interval: Seconds between two reads.
    :param deadline: When the wait ends in any case, Unix seconds.
    """
    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.api.retries import poll_delay
    from airflow_provider_voicegenie.decisions.waiting import EndReason

    failures = 0
    while True:
        now = time.time()
        if deadline is not None and now >= deadline:
            return watch.time_is_up(now, EndReason.TIMEOUT)
        retry_after = None
        try:
            # One attempt: the wait repeats by itself, and is not held up beyond its deadline.
            campaign = hook.get_campaign(campaign_id, max_attempts=1)
        except VoiceGenieError as error:
            step = watch.see_error(error, time.time())
            retry_after = error.retry_after
            failures += 1
        else:
            step = watch.see_campaign(campaign, time.time(), in_full=True)
            failures = 0
        write_notes(step.notes)
        if step.end is not None:
            return step.end
        delay = poll_delay(poll_interval, failures, retry_after)
        time.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.time())))


def read_final_statistics(hook: VoiceGenieHook, final: FinalStatistics, campaign_id: str) -> End:
    """
    Read the statistics of a completed campaign, within minutes: until they are up to date, or until it is no use.

    :param hook: The service.
    :param final: The decisions.
    :param campaign_id: The campaign.
    """
    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.api.retries import poll_delay
    from airflow_provider_voicegenie.decisions.final_statistics import STATISTICS_DELAY

    failures = 0
    while True:
        retry_after = None
        try:
            statistics = hook.get_campaign_stats(campaign_id, max_attempts=1)
        except VoiceGenieError as error:
            step = final.see_error(error, time.time())
            retry_after = error.retry_after
            failures += 1
        else:
            step = final.see(statistics, time.time())
            failures = 0
        write_notes(step.notes)
        if step.end is not None:
            return step.end
        time.sleep(final.delay(poll_delay(STATISTICS_DELAY, failures, retry_after), time.time()))
