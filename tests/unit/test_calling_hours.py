# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.rules.calling_hours import (
    CallingHours,
    is_open,
    next_closing,
    next_opening,
    with_one_open,
)
from airflow_provider_voicegenie.rules.prerequisites import Check, load_prerequisite

BERLIN = ZoneInfo("Europe/Berlin")


def at(text, zone=BERLIN, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


@pytest.mark.parametrize(
    ("hours", "moment", "expected"),
    [
        (("09:00", "17:00"), "2026-11-23 09:00:00", True),
        (("09:00", "17:00"), "2026-11-23 08:59:59", False),
        (("09:00", "17:00"), "2026-11-23 16:59:59", True),
        (("09:00", "17:00"), "2026-11-23 17:00:00", False),
        # Over midnight, on every day.
        (("22:00", "02:00"), "2026-11-23 23:00:00", True),
        (("22:00", "02:00"), "2026-11-24 01:59:59", True),
        (("22:00", "02:00"), "2026-11-24 02:00:00", False),
        (("22:00", "02:00"), "2026-11-24 12:00:00", False),
        # The window belongs to the day on which it begins: 27 November 2026 is a Friday.
        (("22:00", "02:00", ["friday"]), "2026-11-27 22:00:00", True),
        (("22:00", "02:00", ["friday"]), "2026-11-28 01:00:00", True),
        (("22:00", "02:00", ["friday"]), "2026-11-27 01:00:00", False),
        (("22:00", "02:00", ["friday"]), "2026-11-28 22:00:00", False),
        (("22:00", "02:00", ["sunday"]), "2026-11-30 01:00:00", True),
        (("09:00", "17:00", ["mon", "TUE"]), "2026-11-24 10:00:00", True),
        (("09:00", "17:00", ["mon", "TUE"]), "2026-11-25 10:00:00", False),
    ],
)
def test_the_window(hours, moment, expected):
    start, end, *days = hours
    window = CallingHours(start, end, "Europe/Berlin", *days, over_midnight=True)
    assert window.contains(at(moment)) is expected
    assert window.contains(at(moment).astimezone(UTC)) is expected


def test_the_window_moves_with_daylight_saving_time():
    window = CallingHours("09:00", "17:00", "Europe/Berlin")
    assert window.contains(datetime(2026, 7, 1, 7, 0, tzinfo=UTC))
    assert not window.contains(datetime(2026, 1, 1, 7, 0, tzinfo=UTC))
    assert window.contains(datetime(2026, 1, 1, 8, 0, tzinfo=UTC))


def test_the_hour_that_is_skipped_and_the_one_that_comes_twice():
    window = CallingHours("02:30", "03:30", "Europe/Berlin")
    # 29 March 2026: 01:59:59 is followed by 03:00:00.
    assert minutes_inside(window, datetime(2026, 3, 29, tzinfo=UTC)) == [60, 70, 80]
    # 25 October 2026: 02:00 to 03:00 comes twice.
    expected = [30, 40, 50, 90, 100, 110, 120, 130, 140]
    assert minutes_inside(window, datetime(2026, 10, 25, tzinfo=UTC)) == expected


def minutes_inside(window, midnight):
    return [minute for minute in range(0, 240, 10) if window.contains(midnight + timedelta(minutes=minute))]


@given(st.times(), st.times(), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)))
def test_a_window_and_its_opposite_fill_the_day(start, end, moment):
    if start == end:
        return
    moment = moment.replace(tzinfo=UTC)
    inside = CallingHours(start, end, "Europe/Berlin", over_midnight=True).contains(moment)
    assert inside is not CallingHours(end, start, "Europe/Berlin", over_midnight=True).contains(moment)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("9", "17:00", "UTC"), ["start", "'9'"]),
        ((9, "17:00", "UTC"), ["start"]),
        (("09:00", time(17, tzinfo=UTC), "UTC"), ["end"]),
        (("09:00", time(17, tzinfo=UTC), "UTC"), ["end", "time zone of its own"]),
        (("09:00+02:00", "17:00", "UTC"), ["start", "time zone of its own"]),
        (("09:00", "24:00", "UTC"), ["end '24:00'", 'For midnight, write "00:00"']),
        (("24:00:00", "09:00", "UTC"), ["start '24:00:00'", 'For midnight, write "00:00"']),
        (("09:00", "2400", "UTC"), ["end '2400'", 'For midnight, write "00:00"']),
        (("09:00", "24.00", "UTC"), ["end '24.00'", 'For midnight, write "00:00"']),
        (("09:00", "09:00", "UTC"), ["start and end"]),
        (("09:00", "17:00", "Mars/Olympus"), ["timezone", "Mars/Olympus"]),
        (("09:00", "17:00", "../../etc/passwd"), ["timezone"]),
        (("09:00", "17:00", ""), ["timezone"]),
        (("09:00", "17:00", UTC), ["timezone"]),
        (("09:00", "17:00", "UTC", ["someday"]), ["days", "someday"]),
        (("09:00", "17:00", "UTC", ["Mondya"]), ["days", "'Mondya', did you mean 'monday'?"]),
        (("09:00", "17:00", "UTC", ["wensday"]), ["days", "did you mean 'wednesday'?"]),
        (("09:00", "17:00", "UTC", [0, 1]), ["days", "0"]),
        (("09:00", "17:00", "UTC", "monday"), ["days", "list"]),
        (("09:00", "17:00", "UTC", []), ["days", "empty"]),
        (("09:00", "17:00", "UTC", 5), ["days"]),
        (("18:00", "09:00", "UTC"), ["start is 18:00:00 and end is 09:00:00", "at night", "over_midnight=True"]),
        (("09:00", "06:00", "UTC"), ["at night", 'hours after noon such as "18:00"']),
        (("09:00", "17:00", "UTC", ["mon"], None, (), "yes"), ["over_midnight must be True or False"]),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match="CallingHours") as caught:
        CallingHours(*arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("08.30", "08:30"), ("8.30", "08:30"), ("08,30", "08:30"), ("8:30", "08:30"), (" 08:30", "08:30")),
        *(
            ("8h30", "08:30"),
            ("08-30", "08:30"),
            ("08;30", "08:30"),
            ("08.30.15", "08:30:15"),
            ("08:30.15", "08:30:15"),
        ),
        *(("08:30,5", None), ("0830.5", None), ("08.3", None), ("083015.5", None), ("08:30:15,5", None)),
        *(("T08:30", None), ("08:", None), ("8", None), ("830", None), ("08:30 pm", None), ("08.99", None)),
        *(("25.10", None), ("25:00", None), ("٠٨:٣٠", None), ("", None)),
    ],
)
@pytest.mark.parametrize("name", ["start", "end"])
def test_what_is_no_time_of_day_is_refused_with_what_was_meant(text, meant, name):
    arguments = {"start": "08:00", "end": "20:00", "timezone": "Europe/Berlin", name: text}
    with pytest.raises(ValueError, match=f"CallingHours: {name} must be a time of day") as caught:
        CallingHours(**arguments)
    assert f"got {text!r}. Write " in str(caught.value)
    assert ("Write it such as" if meant is None else f'Write "{meant}":') in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("08", time(8)), ("08:30", time(8, 30)), ("08:30:15", time(8, 30, 15)), ("0830", time(8, 30))),
        *(("083015", time(8, 30, 15)), ("08:30:15.5", time(8, 30, 15, 500_000))),
        ("23:59:59.999999", time(23, 59, 59, 999_999)),
    ],
)
def test_times_of_day(text, expected):
    assert CallingHours(text, "07:00", "UTC", over_midnight=True).start == expected


