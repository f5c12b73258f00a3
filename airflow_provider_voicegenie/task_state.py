# SPDX-License-Identifier: Apache-2.0
"""What Airflow has a task instance down as. Asks Airflow, so not for signal handlers, nor for an event loop."""

from __future__ import annotations

from typing import Any

#: Airflow's own word for a task instance that is no longer part of a run; here also for one that was deleted.
REMOVED = "removed"


def state_in_airflow(task_instance: Any) -> str | None:
    """
    Return the state of a task instance; ``None`` is one that Airflow is about to schedule.

    :param task_instance: What tells its DAG, run, task and map index, in a worker or in the triggerer.
    """
    dag_id, run_id, task_id = task_instance.dag_id, task_instance.run_id, task_instance.task_id
    map_index = task_instance.map_index
    state: str | None
    if hasattr(task_instance, "current_state"):  # Airflow 2
        state = task_instance.current_state()
        if state is None and task_instance.get_task_instance(dag_id, run_id, task_id, map_index) is None:
            return REMOVED
        return state
    if not hasattr(task_instance, "get_task_states"):  # in the triggerer
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance as task_instance  # noqa: N813
    states = task_instance.get_task_states(dag_id, map_index=map_index, task_ids=[task_id], run_ids=[run_id])
    name = task_id if map_index < 0 else f"{task_id}_{map_index}"
    state = states.get(run_id, {}).get(name, REMOVED)
    return state
