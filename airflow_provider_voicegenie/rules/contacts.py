# SPDX-License-Identifier: Apache-2.0
"""
What a contact is: how one is made of a row, and why a row is none.

No message here quotes a row: names, numbers and addresses belong in no log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import Any

from airflow_provider_voicegenie.api.errors import unchained
from airflow_provider_voicegenie.rules.parameters import did_you_mean, read_percent

#: The service's own fields of a contact.
CONTACT_FIELDS = ("phone_number", "name", "email")

#: Digits, with an optional plus in front, and what people put between digits. No line's end: another number may follow.
_NUMBER = re.compile(r"\+?[0-9](?:[ \u00a0\u202f.\-/]{0,4}[0-9])*")
_SEPARATORS = re.compile(r"[ \u00a0\u202f.\-/]+")

#: Part of a number in parentheses, as in (0151) 23456 or +49 (0)151 23456.
_PARENTHESES = re.compile(r"\(([0-9]{1,6})\)")

#: A whole number as programs write it that take phone numbers for numbers.
_WHOLE_NUMBER = re.compile(r"(\+?[0-9]+)\.0+")

#: The digits of the shortest numbers that are dialled as they are, and of the longest that E.164 allows.
_SHORTEST, _LONGEST = 7, 15

#: Years of people and of systems; the first and the last that a date can have stand for none.
_YEAR = re.compile(r"(?:1[6-9]|2[01])[0-9]{2}|0001|9999")
#: The largest hour, minute and second that are written.
_TIME_LIMITS = (24, 59, 60)

#: Of one machine, or of a network or a range of them.
_IP_ADDRESS = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?:[/-][0-9]{1,3})?")

#: How tables write a value that is not there.
_MISSING_TEXTS = ("NaN", "NaT", "<NA>")

#: One half of a character that UTF-16 writes as two.
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")

#: Bits of the longest whole number in a custom field. Python refuses to write much longer ones.
_LONGEST_WHOLE_NUMBER = 1024


class NotAContactError(ValueError):
    """A row is no contact."""


class ContactColumns:
    """
    Maps a row's columns to the fields of a contact. Columns that are not mapped become custom fields.

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

        :raises NotAContactError: It has no phone number, or one that cannot be one; or it is no row at all.
        """
        if not isinstance(row, Mapping):
            raise NotAContactError(f"is no mapping, but of type {type(row).__name__}")
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
        if not all(map(_is_blank, row.get(None) or ())):
            raise NotAContactError("has more fields than the first line of the file")
        contact: dict[str, Any] = {"phone_number": _phone_number(row.get(self._columns["phone_number"]))}
        for part in CONTACT_FIELDS[1:]:
            value = _plain(row.get(self._columns[part]))
            if not _is_blank(value):
                contact[part] = str(value)
        used = self._columns.values()
        custom: dict[str, Any] = {}
        for column, value in row.items():
            # What is empty in a column without a name is the rest of a spreadsheet.
            if column is None or column in used or (_is_blank(column) and _is_blank(value)):
                continue
            if (plain := _plain(value)) is not None:
                custom[_whole_text(str(column))] = plain
        if custom:
            contact["custom_fields"] = custom
        return contact


def _phone_number(value: object) -> str:
    if _is_blank(value):
        raise NotAContactError("has no phone number")
    if isinstance(value, str):
        number = value.strip()
        # As other programs write a whole number; a service that strips the point would phone somebody else.
        if whole := _WHOLE_NUMBER.fullmatch(number):
            number = whole[1]
    elif (found := _whole_number(value)) is not None:
        # Other programs make numbers of phone numbers.
        number = str(found)
    else:
        raise NotAContactError(f"has a phone number of type {type(value).__name__}")
    without_parentheses = _PARENTHESES.sub(r"\1", number)
    digits = _SEPARATORS.sub("", without_parentheses).removeprefix("+")
    if not _NUMBER.fullmatch(without_parentheses) or not _SHORTEST <= len(digits) <= _LONGEST or not digits.strip("0"):
        raise NotAContactError("has a phone number that cannot be one")
    if _may_be_date(number):
        raise NotAContactError(
            "has a phone number that may be a date; to say that it is a number, write it with + and its country code"
        )
    if _may_be_ip_address(number):
        raise NotAContactError("has a phone number that may be an IP address")
    # Which of its separators and zeros count is the service's to say.
    return number


def _may_be_date(number: str) -> bool:
    """Say whether digits may be a date, in whatever order, with or without separators, and with or without a time."""
    first, *rest = _SEPARATORS.split(number)
    if re.fullmatch("[0-9]{12}|[0-9]{14}", first):
        first, rest = first[:8], [first[8:], *rest]
    if re.fullmatch("[0-9]{8}", first):
        is_date = (
            _is_date(first[:4], first[4:6], first[6:])
            or _is_date(first[4:], first[2:4], first[:2])
            or _is_date(first[4:], first[:2], first[2:4])
        )
        return is_date and _may_be_time(rest)
    if len(rest) == 1:
        # A year and the number of the day in it.
        return bool(_YEAR.fullmatch(first)) and len(rest[0]) == 3 and 1 <= int(rest[0]) <= 366
    if not rest:
        return False
    second, third, *time_of_day = rest
    return _may_be_time(time_of_day) and (
        _is_date(first, second, third) or _is_date(third, second, first) or _is_date(third, first, second)
    )


def _is_date(year: str, month: str, day: str) -> bool:
    if not _YEAR.fullmatch(year) or not 1 <= len(month) <= 2 or not 1 <= len(day) <= 2:
        return False
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def _may_be_time(parts: Sequence[str]) -> bool:
    """Say whether parts may be hours, minutes, seconds and a fraction, some of them without a separator."""
    pairs = [pair for part in parts for pair in (re.findall("..", part) if len(part) in (4, 6) else [part])]
    return all(len(pair) <= 2 and int(pair) <= limit for pair, limit in zip(pairs, _TIME_LIMITS, strict=False))


def _may_be_ip_address(number: str) -> bool:
    found = _IP_ADDRESS.fullmatch(number)
    return found is not None and all(int(part) < 256 for part in found.groups())


def _whole_number(value: object) -> int | None:
    """Return a number of any type that keeps fifteen digits as an ``int``, if it is whole and has no more digits."""
    if isinstance(value, Decimal | float):
        # What is not finite is below no limit.
        return int(value) if -(10**_LONGEST) < value < 10**_LONGEST and value == int(value) else None
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value) if abs(int(value)) < 10**_LONGEST else None
    return None


def _is_missing(value: Any) -> bool:
    """Say whether tables write a value that is not there like this: None, NaN, and the NaT and NA of pandas."""
    if isinstance(value, str):
        return value in _MISSING_TEXTS
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Mapping | list | tuple):
        return False
    if isinstance(value, Decimal):
        return value.is_nan()
    try:
        # Of all values, only those are not equal to themselves; an array does not say so.
        return bool(value != value)
    except (TypeError, ValueError):
        return False


def _is_blank(value: Any) -> bool:
    """Say whether there is nothing in a value."""
    return _is_missing(value) or (isinstance(value, str) and not value.strip())


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if _is_missing(value) or (isinstance(value, float) and not math.isfinite(value)):
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