@given(st.text("0123456789:.,;T h-+", max_size=12))
def test_a_time_of_day_is_what_it_looks_like(text):
    """Whatever is read can be written with all its digits in place, and nothing else."""
    try:
        start = CallingHours(text, time(4, 59, 59, 1), "UTC", over_midnight=True).start
    except ValueError:
        return
    digits = start.strftime("%H%M%S%f")
    assert digits.startswith("".join(filter(str.isdigit, text)))
    assert set(digits[sum(map(str.isdigit, text)) :]) <= {"0"}
    assert start.microsecond == 0 or text.count(":") == 2


def test_a_window_may_end_at_midnight():
    window = CallingHours("09:00", "00:00", "Europe/Berlin", ["monday"])
    assert window.contains(at("2026-11-23 23:59:59"))
    assert not window.contains(at("2026-11-24 00:00:00"))


def test_a_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        CallingHours("09:00", "17:00", "UTC").contains(datetime(2026, 1, 1))


def test_as_prerequisite_its_words_do_not_change_while_it_waits():
    window = CallingHours("09:00", "17:00", "Europe/Berlin", ["monday"])
    checks = [window.check(None, at(f"2026-11-23 08:{minute}:00")) for minute in (10, 20)]
    assert checks[0].missing
    assert checks[0] == checks[1]
    assert window.check(None, at("2026-11-23 09:30:00")) == Check.met()


