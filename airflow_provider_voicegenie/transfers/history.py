# SPDX-License-Identifier: Apache-2.0
"""The operator that writes a campaign's calls to a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.rules.contact_keys import CONTACT_KEY, check_key_connection
from airflow_provider_voicegenie.rules.file_formats import check_literal_path
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Outcome,
    OutcomeRules,
    TaskKind,
)
from airflow_provider_voicegenie.rules.parameters import did_you_mean, read_bounds, read_call_statuses

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

__all__ = ["CallHistoryToObjectStorageOperator"]

#: The columns, and their types in the file.
COLUMNS: Mapping[str, type[str] | type[float]] = {
    "call_id": str,
    "contact_name": str,
    "phone_number": str,
    "status": str,
    "duration": float,
    "call_time": str,
    "recording_url": str,
}

#: Those that may be written: what the service gives, and what is made of it.
_ALL_COLUMNS: Mapping[str, type[str] | type[float]] = {**COLUMNS, CONTACT_KEY: str}


class CallHistoryToObjectStorageOperator(CampaignTask):
    """
    Write a VoiceGenie campaign's calls to a file, one record a call.

    **The file holds personal data**: names, phone numbers and links to recordings, unless ``columns`` leaves them out.

    How it works: The task reads the campaign, and then its calls, page by page (``POST /getHistory``, the service's
    Get History page, a read), into a scratch database in the folder for temporary files. Pages shift while they are
    read, so a call that comes twice is written once, and if calls are missing at the end, all are read again, up to
    three times. Calls with the same id are two calls if they differ in name, number or time, or if one page has both.
    A number in a column of texts is written as text. Other values of a wrong type are left empty, and a warning counts
    them. The file appears under its name only when it is whole, and replaces the one before; then it is read again, and
    compared with what was written. A later try of the task makes it anew. A million calls need little more memory than
    ten thousand, and disk space.

    What it does not do: It downloads no recordings.

    Known limitation: While it works, the scratch database holds what the file will hold; other users cannot read it,
    and it is gone with the process. A process that is killed outright leaves a partial file behind,
    ``.<name>.<digits>.partial`` beside the file; the next try removes it. If the task may write to a storage but not
    delete there, it leaves an empty one, with a warning.

    Returns to XCom, as plain JSON:

    - ``path``: the file.
    - ``rows``: calls in it.
    - ``bytes``: its size.
    - ``sha256``: the SHA-256 digest of its bytes, in hexadecimal digits.
    - ``calls_by_status``: calls by how they ended, such as ``{"answered": 700, "busy": 100}``.

    :param campaign_id: Id of the campaign. (templated)
    :param path: The file, as a string or an ``ObjectStoragePath``: ``.csv``, ``.jsonl`` or ``.ndjson`` (one JSON object
        a line), each also with ``.gz``, or ``.parquet``. A ``~`` at its beginning is the home folder of the worker's
        user. (templated)
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param statuses: Only calls that ended so: ``answered``, ``busy``, ``no_answer``, ``failed``. All by default.
    :param since: Only calls from then on: a ``datetime`` or a text in ISO 8601, such as ``2026-05-01T08:00+02:00``, in
        UTC if it names no zone. A plain date, such as ``2026-05-01``, means the begin of that day in UTC. (templated)
    :param until: Only calls until then, in the same forms. A plain date means the end of that day in UTC, which is
        included. For one day, give the same date twice. (templated)
    :param columns: What is written of a call, in this order: ``call_id``, ``contact_name``, ``phone_number``,
        ``status``, ``duration`` (seconds), ``call_time`` (ISO 8601, as the service writes it), ``recording_url``. All
        of these by default. Besides, ``contact_key``: a keyed hash of the phone number, by which calls join with the
        file of :class:`~airflow_provider_voicegenie.operators.contacts.UploadContactsOperator`'s
        ``contact_keys_path``, without a phone number.
    :param contact_key_conn_id: The Airflow connection, of any type, whose password is the secret of ``contact_key``: a
        random text of at least 16 characters.
    :param outcomes: Changes to the outcome table. ``{"CAMPAIGN_STILL_RUNNING": "succeed"}`` exports the calls of a
        running campaign so far, ``{"HISTORY_INCOMPLETE": "succeed"}`` those that could be read.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed. What a template gives is checked when the
        task runs.
    """

    template_fields: Sequence[str] = ("campaign_id", "path", "since", "until", "voicegenie_conn_id")
    ui_color = "#e9e2f5"
    asset_event_fields = ("path", "rows")

    def __init__(
        self,
        *,
        campaign_id: str,
        path: str | ObjectStoragePath,
        voicegenie_conn_id: str = "voicegenie_default",
        statuses: Iterable[str] | None = None,
        since: date | str | None = None,
        until: date | str | None = None,
        columns: Sequence[str] | None = None,
        contact_key_conn_id: str | None = None,
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.HISTORY, outcomes),
            **kwargs,
        )
        check_literal_path("path", path)
        if "{" not in f"{since}{until}":
            read_bounds(since, until)
        self.path = path
        self.statuses = list(read_call_statuses(statuses))
        self.since = since
        self.until = until
        self.columns = _read_columns(columns)
        check_key_connection('the column "contact_key"', CONTACT_KEY in self.columns, contact_key_conn_id)
        self.contact_key_conn_id = contact_key_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the file, and return the XCom value described in the class docstring."""
        # Parsing a DAG file needs no export.
        from airflow_provider_voicegenie.transfers.history_export import HistoryExport

        columns = {name: _ALL_COLUMNS[name] for name in self.columns}
        return self.add_to_asset_events(context, HistoryExport(self, context, self._hook, columns).execute())


def _read_columns(columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return list(COLUMNS)
    if isinstance(columns, str) or not isinstance(columns, Sequence) or not columns:
        raise ValueError(f'columns must be a list such as ["call_id", "status"]; got {columns!r:.80}.')
    for name in columns:
        if name not in _ALL_COLUMNS:
            hint = did_you_mean(name, _ALL_COLUMNS)
            raise ValueError(f"columns: {name!r:.80} is none of {', '.join(_ALL_COLUMNS)}. {hint}".rstrip())
    return list(dict.fromkeys(columns))
