# SPDX-License-Identifier: Apache-2.0
"""Where a task keeps its start across tries: Airflow's task state store, on Airflow 3.3 and later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from airflow_provider_voicegenie.api.models import Campaign
from airflow_provider_voicegenie.decisions.earlier_start import StartPhase, StartRecord, earlier_start, was_cleared

log = logging.getLogger(__name__)

_KEY = "voicegenie_start"


class StartMemory:
    """
    The start of one task instance.

    :param context: The task's context.
    :param campaign_id: The campaign.
    :param voicegenie_conn_id: The connection.
    """

    def __init__(self, context: Mapping[str, Any], campaign_id: str, voicegenie_conn_id: str) -> None:
        self._store = context.get("task_state_store")
        self._campaign_id = campaign_id
        self._voicegenie_conn_id = voicegenie_conn_id
        self._task_instance = context.get("ti")
        self._record: StartRecord | None = None
        #: Whether a user cleared the task while the start that it had made was in effect; known after :meth:`recall`.
        self.was_cleared = False

    @property
    def is_kept(self) -> bool:
        """Whether this Airflow keeps anything across tries."""
        return self._store is not None

    @property
    def is_first_try(self) -> bool:
        """Whether no try came before this one since the task was created, or last cleared by a user."""
        if self._task_instance is None:
            return True
        retries = getattr(getattr(self._task_instance, "task", None), "retries", 0) or 0
        return bool(self._task_instance.try_number <= self._life - retries + 1)

    @property
    def _life(self) -> int:
        return int(getattr(self._task_instance, "max_tries", 0) or 0)

    def recall(self) -> StartRecord | None:
        """Return the start that an earlier try made, if it did; it may be that of another campaign."""
        if self._store is None:
            return None
        record = StartRecord.from_json(self._store.get(_KEY))
        self._record = earlier_start(record, self._life)
        self.was_cleared = was_cleared(record, self._campaign_id, self._life)
        return self._record

    def note_sending(self, before: Campaign, sent_at: datetime) -> None:
        """
        Note that a start is about to be sent.

        :raises Exception: It could not be noted; the start must not be sent then.
        """
        self._record = StartRecord.of(before, self._campaign_id, self._voicegenie_conn_id, self._life, sent_at)
        self._keep()

    def note(self, phase: StartPhase, started_at: datetime | None = None) -> None:
        """Note how far the start has come, if there is one; that this fails changes nothing of what has come."""
        try:
            record = self._record or self.recall()
            if record is not None:
                self._record = record.in_phase(phase, started_at)
                self._keep()
        except Exception:
            # The task instance that a user has cleared is gone, and with it what its start would mean to the next try.
            expected = phase is StartPhase.CLOSED
            log.log(
                logging.INFO if expected else logging.WARNING,
                "Campaign %r: that its start is %s could not be noted in Airflow.",
                self._campaign_id,
                phase.value,
                exc_info=not expected,
            )

    def _keep(self) -> None:
        if self._store is not None and self._record is not None:
            self._store.set(_KEY, self._record.to_json())
