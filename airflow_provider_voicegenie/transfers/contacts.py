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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_voicegenie.api.errors import PayloadTooLargeError, VoiceGenieError, unchained
from airflow_provider_voicegenie.api.models import CampaignStatus
from airflow_provider_voicegenie.files import (
    FileUnreadableError,
    given_path,
    read_rows,
    replacing,
    storage_path,
    target_path,
    write_rows,
)
from airflow_provider_voicegenie.rules.contact_keys import CONTACT_KEY, contact_key
from airflow_provider_voicegenie.rules.contacts import CONTACT_ID, ContactColumns, RejectedLimit
from airflow_provider_voicegenie.rules.file_formats import are_paths, is_path, wrong_end
from airflow_provider_voicegenie.rules.outcomes import Condition, VoiceGenieRetryException
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN
from airflow_provider_voicegenie.rules.phone_numbers import NotAContactError, digits_of
from airflow_provider_voicegenie.transfers.named_campaign import CampaignOfName
from airflow_provider_voicegenie.transfers.scratch import NumberStore, ScratchSpaceError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.memory import Memory

log = logging.getLogger(__name__)

#: How often the log says how far the upload is, and the campaign is looked at, in seconds.
_LOG_INTERVAL = 15.0
_LOOK_INTERVAL = 60.0

#: Rows that are compared at once with what was checked. Of so many, one digest stays in memory.
_COMPARED_ROWS = 1000

#: Columns that the file of the rows that are not sent has at most. Rows of JSON may each have others.
_MOST_COLUMNS = 1000

#: How many rejected contacts, and reasons of the service, the log names.
_NAMED = 5

#: The statuses in which a campaign places no calls, so that contacts can be uploaded to it.
_PHONES_NOBODY = (
    CampaignStatus.DRAFT,
    CampaignStatus.NOT_YET_STARTED,
    CampaignStatus.PAUSED,
    CampaignStatus.SCHEDULED,
)


class Why(StrEnum):
    """Why a row is not sent."""

    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    EXCLUDED = "excluded"


class NotSent(NamedTuple):
    """A row that is not sent: why, and the reason in words that follow *row 7*."""

    why: Why
    reason: str