def test_it_can_be_made_again_from_what_it_serialises_to():
    window = CallingHours("22:00", time(2, 30), "Europe/Berlin", ["fri", "mon"], over_midnight=True)
    path, arguments = window.serialize()
    assert path == "airflow_provider_voicegenie.rules.calling_hours.CallingHours"
    assert CallingHours(**arguments) == window
    assert arguments["days"] == ["monday", "friday"]


WEEK = ["mon", "tue", "wed", "thu", "fri"]
OFFICE = [
    CallingHours("09:00", "12:00", "Europe/Berlin", WEEK),
    CallingHours("12:00", "13:00", "Europe/Berlin", ["friday"]),
    CallingHours("14:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu"], except_dates=["2026-12-24"]),
]


def is_new_year(day):
    return (day.month, day.day) == (1, 1)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-23 09:00:00", True),
        ("2026-11-23 13:00:00", False),
        ("2026-11-23 14:00:00", True),
        # Windows that touch leave no gap: 27 November 2026 is a Friday.
        ("2026-11-27 11:59:59.999999", True),
        ("2026-11-27 12:00:00", True),
        ("2026-11-27 13:00:00", False),
        ("2026-11-27 14:30:00", False),
        ("2026-12-24 10:00:00", True),
        ("2026-12-24 15:00:00", False),
        ("2026-11-28 10:00:00", False),
    ],
)
def test_of_several_windows_one_has_to_be_open(moment, expected):
    assert is_open(OFFICE, at(moment)) is expected
    (combined,) = with_one_open(OFFICE)
    assert (combined.check(None, at(moment)) == Check.met()) is expected
    assert is_open([], at(moment))


NIGHT = CallingHours("22:00", "02:00", "Europe/Berlin", except_dates=[date(2026, 12, 25)], over_midnight=True)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-12-24 23:59:59", True),
        # It closes when the date begins, and does not open on it.
        ("2026-12-25 00:00:00", False),
        ("2026-12-25 23:00:00", False),
        ("2026-12-26 01:00:00", False),
        ("2026-12-26 22:00:00", True),
    ],
)
def test_a_window_over_midnight_and_a_date_without_calls(moment, expected):
    assert NIGHT.contains(at(moment)) is expected


@pytest.mark.parametrize("dates", [is_new_year, f"{__name__}.is_new_year", ["2027-01-01"], [date(2027, 1, 1)], "list"])
def test_dates_without_calls_in_every_form(dates):
    if dates == "list":
        dates = (text for text in ["2027-01-01", "2027-01-01"])
    hours = CallingHours("09:00", "17:00", "Europe/Berlin", except_dates=dates)
    assert not hours.contains(at("2027-01-01 10:00:00"))
    assert hours.contains(at("2027-01-02 10:00:00"))
    path, arguments = hours.serialize()
    again = load_prerequisite(path, json.loads(json.dumps(arguments)))
    assert again == hours
    assert not again.contains(at("2027-01-01 10:00:00"))
    assert str(hours).endswith("except on some dates")


