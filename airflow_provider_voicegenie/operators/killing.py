# SPDX-License-Identifier: Apache-2.0
"""
What happens when Airflow ends a running task.

``on_kill`` is called from a signal handler, in which nothing may be asked of Airflow: the interrupted code may hold the
lock of the channel. So it only sets a flag, or breaks off a wait; what to do is decided outside of the handler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.decisions.killing import (
    PAUSE_DELAYS,
    after_pause,
    gave_up,
    is_running_task_ended_by_user,
)
from airflow_provider_voicegenie.task_state import state_in_airflow

if TYPE_CHECKING:
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)


class TaskKilled(BaseException):
    """Breaks off a wait when Airflow ends the task."""


class KillSwitch:
    """Whether Airflow has ended this task."""

    def __init__(self) -> None:
        self.pulled = False
        self._may_interrupt = False

    def pull(self) -> None:
        """
        Take note that Airflow ends the task.

        :raises TaskKilled: The task was waiting.
        """
        self.pulled = True
        if self._may_interrupt:
            self._may_interrupt = False
            raise TaskKilled

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """
        Let a kill break off what is done here. Nothing may be asked of Airflow meanwhile.

        :raises TaskKilled: The task was or is killed.
        """
        self._may_interrupt = True
        try:
            if self.pulled:
                raise TaskKilled
            yield
        finally:
            self._may_interrupt = False


def was_ended_by_user(context: Mapping[str, Any]) -> bool:
    """
    Tell whether someone has marked or cleared the task, rather than that a worker or a scheduler is in trouble.

    Airflow ends the process in all these cases; the state that the task has by now tells them apart.
    """
    task_instance = context.get("ti")
    if task_instance is None:
        return True
    try:
        return is_running_task_ended_by_user(state_in_airflow(task_instance))
    except Exception:
        log.warning("Airflow cannot be asked who ended this task.", exc_info=True)
        return False


def is_ended_in_airflow(context: Mapping[str, Any]) -> bool:
    """
    Tell whether someone has marked or cleared a task that was not told so yet.

    Airflow tells a task within some seconds; until then, only its state shows it.
    """
    task_instance = context.get("ti")
    if task_instance is None or getattr(task_instance, "test_mode", False):
        return False
    return was_ended_by_user(context)


def pause_campaign_of_killed_task(hook: VoiceGenieHook, campaign_id: str) -> None:
    """Pause the campaign; whether that worked is for the log only."""
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

    for delay in PAUSE_DELAYS:
        time.sleep(delay)
        try:
            note = after_pause(campaign_id, hook.pause_campaign(campaign_id))
        except VoiceGenieError as error:
            note = after_pause(campaign_id, error)
        log.log(note.level, "%s", note.text)
        if not note.again:
            return
    log.error("%s", gave_up(campaign_id))