class NumberedRow(NamedTuple):
    """
    A row.

    :param number: Its number; the first is 1.
    :param values: What is in it.
    :param contact: The contact that it is, or why it is not sent.
    """

    number: int
    values: Any
    contact: dict[str, Any] | NotSent


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
        #: The campaign of this name, if the task is about one; then its id is known later, and messages have the name.
        self._of_name = CampaignOfName(task, context, hook, memory) if task.is_by_name else None
        self._campaign_id: str = task.campaign_id if self._of_name is None else self._of_name.name
        self._name: str | None = None
        self._source = _read_source("contacts", task.rows_or_path)
        self._columns = ContactColumns(task.columns, task.region)
        self._limit = RejectedLimit(task.max_rejected)
        people = task.excluded_people
        lists = people if isinstance(people, Sequence) and not isinstance(people, str) else [people]
        self._rejected_path = _read_target("rejected_path", task.rejected_path, [self._source, *lists])
        self._keys_path = _read_target(
            "contact_keys_path", task.contact_keys_path, [self._source, self._rejected_path, *lists]
        )
        self._secret = "" if self._keys_path is None else _read_secret(hook, task.contact_key_conn_id)
        self._progress = Progress()
        self._rows = 0
        self._not_sent: Counter[Why] = Counter()
        # The columns of all rows that are not sent, and of those that may be excluded.
        self._names: dict[str, None] = {}
        self._fingerprint = hook.client.settings.digest()
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
        :raises VoiceGenieRetryException: The file cannot be read now, or that of the rows that were not sent cannot be
            written.
        """
        with unchained(), NumberStore() as self._numbers:
            try:
                return self._run()
            except FileUnreadableError as error:
                raise AirflowFailException(f"contacts: {error} {self._sent()}") from None

    def _run(self) -> dict[str, Any]:
        self._check_rows()
        if not self._rows:
            self._write_rejected()
            self._task.apply_condition(Condition.NO_CONTACTS, "there are no rows, so there is nothing to upload")
        self._read_exclusions()
        rejected = self._not_sent[Why.REJECTED]
        self._check_rejected(rejected, "nothing was sent")
        before = self._memory.document or self._memory.cleared or {}
        if self._of_name is None or self._take_campaign(self._of_name):
            if before.get("campaign_id") == self._campaign_id:
                self._take_up(before)
            self._look()
            self._send_all()
        progress = self._progress
        rejected += progress.refused
        duplicates = self._not_sent[Why.DUPLICATE]
        self._write_rejected()
        self._check_rejected(rejected, f"{progress.uploaded:,} contacts were uploaded")
        if self._rows and progress.excluded + duplicates + self._not_sent[Why.REJECTED] == self._rows:
            self._task.apply_condition(
                Condition.NO_CONTACTS,
                f"nobody is left to upload: of {self._rows:,} rows, {progress.excluded:,} are of people who must not "
                f"be called, {duplicates:,} came twice, and {rejected:,} were rejected",
            )
        self._write_keys()
        there = self._rows - rejected - duplicates - progress.excluded - progress.uploaded
        log.info(
            "Campaign %r: of %s rows, %s were uploaded (batches: %s), %s were rejected, %s came twice%s%s.",
            self._campaign_id,
            f"{self._rows:,}",
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

    def _take_up(self, before: Mapping[str, Any]) -> None:
        """Go on behind what an earlier try has sent to this campaign, if it had the same rows."""
        if before.get("fingerprint") != self._fingerprint.hexdigest():
            if rows := (before.get("progress") or {}).get("rows"):
                log.warning(
                    "Campaign %r: the contacts, or who must not be called, have changed since an earlier try, so this "
                    "one begins with the first row. The people in the %s rows that the earlier try has sent stay in "
                    "the campaign.",
                    self._campaign_id,
                    f"{rows:,}",
                )
            return
        if self._memory.document is None:
            # A user who clears the task wants all of it once more.
            return
        # Ignore the progress of another version of this provider: the service skips the numbers that it has.
        with suppress(KeyError, TypeError):
            self._progress = Progress(**before["progress"])
        if rows := self._progress.rows:
            done = f"{rows:,} of {self._rows:,}"
            log.info("Campaign %r: an earlier try uploaded %s rows; going on behind them.", self._campaign_id, done)

    def _take_campaign(self, of_name: CampaignOfName) -> bool:
        """
        Find the campaign, or make it with the first contact, which the first batch has once more.

        :returns: Whether there is anybody to upload; for nobody, no campaign is made.
        """
        contacts = (row.contact for row in self._checked_contacts())
        first = next((contact for contact in contacts if not isinstance(contact, NotSent)), None)
        if first is None:
            self._progress.excluded = self._rows - self._not_sent.total()
            return False
        self._campaign_id = self._task.campaign_id = of_name.find() or of_name.make(first)
        self._task.keep_link(self._context, self._hook)
        return True

    @property
    def _is_own(self) -> bool:
        """Whether this task has made the campaign, whose first contact it has by then."""
        return self._of_name is not None and self._of_name.is_own

    # The rows.

    def _contacts(self) -> Iterator[NumberedRow]:
        """Yield each row. Of several with the same phone number, the first is the contact."""
        for number, values in enumerate(self._values(), start=1):
            contact: dict[str, Any] | NotSent
            try:
                contact = self._columns.contact(values)
            except NotAContactError as reason:
                contact = NotSent(Why.REJECTED, str(reason))
            else:
                first = self._numbers.first_row(contact["phone_number"], number)
                if first != number:
                    contact = NotSent(Why.DUPLICATE, f"has the phone number of row {first:,}")
            yield NumberedRow(number, values, contact)

    def _values(self) -> Iterator[Any]:
        with unchained():
            try:
                yield from _rows_in(self._source)
            except OSError as error:
                raise VoiceGenieRetryException(
                    f"contacts: {_describe_os_error(self._source, error)}. {self._sent()}"
                ) from None

    def _sent(self) -> str:
        rows = self._progress.rows
        return f"{rows:,} of {self._rows:,} rows were sent." if rows else "This try has sent nothing."

    def _checked_contacts(self) -> Iterator[NumberedRow]:
        """
        Yield the rows of :meth:`_contacts` again, those of people who must not be called apart.

        :raises AirflowFailException: The rows have changed.
        """
        rows = self._contacts()
        for checked in self._digests:
            part = list(islice(rows, _COMPARED_ROWS))
            if _digest(part) != checked:
                raise self._changed_rows()
            yield from map(self._without_excluded, part)
        if next(rows, None) is not None:
            raise self._changed_rows()

    def _without_excluded(self, row: NumberedRow) -> NumberedRow:
        if isinstance(row.contact, NotSent) or not self._numbers.is_excluded(row.contact["phone_number"]):
            return row
        return row._replace(contact=NotSent(Why.EXCLUDED, "is of somebody who must not be called"))

    def _changed_rows(self) -> AirflowFailException:
        return AirflowFailException(
            f"Campaign {self._campaign_id!r}: contacts have changed since they were checked, and nothing is sent, or "
            f"written to rejected_path, unchecked. {self._sent()} Let nobody write the file while it is uploaded, and "
            "clear the task: it checks and uploads what is there then."
        )

    def _check_rows(self) -> None:
        """Read all rows once, before anything is sent, and count which are no contacts, or come twice."""
        problems: list[str] = []
        rows = self._contacts()
        while part := list(islice(rows, _COMPARED_ROWS)):
            self._rows = part[-1].number
            self._digests.append(_digest(part))
            # Kept by Airflow, so that a later try knows whether it has the same rows.
            self._fingerprint.update(self._digests[-1])
            for row in part:
                if self._rejected_path is not None and len(self._names) < _MOST_COLUMNS:
                    self._names |= dict.fromkeys(_columns(row.values))
                if isinstance(row.contact, NotSent):
                    self._not_sent[row.contact.why] += 1
                    if row.contact.why is Why.REJECTED and len(problems) < _NAMED:
                        problems.append(f"row {row.number:,} {row.contact.reason}")
        if self._rows and (unseen := sorted(self._columns.unseen, key=str)):
            raise AirflowFailException(
                f"columns: no row has a column {' or '.join(map(repr, unseen))}. The first row has "
                f"{self._columns.width} column(s). Check how the names are written, and that a CSV file has commas "
                "between them; nothing was sent."
            )
        self._log_rejected(problems)
        if not_valid := self._columns.numbers.not_valid:
            log.warning(
                "Campaign %r: phone numbers that are possible, but in no range that phonenumbers knows: %s. "
                "They are sent, as ranges may be newer than the library.",
                self._campaign_id,
                f"{not_valid:,}",
            )

    def _log_rejected(self, problems: Sequence[str]) -> None:
        rejected = self._not_sent[Why.REJECTED]
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

    # People who must not be called.

    def _read_exclusions(self) -> None:
        """Read who must not be called. Without a list that can be read, nothing is sent."""
        people = self._task.excluded_people
        if people is NOT_GIVEN:
            return
        if people is None:
            self._refuse_exclusions("exclude: the template, or the upstream task, gave nothing")
        for place, each in enumerate(self._excluded_lists(people), start=1):
            source = _read_source("exclude", each)
            name = f"exclude: {_name_of(source)}"
            try:
                self._read_exclusion_list(name, source)
            except FileUnreadableError as error:
                self._refuse_exclusions(f"exclude: {str(error).rstrip('.')}")
            except OSError as error:
                if isinstance(error, ScratchSpaceError):
                    raise
                self._refuse_exclusions(f"exclude: {_describe_os_error(source, error)}")
            self._fingerprint.update(b"%d" % place)

    def _excluded_lists(self, people: Any) -> Sequence[Any]:
        try:
            return people if are_paths(people) else [people]
        except ValueError as error:
            self._refuse_exclusions(f"exclude: {str(error).rstrip('.')}")

    def _read_exclusion_list(self, name: str, source: Any) -> None:
        column = self._task.exclude_column
        rows, readable, unreadable = 0, 0, 0
        has_column = False
        named: list[int] = []
        for rows, row in enumerate(_rows_in(source, column), start=1):
            if not isinstance(row, Mapping):
                self._refuse_exclusions(f"{name}: row {rows:,} is no mapping, but of type {type(row).__name__}")
            has_column = has_column or column in row
            try:
                numbers = self._columns.numbers.readings(row.get(column))
            except NotAContactError:
                unreadable += 1
                if len(named) < _NAMED:
                    named.append(rows)
                continue
            readable += 1
            for number in numbers:
                self._numbers.exclude(number)
                self._fingerprint.update(digits_of(number).encode() + b",")
        if not rows:
            self._task.apply_condition(
                Condition.EXCLUSIONS_MISSING, f"{name} is empty, so nobody says who must not be called"
            )
            return
        if not has_column:
            self._refuse_exclusions(f"{name} has no column {column!r:.80}; exclude_column says which it is")
        if not readable:
            self._refuse_exclusions(f"{name} has {rows:,} rows, and no phone number that can be read")
        if unreadable:
            log.warning(
                "Campaign %r: %s: of %s rows, %s have no phone number that can be read, so those people may be called: "
                "row %s%s.",
                self._campaign_id,
                name,
                f"{rows:,}",
                f"{unreadable:,}",
                ", ".join(f"{number:,}" for number in named),
                " and others" if unreadable > len(named) else "",
            )

    def _refuse_exclusions(self, problem: str) -> NoReturn:
        """Apply the condition; but an author who permits an empty list does not permit one that cannot be read."""
        self._task.apply_condition(Condition.EXCLUSIONS_MISSING, problem)
        raise AirflowFailException(
            f"Campaign {self._campaign_id!r}: {problem}. Nothing was sent: with "
            f'outcomes={{"{Condition.EXCLUSIONS_MISSING}": "succeed"}}, a list may be empty, but it must be there.'
        )

    # The rows that are not sent.

    def _write_rejected(self) -> None:
        """Write the rows that are not sent to a file, which is whole or not there."""
        path = self._rejected_path
        if path is None:
            return
        own = ["row_number", "why", "reason"]
        names = _unique(own, self._names)
        count = 0

        def lines() -> Iterator[list[Any]]:
            nonlocal count
            for number, values, contact in self._checked_contacts():
                if isinstance(contact, NotSent):
                    count += 1
                    row = _columns(values)
                    yield [number, contact.why.value, contact.reason, *(_text(row.get(name)) for name in names)]

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
        """Write the author's id and the key of each contact that was sent."""
        path = self._keys_path
        if path is None:
            return
        without_id = 0

        def lines() -> Iterator[list[Any]]:
            nonlocal without_id
            for row in self._checked_contacts():
                if not isinstance(row.contact, NotSent):
                    own_id = row.contact.get("custom_fields", {}).get(CONTACT_ID)
                    without_id += own_id is None
                    yield [_text(own_id), contact_key(self._secret, row.contact["phone_number"])]

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
        waiting = (row for row in self._checked_contacts() if row.number > progress.rows)
        while batch := list(islice(waiting, size)):
            while batch:
                part = batch[:size]
                self._is_repeated = may_be_repeated
                size = self._send(part, size)
                if size < len(part):
                    continue
                batch = batch[len(part) :]
                progress.rows = part[-1].number
                progress.excluded += sum(_is_excluded(row) for row in part)
                self._keep()
            may_be_repeated = may_be_repeated and not knows_how_far
            if time.monotonic() - logged_at >= _LOG_INTERVAL:
                logged_at = time.monotonic()
                done = f"{progress.rows:,} of {self._rows:,}"
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
        self._looked_at, self._name = time.monotonic(), campaign.name
        rows = f"{self._progress.rows:,} of {self._rows:,} rows"
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
        self._task.remember(self._memory, fingerprint=self._fingerprint.hexdigest(), progress=asdict(self._progress))

    def _check_rejected(self, rejected: int, done: str) -> None:
        if not self._limit.is_exceeded(rejected, self._rows):
            return
        if not self._progress.rows:
            self._write_rejected()
        too_large = f"; {self._too_large:,} of them too large by themselves" if self._too_large else ""
        self._task.apply_condition(
            Condition.CONTACTS_REJECTED,
            f"{rejected:,} of {self._rows:,} rows are rejected, more than {self._limit} allows{too_large} ({done})",
        )


