# SPDX-License-Identifier: Apache-2.0
"""The wait of a task in a worker: here, resumed after the triggerer, or late; and what its end does to the task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowTaskTimeout

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Finding,
    Outcome,
    OutcomeRules,
    TaskKind,
    apply_outcome,
)
from airflow_provider_voicegenie.rules.prerequisites import Source
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch

if TYPE_CHECKING:
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

#: What a wait that timed out raises, for each kind of task but a start: its timeout is a condition, see below.
_TIMEOUTS: Mapping[TaskKind, tuple[type[Exception], str]] = {
    TaskKind.PAUSE: (
        AirflowFailException,
        "the campaign was not kept paused until the end: {}. IT MAY GO ON CALLING: look at it in the VoiceGenie "
        "dashboard.",
    ),
    TaskKind.READY: (AirflowSensorTimeout, "the sensor's timeout: {}."),
    TaskKind.COMPLETED: (AirflowSensorTimeout, "the sensor's timeout: {}."),
}


def wait_here(
    hook: VoiceGenieHook,
    watch: Watch,
    *,
    deadline: float | None,
    poll_interval: float,
    check: Callable[[], None] | None = None,
) -> End:
    """
    Send what a watch wants, from this process, until the wait ends.

    :param deadline: When the last poll is due, Unix seconds. One that has passed leaves one poll.
    :param poll_interval: Seconds between two polls.
    :param check: Called before a request that changes something, and again right before it is sent; raises what ends
        the task.
    """
    end = poll_here(hook, watch, deadline=deadline, poll_interval=poll_interval, check=check)
    return end or watch.time_is_up(time.time(), EndReason.TIMEOUT)


def poll_here(
    hook: VoiceGenieHook,
    watch: Watch,
    *,
    deadline: float | None = 0.0,
    poll_interval: float = 0.0,
    # The loop repeats a poll by itself, so it passes its deadline by one request at most.
    max_attempts: int | None = 1,
    check: Callable[[], None] | None = None,
    after_read: Callable[[], None] | None = None,
) -> End | None:
    """
    Send what a watch wants until the deadline, and what it wants at once after that; by default, for one poll.

    :param deadline: As for :func:`wait_here`.
    :param poll_interval: As for :func:`wait_here`.
    :param max_attempts: Attempts of each read; the connection's number if it is ``None``.
    :param check: As for :func:`wait_here`.
    :param after_read: Called after each request.
    :returns: How the wait ended; ``None`` while it goes on.
    """
    failures = 0
    while True:
        watch.pass_time(time.time())
        is_over = deadline is not None and time.time() >= deadline
        try:
            response = _send(hook, watch, max_attempts, check)
        except _AwakeError:
            continue
        try:
            end = watch.take(response, time.time())
        finally:
            if after_read is not None:
                after_read()
        if end is not None or (is_over and not watch.is_urgent):
            return end
        retry_after = None
        if isinstance(response, VoiceGenieError):
            failures, retry_after = failures + 1, response.retry_after
        elif not watch.wants.has_effect:
            failures = 0
        _sleep(watch, deadline, poll_interval, failures, retry_after)


def _sleep(
    watch: Watch, deadline: float | None, poll_interval: float, failures: int, retry_after: float | None
) -> None:
    """Wait as long as the watch does before its next request, but not beyond when it wakes, or the deadline."""
    now = time.time()
    seconds = watch.delay(poll_interval, failures, retry_after, now)
    if deadline is not None and not watch.is_urgent:
        seconds = min(seconds, deadline - now)
    if watch.wakes_at is not None:
        seconds = min(seconds, watch.wakes_at - now)
    if seconds > 0:
        time.sleep(seconds)


def _send(
    hook: VoiceGenieHook, watch: Watch, max_attempts: int | None, check: Callable[[], None] | None
) -> Any | VoiceGenieError:
    wakes_at = watch.wakes_at

    def wake_up() -> None:
        """Break off a read when the watch wakes: a pause must not wait for a service that does not respond."""
        if wakes_at is not None and time.time() >= wakes_at:
            raise _AwakeError

    try:
        # An id that cannot be one is an error too.
        request = watch.wants
        if request.has_effect:
            if check is not None:
                check()
            return hook.send(request, on_sending=check)
        response = hook.send(
            request,
            max_attempts=1 if watch.is_urgent else max_attempts,
            while_waiting=None if wakes_at is None else wake_up,
        )
        if Source.QUOTA in watch.needs:
            response = replace(response, quota=hook.get_quota())
        if Source.LIST in watch.needs:
            listed = (each for each in hook.list_campaigns() if each.campaign_id == request.campaign_id)
            response = response.with_listed(next(listed, None))
    except VoiceGenieError as error:
        return error
    return response


class _AwakeError(Exception):
    """A watch wants something else than the read that is under way."""


def wait_on(
    hook: VoiceGenieHook,
    watch: Watch,
    end: End,
    *,
    check: Callable[[], None] | None = None,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> End:
    """
    Send what the triggerer has left to the task, and return how the wait ended.

    :param end: How it ended in the triggerer.
    :param reading: Makes the context in which requests are sent, if any are left.
    """
    if not watch.resume(end):
        return end
    with reading():
        last = poll_here(hook, watch, check=check)
    return last or watch.time_is_up(time.time(), end.reason if end.is_out_of_time else EndReason.TIMEOUT)


def wait_late(
    hook: VoiceGenieHook,
    watch: Watch,
    execution_deadline: float | None,
    *,
    max_attempts: int | None = 1,
) -> End:
    """
    Poll once more, after Airflow ended the deferral as no triggerer did in time; return how the wait ended.

    :param execution_deadline: When the task's ``execution_timeout`` is over, Unix seconds.
    :param max_attempts: As for :func:`poll_here`.
    """
    end = poll_here(hook, watch, max_attempts=max_attempts)
    now = time.time()
    is_out_of_time = execution_deadline is not None and now >= execution_deadline
    return end or watch.time_is_up(now, EndReason.EXECUTION_TIMEOUT if is_out_of_time else EndReason.TIMEOUT)


def apply_end(rules: OutcomeRules, end: End, campaign_id: str) -> Outcome:
    """
    Do to the task what the end of its wait does: raise what ends the task, or return ``SUCCEED`` or ``WAIT``.

    :param end: How the wait ended.
    :param campaign_id: The campaign, for the message.
    """
    if end.reason is EndReason.EXECUTION_TIMEOUT:
        raise AirflowTaskTimeout(f"Campaign {campaign_id!r}: execution_timeout: {end.message}.")
    finding = end.finding
    if end.reason is EndReason.TIMEOUT:
        if rules.kind in _TIMEOUTS:
            exception, message = _TIMEOUTS[rules.kind]
            raise exception(f"Campaign {campaign_id!r}: {message.format(end.message)}")
        finding = Finding(Condition.COMPLETION_TIMEOUT, end.message)
    return Outcome.SUCCEED if finding is None else apply_outcome(rules, finding, campaign_id)
