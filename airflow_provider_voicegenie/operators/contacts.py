# SPDX-License-Identifier: Apache-2.0
"""The operator that uploads contacts to a campaign."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.rules.contacts import ContactColumns, NotAContactError, RejectedLimit
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Outcome,
    OutcomeRules,
    TaskKind,
    VoiceGenieRetryException,
    apply_error,
    apply_outcome,
)
from airflow_provider_voicegenie.rules.parameters import check_flags, read_whole_number

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

__all__ = ["UploadContactsOperator"]

log = logging.getLogger(__name__)

#: Contacts in a batch; the Upload Campaign Data page advises that many.
_BATCH_SIZE = 1000

#: How often the log says how far the upload is, and the campaign is looked at, in seconds.
_LOG_INTERVAL = 15.0
_LOOK_INTERVAL = 60.0

#: How many rejected contacts the log names.
_NAMED = 5


class _Rows(Sequence[Any]):
    """Rows of which Airflow's UI and database show only how many there are."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} rows, which are not shown>"

    def serialize(self) -> str:
        """Return what Airflow keeps of a rendered template."""
        return repr(self)


@dataclass
class _Progress:
    """How far an upload is. Later tries get it as it was after the last batch that was acknowledged."""

    rows: int = 0
    uploaded: int = 0
    refused: int = 0
    batches: int = 0
    #: What the service said of rejected contacts.
    said: list[str] = field(default_factory=list)


