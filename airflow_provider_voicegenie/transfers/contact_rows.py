# SPDX-License-Identifier: Apache-2.0
"""The rows of an upload: which are contacts, which come twice, and which are of people who must not be called."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.errors import unchained
from airflow_provider_voicegenie.files import FileUnreadableError
from airflow_provider_voicegenie.rules.contacts import CONTACT_ID, ContactColumns
from airflow_provider_voicegenie.rules.file_formats import are_paths
from airflow_provider_voicegenie.rules.outcomes import Condition, VoiceGenieRetryException
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN
from airflow_provider_voicegenie.rules.phone_numbers import NotAContactError, digits_of, lacks_country_code
from airflow_provider_voicegenie.transfers.contact_sources import describe_os_error, name_of, read_source, rows_in
from airflow_provider_voicegenie.transfers.scratch import NumberStore, ScratchSpaceError

log = logging.getLogger(__name__)

#: Rows that are compared at once with what was checked. Of so many, one digest stays in memory.
_COMPARED_ROWS = 1000

#: Columns of rows that are not sent, at most. Rows of JSON may each have others.
_MAXIMUM_COLUMNS = 1000

#: How many rows a line of the log names.
_NAMED = 5


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


class ContactRows:
    """
    The rows of one try.

    *How it works.* They are read once to be checked, and again each time that they are gone through: then each part is
    compared with what was checked.

    :param task: The operator, an ``UploadContactsOperator``.
    :param source: The rows, or the file that they are in.
    :param numbers: Holds the phone numbers that were read.
    :param fingerprint: The hash of what an earlier try has to have in common with this one.
    :param describe_sent: Says how many rows were sent so far.
    :param keeps_columns: Whether the names of the columns are needed.
    :param nothing_was_sent: Whether no earlier try has sent anything.
    """

    def __init__(
        self,
        task: Any,
        source: Any,
        numbers: NumberStore,
        fingerprint: Any,
        describe_sent: Callable[[], str],
        *,
        keeps_columns: bool,
        nothing_was_sent: bool,
    ) -> None:
        self._task = task
        self._source = source
        self._columns = ContactColumns(task.columns, task.region)
        self._numbers = numbers
        self._describe_sent = describe_sent
        self._keeps_columns = keeps_columns
        self._nothing_was_sent = nothing_was_sent
        # Whether all rows were read once.
        self._is_checked = False
        #: How many there are, and of those that are not sent, why. Known after :meth:`check`.
        self.count = 0
        self.not_sent: Counter[Why] = Counter()
        #: What is wrong with the first rows that are rejected.
        self.problems: list[str] = []
        #: How many contacts have the author's own id.
        self.identified = 0
        #: How many contacts have a number that begins with 0, and so lacks its country code.
        self._national = 0
        # Without a region, numbers in two notations may be one. The last row that the log named for that, and how many.
        self._excludes_doubtful = task.region is None and task.excluded_people is not NOT_GIVEN
        self._doubted, self._doubts = 0, 0
        #: The columns of all rows that are not sent, and of those that may be excluded.
        self.column_names: dict[str, None] = {}
        #: The hash of all rows, and of the people who must not be called.
        self.fingerprint = fingerprint
        # One of each `_COMPARED_ROWS` rows that were checked.
        self._digests: list[bytes] = []

    @property
    def is_beginning(self) -> bool:
        """Whether no try has sent anything, and the rows were not read once: a condition may end the task then."""
        return self._nothing_was_sent and not self._is_checked

    def _all(self) -> Iterator[NumberedRow]:
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
                yield from rows_in(self._source)
            except OSError as error:
                message = f"contacts: {describe_os_error(self._source, error)}. {self._describe_sent()}"
                # An author who skips a day without a file does not mean one that vanishes, or cannot be read.
                if isinstance(error, FileNotFoundError) and self.is_beginning:
                    self._task.apply_condition(Condition.CONTACTS_MISSING, message)
                raise VoiceGenieRetryException(f"Campaign {self._task.campaign_label!r}: {message}") from None

    def checked(self) -> Iterator[NumberedRow]:
        """
        Yield the rows of :meth:`_all` again, those of people who must not be called apart.

        :raises AirflowFailException: The rows have changed.
        """
        rows = self._all()
        for checked in self._digests:
            part = list(islice(rows, _COMPARED_ROWS))
            if _digest(part) != checked:
                raise self._changed_rows()
            yield from map(self._without_excluded, part)
        if next(rows, None) is not None:
            raise self._changed_rows()

    def _without_excluded(self, row: NumberedRow) -> NumberedRow:
        if isinstance(row.contact, NotSent):
            return row
        number = row.contact["phone_number"]
        if self._numbers.is_excluded(number):
            return row._replace(contact=NotSent(Why.EXCLUDED, "is of somebody who must not be called"))
        if self._excludes_doubtful and self._numbers.may_be_excluded(number):
            self._warn_of_doubt(row.number)
            reason = "may be of somebody who must not be called, whose number is written in another way"
            return row._replace(contact=NotSent(Why.EXCLUDED, reason))
        return row

    def _warn_of_doubt(self, number: int) -> None:
        if number <= self._doubted or self._doubts >= _NAMED:
            return
        self._doubted, self._doubts = number, self._doubts + 1
        log.warning(
            "Campaign %r: row %s may be of somebody on the list of exclude, whose number is written in another way, so "
            "it is not called. Without region, nobody can say.%s",
            self._task.campaign_label,
            f"{number:,}",
            " Further rows of this kind are not named." if self._doubts == _NAMED else "",
        )

    def _changed_rows(self) -> AirflowFailException:
        return AirflowFailException(
            f"Campaign {self._task.campaign_label!r}: contacts have changed since they were checked, and nothing is "
            f"sent, or written to rejected_path, unchecked. {self._describe_sent()} Let nobody write the file while it "
            "is uploaded, and clear the task: it checks and uploads what is there then."
        )

    def check(self) -> None:
        """Read all rows once, before anything is sent, and count which are no contacts, or come twice."""
        rows = self._all()
        while part := list(islice(rows, _COMPARED_ROWS)):
            self.count = part[-1].number
            self._digests.append(_digest(part))
            # Kept by Airflow, so that a later try knows whether it has the same rows.
            self.fingerprint.update(self._digests[-1])
            for row in part:
                if self._keeps_columns and len(self.column_names) < _MAXIMUM_COLUMNS:
                    self.column_names |= dict.fromkeys(columns_of(row.values))
                if isinstance(row.contact, NotSent):
                    self.not_sent[row.contact.why] += 1
                    if row.contact.why is Why.REJECTED and len(self.problems) < _NAMED:
                        self.problems.append(f"row {row.number:,} {row.contact.reason}")
                else:
                    self._national += lacks_country_code(row.contact["phone_number"])
                    self.identified += CONTACT_ID in row.contact.get("custom_fields", {})
        self._is_checked = True
        if self.count and (unseen := sorted(self._columns.unseen, key=str)):
            raise AirflowFailException(
                f"columns: no row has a column {' or '.join(map(repr, unseen))}. The first row has "
                f"{self._columns.width} column(s). Check how the names are written, and that a CSV file has commas "
                "between them; nothing was sent."
            )
        self._log_rejected()
        self._warn_of_missing_country_codes()
        if not_valid := self._columns.numbers.not_valid:
            log.warning(
                "Campaign %r: phone numbers that are possible, but in no range that phonenumbers knows: %s. "
                "They are sent, as ranges may be newer than the library.",
                self._task.campaign_label,
                f"{not_valid:,}",
            )

    @property
    def _contacts(self) -> int:
        return self.count - sum(self.not_sent.values())

    def _warn_of_missing_country_codes(self) -> None:
        """Without ``region``, the service may not know the country, and one person may be called twice."""
        if self._national and self._task.region is None:
            twice = " The same number in two notations counts as two people, who are both called."
            log.warning(
                "Campaign %r: %s of %s phone numbers begin with 0, so they have no country code, and are sent as they "
                "are.%s Give region.",
                self._task.campaign_label,
                f"{self._national:,}",
                f"{self._contacts:,}",
                twice if self._national < self._contacts else "",
            )

    def _log_rejected(self) -> None:
        rejected = self.not_sent[Why.REJECTED]
        if rejected:
            log.warning(
                "Campaign %r: %s of %s rows are no contacts: %s%s.",
                self._task.campaign_label,
                f"{rejected:,}",
                f"{self.count:,}",
                "; ".join(self.problems),
                "; and others" if rejected > len(self.problems) else "",
            )
        if self.count and rejected == self.count and not self._columns.names_the_number:
            self.problems.append(
                "is the column of the phone numbers called phone_number? If not, say which it is: "
                'columns={"mobile": "phone_number"}'
            )
            log.warning("Campaign %r: %s.", self._task.campaign_label, self.problems[-1])

    # People who must not be called.

    def read_exclusions(self) -> None:
        """Read who must not be called. Without a list that can be read, nothing is sent."""
        people = self._task.excluded_people
        if people is NOT_GIVEN:
            return
        if people is None:
            self._refuse_exclusions("exclude: the template, or the upstream task, gave nothing")
        for place, each in enumerate(self._excluded_lists(people), start=1):
            source = each
            try:
                source = read_source("exclude", each)
                self._read_exclusion_list(f"exclude: {name_of(source)}", source)
            except FileUnreadableError as error:
                self._refuse_exclusions(f"exclude: {str(error).removeprefix('exclude: ').rstrip('.')}")
            except OSError as error:
                if isinstance(error, ScratchSpaceError):
                    raise
                self._refuse_exclusions(f"exclude: {describe_os_error(source, error)}")
            self.fingerprint.update(b"%d" % place)

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
        for rows, row in enumerate(rows_in(source, column), start=1):
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
                self._numbers.exclude(number, with_notations=self._excludes_doubtful)
                self.fingerprint.update(digits_of(number).encode() + b",")
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
                self._task.campaign_label,
                name,
                f"{rows:,}",
                f"{unreadable:,}",
                ", ".join(f"{number:,}" for number in named),
                " and others" if unreadable > len(named) else "",
            )

    def _refuse_exclusions(self, problem: str) -> NoReturn:
        """Apply the condition; but an author who permits an empty list does not permit an unreadable list."""
        self._task.apply_condition(Condition.EXCLUSIONS_MISSING, problem)
        raise AirflowFailException(
            f"Campaign {self._task.campaign_label!r}: {problem}. {self._describe_sent()} With "
            f'outcomes={{"{Condition.EXCLUSIONS_MISSING}": "succeed"}}, a list may be empty, but it must be there.'
        )


def _digest(rows: Iterable[NumberedRow]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.contact).encode())
    return digest.digest()


def is_excluded(row: NumberedRow) -> bool:
    """Say whether a row is of somebody who must not be called."""
    return isinstance(row.contact, NotSent) and row.contact.why is Why.EXCLUDED


def columns_of(values: Any) -> dict[str, Any]:
    """Return what is in a row by names that are texts; surplus fields of a CSV file have none."""
    if not isinstance(values, Mapping):
        return {}
    return {"more fields" if name is None else text_of(name) or "": value for name, value in values.items()}


def text_of(value: object) -> str | None:
    """Return what is written of a value of a row that was not sent; it may be the reason why it was not."""
    if value is None:
        return None
    try:
        text = json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
    except (TypeError, ValueError, RecursionError, ArithmeticError):
        text = f"<a value of type {type(value).__name__}>"
    return text.encode(errors="backslashreplace").decode()