class Fickle(dict):
    """What a calendar of the holidays package is: empty until it is asked."""


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (Fickle(), "Fickle is a mapping, which may fill itself only when it is asked"),
        (lambda day: False, "is no function at the top level of a module"),
        ("nowhere.is_holiday", "is the path of nothing that can be imported here"),
        ("2026-12-25", "is the path of nothing that can be imported here. For dates, give a list such as"),
        (["25.12.2026"], "'25.12.2026' is no date, such as"),
        ([datetime(2026, 12, 25, 9)], "is a time, and a date is needed"),
        (25, "must be a list of dates such as"),
        ([25], "25 is no date"),
    ],
)
def test_wrong_dates_are_refused(dates, words):
    with pytest.raises(ValueError, match=f"CallingHours: except_dates.*{words}"):
        CallingHours("09:00", "17:00", "Europe/Berlin", except_dates=dates)


def breaks(day):
    raise KeyError("no calendar of this year")


def test_a_function_that_fails_is_named_with_the_date():
    hours = CallingHours("09:00", "17:00", "Europe/Berlin", except_dates=breaks)
    with pytest.raises(ValueError, match=r"except_dates: .*breaks\(2026-11-23\) failed with KeyError: 'no calendar of"):
        hours.contains(at("2026-11-23 10:00:00"))


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-11-23 10:00:00", "2026-11-23 10:00:00"),
        ("2026-11-23 12:30:00", "2026-11-23 14:00:00"),
        ("2026-11-27 12:30:00", "2026-11-27 12:30:00"),
        ("2026-11-27 13:00:00", "2026-11-30 09:00:00"),
        ("2026-12-24 12:00:00", "2026-12-25 09:00:00"),
    ],
)
def test_the_next_opening_of_several_windows(since, expected):
    assert next_opening(OFFICE, at(since)) == at(expected)


