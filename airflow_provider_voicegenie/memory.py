# SPDX-License-Identifier: Apache-2.0
"""
What a task instance remembers, in one document, and whether a user has cleared the task since.

A *generation* begins when a task instance is made, or when a user clears it. A retry belongs to the generation of the
try before it. Airflow has no number for it, so it is told from the signs that a clear leaves, and no sign is sure:

- A clear raises ``max_tries``. Airflow 3.3 and earlier lose that for all but one of the running tasks that are cleared
  together; and it comes to the same number if the author has lowered ``retries`` by as many as there were tries.
- It raises the ``clear_number`` of the DAG run. So does the clear of any other task of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from airflow import __version__ as airflow_version

log = logging.getLogger(__name__)

#: Of the Airflow that runs this: the first two numbers.
AIRFLOW_VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])

#: Whether this Airflow keeps anything of a task between its pokes and tries.
KEEPS_TASK_STATE = AIRFLOW_VERSION >= (3, 3)

#: The key of the document, in Airflow's task state store and in XCom.
KEY = "voicegenie_task"

#: The XCom by which a process tells the next try that a user has ended it.
_ENDED_BY_USER = "voicegenie_ended_by_user"


class Generation(NamedTuple):
    """The numbers that a clear changes, as one of the generation's tries saw them."""

    max_tries: int
    clear_number: int
    try_number: int

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> Generation:
        """Return the numbers as this try sees them."""
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


class Memory:
    """
    What one task instance remembers.

    *How it works.* The document has ``campaign_id`` and ``voicegenie_conn_id``, which the task is about, its
    ``generation``, and what the task adds: its ``start``, its ``wait``, the progress of an upload. Airflow's task state
    store keeps it across tries. At each deferral a copy goes to XCom; the triggerer finds the generation in it, and the
    resumed task reads it, unless the trigger's event has what the task needs.

    *What it does not do.* It does not carry over what the task knew before a user cleared it: a document of an earlier
    generation counts as none, and is only shown as :attr:`cleared`.

    *Known limitation.* Airflow before 3.3 keeps nothing across tries: all there is are the copies for the resumes. From
    3.4 on, a clear by a user deletes the document.
    """

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._store = context.get("task_state_store")
        #: Whether Airflow keeps the document across tries.
        self.is_kept = self._store is not None
        self._task_instance: Any = context.get("ti")
        # Whether the process of the try before this one noted that. Airflow deletes the XComs of a task instance when a
        # new try begins, and tells the try their keys. Airflow 2 does not tell them; from 3.4 on, a try has XComs of
        # its own. There, `max_tries` is as it should be.
        begun = getattr(self._task_instance, "_ti_context_from_server", None)
        self._was_ended_by_user = _ENDED_BY_USER in (getattr(begun, "xcom_keys_to_clear", None) or ())
        #: The generation of this try, by the numbers that its first process with a document saw.
        self.generation = Generation.of(context)
        #: The document as this process last read or wrote it; ``None`` if there is none.
        self.document: dict[str, Any] | None = None
        #: The document of an earlier generation, which a user has ended by a clear; known after :meth:`read`.
        self.cleared: dict[str, Any] | None = None
        #: Whether Airflow keeps something, and it is no document; known after :meth:`read`.
        self.is_unreadable = False

    @property
    def is_first_try(self) -> bool:
        """Whether no try came before this one since the task was created, or last cleared by a user."""
        return is_first_try(self._task_instance) or self._was_ended_by_user

    @property
    def wait(self) -> Mapping[str, Any]:
        """What the process before a deferral wrote down of the wait; empty if it wrote nothing."""
        return (self.document or {}).get("wait") or {}

    def read(self) -> dict[str, Any] | None:
        """Read the document that the tries of this generation have written; ``None`` if there is none."""
        stored: Any = None if self._store is None else self._store.get(KEY)
        self.document = self.cleared = None
        then = _generation_of(stored)
        self.is_unreadable = stored is not None and then is None
        if then is None:
            return None
        is_cleared = was_cleared(
            then,
            self.generation,
            is_first_try=is_first_try(self._task_instance),
            was_ended_by_user=self._was_ended_by_user,
        )
        if is_cleared:
            self.cleared = dict(stored)
        else:
            self.document, self.generation = dict(stored), then
        return self.document

    def write(self, **changes: Any) -> None:
        """
        Change the document, and let Airflow keep it. Without one, a document of this generation begins.

        :param changes: What it has from now on, plain JSON.
        :raises Exception: Airflow could not keep it.
        """
        self.document = {"generation": list(self.generation), **(self.document or {}), **changes}
        if self._store is not None:
            self._store.set(KEY, self.document)

    def clear(self) -> None:
        """Remember nothing any more. A failure leaves what Airflow keeps as it is."""
        self.document = None
        if self._store is not None:
            with suppress(Exception):
                self._store.delete(KEY)

    def write_copy(self, **changes: Any) -> None:
        """
        Copy the document to XCom, for the process that resumes this one.

        :param changes: What the copy has besides, or instead, plain JSON.
        """
        if self._task_instance is not None:
            copy = {**(self.document or {}), "generation": list(self.generation), **changes}
            self._task_instance.xcom_push(key=KEY, value=copy)

    def read_copy(self, event: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """
        Go on with what the process before the deferral has written; return ``None`` if it is lost.

        :param event: The trigger's, if there is one: then XCom is not needed.
        """
        copy: Any = (event or {}).get("deferred")
        if copy is None:
            task_instance = self._task_instance
            copy = task_instance.xcom_pull(task_ids=task_instance.task_id, key=KEY, map_indexes=task_instance.map_index)
        then = _generation_of(copy)
        if then is None:
            return None
        self.document, self.generation = dict(copy), then
        return self.document


def _generation_of(document: object) -> Generation | None:
    """Return the generation of a document; ``None`` for anything else, such as one of another version."""
    try:
        about = document["campaign_id"], document["voicegenie_conn_id"]  # type: ignore[index]
        generation = Generation(*document["generation"])  # type: ignore[index]
    except (KeyError, TypeError):
        return None
    return generation if all(isinstance(name, str) for name in about) else None


def note_end_by_user(context: Mapping[str, Any]) -> None:
    """
    Note in XCom, from a running task, that a user has marked or cleared it. A failure is logged, never raised.

    The task state store takes nothing of a task instance that was cleared.
    """
    try:
        context["ti"].xcom_push(key=_ENDED_BY_USER, value=True)
    except Exception:
        log.debug("Airflow did not take the note that a user has ended this task.", exc_info=True)
