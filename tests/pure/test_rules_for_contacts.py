# SPDX-License-Identifier: Apache-2.0
"""What is a phone number, what only looks like one, and which values of a row are there."""

from __future__ import annotations

import json
import math
from collections import UserDict
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from numbers import Integral

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_voicegenie.rules import phone_numbers
from airflow_provider_voicegenie.rules.contacts import ContactColumns
from airflow_provider_voicegenie.rules.phone_numbers import NotAContactError, PhoneNumbers


def number_of(value):
    return ContactColumns().contact({"phone_number": value})["phone_number"]


@pytest.mark.parametrize(
    "number",
    [
        "1234567",
        "+123456789012345",
        "+49 151 2345678",
        "+49-151-2345678",
        "+49 (0)151 2345678",
        "+49 (0) 151 2345678",
        "(0151) 234567",
        "(555) 123-4567",
        "(555)123-4567",
        "+1 (555) 123-4567",
        "+1.555.123.4567",
        "0151/2345678",
        "0151 / 234567",
        "0151 - 23 45 67",
        "0151\u00a02345678",
        "0049 151 2345678",
        "01 12 19 85 22",
        "20 26 12 31",
        "0151 12 24 12 34",
        "555-123-4567",
        "12-34-5678",
        "99 99 99 99",
        "+1985-12-24",
        "+45 20261231",
        "192.168.100.256",
        "10.20.30.40.50",
        "+20.26.12.31",
    ],
)
def test_a_phone_number_is_sent_as_it_is_written(number):
    assert number_of(f" {number} ") == number


@pytest.mark.parametrize(
    "value",
    [
        "-1511234518",
        -1511234518,
        -1511234518.0,
        Decimal(-1511234518),
        "12345-",
        "1234567-",
        "1234567.",
        "1234567/",
        "/1234567",
        ".1234567",
        "+-1234567",
        "+ 49 1512345678",
        "++491512345678",
        "49+1512345678",
        "+491512345678+",
        "(1234567",
        "1234567)",
        ")1234567(",
        "()1234567",
        "123456",
        "+1234567890123456",
        "1234567890123456",
        10**15,
        pytest.param(10**5000, id="of 5,000 digits"),
        1e300,
        123456,
        "00000",
        "0000000",
        "+000 000 000",
        "000-0000000",
        "1234567\n2345678",
        "1234567\t2345678",
        "1234567;2345678",
        "1234567, 23",
        "4.915123456E9",
        "tel:4915123456",
        "4915123456x12",
        "\uff11\uff12\uff13\uff14\uff15\uff16\uff17",
        "123-----4567",
    ],
)
def test_what_only_looks_like_a_phone_number(value):
    with pytest.raises(NotAContactError, match=r"cannot be one|of type"):
        number_of(value)


DAYS = [
    "1985-12-24",
    "1985/12/24",
    "1985.12.24",
    "1985 12 24",
    "24.12.1985",
    "24. 12. 1985",
    "24-12-1985",
    "12/24/1985",
    "12/31/2026",
    "31/12/2026",
    "1.12.1985",
    "12/1/2026",
    "19851224",
    "24121985",
    "12241985",
    "0001-01-01",
    "9999-12-31",
    "99991231",
    "1899-12-30",
    "2026-12-31 12.30",
    "2026-12-31-12.30.59",
    "1985-12-24 00-00-00",
    "2026-12-31 23",
    "20240102123000",
    "202401021230",
    "2026-12-31 0830",
    "20261231 0830",
    "20261231-083000",
    "2026-12-31-083000",
    "2026-12-31 24.00",
    "2026.12.31 08.30.00.5",
    "2026-365",
    20240102123000,
    "20261231.0",
    "2024-02-29",
    20261231,
    19851224.0,
    Decimal("20261231"),
]


@pytest.mark.parametrize("value", DAYS)
def test_what_may_be_a_date_is_no_phone_number(value):
    with pytest.raises(NotAContactError, match="may be a date"):
        number_of(value)


@given(st.dates(date(1600, 1, 1), date(2199, 12, 31)))
def test_no_day_is_a_phone_number(day):
    for form in ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y%m%d", "%d%m%Y", "%m%d%Y"):
        with pytest.raises(NotAContactError, match="may be a date"):
            number_of(day.strftime(form))


@pytest.mark.parametrize(
    "value",
    ["192.168.100.200", "192.168.1.10/24", "192.168.100.200-250", "10.20.30.40", "255.255.255.255", "127.0.0.100"],
)
def test_what_may_be_an_ip_address_is_no_phone_number(value):
    with pytest.raises(NotAContactError, match="may be an IP address"):
        number_of(value)


class NumpyInt:
    """As NumPy's: registered as a whole number, and nothing else that Python knows."""

    def __init__(self, value):
        self._value = value

    def __int__(self):
        return self._value

    def __eq__(self, other):
        return self._value == other

    def __hash__(self):
        return hash(self._value)