def _digest(rows: Iterable[NumberedRow]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.contact).encode())
    return digest.digest()


def _is_excluded(row: NumberedRow) -> bool:
    return isinstance(row.contact, NotSent) and row.contact.why is Why.EXCLUDED


def _columns(values: Any) -> dict[str, Any]:
    """Return what is in a row by names that are texts; surplus fields of a CSV file have none."""
    if not isinstance(values, Mapping):
        return {}
    return {"more fields" if name is None else _text(name) or "": value for name, value in values.items()}


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


def _text(value: object) -> str | None:
    """Return what is written of a value of a row that was not sent; it may be the reason why it was not."""
    if value is None:
        return None
    try:
        text = json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
    except (TypeError, ValueError, RecursionError, ArithmeticError):
        text = f"<a value of type {type(value).__name__}>"
    return text.encode(errors="backslashreplace").decode()


def _rows_in(source: Any, column: str | None = None) -> Iterable[Any]:
    return read_rows(source, column) if isinstance(source, ObjectStoragePath) else source


def _name_of(source: Any) -> str:
    return repr(str(source))[:300] if isinstance(source, ObjectStoragePath) else "what was given"


def _describe_os_error(source: Any, error: OSError) -> str:
    name = _name_of(source)
    if not isinstance(error, FileNotFoundError):
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return f"{name} cannot be read ({reason})"
    if source.protocol in ("", "file", "local"):
        return f"there is no file {name} on the machine that runs this task. With several workers, use object storage"
    return f"there is no file {name}"