def test_without_an_opening_in_two_weeks_there_is_none():
    begin = date(2026, 12, 1)
    closed = CallingHours(
        "09:00", "17:00", "UTC", except_dates=[begin + timedelta(days=number) for number in range(15)]
    )
    assert next_opening([closed], datetime(2026, 12, 1, 8, tzinfo=UTC)) is None
    assert next_opening([closed], datetime(2026, 12, 2, 9, tzinfo=UTC)) == datetime(2026, 12, 16, 9, tzinfo=UTC)
    assert next_opening([closed], datetime(2026, 12, 2, 8, 59, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("hours", "since", "expected"),
    [
        # 29 March 2026: 01:59:59 is followed by 03:00:00.
        (("02:30", "03:30"), datetime(2026, 3, 29, 0, 0, tzinfo=UTC), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
        (("02:15", "02:45"), datetime(2026, 3, 29, 0, 0, tzinfo=UTC), datetime(2026, 3, 30, 0, 15, tzinfo=UTC)),
        # 25 October 2026: 02:59:59 is followed by 02:00:00.
        (("02:30", "02:45"), datetime(2026, 10, 25, 0, 0, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (("02:30", "02:45"), datetime(2026, 10, 25, 0, 45, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        (("01:00", "02:30"), datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 0, tzinfo=UTC)),
    ],
)
def test_the_next_opening_when_clocks_are_changed(hours, since, expected):
    assert next_opening([CallingHours(*hours, "Europe/Berlin", over_midnight=True)], since) == expected


@given(
    windows=st.lists(
        st.tuples(st.integers(0, 287), st.integers(0, 287), st.sets(st.sampled_from(WEEK), min_size=1)),
        min_size=1,
        max_size=3,
    ),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    since=st.datetimes(datetime(2026, 3, 1), datetime(2026, 4, 10)),
)
def test_the_next_opening_is_the_first_open_moment(windows, zone, since):
    """Found by looking at every fifth minute, on which these windows begin and end."""

    def clock(number):
        return time(number // 12, number % 12 * 5)

    hours = [CallingHours(clock(a), clock(b), zone, days, over_midnight=True) for a, b, days in windows if a != b]
    since = since.replace(minute=since.minute // 5 * 5, second=0, microsecond=0, tzinfo=UTC)
    found = next_opening(hours, since) if hours else since
    moment = since
    while not is_open(hours, moment):
        moment += timedelta(minutes=5)
    assert found == moment
    closing = next_closing(hours, moment)
    last = moment + timedelta(days=14)
    while is_open(hours, moment) and moment <= last:
        moment += timedelta(minutes=5)
    assert closing == (moment if moment <= last else None)


@pytest.mark.parametrize(
    ("hours", "since", "expected"),
    [
        # Windows that adjoin or overlap are one, also if the first ends a microsecond before the second.
        ([("09:00", "12:00"), ("12:00", "17:00")], "2026-11-23 10:00:00", "2026-11-23 17:00:00"),
        ([("09:00", "12:30"), ("12:00", "17:00")], "2026-11-23 10:00:00", "2026-11-23 17:00:00"),
        ([("09:00", "12:00"), ("14:00", "17:00")], "2026-11-23 10:00:00", "2026-11-23 12:00:00"),
        ([("09:00", "12:00"), ("14:00", "17:00")], "2026-11-23 13:00:00", "2026-11-23 13:00:00"),
        ([("09:00", "23:59:59.999999"), ("00:00", "02:00")], "2026-11-23 10:00:00", "2026-11-24 02:00:00"),
        ([("00:00", "23:59:59.999999")], "2026-11-23 10:00:00", None),
        ([("09:00", "17:00:30.5")], "2026-11-23 10:00:00", "2026-11-23 17:00:30.500000"),
    ],
)
def test_the_next_closing(hours, since, expected):
    windows = [CallingHours(*window, "Europe/Berlin", over_midnight=True) for window in hours]
    assert next_closing(windows, at(since)) == (expected and at(expected))


def test_without_calling_hours_there_is_no_closing():
    assert next_closing([], datetime(2026, 12, 1, 8, tzinfo=UTC)) is None


@pytest.mark.parametrize("alternatives", [None, 5, "09:00", [None], ["x"]])
def test_alternatives_are_calling_hours(alternatives):
    with pytest.raises(ValueError, match="CallingHours: alternatives must be a list of CallingHours; got"):
        CallingHours("09:00", "12:00", "UTC", alternatives=alternatives)


# What a wait for calling hours says.


@pytest.mark.parametrize(
    ("hours", "now", "says"),
    [
        (
            CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"]),
            datetime(2026, 11, 27, 17, 30, tzinfo=UTC),  # a Friday
            "which open on Monday, 2026-11-30 at 09:00 Europe/Berlin",
        ),
        (
            CallingHours("09:00", "18:00", "Europe/Berlin"),
            datetime(2026, 11, 30, 7, 59, 59, 999_999, UTC),
            "which open on Monday, 2026-11-30 at 09:00 Europe/Berlin",
        ),
        (
            CallingHours("09:00", "18:00", "Europe/Berlin", ["mon"], ["2026-11-30", "2026-12-07", "2026-12-14"]),
            datetime(2026, 11, 29, 12, 0, tzinfo=UTC),
            "which do not open within 14 days",
        ),
    ],
)
def test_a_wait_says_when_the_hours_open(hours, now, says):
    check = hours.check(None, now)
    assert check.missing.endswith(says)
    # The same words a minute earlier, as each change is a line of the log.
    assert hours.check(None, now - timedelta(minutes=1)).missing == check.missing


def test_a_function_that_fails_for_a_later_date_fails_no_wait_before_it():
    hours = CallingHours("09:00", "18:00", "UTC", except_dates=fails_from_december_on)
    check = hours.check(None, datetime(2026, 11, 30, 20, 0, tzinfo=UTC))
    assert check.missing.endswith("which open on a date that cannot be known yet")


def fails_from_december_on(day):
    if day.month == 12:
        raise RuntimeError("no calendar of December")
    return False