Integral.register(NumpyInt)


@pytest.mark.parametrize(
    "value",
    [
        4915123456,
        4915123456.0,
        "4915123456.0",
        "4915123456.00",
        Decimal("4915123456"),
        Decimal("4915123456.00"),
        Decimal("4.915123456E+9"),
        NumpyInt(4915123456),
    ],
)
def test_a_whole_number_of_any_type_is_a_phone_number(value):
    assert number_of(value) == "4915123456"


@pytest.mark.parametrize(
    "value",
    [
        4915123456.5,
        math.inf,
        -math.inf,
        Decimal("Infinity"),
        Decimal("1E+1000000"),
        Decimal("4915123456.5"),
        NumpyInt(10**15),
        Fraction(4915123456, 7),
        True,
        4915123456j,
        b"4915123456",
        timedelta(1),
        datetime(2026, 12, 31),
        object(),
    ],
)
def test_a_number_that_is_not_whole_is_no_phone_number(value):
    with pytest.raises(NotAContactError, match=r"of type|cannot be one"):
        number_of(value)


class NAType:
    """As the NA of pandas, which answers no question."""

    def __eq__(self, other):
        return self

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"


class NaTType(datetime):
    """As the NaT of pandas, which is a time by its type."""

    def isoformat(self):
        return "NaT"

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True


class NotEqual:
    """As the NaT of NumPy."""

    def __ne__(self, other):
        return True

    def __repr__(self):
        return "NaT"


MISSING = [
    None,
    math.nan,
    Decimal("NaN"),
    Decimal("sNaN"),
    NAType(),
    NaTType(2026, 1, 1),
    NotEqual(),
    "NaN",
    "NaT",
    "<NA>",
]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_missing_value_is_missing(value):
    with pytest.raises(NotAContactError, match="has no phone number"):
        number_of(value)
    row = {"phone_number": "4915123456", "name": value, "email": value, "since": value, "tags": [value, {"a": value}]}
    assert ContactColumns().contact(row) == {
        "phone_number": "4915123456",
        "custom_fields": {"tags": [None, {"a": None}]},
    }


def test_pandas_and_numpy():
    np = pytest.importorskip("numpy")
    pd = pytest.importorskip("pandas")
    for value in (np.int64(4915123456), np.uint64(4915123456), np.float64(4915123456)):
        assert number_of(value) == "4915123456"
    # It has 24 bits for what needs 33.
    with pytest.raises(NotAContactError, match="of type float32"):
        number_of(np.float32(4915123456))
    for value in (pd.NA, pd.NaT, np.nan, np.datetime64("NaT"), np.float32("nan")):
        test_a_missing_value_is_missing(value)
    row = {"phone_number": "4915123456", "n": np.int64(5), "x": np.float64(0.5), "array": np.array([1, 2])}
    contact = ContactColumns().contact(row)
    assert json.loads(json.dumps(contact)) == contact
    assert contact["custom_fields"]["n"] == 5


class NoBool:
    def __ne__(self, other):
        return NAType()

    def __str__(self):
        return "text"


class Broken(UserDict):
    def items(self):
        raise TypeError("Xaverine Quastenflosser")


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"name": "half \ud83d"}, "half a character"),
        ({"email": "\udc00"}, "half a character"),
        ({"note": ["a", {"b": "\ud83d"}]}, "half a character"),
        ({"note\ud83d": "a"}, "half a character"),
        ({"note": {"\ud83d": "a"}}, "half a character"),
        ({"note": 10**5000}, "whole number that is too long"),
        ({"note": deep(100_000)}, "nested too deep"),
        ({"note": LOOP}, "nested too deep"),
    ],
)
def test_a_row_that_json_cannot_hold_is_no_contact(more, reason):
    with pytest.raises(NotAContactError, match=reason):
        ContactColumns().contact({"phone_number": "4915123456", **more})


def test_no_other_error_comes_out_of_a_row():
    with pytest.raises(NotAContactError, match=r"cannot be read \(TypeError\)") as caught:
        ContactColumns().contact(Broken(phone_number="4915123456"))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert ContactColumns().contact({"phone_number": "4915123456", "x": NoBool()})["custom_fields"] == {"x": "text"}


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.binary()
    | st.characters(categories=["Cs", "L", "N"]).map(str)
    | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text() | st.none() | st.integers() | st.sampled_from(["phone_number", "name", "email"]), ANY))
@example({"phone_number": "4915123456", None: ["", " "]})
@example({"phone_number": Decimal("sNaN")})
def test_whatever_is_in_a_row_becomes_a_contact_or_is_none(row):
    try:
        contact = ContactColumns().contact(row)
    except NotAContactError:
        return
    assert json.loads(json.dumps(contact, allow_nan=False, ensure_ascii=False).encode()) == contact
    assert 7 <= sum(map(str.isdigit, contact["phone_number"])) <= 15


