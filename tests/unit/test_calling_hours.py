# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.rules.calling_hours import CallingHours
from airflow_provider_voicegenie.rules.prerequisites import Verdict

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
    window = CallingHours(start, end, "Europe/Berlin", *days)
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
    inside = CallingHours(start, end, "Europe/Berlin").contains(moment)
    assert inside is not CallingHours(end, start, "Europe/Berlin").contains(moment)


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
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match="CallingHours") as caught:
        CallingHours(*arguments)
    for word in words:
        assert word in str(caught.value)


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
    assert checks[0].verdict is Verdict.WAITING
    assert checks[0].why == checks[1].why
    assert window.check(None, at("2026-11-23 09:30:00")).verdict is Verdict.MET


def test_it_can_be_made_again_from_what_it_serialises_to():
    window = CallingHours("22:00", time(2, 30), "Europe/Berlin", ["fri", "mon"])
    path, arguments = window.serialize()
    assert path == "airflow_provider_voicegenie.rules.calling_hours.CallingHours"
    assert CallingHours(**arguments) == window
    assert arguments["days"] == ["monday", "friday"]
