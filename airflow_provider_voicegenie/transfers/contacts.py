# SPDX-License-Identifier: Apache-2.0
"""
One try of an ``UploadContactsOperator``: check the rows, look at the campaign, and send batch after batch.

It is no part of the operator, because every parse of a DAG file loads the module of that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_voicegenie.api.errors import PayloadTooLargeError, VoiceGenieError, unchained
from airflow_provider_voicegenie.api.models import CampaignStatus
from airflow_provider_voicegenie.files import (
    FileUnreadableError,
    replacing,
    write_rows,
)
from airflow_provider_voicegenie.rules.contact_keys import CONTACT_KEY, contact_key
from airflow_provider_voicegenie.rules.contacts import CONTACT_ID, RejectedLimit
from airflow_provider_voicegenie.rules.outcomes import Condition, VoiceGenieRetryException
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.transfers.contact_rows import (
    ContactRows,
    NotSent,
    NumberedRow,
    Why,
    columns_of,
    is_excluded,
    text_of,
)
from airflow_provider_voicegenie.transfers.contact_sources import read_source, read_target
from airflow_provider_voicegenie.transfers.named_campaign import CampaignOfName
from airflow_provider_voicegenie.transfers.scratch import NumberStore, ScratchSpaceError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.memory import Memory

log = logging.getLogger(__name__)

#: The statuses in which a campaign places no calls, so that contacts can be uploaded to it.
_PHONES_NOBODY = (
    CampaignStatus.DRAFT,
    CampaignStatus.NOT_YET_STARTED,
    CampaignStatus.PAUSED,
    CampaignStatus.SCHEDULED,
)


@dataclass
class Progress:
    """
    How far an upload is. Later tries get it as it was after the last batch that was acknowledged.

    :param rows: Rows that are done.
    :param uploaded: Contacts that were added.
    :param refused: Contacts that the service rejected.
    :param batches: Batches that the service acknowledged.
    :param excluded: Rows of people who must not be called.
    """

    rows: int = 0
    uploaded: int = 0
    refused: int = 0
    batches: int = 0
    excluded: int = 0


class ContactUpload:
    """
    One try of an upload.

    :param task: The operator, an ``UploadContactsOperator``.
    :param context: The task's context.
    :param hook: The task's hook.
    :param memory: What an earlier try remembered, and this one will.
    """

    def __init__(self, task: Any, context: Context, hook: VoiceGenieHook, memory: Memory) -> None:
        self._task = task
        self._memory = memory
        self._context = context
        self._hook = hook
        #: The campaign of this name, if the task is about one; then its id is known later.
        self._of_name = CampaignOfName(task, context, hook, memory) if task.is_by_name else None
        self._name: str | None = None
        # Before Airflow 3.3, only the first try can know that.
        is_first = getattr(context.get("ti"), "try_number", 1) == 1
        self._nothing_was_sent = not (memory.document or memory.cleared) and (memory.is_kept or is_first)
        try:
            self._source = read_source("contacts", task.rows_or_path)
        except FileUnreadableError as error:
            if self._nothing_was_sent:
                task.apply_condition(Condition.CONTACTS_UNREADABLE, str(error))
            raise AirflowFailException(str(error)) from None
        self._limit = RejectedLimit(task.max_rejected)
        people = task.excluded_people
        lists = people if isinstance(people, Sequence) and not isinstance(people, str) else [people]
        self._rejected_path = read_target("rejected_path", task.rejected_path, [self._source, *lists])
        self._keys_path = read_target(
            "contact_keys_path", task.contact_keys_path, [self._source, self._rejected_path, *lists]
        )
        self._secret = "" if self._keys_path is None else _read_secret(hook, task.contact_key_conn_id)
        self._progress = Progress()
        self._rows: ContactRows
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
        :raises VoiceGenieRetryException: The file cannot be read now, or that of the rows that were not sent cannot be
            written.
        """
        with unchained(), NumberStore() as numbers:
            self._rows = ContactRows(
                self._task,
                self._source,
                numbers,
                self._hook.client.settings.digest(),
                self._sent,
                keeps_columns=self._rejected_path is not None,
                nothing_was_sent=self._nothing_was_sent,
            )
            try:
                return self._run()
            except FileUnreadableError as error:
                message = f"contacts: {error} {self._sent()}"
                if self._rows.is_beginning:
                    self._task.apply_condition(Condition.CONTACTS_UNREADABLE, message)
                raise AirflowFailException(f"Campaign {self._task.campaign_label!r}: {message}") from None

    def _run(self) -> dict[str, Any]:
        self._rows.check()
        if not self._rows.count:
            self._write_rejected()
            self._task.apply_condition(Condition.NO_CONTACTS, "there are no rows, so there is nothing to upload")
        if self._keys_path is not None and self._rows.count and not self._rows.identified:
            raise AirflowFailException(
                "contact_keys_path: no row has a contact_id, so the keys would say nothing. Say which column has your "
                'own id: columns={"customer_number": "contact_id"}. Nothing was sent.'
            )
        self._rows.read_exclusions()
        rejected = self._rows.not_sent[Why.REJECTED]
        # Before anything is sent: a file that cannot be written must not be found out after hours.
        self._write_rejected()
        self._check_rejected(rejected, "nothing was sent")
        self._write_keys()
        earlier, cleared = self._memory.document, self._memory.cleared
        if self._of_name is None or self._take_campaign(self._of_name):
            self._take_up(earlier or cleared or {}, is_cleared=earlier is None)
            self._look()
            self._send_all()
        progress = self._progress
        rejected += progress.refused
        duplicates = self._rows.not_sent[Why.DUPLICATE]
        self._check_rejected(rejected, f"{progress.uploaded:,} contacts were uploaded")
        if self._rows.count and progress.excluded + duplicates + self._rows.not_sent[Why.REJECTED] == self._rows.count:
            self._task.apply_condition(
                Condition.NO_CONTACTS,
                f"nobody is left to upload: of {self._rows.count:,} rows, {progress.excluded:,} are of people who must "
                f"not be called, {duplicates:,} came twice, and {rejected:,} were rejected",
            )
        return self._result(rejected, duplicates)

    def _result(self, rejected: int, duplicates: int) -> dict[str, Any]:
        """Say in the log what came of the upload, and return what goes to XCom."""
        progress = self._progress
        there = self._rows.count - rejected - duplicates - progress.excluded - progress.uploaded
        log.info(
            "Campaign %r: of %s rows, %s were uploaded (batches: %s), %s were rejected, %s came twice%s%s.",
            self._campaign_id,
            f"{self._rows.count:,}",
            f"{progress.uploaded:,}",
            f"{progress.batches:,}",
            f"{rejected:,}",
            f"{duplicates:,}",
            "" if self._task.excluded_people is NOT_GIVEN else f", {progress.excluded:,} must not be called",
            f", and {there:,} were in the campaign already" if there > 0 else "",
        )
        return {
            "campaign_id": self._task.campaign_id or None,
            "campaign_name": self._name,
            "campaign_created": self._is_own,
            "uploaded": progress.uploaded,
            "rejected": rejected,
            "duplicates": duplicates,
            "excluded": progress.excluded,
            "batches": progress.batches,
        }

    def _take_up(self, before: Mapping[str, Any], *, is_cleared: bool) -> None:
        """
        Go on behind what an earlier try has sent to this campaign, if it had the same rows.

        :param before: What it remembered.
        :param is_cleared: Whether a user has cleared the task since, and so wants all of it once more.
        """
        if before.get("campaign_id") != self._task.campaign_id:
            return
        if before.get("fingerprint") != self._rows.fingerprint.hexdigest():
            if rows := (before.get("progress") or {}).get("rows"):
                log.warning(
                    "Campaign %r: the contacts, or who must not be called, have changed since an earlier try, so this "
                    "one begins with the first row. The people in the %s rows that the earlier try has sent stay in "
                    "the campaign.",
                    self._campaign_id,
                    f"{rows:,}",
                )
            return
        if is_cleared:
            return
        # Ignore the progress of another version of this provider: the service skips the numbers that it has.
        with suppress(KeyError, TypeError):
            self._progress = Progress(**before["progress"])
        if rows := self._progress.rows:
            done = f"{rows:,} of {self._rows.count:,}"
            log.info("Campaign %r: an earlier try uploaded %s rows; going on behind them.", self._campaign_id, done)

    def _take_campaign(self, of_name: CampaignOfName) -> bool:
        """
        Find the campaign, or make it with the first contact, which the first batch has once more.

        :returns: Whether there is anybody to upload; for nobody, no campaign is made.
        """
        contacts = (row.contact for row in self._rows.checked())
        first = next((contact for contact in contacts if not isinstance(contact, NotSent)), None)
        if first is None:
            self._progress.excluded = self._rows.count - self._rows.not_sent.total()
            return False
        self._task.campaign_id = of_name.find() or of_name.make(first)
        self._task.keep_link(self._context, self._hook)
        return True

    def _sent(self) -> str:
        rows = self._progress.rows
        return f"{rows:,} of {self._rows.count:,} rows were sent." if rows else "This try has sent nothing."

    @property
    def _campaign_id(self) -> str:
        """The campaign; in messages, its name until its id is known."""
        label: str = self._task.campaign_label
        return label

    @property
    def _is_own(self) -> bool:
        """Whether this task has made the campaign, which has its first contact then."""
        return self._of_name is not None and self._of_name.is_own

    # The rows that are not sent.

    def _write_rejected(self) -> None:
        """Write the rows that are not sent to a file, which is whole or not there."""
        path = self._rejected_path
        if path is None:
            return
        own = ["row_number", "why", "reason"]
        names = _unique(own, self._rows.column_names)
        count = 0

        def lines() -> Iterator[list[Any]]:
            nonlocal count
            for number, values, contact in self._rows.checked():
                if isinstance(contact, NotSent):
                    count += 1
                    row = columns_of(values)
                    yield [number, contact.why.value, contact.reason, *(text_of(row.get(name)) for name in names)]

        types: dict[str, type] = {"row_number": int, **dict.fromkeys([*own[1:], *names.values()], str)}
        self._write("rejected_path", path, lines(), types)
        if count:
            log.info(
                "Campaign %r: the %s rows that were not sent were written to %s. This file holds personal data.",
                self._campaign_id,
                f"{count:,}",
                path,
            )
        else:
            log.info("Campaign %r: no row was left out, so %s has none.", self._campaign_id, path)

    # The keys of those that were sent.

    def _write_keys(self) -> None:
        """Write the author's id and the key of each contact that is sent."""
        path = self._keys_path
        if path is None:
            return
        without_id = 0

        def lines() -> Iterator[list[Any]]:
            nonlocal without_id
            for row in self._rows.checked():
                if not isinstance(row.contact, NotSent):
                    own_id = row.contact.get("custom_fields", {}).get(CONTACT_ID)
                    without_id += own_id is None
                    yield [text_of(own_id), contact_key(self._secret, row.contact["phone_number"])]

        self._write("contact_keys_path", path, lines(), {CONTACT_ID: str, CONTACT_KEY: str})
        log.info("Campaign %r: the keys of the contacts were written to %s.", self._campaign_id, path)
        if without_id:
            log.warning(
                "Campaign %r: %s contacts have no contact_id, so their keys say nothing. Which column has it? "
                'columns={"customer_number": "contact_id"}.',
                self._campaign_id,
                f"{without_id:,}",
            )

    def _write(self, name: str, path: ObjectStoragePath, lines: Iterator[list[Any]], types: Mapping[str, type]) -> None:
        try:
            with replacing(path, self._context) as file:
                write_rows(lines, types, file, str(path))
        except (FileUnreadableError, ScratchSpaceError):
            # Of the contacts, which are read again here.
            raise
        except (OSError, ValueError, ImportError) as error:
            problem = getattr(error, "strerror", None) or error
            raise VoiceGenieRetryException(
                f"{name}: {str(path)!r:.300} cannot be written ({problem}). "
                f"{self._progress.uploaded:,} contacts were uploaded."
            ) from None

    # The upload.

    def _send_all(self) -> None:
        progress, size = self._progress, self._task.batch_size
        # If an earlier try said how far it came, only the batch behind that may have been sent before.
        knows_how_far = progress.rows > 0
        may_be_repeated = getattr(self._context.get("ti"), "try_number", 1) > 1 or self._is_own
        logged_at = time.monotonic()
        self._keep()
        waiting = (row for row in self._rows.checked() if row.number > progress.rows)
        while batch := list(islice(waiting, size)):
            while batch:
                part = batch[:size]
                self._is_repeated = may_be_repeated
                size = self._send(part, size)
                if size < len(part):
                    continue
                batch = batch[len(part) :]
                progress.rows = part[-1].number
                progress.excluded += sum(is_excluded(row) for row in part)
                self._keep()
            may_be_repeated = may_be_repeated and not knows_how_far
            if time.monotonic() - logged_at >= timing.upload_log_interval:
                logged_at = time.monotonic()
                done = f"{progress.rows:,} of {self._rows.count:,}"
                log.info("Campaign %r: %s rows are uploaded.", self._campaign_id, done)

    def _send(self, rows: Sequence[NumberedRow], size: int) -> int:
        """Send the contacts among some rows; return how many rows at a time from then on, fewer if nothing was done."""
        contacts = [row.contact for row in rows if not isinstance(row.contact, NotSent)]
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
            return int(self._task.batch_size)
        refused = min(result.failed_count, len(contacts))
        progress.batches += 1
        progress.refused += refused
        # Whoever was sent before is there, and does not count as added again.
        progress.uploaded += len(contacts) - refused if self._is_repeated else result.uploaded_count
        return size

    def _before_attempt(self, error_before: VoiceGenieError | None) -> None:
        if error_before is not None and error_before.may_have_taken_effect:
            self._is_repeated = True
        if time.monotonic() - self._looked_at >= timing.upload_look_interval:
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
        self._looked_at, self._name = time.monotonic(), campaign.name
        rows = f"{self._progress.rows:,} of {self._rows.count:,} rows"
        done = f"{rows} were uploaded before" if self._progress.rows else "nothing was sent"
        if campaign.status in _PHONES_NOBODY:
            return
        if campaign.status.has_ended:
            self._task.apply_condition(
                Condition.CAMPAIGN_COMPLETED,
                f"the campaign is over ({campaign.status.value}; {done}); upload to another one",
            )
        elif campaign.status.is_running:
            self._task.apply_condition(
                Condition.CAMPAIGN_ALREADY_RUNNING,
                f"the campaign is running, and phones whoever is uploaded to it at once ({done})",
            )
        else:
            self._task.apply_condition(
                Condition.CAMPAIGN_ALREADY_RUNNING,
                f"the campaign's status {campaign.status_text!r:.40} is unknown here, so it may phone whoever is "
                f"uploaded to it at once ({done})",
            )

    def _keep(self) -> None:
        self._task.remember(
            self._memory, fingerprint=self._rows.fingerprint.hexdigest(), progress=asdict(self._progress)
        )

    def _check_rejected(self, rejected: int, done: str) -> None:
        if not self._limit.is_exceeded(rejected, self._rows.count):
            return
        problems = ": " + "; ".join(self._rows.problems) if self._rows.problems else ""
        too_large = f"; {self._too_large:,} of them too large by themselves" if self._too_large else ""
        self._task.apply_condition(
            Condition.CONTACTS_REJECTED,
            f"{rejected:,} of {self._rows.count:,} rows are rejected, more than {self._limit} allows{too_large} "
            f"({done}){problems}",
        )


def _read_secret(hook: VoiceGenieHook, conn_id: str) -> str:
    try:
        return hook.contact_key_secret(conn_id)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def _unique(taken: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return names of columns in a file that has others already."""
    found: dict[str, str] = {}
    used = set(taken)
    for name in names:
        written = name
        while written in used:
            written += " of the row"
        used.add(written)
        found[name] = written
    return found