@pytest.mark.parametrize(
    ("row", "custom_fields"),
    [
        ({"": "", " ": None}, None),
        ({"": "0"}, {"": "0"}),
        ({None: ["", "  "]}, None),
        ({None: []}, None),
    ],
)
def test_what_is_empty_in_a_column_without_a_name_is_not_there(row, custom_fields):
    contact = ContactColumns().contact({"phone_number": "4915123456", **row})
    assert contact.get("custom_fields") == custom_fields


def test_a_name_of_nothing_but_spaces_is_none():
    row = {"phone_number": "4915123456", "name": "  ", "email": "\t", "note": ""}
    assert ContactColumns().contact(row) == {"phone_number": "4915123456", "custom_fields": {"note": ""}}


# Numbers of a region.


@pytest.mark.parametrize(
    ("region", "written", "sent"),
    [
        ("IN", "+91 98123 45678", "+919812345678"),
        ("IN", "09812345678", "+919812345678"),
        ("IN", "00919812345678", "+919812345678"),
        ("IN", "919812345678", "+919812345678"),
        ("IN", "+919812345678", "+919812345678"),
        ("IN", 9812345678, "+919812345678"),
        ("IN", 919812345678.0, "+919812345678"),
        ("IN", "919812345678.0", "+919812345678"),
        ("DE", "(0151) 234567-89", "+4915123456789"),
        ("DE", "0049 151 23456789", "+4915123456789"),
        ("DE", "+49 (0)151 23456789", "+4915123456789"),
        ("DE", "15123456789", "+4915123456789"),
        ("GB", "07400 123456", "+447400123456"),
        ("GB", "+44 (0) 7400 123456", "+447400123456"),
        ("US", "(212) 555-0123", "+12125550123"),
        ("US", "1-212-555-0123", "+12125550123"),
        ("US", "011 91 98123 45678", "+919812345678"),
        ("RU", "8 (912) 345-67-89", "+79123456789"),
        ("FR", "06 12 34 56 78", "+33612345678"),
        ("DK", "20101990", "+4520101990"),
        ("DE", "4915112345678", "+4915112345678"),
        ("BR", "005511961234567", "+5511961234567"),
        ("AU", "0061412345678", "+61412345678"),
        ("JP", "0081 90 1234 5678", "+819012345678"),
        ("LT", "(0-612) 34567", "+37061234567"),
        ("IN", "(+91) 98123 45678", "+919812345678"),
        ("IN", "tel:+91-98123-45678", "+919812345678"),
        ("IN", "\u200e+ 91 98123 45678", "+919812345678"),
        ("IN", "\uff19\uff18\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18", "+919812345678"),
        ("IN", "'9812345678", "+919812345678"),
    ],
)
def test_a_number_of_a_region_is_sent_in_e164(region, written, sent):
    contact = ContactColumns(region=region).contact({"phone_number": written})
    assert contact == {"phone_number": sent}


@pytest.mark.parametrize(
    ("region", "written", "reason"),
    [
        ("IN", "12345", "cannot be one"),
        ("IN", "1234567", "not possible in IN"),
        ("DE", "112", "cannot be one"),
        ("US", "5550123", "not possible in US"),
        ("DE", "-1511234518", "cannot be one"),
        ("DE", "0151 23456789-", "cannot be one"),
        ("US", "555 1234 5678 9012", "not possible in US"),
        ("DE", "+999 1234567", "not possible in DE"),
        ("DE", "call me", "cannot be one"),
        ("US", "1-800-FLOWERS", "cannot be one"),
        ("DE", "015123456789 ext. 5", "cannot be one"),
        ("DE", "31.12.2026", "may be a date"),
        ("DK", "31-12-2026", "may be a date"),
        ("DE", "20261231", "may be a date"),
        ("DE", "192.168.100.200", "IP address"),
        ("DE", "0000000", "cannot be one"),
        ("DE", None, "has no phone number"),
    ],
)
def test_what_is_no_number_of_a_region(region, written, reason):
    with pytest.raises(NotAContactError, match=reason):
        PhoneNumbers(region).read(written)


def test_what_is_possible_but_not_valid_is_counted():
    numbers = PhoneNumbers("US")
    assert numbers.read("(555) 055-0123") == "+15550550123"
    assert numbers.read("(212) 555-0123") == "+12125550123"
    assert numbers.not_valid == 1


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("in", r"country by its two letters .*Did you mean 'IN'\?"),
        ("UK", r"got 'UK'\. Did you mean 'GB'\?"),
        ("", "two letters"),
        ("India", "two letters"),
        ("XX", "two letters"),
        (91, "two letters"),
        ("../..", "two letters"),
    ],
)
def test_a_region_that_is_none(region, message):
    with pytest.raises(ValueError, match=message):
        ContactColumns(region=region)


def test_a_region_needs_its_library(monkeypatch):
    monkeypatch.setattr(phone_numbers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'airflow-provider-voicegenie\[phone\]'"):
        ContactColumns(region="IN")