def _read_secret(hook: VoiceGenieHook, conn_id: str) -> str:
    try:
        return hook.contact_key_secret(conn_id)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def _read_target(name: str, path: Any, sources: Iterable[Any]) -> ObjectStoragePath | None:
    """
    Return where a file goes; ``None`` if none is wanted.

    :param sources: What is read, or written besides, and must not be replaced.
    """
    if path is None:
        return None
    try:
        target = target_path(name, path)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None
    if any(_place(target) == _place(source) for source in sources if _is_path(source)):
        raise AirflowFailException(
            f"{name}: {str(target)!r:.300} is a file that this task reads, or writes besides. Give another path."
        )
    return target


def _is_path(source: object) -> bool:
    return isinstance(source, str | ObjectStoragePath)


def _place(path: str | ObjectStoragePath) -> tuple[str, str]:
    """Return what two notations of one path have in common, whatever connection they name."""
    with suppress(ValueError):
        found = storage_path(path)
        if found.protocol in ("", "file", "local"):
            return "file", os.path.realpath(found.path)
        return found.protocol, found.path
    return "", str(path)


def _read_source(name: str, rows_or_path: object) -> Sequence[Any] | ObjectStoragePath:
    """
    Return rows, or the file that they are in.

    :param name: The parameter's name, for the message.
    :param rows_or_path: What the task was given.
    :raises AirflowFailException: It is neither.
    """
    if isinstance(rows_or_path, str):
        if not rows_or_path.strip() or rows_or_path.lstrip()[:1] in "[{":
            raise AirflowFailException(
                f"{name} must be rows or the path of a file, and the template gave "
                f"{'rows as a text' if rows_or_path.strip() else 'an empty text'}. To pass what an upstream task "
                f"returns, give its output: {name}=extract.output."
            )
        if not is_path(rows_or_path):
            raise AirflowFailException(f"{name} must be rows, or {wrong_end(rows_or_path).removeprefix('must be ')}")
    if isinstance(rows_or_path, str | ObjectStoragePath):
        try:
            return given_path(name, rows_or_path)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
    if isinstance(rows_or_path, Sequence):
        return rows_or_path
    raise AirflowFailException(
        f"{name} must be rows (a list of dicts) or the path of a file, not {type(rows_or_path).__name__}."
    )
