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
    from airflow_provider_voicegenie.decisions.waiting import End, Note, Step
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
    from airflow_provider_voicegenie.decisions.completion import STATISTICS_DELAY
    from airflow_provider_voicegenie.decisions.waiting import EndReason, Need

    need: Need | None = None
    failures = 0
    while True:
        now = time.time()
        if deadline is not None and now >= deadline:
            return watch.time_is_up(now, EndReason.TIMEOUT)
        retry_after = None
        try:
            step = _look(hook, watch, campaign_id, need)
            failures = 0
        except VoiceGenieError as error:
            step = watch.see_statistics_error(error) if need is Need.STATISTICS else watch.see_error(error)
            retry_after = error.retry_after
            failures += 1
        write_notes(step.notes)
        if step.end is not None:
            return step.end
        at_once = step.need is not None and need is None
        need = step.need
        if not at_once:
            delay = poll_delay(STATISTICS_DELAY if need else poll_interval, failures, retry_after)
            time.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.time())))


def look_for_completion(hook: VoiceGenieHook, watch: CompletionWatch, campaign_id: str, *, patient: bool) -> Step:
    """
    Look at a campaign once, and at its statistics if it is completed.

    :param hook: The service.
    :param watch: The decisions.
    :param campaign_id: The campaign.
    :param patient: Whether to wait for statistics that look old: half a minute at most.
    """
    from airflow_provider_voicegenie.api.errors import VoiceGenieError
    from airflow_provider_voicegenie.decisions.completion import STATISTICS_DELAY
    from airflow_provider_voicegenie.decisions.waiting import Need

    try:
        step = watch.see_campaign(hook.get_campaign(campaign_id), time.time(), in_full=True)
    except VoiceGenieError as error:
        step = watch.see_error(error)
    write_notes(step.notes)
    while step.end is None and step.need is Need.STATISTICS:
        try:
            step = watch.see_statistics(hook.get_campaign_stats(campaign_id), time.time())
        except VoiceGenieError as error:
            step = watch.see_statistics_error(error)
            write_notes(step.notes)
            return step
        write_notes(step.notes)
        if step.end is None:
            if not patient:
                return step
            time.sleep(STATISTICS_DELAY)
    return step


def has_read_statistics(deferred: Mapping[str, Any]) -> bool:
    """Tell whether the wait in the triggerer, with these arguments, has read the statistics of the campaign."""
    return bool(deferred["with_statistics"] or deferred["min_success_rate"] is not None)


def read_final_statistics(hook: VoiceGenieHook, watch: CompletionWatch, campaign_id: str, end: End) -> End | None:
    """
    Add the final statistics to the end of a wait in which nothing needed them.

    :param hook: The service.
    :param watch: The decisions.
    :param campaign_id: The campaign.
    :param end: How the wait ended.
    :returns: The end with the statistics; ``None`` where they are not to be had now.
    """
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

    try:
        step = watch.see_statistics(hook.get_campaign_stats(campaign_id), time.time())
    except VoiceGenieError as error:
        step = watch.see_statistics_error(error)
    write_notes(step.notes)
    if step.end is None:
        return None
    known = {name: value for name, value in (step.end.result or {}).items() if value is not None}
    return step.end._replace(result={**(end.result or {}), **known, "status": (end.result or {}).get("status")})


def _look(hook: VoiceGenieHook, watch: CompletionWatch, campaign_id: str, need: object) -> Step:
    # One attempt: the wait repeats by itself, and is not held up beyond its deadline.
    if need is None:
        return watch.see_campaign(hook.get_campaign(campaign_id, max_attempts=1), time.time(), in_full=True)
    return watch.see_statistics(hook.get_campaign_stats(campaign_id, max_attempts=1), time.time())
