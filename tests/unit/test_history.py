# SPDX-License-Identifier: Apache-2.0
"""The export of calls: which calls are in the file, when it appears, and what is told of it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
import tempfile
from dataclasses import fields
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from helpers.leaks import MARKED_PERSON, person_in
from helpers.tasks import context

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.errors import UnauthorizedError
from airflow_provider_voicegenie.api.models import Call, CallPage, read_time
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.transfers import calls as call_stores
from airflow_provider_voicegenie.transfers import scratch
from airflow_provider_voicegenie.transfers.calls import CallStore
from airflow_provider_voicegenie.transfers.history import COLUMNS, CallHistoryToObjectStorageOperator

pytestmark = pytest.mark.usefixtures("nobody_is_named")


@pytest.fixture
def pages(sandbox, monkeypatch):
    """Replace what the service says of its calls: each pass takes the next list of pages."""
    passes = []

    def history(hook, campaign_id, count_known, **filters):
        yield from passes.pop(0) if len(passes) > 1 else passes[0]

    monkeypatch.setattr(VoiceGenieHook, "call_history_pages", history)
    return passes


def call(number, **fields):
    facts = {
        "call_id": f"call-{number}",
        "contact_name": MARKED_PERSON["name"],
        "phone_number": MARKED_PERSON["phone_number"],
        "status": "answered" if number % 3 else "busy",
        "duration": 30.5,
        "call_time": "2026-05-01T08:00:00Z",
        "recording_url": f"https://recordings.example/{number}?of=xaverine",
    }
    return Call(**{**facts, **fields})


def page(numbers, total, **fields):
    calls = tuple(call(number, **fields) for number in numbers)
    return CallPage(calls, len(calls), total)


def export(path, campaign_id="completed", run=None, **arguments):
    operator = CallHistoryToObjectStorageOperator(
        task_id="export", campaign_id=campaign_id, path=str(path), **arguments
    )
    run = run or context()
    result = operator.execute(run)
    assert person_in(json.dumps([result, run["ti"].xcom])) is None
    data = Path(str(path).removeprefix("file://")).read_bytes()
    assert (result["bytes"], result["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(result["calls_by_status"].values()) == result["rows"]
    return result


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Which calls are in the file.


def test_all_calls_of_a_campaign_are_written(sandbox, tmp_path):
    result = export(tmp_path / "calls.jsonl")
    found = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(found) == result["rows"] > 0
    assert list(found[0]) == list(COLUMNS)
    assert len({each["call_id"] for each in found}) == len(found)
    assert files_in(tmp_path) == ["calls.jsonl"]


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_gzipped(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def read_parquet(path):
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a b.csv", read_csv),
        ("calls.jsonl", read_json_lines),
        ("calls.ndjson.gz", read_gzipped),
        ("calls.parquet", read_parquet),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_of_each_format(pages, tmp_path, name, read, scheme):
    pages.append([page(range(5), 6), page([5], 6, duration=None)])
    path = tmp_path / "new folder" / name
    result = export(f"{scheme}{path}", columns=["phone_number", "call_id", "duration"])
    found = read(path)
    assert [list(row) for row in found] == [["phone_number", "call_id", "duration"]] * 6
    assert [row["call_id"] for row in found] == [f"call-{i}" for i in range(6)]
    assert float(found[0]["duration"]) == 30.5
    assert found[5]["duration"] in (None, "")
    assert found[0]["phone_number"] == MARKED_PERSON["phone_number"]
    assert result["calls_by_status"] == {"answered": 4, "busy": 2}


def test_columns_keep_personal_data_out(pages, tmp_path, said):
    pages.append([page(range(3), 3)])
    export(tmp_path / "x.csv", columns=["call_id", "status"])
    assert person_in((tmp_path / "x.csv").read_text()) is None
    assert "with the columns call_id, status. None of them says who was called." in said()[-1]
    export(tmp_path / "x.csv")
    assert "This file holds personal data: contact_name, phone_number, recording_url." in said()[-1]


def test_a_call_that_comes_twice_is_written_once(pages, tmp_path):
    pages.append([page([0, 1, 2], 5), page([2, 3, 4], 5)])
    assert export(tmp_path / "x.jsonl")["rows"] == 5


def test_calls_without_an_id_are_told_apart_by_what_they_say(pages, tmp_path):
    pages.append([page([0, 0, 1], 2, call_id=None)])
    assert export(tmp_path / "x.jsonl")["rows"] == 2


def test_missing_calls_are_read_again(pages, tmp_path, said):
    pages += [[page([0, 1, 2], 5), page([2, 1], 5)], [page([4, 3, 2], 5), page([1, 0], 5)]]
    assert export(tmp_path / "x.jsonl")["rows"] == 5
    assert "2 calls are missing; reading again." in "".join(said())


def test_what_is_missing_after_all_readings_is_a_condition(pages, tmp_path):
    passes = [[page([0, 1], 9)] for _ in range(4)]
    pages += passes
    with pytest.raises(AirflowFailException, match=r"7 more calls than the 2 .*4 readings \[HISTORY_INCOMPLETE"):
        export(tmp_path / "x.jsonl")
    assert len(pages) == 1, "each pass but the last, which stays, was taken"
    assert not files_in(tmp_path)
    pages[:] = passes
    assert export(tmp_path / "x.jsonl", outcomes={"HISTORY_INCOMPLETE": "succeed"})["rows"] == 2


def test_a_running_campaign_is_a_condition(sandbox, pages, tmp_path):
    pages.append([page([0, 1], 9)])
    with pytest.raises(AirflowFailException, match="CAMPAIGN_STILL_RUNNING"):
        export(tmp_path / "x.jsonl", "followed")
    with pytest.raises(AirflowSkipException):
        export(tmp_path / "x.jsonl", "followed", outcomes={"CAMPAIGN_STILL_RUNNING": "skip"})
    result = export(tmp_path / "x.jsonl", "followed", outcomes={"CAMPAIGN_STILL_RUNNING": "succeed"})
    assert result["rows"] == 2


def test_filters_are_the_services(sandbox, tmp_path, monkeypatch):
    asked = []
    original = endpoints.history

    def history(*arguments, **options):
        request = original(*arguments, **options)
        asked.append(request.json)
        return request

    monkeypatch.setattr(endpoints, "history", history)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    export(tmp_path / "x.jsonl", statuses=["answered", "busy"], since=since, until="2027-01-01")
    assert list(dict.fromkeys(each["status_filter"] for each in asked)) == ["answered", "busy"]
    assert {(each["date_from"], each["date_to"]) for each in asked} == {
        ("2026-01-01T00:00:00Z", "2027-01-01T23:59:59.999999Z")
    }


@pytest.mark.parametrize("day", ["2026-05-31", date(2026, 5, 31)])
def test_a_plain_date_is_that_whole_day_in_utc(sandbox, tmp_path, day):
    sandbox.add_campaign(id="days", status="completed", total_count=6)
    moments = [
        *("2026-05-30T23:59:59.999Z", "2026-05-31T00:00:00Z", "2026-05-31T12:00:00Z", "2026-05-31T23:59:59.999Z"),
        *("2026-06-01T00:00:00Z", "2026-06-01T00:00:00.001Z"),
    ]
    calls = [{"call_id": moment, "call_time": moment, "status": "answered"} for moment in moments]

    def pages(hook, campaign_id, count_known, *, status, since, until):
        found = [Call.from_json(call) for call in calls if since <= read_time(call["call_time"]) <= until]
        yield CallPage(tuple(found), len(found), len(found))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "call_history_pages", pages)
        export(tmp_path / "x.jsonl", "days", since=day, until=day)
    written = [json.loads(line)["call_id"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert written == moments[1:4]


# Pages, in the hook.


class Pages:
    """A service whose pages do what they like."""

    def __init__(self, answer):
        self.answer = answer
        self.offsets = []

    def send(self, request, **options):
        self.offsets.append(request.json["offset"])
        assert len(self.offsets) < 50
        return self.answer(request.json["offset"], request.json["limit"])


def calls_of(answer, **arguments):
    hook = VoiceGenieHook()
    hook.client = service = Pages(answer)
    return [each.call_id for each in hook.iter_call_history("c", **arguments)], service.offsets


def numbers(*ranges):
    return [f"call-{number}" for each in ranges for number in each]


@pytest.mark.parametrize(
    ("answer", "expected", "offsets"),
    [
        # As documented. A total may be wrong, so what is behind the last page is asked for, too.
        (lambda o, n: page(range(o, min(o + n, 25)), 25), range(25), [0, 10, 20, 25]),
        (lambda o, n: page(range(o, min(o + n, 20)), 20), range(20), [0, 10, 20]),
        # Fewer on a page than asked for.
        (lambda o, n: page(range(o, min(o + 4, 10)), 10), range(10), [0, 4, 8, 10]),
        # A total that is that of the page, also of a page with fewer; one that is too low, and one that is too high.
        (lambda o, n: page(range(o, min(o + n, 25)), min(n, max(0, 25 - o))), range(25), [0, 10, 20, 25]),
        (lambda o, n: page(range(o, min(o + 4, 10)), 4), range(10), [0, 4, 8, 10]),
        (lambda o, n: page(range(o, min(o + n, 25)), 3), range(25), [0, 10, 20, 25]),
        (lambda o, n: page(range(o, min(o + n, 25)), 99), range(25), [0, 10, 20, 25]),
        # No calls; and a service that does not know of offsets, whose calls are also never the same.
        (lambda o, n: page([], 0), [], [0]),
        (lambda o, n: page(range(n), 25), range(10), [0, 10, 20]),
        (lambda o, n: page(range(n), 25, recording_url=str(random.random())), range(10), [0, 10, 20]),
    ],
)
def test_pages(answer, expected, offsets):
    assert calls_of(answer, page_size=10) == (numbers(expected), offsets)


def test_wrong_arguments_of_the_hook():
    with pytest.raises(ValueError, match="until must be after since"):
        VoiceGenieHook().iter_call_history("c", since="2026-05-02", until=datetime(2026, 5, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="page_size must be"):
        VoiceGenieHook().iter_call_history("c", page_size=0)
    with pytest.raises(ValueError, match=r"statuses: 'answered!' is none of .* did you mean 'answered'"):
        VoiceGenieHook().iter_call_history("c", statuses=["answered!"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["phone"]}, "columns: 'phone' is none of"),
        ({"columns": []}, "columns must be a list"),
        ({"columns": "status"}, "columns must be a list"),
        ({"statuses": "answered"}, r'statuses must be a list such as \["answered"\]'),
        ({"statuses": ["voicemail"]}, "statuses: 'voicemail' is none of"),
        ({"outcomes": {"CAMPAIGN_STILL_RUNNING": "wait"}}, "not a valid outcome"),
        ({"path": "x.txt"}, r"path must be a path that ends in .*ends in \.txt"),
        ({"since": "yesterday"}, "since must be a datetime or a time"),
        ({"since": "2026-05-02", "until": "2026-05-01"}, "until must be after since"),
        ({"since": "2026-05-31T08.30"}, r"since must be .*; got '2026-05-31T08\.30'\. Write '2026-05-31T08:30'\."),
        ({"since": "2026-05-31+02:00"}, "since must be a datetime or a time"),
        ({"until": "2026-05-31 8.30Z"}, r"until must be .*; got '2026-05-31 8\.30Z'\. Write '2026-05-31T08:30Z'\."),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(ValueError, match=message):
        CallHistoryToObjectStorageOperator(**{"task_id": "export", "campaign_id": "c", "path": "x.csv", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "x.xlsx"}, r"path: 'x\.xlsx' must end in"),
        ({"since": "yesterday"}, "since must be a datetime or a time"),
        ({"until": "2026-05-31T08.30"}, r"until must be .* Write '2026-05-31T08:30'\."),
    ],
)
def test_wrong_values_of_templates(sandbox, arguments, message):
    operator = CallHistoryToObjectStorageOperator(task_id="export", campaign_id="c", path="{{ params.path }}")
    operator.path = "x.csv"
    for name, value in arguments.items():
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException, match=message):
        operator.execute(context())
    assert not sandbox.sandbox.requests


# When the file appears.


class BrokenOffError(Exception):
    pass


def break_off(calls, after):
    def rows(self):
        for number, row in enumerate(calls(self)):
            if number == after:
                raise BrokenOffError
            yield row

    return rows


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "x.parquet"])
def test_nothing_half_written_is_seen(pages, tmp_path, monkeypatch, name):
    pages.append([page(range(9), 9)])
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text("the one before")
    with monkeypatch.context() as patch:
        patch.setattr(CallStore, "rows", break_off(CallStore.rows, after=5))
        with pytest.raises(BrokenOffError):
            export(tmp_path / name)
    assert files_in(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "the one before"
    assert export(tmp_path / name)["rows"] == 9
    assert files_in(tmp_path) == [name]


def test_a_later_try_removes_what_a_killed_one_left(pages, tmp_path, monkeypatch):
    pages.append([page(range(9), 9)])
    with monkeypatch.context() as patch:
        patch.setattr(CallStore, "rows", break_off(CallStore.rows, after=5))
        patch.setattr("airflow_provider_voicegenie.files.remove", lambda path: None)
        with pytest.raises(BrokenOffError):
            export(tmp_path / "x.csv")
    assert len(files_in(tmp_path)) == 1
    assert export(tmp_path / "x.csv", run=context(try_number=2))["rows"] == 9
    assert files_in(tmp_path) == ["x.csv"]


def test_other_storages(pages):
    from airflow.providers.common.compat.sdk import ObjectStoragePath
    from fsspec.implementations.memory import MemoryFileSystem

    try:
        from airflow.sdk.io import attach
    except ImportError:
        from airflow.io.store import attach

    attach("memory", fs=MemoryFileSystem())
    pages.append([page(range(3), 3)])
    path = ObjectStoragePath("memory://bucket/folder/x.jsonl")
    operator = CallHistoryToObjectStorageOperator(task_id="export", campaign_id="completed", path=path)
    assert operator.execute(context())["rows"] == 3
    assert [each.name for each in path.parent.iterdir()] == ["x.jsonl"]
    assert len(path.read_text().splitlines()) == 3


def test_the_scratch_database_has_no_name(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with CallStore(["call_id"]) as calls:
        calls.begin_pass(None)
        calls.add(page(range(5000), 5000))
        assert not files_in(tmp_path)
        assert len(list(calls.rows())) == 5000


def test_a_task_that_was_told_to_end_writes_no_file(pages, tmp_path):
    operator = CallHistoryToObjectStorageOperator(task_id="x", campaign_id="completed", path=str(tmp_path / "x.csv"))

    def read():
        yield page([0], 2)
        operator.on_kill()
        yield page([1], 2)

    pages.append(read())
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context())
    assert not files_in(tmp_path)


def test_errors_do_not_name_people(sandbox, tmp_path):
    sandbox.inject("status", "history", status=200, body=json.dumps({"success": True, "data": [MARKED_PERSON]}))
    with pytest.raises(VoiceGenieRetryException, match="INVALID_RESPONSE") as caught:
        export(tmp_path / "x.csv")
    assert person_in(str(caught.value)) is None
    sandbox.inject("status", "history", status=200, body=f"{MARKED_PERSON} and so on")
    with pytest.raises(VoiceGenieRetryException, match="is not shown, as it may name people") as caught:
        export(tmp_path / "x.csv")
    assert person_in(str(caught.value)) is None


def test_the_columns_are_what_is_known_of_a_call():
    assert [*COLUMNS, "contact_key"] == [field.name for field in fields(Call)]


def test_a_call_does_not_show_whom_it_was_with():
    assert person_in(repr(call(1))) is None
    assert person_in(repr(page([1], 1))) is None


def test_an_empty_page_is_not_all(pages, tmp_path):
    pages += [[page([], 3)], [page([0, 1, 2], 3)]]
    assert export(tmp_path / "x.jsonl")["rows"] == 3


def test_a_call_that_two_filters_show_is_written_once(pages, tmp_path):
    pages += [[page([0, 1], 2)], [page([1, 2], 2)]]
    assert export(tmp_path / "x.jsonl", statuses=["busy", "failed"])["rows"] == 3


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_half_a_character_is_no_obstacle(tmp_path, sandbox, monkeypatch, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    history = [{"call_id": "1", "contact_name": "Xaverine \ud83d", "status": "answered"}]
    body = json.dumps({"success": True, "data": {"history": history, "pagination": {"total": 1}}})
    sandbox.inject("status", "history", status=200, body=body, times=None)
    assert export(tmp_path / name)["rows"] == 1


def test_a_folder_is_not_written_into(pages, tmp_path):
    pages.append([page([0], 1)])
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(VoiceGenieRetryException, match="is a folder"):
        export(tmp_path / "x.parquet")
    assert files_in(tmp_path) == ["x.parquet"]
    assert not files_in(tmp_path / "x.parquet")


def test_times_without_zone_are_in_utc():
    naive = datetime(2026, 5, 1)
    request = endpoints.history("c", limit=1, offset=0, since=naive, until=naive.replace(tzinfo=UTC))
    assert request.json["date_from"] == request.json["date_to"] == "2026-05-01T00:00:00Z"


def test_many_calls_in_shifting_pages(pages, tmp_path):
    order = list(range(3000))
    shuffled = random.Random(7)

    def read():
        for offset in range(0, 3000, 100):
            shuffled.shuffle(order)
            yield page(order[offset : offset + 100], 3000)

    def some():
        # What random pages leave out, the last reading has.
        return [page(order[offset : offset + 100], 3000) for offset in range(0, 3000, 100)]

    pages += [list(read()), list(read()), some()]
    assert export(tmp_path / "x.jsonl")["rows"] == 3000


# What else makes a wrong file.


@pytest.mark.parametrize("incomplete", [0, 1, 2])
def test_calls_that_are_missing_of_one_filter_among_several_are_noticed(pages, tmp_path, incomplete):
    whole, broken = [page([0, 1], 2)], [page([0, 1], 5)]
    pages += [broken if number % 3 == incomplete else whole for number in range(12)]
    with pytest.raises(AirflowFailException, match=r"3 more calls than the 2 different .* in 4 readings"):
        export(tmp_path / "x.jsonl", statuses=["answered", "busy", "failed"])
    assert not files_in(tmp_path)


def test_what_a_later_reading_has_of_each_filter_counts(pages, tmp_path):
    pages += [[page([0], 2)], [page([2], 2)], [page([0, 1], 2)], [page([2, 3], 2)]]
    assert export(tmp_path / "x.jsonl", statuses=["answered", "busy"])["rows"] == 4


@pytest.mark.parametrize("error", [AirflowTaskTimeout, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz"])
def test_a_task_that_is_out_of_time_leaves_no_personal_data(pages, tmp_path, monkeypatch, error, name):
    pages.append([page(range(9), 9)])

    def rows(self):
        yield ["Xaverine"] * len(COLUMNS)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(CallStore, "rows", rows)
        with pytest.raises(VoiceGenieRetryException if error is OSError else error):
            export(tmp_path / name)
    assert not files_in(tmp_path)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_column_that_is_named_twice_is_written_once(pages, tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    pages.append([page([0, 1], 2)])
    export(tmp_path / name, columns=["call_id", "status", "call_id"])
    read = {"x.csv": read_csv, "x.jsonl": read_json_lines, "x.parquet": read_parquet}[name]
    assert read(tmp_path / name) == [
        {"call_id": "call-0", "status": "busy"},
        {"call_id": "call-1", "status": "answered"},
    ]


def test_a_filter_that_is_named_twice_is_read_once(pages, tmp_path):
    pages += [[page([0], 1)], [page([1], 1)], [page([2], 1)]]
    assert export(tmp_path / "x.jsonl", statuses=["busy", "failed", "busy"])["rows"] == 2


def test_until_must_be_after_since(sandbox, tmp_path):
    same = datetime(2026, 5, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="until must be after since"):
        export(tmp_path / "x.csv", since=same, until=same)


def test_a_file_in_the_home_folder(pages, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pages.append([page([0], 1)])
    operator = CallHistoryToObjectStorageOperator(task_id="export", campaign_id="completed", path="~/calls.csv")
    result = operator.execute(context())
    assert result["path"] == f"{tmp_path}/calls.csv"
    assert files_in(tmp_path) == ["calls.csv"]


@pytest.mark.parametrize("length", [231, 232, 255])
@pytest.mark.parametrize("letter", ["x", "ü"])
def test_names_as_long_as_a_file_system_takes(pages, tmp_path, length, letter):
    pages.append([page([0], 1)])
    name = letter * ((length - 4) // len(letter.encode())) + ".csv"
    export(tmp_path / name)
    assert files_in(tmp_path) == [name]


def test_a_name_that_is_too_long(pages, tmp_path):
    pages.append([page([0], 1)])
    with pytest.raises(VoiceGenieRetryException, match=r"path: '.* cannot be written \(File name too long\)"):
        export(tmp_path / f"{'x' * 252}.csv")
    assert not files_in(tmp_path)


def test_a_later_try_removes_only_its_own_partial_files(pages, tmp_path):
    pages.append([page([0], 1)])
    others = ["calls1.csv", ".calls1.csv.partial", ".callsX.csv.0123456789ab-1.partial"]
    for name in others:
        (tmp_path / name).write_text("another's")
    export(tmp_path / "calls*.csv", run=context(try_number=3))
    assert files_in(tmp_path) == sorted([*others, "calls*.csv"])


# What the service writes in another form, and calls that share an id.


def answer(sandbox, *calls, total=None):
    history = {"history": calls, "pagination": {"total": len(calls) if total is None else total}}
    sandbox.inject("status", "history", status=200, body=json.dumps({"success": True, "data": history}), times=1)
    empty = {"history": [], "pagination": history["pagination"]}
    sandbox.inject("status", "history", status=200, body=json.dumps({"success": True, "data": empty}), times=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1714550400, "1714550400"), (1714550400.25, "1714550400.25"), (4915112345678.0, "4915112345678"), (0, "0")],
)
def test_numbers_in_columns_of_texts_are_written_as_texts(sandbox, tmp_path, said, value, text):
    texts = [name for name, kind in COLUMNS.items() if kind is str]
    answer(sandbox, dict.fromkeys(texts, value))
    export(tmp_path / "x.jsonl")
    (found,) = read_json_lines(tmp_path / "x.jsonl")
    assert {name: found[name] for name in texts} == dict.fromkeys(texts, text)
    assert not [line for line in said() if "empty in the file" in line]


def test_values_of_another_type_are_counted_in_one_warning(sandbox, tmp_path, said):
    calls = [
        {"call_id": "1", "duration": "00:01:30", "call_time": {"xaverine": 1}, "recording_url": True},
        {"call_id": "2", "duration": "xaverine", "call_time": "2026-05-01T08:00:00Z", "contact_name": ["xaverine"]},
        {"call_id": "3", "duration": "90", "status": "  ", "call_time": None},
    ]
    for _ in range(4):
        # What is read again is not counted again.
        answer(sandbox, *calls, total=4)
    export(
        tmp_path / "x.jsonl", columns=["duration", "call_time", "status"], outcomes={"HISTORY_INCOMPLETE": "succeed"}
    )
    assert read_json_lines(tmp_path / "x.jsonl") == [
        {"duration": None, "call_time": None, "status": None},
        {"duration": None, "call_time": "2026-05-01T08:00:00Z", "status": None},
        {"duration": 90.0, "call_time": None, "status": None},
    ]
    (warning,) = [line for line in said() if "empty in the file" in line]
    assert "3 values that the service gave are not of the type of their column" in warning
    assert warning.endswith("empty in the file: duration (2), call_time (1).")


@pytest.mark.parametrize(
    "differs",
    [
        {"call_time": "2026-05-01T09:00:00Z"},
        {"phone_number": "+4915100000009"},
        {"contact_name": "Xaverine B"},
        {"status": "no_answer"},
        {"duration": 31.0},
    ],
)
def test_two_calls_with_one_id_on_one_page(pages, tmp_path, differs):
    calls = (call(0), call(0, **differs), call(1))
    pages.append([CallPage(calls, 3, 3)])
    assert export(tmp_path / "x.jsonl")["rows"] == 3
    assert len(list(hook_calls(pages))) == 3


def test_two_calls_with_one_id_on_two_pages(pages, tmp_path):
    other = call(0, call_time="2026-05-01T09:00:00Z")
    pages.append([CallPage((call(1), call(0)), 2, 3), CallPage((other,), 1, 3)])
    assert export(tmp_path / "x.jsonl")["rows"] == 3
    assert len(list(hook_calls(pages))) == 3


def test_a_call_that_one_page_lists_twice_is_not_missing(pages, tmp_path):
    again = call(0, recording_url="https://recordings.example/0?signed=again")
    pages.append([CallPage((call(0), again, call(1)), 3, 3)])
    assert export(tmp_path / "x.jsonl")["rows"] == 2
    assert len(list(hook_calls(pages))) == 2


def test_a_call_that_is_read_again_with_another_recording_or_result_is_the_same(pages, tmp_path):
    changed = [call(0, recording_url=None), call(1, status="voicemail"), call(2, duration=None)]
    pages.append([page(range(3), 3), CallPage(tuple(changed), 3, 3)])
    assert export(tmp_path / "x.jsonl")["rows"] == 3


def test_calls_that_one_page_lists_twice_hide_no_missing_one(pages, tmp_path):
    pages.append([CallPage((call(0), call(0), call(1)), 3, 5)])
    with pytest.raises(
        AirflowFailException, match=r"2 more calls than the 2 different ones .* unless it lists some twice"
    ):
        export(tmp_path / "x.jsonl")


def hook_calls(pages):
    return VoiceGenieHook().iter_call_history("completed")


# A full disk.


def test_a_full_folder_for_temporary_files(pages, tmp_path, monkeypatch):
    def open_small(schema):
        return scratch.open_scratch(f"{schema} PRAGMA max_page_count = 20;")

    monkeypatch.setattr(call_stores, "open_scratch", open_small)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pages.append([page(range(5000), 5000)])
    with pytest.raises(scratch.ScratchSpaceError, match=r"cannot be written to .*disk is full.* TMPDIR") as caught:
        export(tmp_path / "x.csv")
    assert str(tmp_path) in str(caught.value)
    assert person_in(str(caught.value)) is None
    assert not files_in(tmp_path)


def test_a_folder_for_temporary_files_that_is_not_there(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    pages.append([page([0], 1)])
    with pytest.raises(scratch.ScratchSpaceError, match=r"/gone' \(.*No such file or directory.* TMPDIR"):
        export(tmp_path / "x.csv")


# An API key that is replaced meanwhile.


def test_an_export_goes_on_with_the_key_that_the_connection_has_now(sandbox, tmp_path, said, monkeypatch):
    expected = export(tmp_path / "x.jsonl")
    pages_of = VoiceGenieHook.call_history_pages

    def small_pages(hook, *arguments, **options):
        for number, each in enumerate(pages_of(hook, *arguments, page_size=5, **options)):
            yield each
            if number == 0:
                replace_key(sandbox, monkeypatch)

    monkeypatch.setattr(VoiceGenieHook, "call_history_pages", small_pages)
    said()
    assert export(tmp_path / "x.jsonl") == expected
    assert said()[0] == "Connection 'voicegenie_default': its API key was replaced; going on with the new one."


def replace_key(sandbox, monkeypatch, **fields):
    sandbox.sandbox.api_key += "-replaced"
    connection = {**json.loads(sandbox.connection(max_attempts=1, timeout=20, requests_per_minute=60_000)), **fields}
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))


def refused(sandbox):
    return [each for each in sandbox.sandbox.requests if each.status == 401]


@pytest.mark.parametrize(
    "now",
    [
        {"password": "still-wrong"},
        {"password": ""},
        {"host": "http://127.0.0.1:1"},
        {"password": "a", "host": "https://"},
    ],
)
def test_what_is_no_new_key_of_the_same_account_is_not_tried_for_long(sandbox, monkeypatch, now):
    hook = VoiceGenieHook()
    hook.get_campaign("ready")
    replace_key(sandbox, monkeypatch, **now)
    with pytest.raises(UnauthorizedError):
        hook.get_campaign("ready")
    assert len(refused(sandbox)) == (2 if now == {"password": "still-wrong"} else 1)


def test_a_pause_is_sent_with_the_new_key(sandbox, monkeypatch):
    hook = VoiceGenieHook()
    hook.get_campaign("followed")
    replace_key(sandbox, monkeypatch)
    hook.pause_campaign("followed")
    assert sandbox.status("followed") == "paused"


def test_a_start_is_not_sent_again_with_the_new_key(sandbox, monkeypatch):
    hook = VoiceGenieHook()
    hook.get_campaign("ready")
    replace_key(sandbox, monkeypatch)
    with pytest.raises(UnauthorizedError):
        hook.start_campaign("ready")
    assert len(refused(sandbox)) == 1
    # The next read takes it.
    assert hook.get_campaign("ready").campaign_id == "ready"
