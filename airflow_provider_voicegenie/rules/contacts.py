# SPDX-License-Identifier: Apache-2.0
"""
What a contact is: how one is made of a row, and why a row is none.

Nothing here says in words what is in a row: names, numbers and addresses belong in no log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, time
from fractions import Fraction
from typing import Any

from airflow_provider_voicegenie.rules.parameters import did_you_mean, read_percent

#: What the service itself knows of a contact.
CONTACT_FIELDS = ("phone_number", "name", "email")

#: What people put between the digits of a phone number.
_SEPARATORS = re.compile(r"[\s().\-/]")

#: A whole number as programs write it that take phone numbers for numbers.
_WHOLE_NUMBER = re.compile(r"^(\+?[0-9]{5,})\.0+$")

#: The shortest numbers that a country has, and the longest that E.164 allows with an international prefix.
_DIGITS = re.compile(r"\+?[0-9]{5,17}")


class NotAContactError(ValueError):
    """A row is no contact."""


class ContactColumns:
    """
    Which columns of a row are what of a contact. All that have no part in it become custom fields.

    :param columns: Name of a column -> ``phone_number``, ``name`` or ``email``. A column that has such a name itself
        needs none, unless another column is mapped to it.
    :raises ValueError: A part is none of the three, or has two columns.
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        if columns is not None and not isinstance(columns, Mapping):
            raise ValueError(f'columns must be a mapping such as {{"mobile": "phone_number"}}; got {columns!r:.80}.')
        self._columns: dict[str, str] = {}
        for column, part in (columns or {}).items():
            if part not in CONTACT_FIELDS:
                raise ValueError(
                    f"columns[{column!r}]: {part!r:.80} is none of {', '.join(CONTACT_FIELDS)}. "
                    f"{did_you_mean(part, CONTACT_FIELDS) or 'Leave out what becomes a custom field.'}"
                )
            if part in self._columns:
                raise ValueError(f"columns: {self._columns[part]!r} and {column!r} are both {part}; leave out one.")
            self._columns[part] = column
        #: The columns that the author names, less those that were seen in a row.
        self.unseen = set(self._columns.values())
        #: How many columns the first row has.
        self.width = 0
        #: Whether the author says which column has the phone number.
        self.names_the_number = "phone_number" in self._columns
        for part in CONTACT_FIELDS:
            self._columns.setdefault(part, part)

    def contact(self, row: object) -> dict[str, Any]:
        """
        Make a contact of a row.

        :param row: The row.
        :raises NotAContactError: It has no phone number, or one that cannot be one; or it is no row at all.
        """
        if not isinstance(row, Mapping):
            raise NotAContactError(f"is no mapping, but of type {type(row).__name__}")
        self.width = self.width or len(row)
        if self.unseen:
            self.unseen.difference_update(row)
        if None in row:
            raise NotAContactError("has more fields than the first line of the file")
        number = _phone_number(row.get(self._columns["phone_number"]))
        contact: dict[str, Any] = {"phone_number": number}
        for part in CONTACT_FIELDS[1:]:
            value = _plain(row.get(self._columns[part]))
            if value not in (None, ""):
                contact[part] = str(value)
        used = self._columns.values()
        custom = {str(name): _plain(value) for name, value in row.items() if name not in used}
        custom = {name: value for name, value in custom.items() if value is not None}
        if custom:
            contact["custom_fields"] = custom
        return contact


def _phone_number(value: object) -> str:
    # Other programs make numbers of phone numbers.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        raise NotAContactError("has no phone number")
    if not isinstance(value, str):
        raise NotAContactError(f"has a phone number of type {type(value).__name__}")
    number = value.strip()
    if not number:
        raise NotAContactError("has no phone number")
    if not _DIGITS.fullmatch(_SEPARATORS.sub("", number)):
        raise NotAContactError("has a phone number that cannot be one")
    # As other programs write a whole number; a service that strips the point would phone somebody else.
    # Otherwise as it is: which of its separators and zeros count is the service's to say.
    return _WHOLE_NUMBER.sub(r"\1", number)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else str(value)


class RejectedLimit:
    """
    How many contacts may be rejected.

    :param value: A number of contacts, or a percentage of all rows as a text such as ``"2%"``.
    :raises ValueError: It is something else.
    """

    def __init__(self, value: int | str) -> None:
        self._text = f"max_rejected={value!r}"
        self._most: int | None = None
        self._percent = Fraction(0)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            self._most = value
        elif isinstance(value, str) and (found := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value)):
            self._percent = Fraction(found[1])
            if self._percent > 100:
                read_percent("max_rejected", float(self._percent))
        else:
            raise ValueError(
                f'max_rejected must be a number of rows of 0 or more, or a percentage such as "2%"; got {value!r:.80}.'
            )

    def __str__(self) -> str:
        return self._text

    def is_exceeded(self, rejected: int, rows: int) -> bool:
        """
        Say whether too many are rejected.

        :param rejected: How many are.
        :param rows: How many rows there are.
        """
        return rejected > (self._percent / 100 * rows if self._most is None else self._most)
