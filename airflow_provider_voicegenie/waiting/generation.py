# SPDX-License-Identifier: Apache-2.0
"""
Whether a user has cleared a task instance since an earlier try. Without I/O.

A *generation* begins when a task instance is made, or when a user clears it. A retry belongs to the generation of the
try before it. Airflow has no number for it, so it is told from the signs that a clear leaves, and no sign is sure:

- A clear raises ``max_tries``. Airflow 3.3 and earlier lose that for all but one of the running tasks that are cleared
  together; and it comes to the same number if the author has lowered ``retries`` by as many as there were tries.
- It raises the ``clear_number`` of the DAG run. So does the clear of any other task of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Generation(NamedTuple):
    """
    The numbers that a clear changes, as one of the generation's tries saw them.

    :param max_tries: The task instance's.
    :param clear_number: The DAG run's.
    :param try_number: The try's.
    """

    max_tries: int
    clear_number: int
    try_number: int

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> Generation:
        """
        Return the numbers as this try sees them.

        :param context: The task's context.
        """
        task_instance, dag_run = context.get("ti"), context.get("dag_run")
        return cls(
            int(getattr(task_instance, "max_tries", 0) or 0),
            int(getattr(dag_run, "clear_number", 0) or 0),
            int(getattr(task_instance, "try_number", 0) or 0),
        )


def is_first_try(task_instance: Any) -> bool:
    """
    Say whether, by its number, no try came before this one in its generation.

    :param task_instance: The task instance; ``None`` has no tries.
    """
    if task_instance is None:
        return True
    retries = getattr(getattr(task_instance, "task", None), "retries", 0) or 0
    return bool(task_instance.try_number <= (task_instance.max_tries or 0) - retries + 1)


def was_cleared(then: Generation, now: Generation, *, is_first_try: bool, was_ended_by_user: bool) -> bool:
    """
    Say whether a user has cleared a task instance since an earlier try.

    :param then: What the earlier try saw.
    :param now: What this try sees.
    :param is_first_try: Whether, by its number, this is the first try of a generation.
    :param was_ended_by_user: Whether the process of the try before this one noted that a user ended it.
    """
    if then.max_tries != now.max_tries:
        return True
    if then.clear_number == now.clear_number or then.try_number == now.try_number:
        return False
    # Something in the run was cleared, this task or another.
    return is_first_try or was_ended_by_user