class UploadContactsOperator(CampaignTask):
    """
    Upload contacts to a VoiceGenie campaign that exists.

    **A running campaign phones them at once**, so by default the task fails if the campaign runs.

    How it works: The task reads all rows once, and counts those that are no contacts. It reads the campaign. Then it
    reads the rows again and sends them in batches (``POST /uploadCampaignData``, the service's Upload Campaign Data
    page), at most 50 a minute, and looks at the campaign again every minute. A million rows need no more memory than
    ten thousand. The service skips numbers that a campaign has already. So a batch is sent again if its response was
    lost, and a later try of the task goes on after the last batch that the service acknowledged (Airflow 3.3; before,
    from the beginning). A batch that the service calls too large is sent in halves.

    What it does not do: It makes no campaign, removes no contact, and does not change phone numbers. It knows no
    calling hours: upload to a campaign that does not run, and start that within them.

    Known limitation: Airflow keeps the result of an upstream task in its database. If ``contacts`` are rows of one,
    their names and numbers are there; write them to a file instead if they must not be. This task itself shows no
    number, name or address in its log, its errors, XCom, its rendered templates or its state.

    Returns to XCom, as plain JSON:

    - ``campaign_id``: the id.
    - ``uploaded``: contacts that the service added. Of a batch that may have been sent before, by an earlier try or
      before its response was lost, all count that were not rejected.
    - ``rejected``: rows that are no contacts, and contacts that the service rejected.
    - ``batches``: batches that the service acknowledged.

    :param campaign_id: Id of the campaign. (templated)
    :param contacts: Rows (a list of dicts, as an upstream task returns them), or the path of a file: a
        string or an ``ObjectStoragePath``, ending in ``.csv`` (UTF-8, commas, names of the columns in the first line),
        ``.jsonl`` or ``.ndjson`` (one JSON object a line), each also with ``.gz``, or ``.parquet``. (templated)
    :param columns: Which columns are which part of a contact: ``{"mobile": "phone_number", "full name": "name"}``.
        The parts are ``phone_number``, ``name`` and ``email``; columns with these names need none. All others
        become custom fields of the contact.
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param batch_size: Contacts in a batch.
    :param max_rejected: How many rows may be rejected, as a number or as a percentage of all rows such as ``"2%"``.
        More are the condition ``CONTACTS_REJECTED``. If rows that are no contacts are already too many, nothing is
        sent.
    :param upload_in_backfill: Whether backfill runs upload too, and runs that asset events of backfill runs alone have
        triggered. They do not by default.
    :param outcomes: Changes to the outcome table. ``{"CAMPAIGN_ALREADY_RUNNING": "succeed"}`` uploads to a running
        campaign, which phones the contacts at once; ``{"CONTACTS_REJECTED": "succeed"}`` uploads the others.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields: Sequence[str] = ("campaign_id", "contacts", "voicegenie_conn_id")
    ui_color = "#dbe7f6"
    told_to_outlets = ("uploaded",)

    def __init__(
        self,
        *,
        campaign_id: str,
        contacts: Sequence[Mapping[str, Any]] | str | ObjectStoragePath,
        columns: Mapping[str, str] | None = None,
        voicegenie_conn_id: str = "voicegenie_default",
        batch_size: int = _BATCH_SIZE,
        max_rejected: int | str = 0,
        upload_in_backfill: bool = False,
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        **kwargs: Any,
    ) -> None:
        # Not by the property: what is in it is rendered once this object is made.
        self._contacts: Any = contacts
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.UPLOAD, outcomes),
            **kwargs,
        )
        check_flags(upload_in_backfill=upload_in_backfill)
        self.columns = dict(columns) if isinstance(columns, Mapping) else columns
        self._contact_columns = ContactColumns(columns)
        self.batch_size = read_whole_number("batch_size", batch_size, least=1)
        self.max_rejected = max_rejected
        self._rejected_limit = RejectedLimit(max_rejected)
        self.upload_in_backfill = upload_in_backfill

    @property
    def contacts(self) -> Any:
        """The rows, or the path of their file."""
        return self._contacts

    @contacts.setter
    def contacts(self, value: Any) -> None:
        # Airflow sets what it has rendered, and then keeps that in its database and shows it in its UI.
        self._contacts = _Rows(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    def execute(self, context: Context) -> dict[str, Any]:
        """Upload the contacts, and return the XCom value described in the class docstring."""
        from airflow_provider_voicegenie.api.endpoints import check_campaign_id
        from airflow_provider_voicegenie.api.errors import VoiceGenieError

        kept = self.kept_for_later(context)
        if kept is not None:
            self.go_on_with(kept)
        hook = self._hook
        try:
            self._check_run(context)
            check_campaign_id(self.campaign_id)
            hook.get_conn()
            if not self.told_to_end:
                self.keep_link(context, hook)
            result = self._upload(context, hook, kept or {})
        except VoiceGenieError as error:
            apply_error(self.outcome_rules, error, self.campaign_id)
            raise
        return self.tell_outlets(context, result)

    def _check_run(self, context: Context) -> None:
        from airflow_provider_voicegenie.start.guards import RunFacts, check_backfill

        run = RunFacts.of(context)
        if not self.upload_in_backfill and (finding := check_backfill(run, "upload nothing", "upload_in_backfill")):
            apply_outcome(self.outcome_rules, finding.condition, self.campaign_id, finding.message)

    # The rows.

    def _source(self) -> tuple[Sequence[Any] | ObjectStoragePath, str | None]:
        """Return where the rows are, and what changes with them."""
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        from airflow_provider_voicegenie.files import file_format

        contacts = self.contacts
        if isinstance(contacts, str):
            if not contacts.strip() or contacts.lstrip()[:1] in "[{":
                raise AirflowFailException(
                    "contacts must be rows or the path of a file, and the template gave "
                    f"{'rows as a text' if contacts.strip() else 'an empty text'}. To pass what an upstream task "
                    "returns, give its output: contacts=extract.output."
                )
            contacts = ObjectStoragePath(contacts)
        if isinstance(contacts, ObjectStoragePath):
            try:
                file_format(str(contacts))
            except ValueError as error:
                raise AirflowFailException(f"contacts: {error}") from None
            return contacts, f"{contacts.checksum()}"
        if isinstance(contacts, Sequence):
            return contacts, f"{len(contacts)} rows"
        raise AirflowFailException(
            f"contacts must be rows (a list of dicts) or the path of a file, not {type(contacts).__name__}."
        )

    def _rows(self, source: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Yield each row's number, and the contact that it is or why it is none."""
        from airflow_provider_voicegenie.files import read_rows

        rows = source if isinstance(source, Sequence) else read_rows(source)
        for number, row in enumerate(rows, start=1):
            try:
                yield number, self._contact_columns.contact(row)
            except NotAContactError as reason:
                yield number, str(reason)

    def _check_rows(self, source: Any) -> tuple[int, int]:
        """Return how many rows there are, and how many of them are no contacts."""
        rows = 0
        problems: list[str] = []
        rejected = 0
        for rows, contact in self._rows(source):
            if isinstance(contact, str):
                rejected += 1
                if len(problems) < _NAMED:
                    problems.append(f"row {rows:,} {contact}")
        if rejected:
            log.warning(
                "Campaign %r: %s of %s rows are no contacts: %s%s.",
                self.campaign_id,
                f"{rejected:,}",
                f"{rows:,}",
                "; ".join(problems),
                "; ..." if rejected > len(problems) else "",
            )
        if rows and (unseen := sorted(self._contact_columns.unseen)):
            raise AirflowFailException(
                f"columns: no row has a column {' or '.join(map(repr, unseen))}. Check how it is written; nothing was "
                "sent."
            )
        if rows and rejected == rows and not self._contact_columns.name_the_number:
            log.warning(
                "Campaign %r: is the column of the phone numbers called phone_number? If not, say which it is: "
                'columns={"mobile": "phone_number"}.',
                self.campaign_id,
            )
        return rows, rejected

    # The upload.

    def _upload(self, context: Context, hook: VoiceGenieHook, kept: Mapping[str, Any]) -> dict[str, Any]:
        from airflow_provider_voicegenie.files import FileUnreadableError

        source, fingerprint = self._source()
        try:
            rows, rejected = self._check_rows(source)
        except FileUnreadableError as error:
            raise AirflowFailException(f"contacts: {error}") from None
        if not rows:
            self._apply(Condition.NO_CONTACTS, "there are no rows, so there is nothing to upload")
        self._check_rejected(rejected, rows, [], "nothing was sent")
        progress = _Progress()
        fingerprint = f"{fingerprint} {sorted((self.columns or {}).items())}"
        if kept.get("source") == fingerprint:
            progress = _Progress(**kept["progress"])
        self._look(hook, progress, rows)
        if progress.rows:
            log.info(
                "Campaign %r: an earlier try uploaded %s of %s rows; going on behind them.",
                self.campaign_id,
                f"{progress.rows:,}",
                f"{rows:,}",
            )
        self._send_batches(context, hook, source, progress, rows, fingerprint)
        rejected += progress.refused
        self._check_rejected(rejected, rows, progress.said, f"{progress.uploaded:,} contacts were uploaded")
        log.info(
            "Campaign %r: %s contacts were uploaded in %s batches; %s of %s rows were rejected.",
            self.campaign_id,
            f"{progress.uploaded:,}",
            f"{progress.batches:,}",
            f"{rejected:,}",
            f"{rows:,}",
        )
        return {
            "campaign_id": self.campaign_id,
            "uploaded": progress.uploaded,
            "rejected": rejected,
            "batches": progress.batches,
        }

    def _send_batches(
        self, context: Context, hook: VoiceGenieHook, source: Any, progress: _Progress, rows: int, fingerprint: str
    ) -> None:
        may_be_repeated = getattr(context.get("ti"), "try_number", 1) > 1
        self._keep_progress(context, fingerprint, progress)
        looked_at = logged_at = time.monotonic()
        goes_on = progress.rows > 0
        waiting = (row for row in self._rows(source) if row[0] > progress.rows)
        size = self.batch_size
        while batch := list(islice(waiting, size)):
            if time.monotonic() - looked_at >= _LOOK_INTERVAL:
                self._look(hook, progress, rows)
                looked_at = time.monotonic()
            contacts = [contact for _, contact in batch if not isinstance(contact, str)]
            if contacts:
                size = self._send(hook, contacts, size, progress, may_be_repeated)
            # If an earlier try said how far it came, only the batch behind that may have been sent before.
            may_be_repeated = may_be_repeated and not goes_on
            progress.rows = batch[-1][0]
            self._keep_progress(context, fingerprint, progress)
            if time.monotonic() - logged_at >= _LOG_INTERVAL:
                logged_at = time.monotonic()
                done = f"{progress.rows:,} of {rows:,}"
                log.info("Campaign %r: %s rows are uploaded.", self.campaign_id, done)

    def _keep_progress(self, context: Context, fingerprint: str, progress: _Progress) -> None:
        # Without what the service said, which may name people.
        self.keep_for_later(context, source=fingerprint, progress=asdict(progress) | {"said": []})

    def _send(
        self,
        hook: VoiceGenieHook,
        contacts: list[dict[str, Any]],
        size: int,
        progress: _Progress,
        may_be_repeated: bool,
    ) -> int:
        """Send contacts, fewer at a time if they are too many at once; return how many at a time from then on."""
        from airflow_provider_voicegenie.api.errors import PayloadTooLargeError

        while contacts:
            batch = contacts[:size]
            try:
                self._send_batch(hook, batch, progress, may_be_repeated)
            except PayloadTooLargeError as error:
                if len(batch) > 1:
                    size = (len(batch) + 1) // 2
                    log.info("%s Sending %s contacts at a time.", error, f"{size:,}")
                    continue
                progress.refused += 1
                progress.said.append(error.message)
                # This contact was too large, and not the batch that it was in.
                size = self.batch_size
            contacts = contacts[len(batch) :]
        return size

    def _send_batch(
        self, hook: VoiceGenieHook, batch: list[dict[str, Any]], progress: _Progress, may_be_repeated: bool
    ) -> None:
        from airflow_provider_voicegenie.api.endpoints import texts_of
        from airflow_provider_voicegenie.api.responses import hide_people

        attempts = 0

        def on_sending() -> None:
            nonlocal attempts
            if self.told_to_end:
                raise VoiceGenieRetryException(
                    f"Campaign {self.campaign_id!r}: the task was ended from outside after {progress.rows:,} rows; a "
                    "later try goes on."
                )
            attempts += 1

        result = hook.upload_contacts(self.campaign_id, batch, on_sending=on_sending)
        refused = min(result.failed_count, len(batch))
        progress.batches += 1
        progress.refused += refused
        progress.uploaded += len(batch) - refused if may_be_repeated or attempts > 1 else result.uploaded_count
        for text in result.errors[: _NAMED - len(progress.said)]:
            progress.said.append(hide_people(text, list(texts_of(batch))))

    def _look(self, hook: VoiceGenieHook, progress: _Progress, rows: int) -> None:
        """Look whether contacts may be uploaded to the campaign now."""
        campaign = hook.get_campaign(self.campaign_id)
        done = f"{progress.rows:,} of {rows:,} rows were uploaded before" if progress.rows else "nothing was sent"
        if campaign.status.is_running:
            self._apply(
                Condition.CAMPAIGN_ALREADY_RUNNING,
                f"the campaign is running, and phones whoever is uploaded to it at once ({done})",
            )
        elif campaign.status.has_ended:
            self._apply(Condition.CAMPAIGN_COMPLETED, f"the campaign is over ({campaign.status.value}; {done})")

    def _check_rejected(self, rejected: int, rows: int, said: list[str], done: str) -> None:
        if not self._rejected_limit.is_exceeded(rejected, rows):
            return
        quotes = f"; the service says {', '.join(map(repr, said))}" if said else ""
        self._apply(
            Condition.CONTACTS_REJECTED,
            f"{rejected:,} of {rows:,} rows are rejected, more than {self._rejected_limit} allows{quotes} ({done})",
        )

    def _apply(self, condition: Condition, message: str) -> None:
        apply_outcome(self.outcome_rules, condition, self.campaign_id, message)
