# SPDX-License-Identifier: Apache-2.0
"""What Airflow does to a deferral: its deadlines, and how it ends one by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_voicegenie.rules.parameters import check_flags

#: Grace in seconds before Airflow ends the deferral. It matters only if no triggerer is running.
_TRIGGER_GRACE = 60.0


def read_deferrable(value: bool | None) -> bool:
    """
    Return whether a task waits in the triggerer.

    :param value: What the author says; ``None`` for Airflow's setting ``[operators] default_deferrable``.
    :raises ValueError: It is something else.
    """
    if value is None:
        return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
    check_flags(deferrable=value)
    return value


def execution_deadline(context: Mapping[str, Any], execution_timeout: timedelta | None) -> float | None:
    """
    Return when a task's ``execution_timeout`` is over, in Unix seconds; ``None`` if it has none.

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
    """Say whether Airflow's scheduler resumes a task because its deferral took too long."""
    # Airflow 2 says "Trigger/execution timeout", Airflow 3 "Trigger timeout".
    return next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower()
