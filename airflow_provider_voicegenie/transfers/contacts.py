# SPDX-License-Identifier: Apache-2.0
"""
One try of an ``UploadContactsOperator``: check the rows, look at the campaign, and send batch after batch.

Apart from the operator, whose module every parse of a DAG file loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_voicegenie.api.errors import PayloadTooLargeError, VoiceGenieError, unchained
from airflow_provider_voicegenie.api.models import CampaignStatus
from airflow_provider_voicegenie.files import FileUnreadableError, read_rows, storage_path
from airflow_provider_voicegenie.rules.contacts import ContactColumns, NotAContactError, RejectedLimit
from airflow_provider_voicegenie.rules.file_formats import file_format, is_path, wrong_end
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, VoiceGenieRetryException, apply_outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.memory import Memory
    from airflow_provider_voicegenie.rules.outcomes import OutcomeRules

log = logging.getLogger(__name__)

#: How often the log says how far the upload is, and the campaign is looked at, in seconds.
_LOG_INTERVAL = 15.0
_LOOK_INTERVAL = 60.0

#: Rows that are compared at once with what was checked. Of so many, one digest stays in memory.
_COMPARED_ROWS = 1000

#: How many rejected contacts, and reasons of the service, the log names.
_NAMED = 5

#: The statuses in which a campaign places no calls, so that contacts can be uploaded to it.
_PHONES_NOBODY = (
    CampaignStatus.DRAFT,
    CampaignStatus.NOT_YET_STARTED,
    CampaignStatus.PAUSED,
    CampaignStatus.SCHEDULED,
)


#: A row's number, and the contact that it is or why it is none.
NumberedContact = tuple[int, dict[str, Any] | str]


class UploadTask(Protocol):
    """What a try needs of its operator, an ``UploadContactsOperator``."""

    campaign_id: str
    outcome_rules: OutcomeRules
    batch_size: int
    columns: Mapping[str, str] | None
    max_rejected: int | str
    is_killed: bool

    @property
    def rows_or_path(self) -> Any:
        """What the task was given."""

    def remember(self, memory: Memory, **more: Any) -> None:
        """Remember something for later tries."""


@dataclass
class Progress:
    """
    How far an upload is. Later tries get it as it was after the last batch that was acknowledged.

    :param rows: Rows that are done.
    :param uploaded: Contacts that were added.
    :param refused: Contacts that the service rejected.
    :param batches: Batches that the service acknowledged.
    """

    rows: int = 0
    uploaded: int = 0
    refused: int = 0
    batches: int = 0


class ContactUpload:
    """
    One try of an upload.

    :param task: The operator.
    :param context: The task's context.
    :param hook: The task's hook.
    :param memory: What an earlier try remembered, and this one will.
    """

    def __init__(self, task: UploadTask, context: Context, hook: VoiceGenieHook, memory: Memory) -> None:
        self._task = task
        self._memory = memory
        self._context = context
        self._hook = hook
        self._campaign_id = task.campaign_id
        self._source = _read_source(task.rows_or_path)
        self._columns = ContactColumns(task.columns)
        self._limit = RejectedLimit(task.max_rejected)
        self._progress = Progress()
        self._rows = 0
        self._fingerprint = ""
        # One of each `_COMPARED_ROWS` rows that were checked.
        self._digests: list[bytes] = []
        self._looked_at = 0.0
        # Whether the batch that is sent next may have been sent before.
        self._is_repeated = False
        # Contacts that the service rejected as too large.
        self._too_large = 0

    def run(self) -> dict[str, Any]:
        """
        Upload the contacts, and return what goes to XCom.

        :raises AirflowFailException: A condition fails the task, the rows cannot be read, or they are others than were
            checked.
        :raises VoiceGenieRetryException: The file cannot be read now.
        """
        with unchained():
            try:
                return self._run()
            except FileUnreadableError as error:
                raise AirflowFailException(f"contacts: {error} {self._sent()}") from None

    def _run(self) -> dict[str, Any]:
        rejected = self._check_rows()
        if not self._rows:
            self._apply(Condition.NO_CONTACTS, "there are no rows, so there is nothing to upload")
        self._check_rejected(rejected, "nothing was sent")
        before = self._memory.document or {}
        if before.get("fingerprint") == self._fingerprint:
            # Ignore the progress of another version of this provider: the service skips the numbers that it has.
            with suppress(KeyError, TypeError):
                self._progress = Progress(**before["progress"])
        self._look()
        progress = self._progress
        if progress.rows:
            done = f"{progress.rows:,} of {self._rows:,}"
            log.info("Campaign %r: an earlier try uploaded %s rows; going on behind them.", self._campaign_id, done)
        self._send_all()
        rejected += progress.refused
        self._check_rejected(rejected, f"{progress.uploaded:,} contacts were uploaded")
        known = self._rows - rejected - progress.uploaded
        log.info(
            "Campaign %r: of %s rows, %s were uploaded (batches: %s), %s were rejected%s.",
            self._campaign_id,
            f"{self._rows:,}",
            f"{progress.uploaded:,}",
            f"{progress.batches:,}",
            f"{rejected:,}",
            f", and {known:,} were in the campaign already or came twice" if known > 0 else "",
        )
        return {
            "campaign_id": self._campaign_id,
            "uploaded": progress.uploaded,
            "rejected": rejected,
            "batches": progress.batches,
        }

    # The rows.

    def _contacts(self) -> Iterator[NumberedContact]:
        """Yield each row's number with its contact, or with the reason why it is rejected."""
        for number, row in enumerate(self._source_rows(), start=1):
            try:
                yield number, self._columns.contact(row)
            except NotAContactError as reason:
                yield number, str(reason)

    def _source_rows(self) -> Iterator[Any]:
        source = self._source
        if not isinstance(source, ObjectStoragePath):
            yield from source
            return
        with unchained():
            try:
                yield from read_rows(source)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else type(error).__name__
                problem = f"{str(source)!r:.300} cannot be read ({reason})"
                if isinstance(error, FileNotFoundError):
                    problem = f"there is no file {str(source)!r:.300}"
                    if source.protocol in ("", "file", "local"):
                        problem += " on the machine that runs this task. With several workers, use object storage"
                raise VoiceGenieRetryException(f"contacts: {problem}. {self._sent()}") from None

    def _sent(self) -> str:
        rows = self._progress.rows
        return f"{rows:,} of {self._rows:,} rows were sent." if rows else "This try has sent nothing."

    def _checked_contacts(self) -> Iterator[NumberedContact]:
        """
        Yield the contacts of :meth:`_contacts` again, and refuse any that was not checked.

        :raises AirflowFailException: The rows have changed.
        """
        contacts = self._contacts()
        for checked in self._digests:
            part = list(islice(contacts, _COMPARED_ROWS))
            if _digest(part) != checked:
                raise self._changed_rows()
            yield from part
        if next(contacts, None) is not None:
            raise self._changed_rows()

    def _changed_rows(self) -> AirflowFailException:
        return AirflowFailException(
            f"Campaign {self._campaign_id!r}: contacts have changed since they were checked, and nothing is sent "
            f"unchecked. {self._sent()} Let nobody write the file while it is uploaded, and clear the task: it checks "
            "and uploads what is there then."
        )

    def _check_rows(self) -> int:
        """Read all rows once, before anything is sent, and return how many are no contacts."""
        rejected = 0
        problems: list[str] = []
        # Kept by Airflow, so that a later try knows whether it has the same rows.
        fingerprint = self._hook.client.settings.digest()
        contacts = self._contacts()
        while part := list(islice(contacts, _COMPARED_ROWS)):
            self._rows = part[-1][0]
            self._digests.append(_digest(part))
            fingerprint.update(self._digests[-1])
            for number, contact in part:
                if isinstance(contact, str):
                    rejected += 1
                    if len(problems) < _NAMED:
                        problems.append(f"row {number:,} {contact}")
        self._fingerprint = fingerprint.hexdigest()
        if self._rows and (unseen := sorted(self._columns.unseen, key=str)):
            raise AirflowFailException(
                f"columns: no row has a column {' or '.join(map(repr, unseen))}. The first row has "
                f"{self._columns.width} column(s). Check how the names are written, and that a CSV file has commas "
                "between them; nothing was sent."
            )
        if rejected:
            log.warning(
                "Campaign %r: %s of %s rows are no contacts: %s%s.",
                self._campaign_id,
                f"{rejected:,}",
                f"{self._rows:,}",
                "; ".join(problems),
                "; and others" if rejected > len(problems) else "",
            )
        if self._rows and rejected == self._rows and not self._columns.names_the_number:
            log.warning(
                "Campaign %r: is the column of the phone numbers called phone_number? If not, say which it is: "
                'columns={"mobile": "phone_number"}.',
                self._campaign_id,
            )
        return rejected

    # The upload.

    def _send_all(self) -> None:
        progress, size = self._progress, self._task.batch_size
        # If an earlier try said how far it came, only the batch behind that may have been sent before.
        knows_how_far = progress.rows > 0
        may_be_repeated = getattr(self._context.get("ti"), "try_number", 1) > 1
        logged_at = time.monotonic()
        self._keep()
        waiting = (row for row in self._checked_contacts() if row[0] > progress.rows)
        while batch := list(islice(waiting, size)):
            while batch:
                part = batch[:size]
                self._is_repeated = may_be_repeated
                size = self._send(part, size)
                if size < len(part):
                    continue
                batch = batch[len(part) :]
                progress.rows = part[-1][0]
                self._keep()
            may_be_repeated = may_be_repeated and not knows_how_far
            if time.monotonic() - logged_at >= _LOG_INTERVAL:
                logged_at = time.monotonic()
                done = f"{progress.rows:,} of {self._rows:,}"
                log.info("Campaign %r: %s rows are uploaded.", self._campaign_id, done)

    def _send(self, rows: Sequence[NumberedContact], size: int) -> int:
        """Send the contacts among some rows; return how many rows at a time from then on, fewer if nothing was done."""
        contacts = [contact for _, contact in rows if not isinstance(contact, str)]
        if not contacts:
            return size
        progress = self._progress
        try:
            result = self._hook.upload_contacts(
                self._campaign_id, contacts, before_attempt=self._before_attempt, on_sending=self._on_sending
            )
        except PayloadTooLargeError as error:
            if len(contacts) > 1:
                size = (len(rows) + 1) // 2
                log.info("%s Sending %s rows at a time.", error, f"{size:,}")
                return size
            progress.refused += 1
            self._too_large += 1
            # It was this contact, and not the batch that it was in.
            return self._task.batch_size
        refused = min(result.failed_count, len(contacts))
        progress.batches += 1
        progress.refused += refused
        # Whoever was sent before is there, and does not count as added again.
        progress.uploaded += len(contacts) - refused if self._is_repeated else result.uploaded_count
        return size

    def _before_attempt(self, error_before: VoiceGenieError | None) -> None:
        if error_before is not None and error_before.may_have_taken_effect:
            self._is_repeated = True
        if time.monotonic() - self._looked_at >= _LOOK_INTERVAL:
            self._look()

    def _on_sending(self) -> None:
        if self._task.is_killed:
            raise VoiceGenieRetryException(
                f"Campaign {self._campaign_id!r}: the task was ended from outside after {self._progress.rows:,} rows; "
                "a later try goes on."
            )

    def _look(self) -> None:
        """Look whether contacts may be uploaded to the campaign now."""
        campaign = self._hook.get_campaign(self._campaign_id)
        self._looked_at = time.monotonic()
        rows = f"{self._progress.rows:,} of {self._rows:,} rows"
        done = f"{rows} were uploaded before" if self._progress.rows else "nothing was sent"
        if campaign.status in _PHONES_NOBODY:
            return
        if campaign.status.has_ended:
            self._apply(
                Condition.CAMPAIGN_COMPLETED,
                f"the campaign is over ({campaign.status.value}; {done}); upload to another one",
            )
        elif campaign.status.is_running:
            self._apply(
                Condition.CAMPAIGN_ALREADY_RUNNING,
                f"the campaign is running, and phones whoever is uploaded to it at once ({done})",
            )
        else:
            self._apply(
                Condition.CAMPAIGN_ALREADY_RUNNING,
                f"the campaign's status {campaign.status_text!r:.40} is unknown here, so it may phone whoever is "
                f"uploaded to it at once ({done})",
            )

    def _keep(self) -> None:
        self._task.remember(self._memory, fingerprint=self._fingerprint, progress=asdict(self._progress))

    def _check_rejected(self, rejected: int, done: str) -> None:
        if not self._limit.is_exceeded(rejected, self._rows):
            return
        too_large = f"; {self._too_large:,} of them too large by themselves" if self._too_large else ""
        self._apply(
            Condition.CONTACTS_REJECTED,
            f"{rejected:,} of {self._rows:,} rows are rejected, more than {self._limit} allows{too_large} ({done})",
        )

    def _apply(self, condition: Condition, message: str) -> None:
        apply_outcome(self._task.outcome_rules, Finding(condition, message), self._campaign_id)


