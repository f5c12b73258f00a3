# SPDX-License-Identifier: Apache-2.0
"""What Airflow does to a deferral: its deadlines, how it ends one by itself, and what a resumed task knows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import conf

log = logging.getLogger(__name__)

#: Seconds after a deadline until Airflow's scheduler ends a deferral by itself: the trigger does so in time, unless no
#: triggerer runs.
_TRIGGER_GRACE = 60.0

#: The XCom under which a deferred task keeps what it is about.
_XCOM_KEY = "voicegenie_task"

#: The XCom by which one triggerer tells another that a wait is over.
_WAIT_IS_OVER = "voicegenie_wait_is_over"

#: The XCom by which a process tells the next try that a user has ended it.
_ENDED_BY_USER = "voicegenie_ended_by_user"


def default_deferrable() -> bool:
    """Return Airflow's setting ``[operators] default_deferrable``."""
    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


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


def keep_for_resuming(context: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """
    Keep in XCom what a task is about: if Airflow itself ends a deferral, it drops what the trigger knows.

    :param context: The task's context.
    :param kept: What the task has to know then, plain JSON.
    """
    if (task_instance := context.get("ti")) is not None:
        task_instance.xcom_push(key=_XCOM_KEY, value=dict(kept))


def kept_for_resuming(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`keep_for_resuming` kept; an empty dict if it is lost."""
    task_instance: Any = context["ti"]
    kept = task_instance.xcom_pull(task_ids=task_instance.task_id, key=_XCOM_KEY, map_indexes=task_instance.map_index)
    return kept if isinstance(kept, dict) else {}


def note_end_of_wait(task_instance: Any) -> None:
    """
    Note in XCom, from the triggerer, that the wait of a deferred task is over by itself.

    Another triggerer may have the same trigger, if Airflow took this one or that one for dead, and is told of the end
    as if a user had ended the task. Airflow removes the note when a further try begins.

    :param task_instance: The trigger's.
    """
    from airflow.providers.common.compat.sdk import XCom

    XCom.set(_WAIT_IS_OVER, True, **_place(task_instance))


def is_wait_over(task_instance: Any) -> bool:
    """
    Say whether :func:`note_end_of_wait` was called, by whichever triggerer.

    :param task_instance: The trigger's.
    """
    return _read_xcom(_WAIT_IS_OVER, task_instance) is True


def generation_of_deferral(task_instance: Any) -> list[int] | None:
    """
    Return the generation that the task instance was in when it was last deferred, by whichever try.

    :param task_instance: The trigger's.
    """
    kept = _read_xcom(_XCOM_KEY, task_instance)
    return kept.get("generation") if isinstance(kept, dict) else None


def note_end_by_user(context: Mapping[str, Any]) -> None:
    """
    Note in XCom, from a running task, that a user has marked or cleared it. A failure is logged, never raised.

    The task state store takes nothing of a task instance that was cleared.

    :param context: The task's context.
    """
    try:
        context["ti"].xcom_push(key=_ENDED_BY_USER, value=True)
    except Exception:
        log.debug("Airflow did not take the note that a user has ended this task.", exc_info=True)


def was_ended_by_user_before(context: Mapping[str, Any]) -> bool:
    """
    Say whether the process of the try before this one called :func:`note_end_by_user`.

    Airflow deletes the XComs of a task instance when a new try begins, and tells the try their keys. Airflow 2 does not
    tell them; from 3.4 on, a try has XComs of its own. There, ``max_tries`` is as it should be.

    :param context: The task's context.
    """
    begun = getattr(context.get("ti"), "_ti_context_from_server", None)
    return _ENDED_BY_USER in (getattr(begun, "xcom_keys_to_clear", None) or ())


def _read_xcom(key: str, task_instance: Any) -> Any:
    from airflow.providers.common.compat.sdk import XCom

    return XCom.get_one(key=key, **_place(task_instance))


def _place(task_instance: Any) -> dict[str, Any]:
    return {name: getattr(task_instance, name) for name in ("dag_id", "task_id", "run_id", "map_index")}
