# SPDX-License-Identifier: Apache-2.0
"""
What a contact is: how one is made of a row, and why a row is none.

No message here quotes a row: names, numbers and addresses belong in no log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, time
from fractions import Fraction
from numbers import Integral
from typing import Any

from airflow_provider_voicegenie.api.errors import unchained
from airflow_provider_voicegenie.rules.parameters import did_you_mean, read_percent
from airflow_provider_voicegenie.rules.phone_numbers import NotAContactError, PhoneNumbers
from airflow_provider_voicegenie.rules.values import is_blank, is_missing

#: The service's own fields of a contact.
CONTACT_FIELDS = ("phone_number", "name", "email")

#: The custom field with the author's own id of a contact.
CONTACT_ID = "contact_id"

#: One half of a character that UTF-16 writes as two.
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")

#: Bits of the longest whole number in a custom field. Python refuses to write much longer ones.
_LONGEST_WHOLE_NUMBER = 1024


class ContactColumns:
    """
    Maps a row's columns to the fields of a contact. Columns that are not mapped become custom fields.

    :param columns: Name of a column -> ``phone_number``, ``name``, ``email`` or ``contact_id``. A column that has such
        a name itself needs none, unless another column is mapped to it.
    :param region: The country of numbers without a country code, see :class:`PhoneNumbers`.
    :raises ValueError: A part is none of the three, or has two columns; or the region is none.
    """

    def __init__(self, columns: Mapping[str, str] | None = None, region: str | None = None) -> None:
        #: What reads the phone numbers.
        self.numbers = PhoneNumbers(region)
        if columns is not None and not isinstance(columns, Mapping):
            raise ValueError(f'columns must be a mapping such as {{"mobile": "phone_number"}}; got {columns!r:.80}.')
        self._columns: dict[str, str] = {}
        for column, part in (columns or {}).items():
            if part not in (parts := (*CONTACT_FIELDS, CONTACT_ID)):
                remedy = did_you_mean(part, parts) or "Leave out what becomes a custom field."
                if column in parts:
                    remedy = f'It seems to be turned round: write {{"{part}": "{column}"}}.'
                raise ValueError(f"columns[{column!r}]: {part!r:.80} is none of {', '.join(parts)}. {remedy}")
            if part in self._columns:
                raise ValueError(f"columns: {self._columns[part]!r} and {column!r} are both {part}; leave out one.")
            self._columns[part] = column
        #: The columns that the author names, less those that were seen in a row.
        self.unseen = set(self._columns.values())
        #: How many columns the first row has.
        self.width = 0
        #: Whether the author says which column has the phone number.
        self.names_the_number = "phone_number" in self._columns
        for part in (*CONTACT_FIELDS, CONTACT_ID):
            self._columns.setdefault(part, part)

    def contact(self, row: object) -> dict[str, Any]:
        """
        Make a contact of a row.

        :raises NotAContactError: It has no phone number, or one that cannot be one; or it is no row at all.
        """
        if not isinstance(row, Mapping):
            raise NotAContactError(
                f'is no mapping such as {{"phone_number": "+1..."}}, but of type {type(row).__name__}'
            )
        try:
            return self._contact(row)
        except NotAContactError:
            raise
        except (RecursionError, TypeError, ValueError, ArithmeticError) as error:
            problem = f"that cannot be read ({type(error).__name__})"
            with unchained():
                raise NotAContactError(
                    f"has a value {'that is nested too deep' if isinstance(error, RecursionError) else problem}"
                ) from None

    def _contact(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        self.width = self.width or len(row)
        if self.unseen:
            self.unseen.difference_update(row)
        if not all(map(is_blank, row.get(None) or ())):
            raise NotAContactError("has more fields than the first line of the file")
        contact: dict[str, Any] = {"phone_number": self.numbers.read(row.get(self._columns["phone_number"]))}
        for part in CONTACT_FIELDS[1:]:
            value = _plain(row.get(self._columns[part]))
            if not is_blank(value):
                contact[part] = str(value)
        used = self._columns.values()
        custom: dict[str, Any] = {}
        for column, value in row.items():
            # What is empty in a column without a name is the rest of a spreadsheet.
            if column is None or column in used or (is_blank(column) and is_blank(value)):
                continue
            if (plain := _plain(value)) is not None:
                custom[_whole_text(str(column))] = plain
        if (own_id := _plain(row.get(self._columns[CONTACT_ID]))) is not None:
            custom[CONTACT_ID] = own_id
        if custom:
            contact["custom_fields"] = custom
        return contact


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if is_missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, Integral):
        if int(value).bit_length() > _LONGEST_WHOLE_NUMBER:
            raise NotAContactError("has a whole number that is too long")
        return int(value)
    if isinstance(value, Mapping):
        return {_whole_text(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _whole_text(value.isoformat() if isinstance(value, date | time) else str(value))


def _whole_text(value: str) -> str:
    """Return a text, if no character in it is half: the service would refuse the whole batch."""
    if not value.isascii() and _HALF_A_CHARACTER.search(value):
        raise NotAContactError("has a text with half a character in it (a lone surrogate)")
    return value


class RejectedLimit:
    """
    How many contacts may be rejected.

    :param value: A number of contacts, or a percentage of all rows as a text such as ``"2%"``.
    :raises ValueError: It is something else.
    """

    def __init__(self, value: int | str) -> None:
        self._text = f"max_rejected={value!r}"
        self._maximum: int | None = None
        self._percent = Fraction(0)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            self._maximum = value
        elif isinstance(value, str) and (found := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value)):
            self._percent = Fraction(found[1])
            if self._percent > 100:
                read_percent("max_rejected", float(self._percent))
        else:
            is_part = isinstance(value, float) and 0 < value < 1
            hint = f' Did you mean "{100 * value:g}%"?' if is_part else ""
            raise ValueError(
                f'max_rejected must be a number of rows of 0 or more, or a percentage such as "2%"; got {value!r:.80}.'
                + hint
            )

    def __str__(self) -> str:
        return self._text

    def is_exceeded(self, rejected: int, rows: int) -> bool:
        """Say whether too many are rejected."""
        return rejected > (self._percent / 100 * rows if self._maximum is None else self._maximum)