def _digest(contacts: Iterable[NumberedContact]) -> bytes:
    digest = hashlib.sha256()
    for _, contact in contacts:
        digest.update(json.dumps(contact).encode())
    return digest.digest()


def _read_source(contacts: object) -> Sequence[Any] | ObjectStoragePath:
    """
    Return rows, or the file that they are in.

    :param contacts: What the task was given.
    :raises AirflowFailException: It is neither.
    """
    if isinstance(contacts, str):
        if not contacts.strip() or contacts.lstrip()[:1] in "[{":
            raise AirflowFailException(
                "contacts must be rows or the path of a file, and the template gave "
                f"{'rows as a text' if contacts.strip() else 'an empty text'}. To pass what an upstream task returns, "
                "give its output: contacts=extract.output."
            )
        if not is_path(contacts):
            raise AirflowFailException(f"contacts must be rows, or {wrong_end(contacts).removeprefix('must be ')}")
        try:
            contacts = storage_path(contacts)
        except FileUnreadableError as error:
            raise AirflowFailException(f"contacts: {error}.") from None
        except ValueError:
            raise AirflowFailException(f"contacts: Airflow knows no storage for {contacts!r:.300}.") from None
    if isinstance(contacts, ObjectStoragePath):
        try:
            file_format(str(contacts))
        except ValueError as error:
            raise AirflowFailException(f"contacts: {error}") from None
        return contacts
    if isinstance(contacts, Sequence):
        return contacts
    raise AirflowFailException(
        f"contacts must be rows (a list of dicts) or the path of a file, not {type(contacts).__name__}."
    )
