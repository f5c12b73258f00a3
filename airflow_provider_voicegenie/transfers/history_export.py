# SPDX-License-Identifier: Apache-2.0
"""
One run of a ``CallHistoryToObjectStorageOperator``: read all calls of a campaign, and write them to a file.

It is no part of the operator, because every parse of a DAG file loads the module of that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.endpoints import check_campaign_id
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.files import replacing, target_path, write_rows
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, VoiceGenieRetryException, apply_outcome
from airflow_provider_voicegenie.rules.parameters import read_bounds
from airflow_provider_voicegenie.transfers.calls import CallStore
from airflow_provider_voicegenie.transfers.scratch import ScratchSpaceError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

#: The columns that identify a person.
_PERSONAL = ("contact_name", "phone_number", "recording_url")

#: How often the history is read anew if calls are missing.
_MAX_REREADS = 3


class HistoryExport:
    """
    One run of the task in this process.

    :param task: The operator, a ``CallHistoryToObjectStorageOperator``.
    :param columns: The columns of the file, and their types.
    """

    def __init__(
        self, task: Any, context: Context, hook: VoiceGenieHook, columns: Mapping[str, type[str] | type[float]]
    ) -> None:
        self._task = task
        self._context = context
        self._hook = hook
        self._columns = columns
        self._campaign_id: str = task.campaign_id

    def execute(self) -> dict[str, Any]:
        """Write the file, and return what goes to XCom."""
        task = self._task
        try:
            path = target_path("path", task.path)
            since, until = read_bounds(task.since, task.until)
            conn_id = task.contact_key_conn_id
            secret = None if conn_id is None else self._hook.contact_key_secret(conn_id)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        try:
            check_campaign_id(self._campaign_id)
            task.keep_link(self._context, self._hook)
            is_running = self._hook.get_campaign(self._campaign_id).status.is_running
            if is_running:
                message = "the campaign is still running, and has calls to come"
                task.apply_condition(Condition.CAMPAIGN_STILL_RUNNING, message)
            with CallStore(list(self._columns), secret) as calls:
                self._read(calls, since, until, is_running=is_running)
                return self._write(calls, path)
        except VoiceGenieError as error:
            apply_outcome(task.outcome_rules, Finding.of(error), self._campaign_id)
            raise

    def _read(self, calls: CallStore, since: datetime | None, until: datetime | None, *, is_running: bool) -> None:
        """Read all calls, anew if some are missing."""
        missing = 0
        for reread in range(_MAX_REREADS + 1):
            missing = 0
            for status in self._task.statuses or (None,):
                total = 0
                calls.begin_pass(status)
                for page in self._hook.call_history_pages(
                    self._campaign_id, lambda: calls.known, status=status, since=since, until=until
                ):
                    if self._task.is_killed:
                        raise VoiceGenieRetryException(
                            f"Campaign {self._campaign_id!r}: the task was ended from outside before it wrote the file."
                        )
                    total = page.total
                    calls.add(page)
                missing += max(0, total - calls.repeated - calls.known)
            if not missing:
                return
            if is_running:
                # There are always some more.
                log.info("Campaign %r: %s calls came while the others were read.", self._campaign_id, f"{missing:,}")
                return
            if reread < _MAX_REREADS:
                log.info("Campaign %r: %s calls are missing; reading again.", self._campaign_id, f"{missing:,}")
        self._task.apply_condition(
            Condition.HISTORY_INCOMPLETE,
            f"the service says that there are {missing:,} more calls than the {len(calls):,} different ones that it "
            f"gave, unless it lists some twice, in {_MAX_REREADS + 1} readings",
        )

    def _write(self, calls: CallStore, path: ObjectStoragePath) -> dict[str, Any]:
        try:
            with replacing(path, self._context) as file:
                write_rows(calls.rows(), self._columns, file, str(path))
        except ScratchSpaceError:
            raise
        except OSError as error:
            raise VoiceGenieRetryException(
                f"Campaign {self._campaign_id!r}: path: {str(path)!r:.300} cannot be written "
                f"({error.strerror or error})."
            ) from None
        if calls.unreadable:
            log.warning(
                "Campaign %r: %s values that the service gave are not of the type of their column, and are empty in "
                "the file: %s.",
                self._campaign_id,
                f"{calls.unreadable.total():,}",
                ", ".join(f"{name} ({calls.unreadable[name]:,})" for name in self._columns if calls.unreadable[name]),
            )
        personal = [name for name in self._columns if name in _PERSONAL]
        log.info(
            "Campaign %r: %s calls were written to %s (%s bytes), with the columns %s. %s",
            self._campaign_id,
            f"{len(calls):,}",
            path,
            f"{file.size:,}",
            ", ".join(self._columns),
            f"This file holds personal data: {', '.join(personal)}."
            if personal
            else "None of them says who was called.",
        )
        return {
            "path": str(path),
            "rows": len(calls),
            "bytes": file.size,
            "sha256": file.sha256,
            "calls_by_status": calls.by_status(),
        }
