# SPDX-License-Identifier: Apache-2.0
"""The waits of operators in a worker, and the final statistics, which it reads unless the triggerer has done so."""

from __future__ import annotations

import time
from collections.abc import Callable

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.final_statistics import FinalStatistics
from airflow_provider_voicegenie.waiting.pausing import PauseWatch
from airflow_provider_voicegenie.waiting.watch import End, EndReason


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
    :param watch: The rules of the wait.
    :param campaign_id: The campaign.
    :param poll_interval: Seconds between two reads.
    :param deadline: When the wait ends in any case, Unix seconds.
    """
    failures = 0
    while True:
        if deadline is not None and time.time() >= deadline:
            return watch.time_is_up(time.time(), EndReason.TIMEOUT)
        retry_after = None
        try:
            # One attempt: the wait repeats by itself, and passes its deadline by one request at most.
            end = watch.observe(hook.get_campaign(campaign_id, max_attempts=1), time.time())
            failures = 0
        except VoiceGenieError as error:
            end = watch.observe_error(error, time.time())
            retry_after = error.retry_after
            failures += 1
        if end is not None:
            return end
        delay = poll_delay(poll_interval, failures, retry_after)
        time.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.time())))


def keep_paused(
    hook: VoiceGenieHook,
    watch: PauseWatch,
    campaign_id: str,
    *,
    poll_interval: float,
    deadline: float,
    check: Callable[[], None],
) -> End:
    """
    Keep a campaign paused from this process.

    :param hook: The service.
    :param watch: The rules for it.
    :param campaign_id: The campaign.
    :param poll_interval: Seconds between two reads.
    :param deadline: Until when, Unix seconds.
    :param check: Called before each pause, and again right before it is sent; raises what ends the task.
    """
    failures = 0
    while True:
        # The last look is at the end.
        is_over = time.time() >= deadline
        retry_after = None
        try:
            end = watch.observe(hook.get_campaign(campaign_id, max_attempts=1), time.time())
            if watch.must_pause:
                check()
                end = watch.observe_pause(hook.pause_campaign(campaign_id, on_sending=check), time.time())
            failures = 0
        except VoiceGenieError as error:
            end = watch.observe_pause(error, time.time()) if watch.must_pause else watch.observe(error, time.time())
            retry_after = error.retry_after
            failures += 1
        if end is not None:
            return end
        if is_over:
            return watch.time_is_up(time.time(), EndReason.TIMEOUT)
        time.sleep(max(0.0, min(poll_delay(poll_interval, failures, retry_after), deadline - time.time())))


def read_final_statistics(hook: VoiceGenieHook, final: FinalStatistics, campaign_id: str) -> End:
    """
    Read the statistics of a completed campaign, within minutes: until they are up to date, or until it is no use.

    :param hook: The service.
    :param final: The rules for them.
    :param campaign_id: The campaign.
    """
    failures = 0
    while True:
        retry_after = None
        try:
            end = final.observe(hook.get_campaign_stats(campaign_id, max_attempts=1), time.time())
            failures = 0
        except VoiceGenieError as error:
            end = final.observe_error(error, time.time())
            retry_after = error.retry_after
            failures += 1
        if end is not None:
            return end
        time.sleep(final.delay(failures, retry_after, time.time()))
