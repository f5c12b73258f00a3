# SPDX-License-Identifier: Apache-2.0
"""Files of contacts: what was checked is what is sent, whatever happens to a file meanwhile; and what files hold."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.leaks import MARKED_PERSON, check_for_people, person_in
from helpers.tasks import Store, context

from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.transfers import contact_rows, contact_sources
from airflow_provider_voicegenie.transfers.contacts import ContactUpload

pytestmark = pytest.mark.usefixtures("nobody_is_named")


@pytest.fixture
def campaign(sandbox):
    return sandbox.add_campaign(total_count=0).id


def number(index):
    return f"+4915190817263{index:02d}"


def rows(count, first=0):
    return [{**MARKED_PERSON, "phone_number": number(index)} for index in range(first, first + count)]


def upload(campaign, contacts, run=None, **arguments):
    task = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=contacts, **arguments)
    return task.execute(run or context())


def write(path, content):
    text = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def after_batches(monkeypatch):
    """Do something once so many batches were sent; 0 is after the check and before the first."""

    def register(batches, act):
        keep = ContactUpload._keep
        acts = [act]

        def keep_and_act(self):
            keep(self)
            if self._progress.batches >= batches and acts:
                acts.pop()()

        monkeypatch.setattr(ContactUpload, "_keep", keep_and_act)

    return register


# What was checked is what is sent.


CHANGES = {
    "other people": lambda path: write(path, rows(30, first=50)),
    "others at the end": lambda path: write(path, [*rows(29), *rows(1, first=77)]),
    "one more": lambda path: write(path, rows(31)),
    "many more": lambda path: write(path, rows(60)),
    "one less": lambda path: write(path, rows(29)),
    "emptied": lambda path: write(path, []),
    "other name": lambda path: write(path, [*rows(29), {**rows(30)[29], "name": "Xaverine B"}]),
    "other order": lambda path: write(path, rows(30)[::-1]),
    "no contacts any more": lambda path: write(path, [*rows(3), *[{"phone_number": "?"}] * 27]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_file_that_changes_after_the_check_is_not_sent(sandbox, campaign, tmp_path, after_batches, change, name):
    path = tmp_path / name
    write(path, rows(30))
    after_batches(0, lambda: change(path))
    with pytest.raises(AirflowFailException, match=r"have changed since .* This try has sent nothing") as caught:
        upload(campaign, str(path), batch_size=10)
    check_for_people(caught.value)
    assert not sandbox.request_count("upload")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_what_was_checked_is_sent_before_a_change_is_seen(
    sandbox, campaign, tmp_path, after_batches, monkeypatch, change
):
    monkeypatch.setattr(contact_rows, "_COMPARED_ROWS", 10)
    # The file is read in blocks, so its rest has to be longer than one.
    content = [{**row, "note": "x" * 20_000} for row in rows(30)]
    path = tmp_path / "x.jsonl"
    write(path, content)
    after_batches(2, lambda: change(path))
    with pytest.raises(AirflowFailException) as caught:
        upload(campaign, str(path), batch_size=5)
    assert "10 of 30 rows were sent" in str(caught.value)
    check_for_people(caught.value)
    assert sandbox.uploaded(campaign) == [number(index) for index in range(10)]


def test_rows_in_memory_that_change_are_not_sent(sandbox, campaign, after_batches):
    content = rows(30)
    after_batches(0, lambda: content.__setitem__(3, {"phone_number": "+4915551234567"}))
    with pytest.raises(AirflowFailException, match="have changed since"):
        upload(campaign, content)
    assert not sandbox.uploaded(campaign)


def test_a_later_try_compares_the_rows_that_it_skips(sandbox, campaign, tmp_path, after_batches, monkeypatch):
    monkeypatch.setattr(contact_rows, "_COMPARED_ROWS", 10)
    path = tmp_path / "x.jsonl"
    write(path, rows(40))
    store = Store()
    sandbox.inject("delay", "upload", times=2, seconds=0)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, str(path), context(store), batch_size=10)
    after_batches(2, lambda: write(path, [*rows(1, first=90), *rows(40)[1:]]))
    with pytest.raises(AirflowFailException, match=r"have changed since .* 20 of 40 rows were sent"):
        upload(campaign, str(path), context(store, try_number=2), batch_size=10)
    assert len(sandbox.uploaded(campaign)) == 20


def test_a_later_try_with_other_batches_goes_on_behind_the_same_row(sandbox, campaign, tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, rows(40))
    store = Store()
    sandbox.inject("delay", "upload", times=2, seconds=0)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, str(path), context(store), batch_size=10)
    assert upload(campaign, str(path), context(store, try_number=2), batch_size=7)["uploaded"] == 40
    # Three of the first try; 7, 7 and 6 rows of the second.
    assert sandbox.request_count("upload") == 3 + 3


def test_as_many_rows_as_are_compared_at_once_make_no_difference(sandbox, campaign, monkeypatch):
    for compared, size in ((1, 3), (7, 3), (20, 20), (19, 20), (21, 4)):
        monkeypatch.setattr(contact_rows, "_COMPARED_ROWS", compared)
        target = sandbox.add_campaign(total_count=0).id
        assert upload(target, rows(20), batch_size=size)["uploaded"] == 20
        assert sandbox.uploaded(target) == [number(index) for index in range(20)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.unlink(), VoiceGenieRetryException, "there is no file .* on the machine"),
        (lambda path: path.write_text("{" * 9), AirflowFailException, "breaks the rules of its format"),
        (lambda path: path.write_bytes(b"\xff" * 9), AirflowFailException, "it is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_again_says_how_many_were_sent(
    sandbox, campaign, tmp_path, after_batches, change, error, message
):
    path = tmp_path / "x.jsonl"
    write(path, rows(30))
    after_batches(0, lambda: change(path))
    with pytest.raises(error, match=f"{message}.* This try has sent nothing") as caught:
        upload(campaign, str(path), batch_size=10)
    check_for_people(caught.value)
    assert not sandbox.request_count("upload")


@pytest.mark.parametrize("is_sent", [False, True], ids=["before the first batch", "after two"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), VoiceGenieRetryException),
        (lambda path: path.write_text("{" * 9), AirflowFailException),
    ],
)
def test_a_day_is_not_skipped_once_its_contacts_were_read(
    sandbox, campaign, tmp_path, after_batches, change, error, is_sent
):
    path = tmp_path / "x.jsonl"
    write(path, rows(30))
    store, skips = Store(), {"CONTACTS_MISSING": "skip", "CONTACTS_UNREADABLE": "skip"}
    if is_sent:
        sandbox.inject("delay", "upload", times=2, seconds=0)
        sandbox.inject("close", "upload")
        with pytest.raises(VoiceGenieRetryException):
            upload(campaign, str(path), context(store), batch_size=10, outcomes=skips)
        change(path)
    else:
        after_batches(0, lambda: change(path))
    sent = len(sandbox.uploaded(campaign))
    with pytest.raises(error) as caught:
        upload(campaign, str(path), context(store, try_number=1 + is_sent), batch_size=10, outcomes=skips)
    assert not isinstance(caught.value, AirflowSkipException)
    assert len(sandbox.uploaded(campaign)) == sent


# Files that cannot be opened or read.


def test_a_missing_file_says_where_it_is_missing(sandbox, campaign, tmp_path):
    with pytest.raises(
        VoiceGenieRetryException, match=r"that runs this task\. With several workers, use object"
    ) as caught:
        upload(campaign, str(tmp_path / "x.csv"))
    assert caught.value.condition == "CONTACTS_MISSING"
    with pytest.raises(AirflowSkipException, match="CONTACTS_MISSING"):
        upload(campaign, str(tmp_path / "x.csv"), outcomes={"CONTACTS_MISSING": "skip"})
    assert not sandbox.request_count("upload")


def test_a_name_that_is_too_long_is_the_cause(sandbox, campaign, tmp_path):
    with pytest.raises(VoiceGenieRetryException, match=r"cannot be read \(File name too long\)"):
        upload(campaign, str(tmp_path / ("x" * 252 + ".csv")))
    path = tmp_path / ("x" * 249 + ".jsonl")
    write(path, rows(2))
    assert upload(campaign, str(path))["uploaded"] == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_storage_that_gives_nothing_says_why(sandbox, campaign, tmp_path, monkeypatch, code):
    path = tmp_path / "x.jsonl"
    write(path, rows(2))

    def fail(*arguments, **more):
        raise OSError(code, "Xaverine")

    monkeypatch.setattr(contact_sources, "read_rows", fail)
    with pytest.raises(VoiceGenieRetryException, match=os.strerror(code)) as caught:
        upload(campaign, str(path), outcomes={"CONTACTS_MISSING": "skip"})
    check_for_people(caught.value)


def test_a_folder_is_no_file(sandbox, campaign, tmp_path):
    folder = tmp_path / "parts.parquet"
    folder.mkdir()
    (folder / "part-0.parquet").touch()
    with pytest.raises(AirflowFailException, match=r"is a folder.* map the task over its files"):
        upload(campaign, str(folder))


def test_a_storage_that_is_not_installed_is_the_cause(sandbox, campaign):
    # The newest Airflow notices it when the path is made, the oldest one when the file is opened.
    with pytest.raises(
        AirflowFailException,
        match=r"'nowhere:/+bucket/x.csv'.* storage \(nowhere\) is missing on the machine",
    ) as refused:
        upload(campaign, "nowhere://bucket/x.csv")
    assert "[CONTACTS_UNREADABLE: the task fails" in str(refused.value)
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    ("path", "package", "module"),
    [
        ("s3://bucket/x.csv", "apache-airflow-providers-amazon[s3fs]", "s3fs"),
        ("gs://bucket/x.csv", "apache-airflow-providers-google", "gcsfs"),
        ("abfs://box@account/x.csv", "apache-airflow-providers-microsoft-azure", "adlfs"),
    ],
)
def test_the_package_of_a_storage_is_named(sandbox, campaign, path, package, module):
    if find_spec(module):
        pytest.skip(f"{module} is installed here")
    with pytest.raises(AirflowFailException, match=rf"pip install '{re.escape(package)}'") as refused:
        upload(campaign, path)
    assert "CONTACTS_UNREADABLE" in str(refused.value)


@pytest.mark.parametrize("name", ["contacts", "exclude"])
def test_a_storage_that_is_not_installed_excludes_nobody(sandbox, campaign, name):
    arguments = {"contacts": rows(1), name: "nowhere://bucket/x.csv"}
    condition = {"contacts": "CONTACTS_UNREADABLE", "exclude": "EXCLUSIONS_MISSING"}[name]
    with pytest.raises(AirflowFailException, match=rf"{name}: .*{condition}"):
        upload(campaign, **arguments)
    assert not sandbox.request_count("upload")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", f"phone_number,note\n4915190817263,{'x' * 131_073}\n", "longer than 131,072 characters"),
        ("x.csv", 'phone_number,note\n"4915190817263,x\n', "quotation mark that is not closed"),
        ("x.csv", "phone_number,a,b,a\n4915190817263,1,2,3\n", "two of its columns have the same name"),
        ("x.csv", "phone_number,,\n4915190817263,,x\n", "one of several columns without a name"),
        ("x.jsonl", '{"phone_number": "+4915190817263", "phone_number": "1"}', "two values of the same name"),
        ("x.jsonl", '{"phone_number": "1", "x": [{"a": 1, "a": 1}]}', "two values of the same name"),
        ("x.jsonl", f'{{"phone_number": {"9" * 5000}}}', r"Python cannot hold \(ValueError\)"),
        ("x.jsonl", f'{{"phone_number": {"[" * 100_000}', "breaks the rules of its format"),
    ],
)
def test_files_that_cannot_be_read(sandbox, campaign, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(AirflowFailException, match=message) as caught:
        upload(campaign, str(tmp_path / name))
    check_for_people(caught.value)
    assert person_in(str(caught.value)) is None
    assert not sandbox.request_count("upload")


# What spreadsheets write.


@pytest.mark.parametrize(
    "content",
    [
        "phone_number,name,,\n{0},A,,\n{1},B,,\n",
        "phone_number,name\n{0},A,,\n{1},B,,,\n",
        "phone_number,name\n{0},A\n,\n{1},B\n , \n\n,,,\n",
        ",,\n\nphone_number,name,\n{0},A,\n{1},B,\n",
        "phone_number,, name,name,\n{0},, ,A, \n{1},,,B,\n",
        "\ufeffphone_number,name,,\r\n{0},A,,\r\n,,,\r\n{1},B,,\r\n",
    ],
)
def test_what_is_empty_in_a_spreadsheet_is_not_there(sandbox, campaign, tmp_path, content):
    (tmp_path / "x.csv").write_text(content.format(number(0), number(1)), newline="")
    result = upload(campaign, str(tmp_path / "x.csv"))
    assert (result["uploaded"], result["rejected"], result["batches"]) == (2, 0, 1)


def test_rows_from_the_reader_of_python_are_read_alike(sandbox, campaign):
    text = f"phone_number,name,,\n{number(0)},A,,\n{number(1)},B,,,,\n"
    content = list(csv.DictReader(text.splitlines()))
    assert upload(campaign, content)["uploaded"] == 2


def test_a_value_beyond_the_last_column_is_no_contact(sandbox, campaign, tmp_path):
    (tmp_path / "x.csv").write_text(f"phone_number,name\n{number(0)},A,,x\n")
    with pytest.raises(AirflowFailException, match="CONTACTS_REJECTED"):
        upload(campaign, str(tmp_path / "x.csv"))


def test_the_index_of_pandas_is_a_column_without_a_name(sandbox, campaign, tmp_path, monkeypatch):
    sent = []
    store = sandbox.sandbox.store
    add = store.upload
    monkeypatch.setattr(store, "upload", lambda *given: (sent.extend(given[1]), add(*given))[1])
    (tmp_path / "x.csv").write_text(f",phone_number,name\n0,{number(0)},A\n1,{number(1)},B\n")
    assert upload(campaign, str(tmp_path / "x.csv"))["uploaded"] == 2
    assert [contact["custom_fields"] for contact in sent] == [{"": "0"}, {"": "1"}]


# Parquet.


@pytest.fixture
def parquet():
    pytest.importorskip("pyarrow")
    return pytest.importorskip("pyarrow.parquet")


def test_parquet_with_two_columns_of_one_name_is_refused(sandbox, campaign, tmp_path, parquet):
    import pyarrow as pa

    columns = [pa.array([number(0)]), pa.array([number(1)])]
    parquet.write_table(pa.Table.from_arrays(columns, ["phone_number", "phone_number"]), tmp_path / "x.parquet")
    with pytest.raises(AirflowFailException, match="two of its columns have the same name"):
        upload(campaign, str(tmp_path / "x.parquet"))
    assert not sandbox.request_count("upload")


def test_parquet_has_decimals_and_missing_values(sandbox, campaign, tmp_path, parquet):
    import pyarrow as pa

    table = pa.table(
        {
            "phone_number": pa.array([Decimal("4915190817263"), Decimal("4915190817264")], pa.decimal128(20, 2)),
            "name": pa.array([None, "B"], pa.string()),
            "joined": pa.array([None, datetime(2026, 5, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")),
            "score": pa.array([float("nan"), 0.5]),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    assert upload(campaign, str(tmp_path / "x.parquet"))["uploaded"] == 2
    assert sandbox.uploaded(campaign) == ["4915190817263", "4915190817264"]


@pytest.mark.parametrize("kind", ["timestamp", "struct"])
def test_parquet_with_a_value_that_python_cannot_hold(sandbox, campaign, tmp_path, parquet, kind):
    import pyarrow as pa

    value = {
        "timestamp": lambda: pa.array([2**62], pa.timestamp("us")),
        "struct": lambda: pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    }[kind]()
    table = pa.Table.from_arrays([pa.array([number(0)]), value], ["phone_number", "x"])
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(AirflowFailException, match="value that Python cannot hold"):
        upload(campaign, str(tmp_path / "x.parquet"))
