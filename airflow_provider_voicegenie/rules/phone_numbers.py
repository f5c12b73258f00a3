# SPDX-License-Identifier: Apache-2.0
"""
What a phone number is, and which of two notations are one number.

No message here quotes a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from decimal import Decimal
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from airflow_provider_voicegenie.rules.values import is_blank

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

#: What is read of a region: digits, with a plus or a parenthesis in front, and what people put between them.
_IN_REGION = re.compile(r"[+(0-9](?:[0-9 ()./\-]*[0-9])?")
#: With a prefix for calls abroad.
_LONGEST_WRITTEN = 20
_DASHES = re.compile("[\u2010-\u2015\u2212]")

_IS_NONE = "has a phone number that cannot be one"


class NotAContactError(ValueError):
    """A row is no contact."""


class PhoneNumbers:
    """
    Reads phone numbers.

    :param region: The country in which numbers without a country code are, by its two letters, such as ``IN``. All
        numbers are given in E.164 then, and the library ``phonenumbers`` says which are possible. ``None`` gives
        numbers as they are written.
    :raises ValueError: The region is none, or the library is not installed.
    """

    def __init__(self, region: str | None = None) -> None:
        if region is not None:
            _check_region(region)
        self._region = region
        #: How many numbers were possible, but not valid, by what the library knows.
        self.not_valid = 0

    def read(self, value: object) -> str:
        """
        Return a phone number as it is sent.

        :param value: The number, as a text or as any number type.
        :raises NotAContactError: It is none.
        """
        number = _as_text(value)
        if self._region is None:
            _check_shape(number)
            _refuse_what_only_looks_like_one(number)
            # Which of its separators and zeros count is the service's to say.
            return number
        (sent, is_valid), *_ = self._readings_in_region(number)
        if not (is_valid and number.isdecimal() and self._mobile_numbers_have(len(number))):
            _refuse_what_only_looks_like_one(number)
        self.not_valid += not is_valid
        return sent

    def readings(self, value: object) -> list[str]:
        """
        Return all phone numbers that somebody may mean: of people who must not be called, none may be missed.

        :param value: The number, as a text or as any number type.
        :raises NotAContactError: It is none.
        """
        number = _as_text(value)
        if self._region is not None:
            return [sent for sent, _ in self._readings_in_region(number)]
        _check_shape(number)
        return [number]

    def _readings_in_region(self, written: str) -> list[tuple[str, bool]]:
        """Return each possible reading in E.164, and whether it is valid; the likeliest is the first."""
        # Loads what is known of all countries, and may not be installed.
        import phonenumbers

        number = _plain(written)
        digits = _all_digits_of(number)
        if (
            not _IN_REGION.fullmatch(number)
            or not _SHORTEST <= len(digits) <= _LONGEST_WRITTEN
            or not digits.strip("0")
        ):
            raise NotAContactError(_IS_NONE)
        country = str(phonenumbers.country_code_for_region(self._region or ""))
        attempts = [number]
        if number.startswith("00"):
            # So dialled in most countries, and written in all.
            attempts.insert(0, f"+{digits[2:]}")
        elif number.startswith(country):
            # A national number has its trunk prefix in front.
            attempts.insert(0, f"+{digits}")
        readings: dict[str, bool] = {}
        for attempt in attempts:
            with suppress(phonenumbers.NumberParseException):
                found = phonenumbers.parse(attempt, self._region)
                sent = phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164)
                reason = phonenumbers.is_possible_number_with_reason(found)
                if reason == phonenumbers.ValidationResult.IS_POSSIBLE and len(_all_digits_of(sent)) >= _SHORTEST:
                    readings[sent] = phonenumbers.is_valid_number(found)
        if not readings:
            raise NotAContactError(f"has a phone number that is not possible in {self._region}")
        return sorted(readings.items(), key=lambda reading: not reading[1])

    def _mobile_numbers_have(self, digits: int) -> bool:
        """Say how long mobile numbers are: if it is eight digits, some can be read as dates."""
        # As above.
        import phonenumbers

        example = phonenumbers.example_number_for_type(self._region, phonenumbers.PhoneNumberType.MOBILE)
        return example is not None and len(str(example.national_number)) == digits


def _check_shape(number: str) -> None:
    digits = _all_digits_of(number)
    is_one = _NUMBER.fullmatch(_PARENTHESES.sub(r"\1", number)) and _SHORTEST <= len(digits) <= _LONGEST
    if not is_one or not digits.strip("0"):
        raise NotAContactError(_IS_NONE)


def _plain(number: str) -> str:
    """Return a number without what pages, spreadsheets and phones put around it."""
    text = "".join(each for each in unicodedata.normalize("NFKC", number) if unicodedata.category(each) != "Cf")
    text = _DASHES.sub("-", text).strip().removeprefix("'").removeprefix("tel:")
    return re.sub(r"^\(?\+\s*([0-9]+)\)?", r"+\1", text)


def digits_of(number: str) -> str:
    """
    Return the digits of a phone number, less what stands for something else.

    That is the ``00`` which is dialled before a country code in most countries, and a ``(0)`` behind one.
    """
    if number.startswith(("+", "00")):
        number = number.replace("(0)", "", 1)
    return _all_digits_of(number).removeprefix("00")


class Notation(NamedTuple):
    """
    How a number is written, to find others that may be the same in another notation.

    :param is_complete: Whether it begins with ``+``, so that its digits are all there are.
    :param digits: How many digits it has.
    :param ends: Its last digits; two notations of one number share one of these.
    """

    is_complete: bool
    digits: int
    ends: tuple[str, ...]


def notation_of(number: str) -> Notation:
    """Return how a number is written: the last seven or eight digits, or all but the first, are in every notation."""
    digits = digits_of(number).removeprefix("0")
    return Notation(number.startswith("+"), len(digits), (f"{digits[-8:]} ", digits[-7:], f"-{digits[1:]}"))


def lacks_country_code(number: str) -> bool:
    """Say whether a number begins with the 0 that stands before a number inside a country."""
    return digits_of(number).startswith("0")


def _all_digits_of(number: str) -> str:
    return "".join(filter(str.isdecimal, number))


def _check_region(region: object) -> None:
    package = find_spec("phonenumbers")
    if package is None or package.origin is None:
        raise ValueError(
            f"region={region!r:.80} needs the library phonenumbers: pip install 'airflow-provider-voicegenie[phone]'."
        )
    # The library itself takes longer to import than all that a DAG file needs of this provider.
    known = Path(package.origin).with_name("data")
    if not (isinstance(region, str) and re.fullmatch("[A-Z]{2}", region) and (known / f"region_{region}.py").exists()):
        upper = str(region).upper()
        hint = {"UK": "GB", "EN": "GB", "EL": "GR"}.get(upper, "")
        if not hint and re.fullmatch("[A-Z]{2}", upper) and (known / f"region_{upper}.py").exists():
            hint = upper
        raise ValueError(
            'region must be a country by its two letters in ISO 3166, such as "IN" or "DE"; got '
            f"{region!r:.80}.{f' Did you mean {hint!r}?' if hint else ''}"
        )


def _as_text(value: object) -> str:
    if is_blank(value):
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
    return number


def _refuse_what_only_looks_like_one(number: str) -> None:
    if _may_be_date(number):
        raise NotAContactError(
            "has a phone number that may be a date; to say that it is a number, write it with + and its country code"
        )
    if _may_be_ip_address(number):
        raise NotAContactError("has a phone number that may be an IP address")


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
