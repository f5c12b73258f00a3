# SPDX-License-Identifier: Apache-2.0
"""Who is uploaded: each person once, nobody who must not be called, and what is told of the others."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, ObjectStoragePath
from helpers.leaks import MARKED_PERSON, person_in
from helpers.tasks import Store, context

from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.transfers import scratch
from airflow_provider_voicegenie.transfers.contacts import ContactUpload

pytestmark = pytest.mark.usefixtures("nobody_is_named")

#: One number in five notations, and another.
ONE = ["+91 98123 45678", "09812345678", "00919812345678", "919812345678", "+919812345678"]
OTHER = "+919812300000"


@pytest.fixture
def campaign(sandbox):
    return sandbox.add_campaign(total_count=0).id


def row(number, **more):
    return {"phone_number": number, "name": MARKED_PERSON["name"], **more}


def operator(campaign, contacts, **arguments):
    return UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=contacts, **arguments)


def upload(campaign, contacts, run=None, **arguments):
    run = run or context()
    result = operator(campaign, contacts, **arguments).execute(run)
    assert person_in(json.dumps([result, run["ti"].xcom])) is None
    return result


def lines(path, *numbers, column="phone_number"):
    path.write_text("".join(f"{line}\n" for line in [column, *numbers]))
    return str(path)


# Each person once.


def test_with_a_region_one_number_in_five_notations_is_one_contact(sandbox, campaign):
    result = upload(campaign, [row(number) for number in [*ONE, OTHER]], region="IN")
    assert (result["uploaded"], result["duplicates"], result["rejected"]) == (2, 4, 0)
    assert sandbox.uploaded(campaign) == ["+919812345678", OTHER]


def test_without_a_region_digits_are_compared(sandbox, campaign, said):
    contacts = [row(number) for number in ONE]
    result = upload(campaign, contacts)
    assert (result["uploaded"], result["duplicates"]) == (2, 3)
    assert sandbox.uploaded(campaign) == [ONE[0], ONE[1]]
    assert "of 5 rows, 2 were uploaded (batches: 1), 0 were rejected, 3 came twice." in said()[-1]


def test_the_log_names_what_is_rejected_and_not_what_came_twice(campaign, said):
    number = "+4915112345678"
    rows = [{"phone_number": each} for each in (number, number, "no number", number)]
    assert upload(campaign, rows, max_rejected=1)["rejected"] == 1
    (line,) = [line for line in said() if "are no contacts" in line]
    assert "1 of 4 rows are no contacts: row 3 " in line
    assert "row 2" not in line
    assert "row 4" not in line


@pytest.mark.parametrize(
    ("numbers", "region", "warning"),
    [
        (["015112345678", "+4915112345679"], {}, "1 of 2 phone numbers begin with 0, .* both called. Give region"),
        (["015112345678", "015112345679"], {}, "2 of 2 phone numbers begin with 0, .* as they are. Give region"),
        (["015112345678", "+4915112345679"], {"region": "DE"}, None),
        (["+4915112345678", "004915112345679"], {}, None),
    ],
)
def test_numbers_without_country_codes_are_warned_of_without_a_region(campaign, said, numbers, region, warning):
    upload(campaign, [row(number) for number in numbers], **region)
    warnings = [line for line in said() if "begin with 0" in line]
    assert len(warnings) == (warning is not None)
    assert warning is None or re.search(warning, warnings[0])


#: The number of a contact, that of the list, and whether both are surely, perhaps or not the same without a region.
NOTATIONS = [
    *(("+4915112345678", same, "surely") for same in ("+49 151 12345678", "0049 151 12345678", "4915112345678")),
    *(("004915112345678", same, "surely") for same in ("+49 151 12345678", "4915112345678")),
    ("+4915112345678", "+49 (0)151 12345678", "surely"),
    ("0151 12345678", "015112345678", "surely"),
    *(("+4915112345678", other, "perhaps") for other in ("0151 12345678", "151 12345678", "12345678")),
    *((other, "+4915112345678", "perhaps") for other in ("0151 12345678", "151 12345678", "(0151) 12345678")),
    *(("4915112345678", other, "perhaps") for other in ("0151 12345678", "15112345678")),
    *(("+919812345678", other, "perhaps") for other in ("9812345678", "09812345678")),
    *(("9812345678", other, "perhaps") for other in ("+919812345678", "00919812345678", "919812345678")),
    *(("+12125550123", other, "perhaps") for other in ("2125550123", "555-0123", "0212-555-0123")),
    *(("+61412345678", other, "perhaps") for other in ("0011 61 412345678", "0412 345 678")),
    ("+79123456789", "8 912 345 67 89", "perhaps"),
    ("+3546123456", "6123456", "perhaps"),
    ("6123456", "+3546123456", "perhaps"),
    # The ends of two numbers in E.164 say nothing, nor do those of two in one notation.
    ("+4915112345678", "+493012345678", "not"),
    ("+12125550123", "+13105550123", "not"),
    ("2125550123", "3105550123", "not"),
    ("919812345678", "919712345678", "not"),
    ("015112345678", "+4917612345679", "not"),
]


@pytest.mark.parametrize(("number", "excluded", "is_same"), NOTATIONS)
def test_a_list_in_another_notation_excludes_who_may_be_meant(
    sandbox, campaign, said, number, excluded, is_same, tmp_path
):
    contacts, path = [row(number), row("+34600111222")], tmp_path / "not.csv"
    result = upload(campaign, contacts, exclude=[row(excluded)], rejected_path=str(path))
    assert sandbox.uploaded(campaign) == ([number] if is_same == "not" else []) + ["+34600111222"]
    assert result["excluded"] == (is_same != "not")
    warned = [line for line in said() if "row 1 may be of somebody on the list of exclude" in line]
    assert len(warned) == (is_same == "perhaps")
    assert ("may be of somebody" in path.read_text()) == (is_same == "perhaps")


def test_with_a_region_notations_are_one_number(sandbox, campaign):
    contacts = [row("+4915112345678"), row("0151 12345679"), row("+4917612345678")]
    result = upload(campaign, contacts, exclude=[row("0151 12345678"), row("0049 151 12345679")], region="DE")
    assert (result["uploaded"], result["excluded"]) == (1, 2)


def test_few_rows_in_another_notation_are_named(campaign, said):
    contacts = [row(f"+49151123456{index:02d}") for index in range(20)]
    result = upload(campaign, contacts, exclude=[row(f"0151123456{index:02d}") for index in range(19)])
    assert (result["uploaded"], result["excluded"]) == (1, 19)
    warned = [line for line in said() if "may be of somebody" in line]
    assert len(warned) == 5
    assert "Further rows" in warned[-1]


@pytest.mark.parametrize(("character", "word"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("columns", [None, {"mobile": "phone_number"}])
def test_a_csv_file_without_commas_is_named_as_such(campaign, tmp_path, character, word, columns):
    path = tmp_path / "contacts.csv"
    path.write_text(f"mobile{character}name\n+4915112345679{character}Ana\n")
    with pytest.raises(AirflowFailException, match=f"contacts: .*first line has {word}"):
        upload(campaign, str(path), columns=columns)


@pytest.mark.parametrize(("columns", "is_hinted"), [(None, True), ({"mobile": "phone_number"}, False)])
def test_a_hint_names_the_column_of_numbers_if_the_author_does_not(campaign, said, columns, is_hinted):
    with pytest.raises(AirflowFailException, match="CONTACTS_REJECTED"):
        upload(campaign, [{"mobile": "no number"}], columns=columns)
    assert any("is the column of the phone numbers called phone_number" in line for line in said()) is is_hinted


def test_duplicates_are_found_across_batches(sandbox, campaign):
    contacts = [row(f"+49151900000{index:02d}") for index in range(10)]
    result = upload(campaign, [*contacts, *contacts, row("+4915190000099")], batch_size=4)
    assert (result["uploaded"], result["duplicates"]) == (11, 10)
    assert len(sandbox.uploaded(campaign)) == 11


def test_duplicates_are_found_across_tries(sandbox, campaign):
    contacts = [row(f"+49151900000{index:02d}") for index in (0, 1, 2, 3, 0, 1, 4, 5)]
    store = Store()
    sandbox.inject("delay", "upload", times=1, seconds=0)
    sandbox.inject("close", "upload", after_acting=False)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, contacts, context(store), batch_size=4)
    result = upload(campaign, contacts, context(store, try_number=2), batch_size=4)
    assert (result["uploaded"], result["duplicates"]) == (6, 2)


def test_duplicates_count_for_no_limit_of_rejected_rows(campaign):
    assert upload(campaign, [row(OTHER), row(OTHER)], max_rejected=0)["duplicates"] == 1


def test_a_number_that_is_not_valid_is_sent_and_counted(sandbox, campaign, said):
    upload(campaign, [row("(555) 055-0123"), row("(212) 555-0123")], region="US")
    assert len(sandbox.uploaded(campaign)) == 2
    assert any("possible, but in no range that phonenumbers knows: 1." in line for line in said())


def test_a_folder_for_temporary_files_that_is_full(campaign, monkeypatch):
    opened = scratch.open_scratch
    monkeypatch.setattr(
        scratch, "open_scratch", lambda schema: opened(schema.replace("BEGIN", "PRAGMA max_page_count = 4; BEGIN"))
    )
    monkeypatch.setattr(scratch, "_CACHE", 1)
    contacts = [row(f"+4915190{index:06d}") for index in range(5000)]
    with pytest.raises(scratch.ScratchSpaceError, match=r"hashes of their numbers are there.* TMPDIR"):
        upload(campaign, contacts)


# Nobody who must not be called.


@pytest.mark.parametrize("written", ONE)
def test_a_person_on_a_list_in_another_notation_is_not_uploaded(sandbox, campaign, tmp_path, written):
    result = upload(
        campaign, [row("098123-45678"), row(OTHER)], region="IN", exclude=lines(tmp_path / "no.csv", written)
    )
    assert (result["uploaded"], result["excluded"]) == (1, 1)
    assert sandbox.uploaded(campaign) == [OTHER]


def write_in(path, numbers):
    if ".csv" in path.name:
        content = "\ufeffphone_number,why\r\n" + "".join(f"{number},asked\r\n" for number in numbers)
    else:
        content = "".join(json.dumps({"phone_number": number}) + "\n" for number in numbers)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.mark.parametrize("name", ["no.csv", "no.jsonl", "no.ndjson.gz", "no.csv.gz"])
@pytest.mark.parametrize("make", [str, Path, ObjectStoragePath, lambda path: [str(path)]])
def test_a_list_in_each_format(sandbox, campaign, tmp_path, name, make):
    write_in(tmp_path / name, [ONE[0]])
    result = upload(campaign, [row(ONE[4]), row(OTHER)], exclude=make(tmp_path / name))
    assert (result["uploaded"], result["excluded"]) == (1, 1)


def test_several_lists_and_another_column(sandbox, campaign, tmp_path):
    lists = [lines(tmp_path / "a.csv", ONE[4], column="mobile"), lines(tmp_path / "b.csv", OTHER, column="mobile")]
    contacts = [row(ONE[4]), row(OTHER), row("+4915190000001")]
    assert upload(campaign, contacts, exclude=lists, exclude_column="mobile")["excluded"] == 2
    assert sandbox.uploaded(campaign) == ["+4915190000001"]


def test_rows_may_be_excluded(sandbox, campaign):
    assert upload(campaign, [row(ONE[4]), row(OTHER)], exclude=[{"phone_number": 919812345678}])["excluded"] == 1


def test_nobody_is_left_if_all_are_rejected(sandbox, campaign):
    with pytest.raises(AirflowSkipException, match=r"nobody is left to upload: .*1 were rejected .NO_CONTACTS"):
        upload(campaign, [row("foo")], max_rejected="100%")


def test_nobody_is_left(sandbox, campaign, tmp_path):
    exclude = lines(tmp_path / "no.csv", ONE[4])
    with pytest.raises(AirflowSkipException, match=r"nobody is left to upload: of 2 rows, 1 are .*NO_CONTACTS"):
        upload(campaign, [row(ONE[4]), row(ONE[4])], exclude=exclude)
    assert not sandbox.request_count("upload")


def missing(folder):
    return str(folder / "no.csv")


def empty(folder):
    return lines(folder / "no.csv")


def nothing(folder):
    (folder / "no.csv").touch()
    return str(folder / "no.csv")


def without_the_column(folder):
    return lines(folder / "no.csv", ONE[4], column="mobile")


def header_without_the_column(folder):
    return lines(folder / "no.csv", column="mobile;name")


def json_without_the_column(folder):
    (folder / "no.jsonl").write_text('{"mobile": "4915190000001"}\n')
    return str(folder / "no.jsonl")


def unreadable(folder):
    (folder / "no.jsonl").write_text("{")
    return str(folder / "no.jsonl")


def without_a_number(folder):
    return lines(folder / "no.csv", "call me", "or not")


def one_of_two_missing(folder):
    return [lines(folder / "a.csv", OTHER), str(folder / "no.csv")]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (missing, r"exclude: there is no file '.*no\.csv' on the machine that runs this task"),
        (empty, r"exclude: '.*no\.csv' is empty"),
        (nothing, r"exclude: '.*no\.csv' cannot be read from its beginning: it has no line"),
        (lambda folder: [], "exclude: what was given is empty"),
        (without_the_column, r"exclude: '.*no\.csv' .*it has no column 'phone_number'; exclude_column says which"),
        (header_without_the_column, r"exclude: '.*no\.csv' .*its first line has semicolons; .* needs commas"),
        (json_without_the_column, r"exclude: '.*no\.jsonl' has no column 'phone_number'; exclude_column says which"),
        (lambda folder: [5], "exclude: what was given: row 1 is no mapping, but of type int"),
        (unreadable, r"exclude: '.*no\.jsonl' cannot be read from its beginning: it breaks the rules"),
        (without_a_number, r"exclude: '.*no\.csv' has 2 rows, and no phone number that can be read"),
        (one_of_two_missing, r"exclude: there is no file '.*no\.csv'"),
    ],
)
def test_without_a_list_nothing_is_sent(sandbox, campaign, tmp_path, make, problem):
    exclude = make(tmp_path)
    with pytest.raises(AirflowFailException, match=f"{problem}.*EXCLUSIONS_MISSING") as caught:
        upload(campaign, [row(OTHER)], exclude=exclude)
    assert person_in(str(caught.value)) is None
    with pytest.raises(AirflowSkipException, match="EXCLUSIONS_MISSING"):
        upload(campaign, [row(OTHER)], exclude=exclude, outcomes={"EXCLUSIONS_MISSING": "skip"})
    assert not sandbox.request_count("upload")
    if make is empty or exclude == []:
        assert upload(campaign, [row(OTHER)], exclude=exclude, outcomes={"EXCLUSIONS_MISSING": "succeed"})["uploaded"]
    else:
        with pytest.raises(AirflowFailException, match="a list may be empty, but it must be there"):
            upload(campaign, [row(OTHER)], exclude=exclude, outcomes={"EXCLUSIONS_MISSING": "succeed"})


def test_a_list_that_renders_to_nothing_is_missing(sandbox, campaign, tmp_path):
    task = operator(campaign, [row(OTHER)], exclude=lines(tmp_path / "no.csv", OTHER))
    # As an upstream task that returns nothing.
    task.exclude = None
    with pytest.raises(AirflowFailException, match=r"exclude: .* gave nothing \[EXCLUSIONS_MISSING"):
        task.execute(context())


def test_numbers_that_cannot_be_read_are_counted_by_row(sandbox, campaign, tmp_path, said):
    exclude = lines(tmp_path / "no.csv", OTHER, "call me", ONE[4], "12345-")
    assert upload(campaign, [row(ONE[4]), row("+4915190000001")], exclude=exclude)["excluded"] == 1
    assert any("of 4 rows, 2 have no phone number that can be read, so those people may be called: row 2, 4" in line
               for line in said())  # fmt: skip


def test_a_list_that_is_replaced_between_two_tries_is_read_again(sandbox, campaign, tmp_path):
    contacts = [row(f"+49151900000{index:02d}") for index in range(6)]
    exclude = lines(tmp_path / "no.csv", contacts[0]["phone_number"])
    store = Store()
    sandbox.inject("delay", "upload", times=1, seconds=0)
    sandbox.inject("close", "upload", after_acting=False)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, contacts, context(store), batch_size=2, exclude=exclude)
    assert sandbox.uploaded(campaign) == [contacts[1]["phone_number"]]
    lines(tmp_path / "no.csv", contacts[0]["phone_number"], contacts[5]["phone_number"])
    result = upload(campaign, contacts, context(store, try_number=2), batch_size=2, exclude=exclude)
    assert result["excluded"] == 2
    assert sandbox.uploaded(campaign) == [each["phone_number"] for each in contacts[1:5]]


def test_a_later_try_with_the_same_list_goes_on_and_counts_all(sandbox, campaign, tmp_path):
    contacts = [row(f"+49151900000{index:02d}") for index in range(6)]
    exclude = lines(tmp_path / "no.csv", contacts[0]["phone_number"], contacts[5]["phone_number"])
    store = Store()
    sandbox.inject("delay", "upload", times=1, seconds=0)
    sandbox.inject("close", "upload", after_acting=False)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, contacts, context(store), batch_size=2, exclude=exclude)
    result = upload(campaign, contacts, context(store, try_number=2), batch_size=2, exclude=exclude)
    assert (result["uploaded"], result["excluded"], sandbox.request_count("upload")) == (4, 2, 4)


def test_a_list_is_a_path_or_rows_and_only_paths_are_rendered(campaign, tmp_path):
    lines(tmp_path / "no-2026-01-01.csv", OTHER)
    for exclude in (f"{tmp_path}/no-{{{{ ds }}}}.csv", [f"{tmp_path}/no-{{{{ ds }}}}.csv"]):
        task = operator(campaign, [row(OTHER)], exclude=exclude, outcomes={"NO_CONTACTS": "succeed"})
        with DAG("excluded", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
            dag.add_task(task)
        task.render_template_fields({"ds": "2026-01-01"})
        assert task.execute(context())["excluded"] == 1
    hidden = operator(campaign, [row(OTHER)], exclude=[{"phone_number": "{{ conn.voicegenie_default.password }}"}])
    hidden.render_template_fields({"conn": None})
    assert "conn" not in repr(hidden.exclude)
    assert repr(hidden.exclude) == "<1 rows, which are not shown>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": "no.xlsx"}, r"exclude must be a path .*ends in \.xlsx"),
        ({"exclude": ["a.csv", "no.xlsx"]}, r"exclude must be a path .*ends in \.xlsx"),
        ({"exclude": ""}, "exclude must be a path"),
        ({"exclude": None}, "exclude: None says nothing. Leave it out if anybody may be called"),
        ({"exclude": ["a.csv", {"phone_number": "1"}]}, "exclude: it must be a list of paths or a list of rows"),
        ({"exclude_column": "mobile"}, "exclude_column: there is no list of people for it"),
        ({"region": None}, "region: None says nothing"),
        ({"exclude": "a.csv", "exclude_column": ""}, "exclude_column must be the name of a column"),
        ({"rejected_path": "no.xlsx"}, r"rejected_path must be a path .*ends in \.xlsx"),
        ({"region": "India"}, "region must be a country by its two letters"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(ValueError, match=message):
        operator("x", "x.csv", **arguments)


def test_a_list_that_becomes_paths_and_rows_is_missing(sandbox, campaign, tmp_path):
    """As a template that gives objects makes it of ["no.csv", "{{ rows }}"]."""
    task = operator(campaign, [row(OTHER)], exclude=lines(tmp_path / "no.csv", OTHER))
    task.exclude = [lines(tmp_path / "no.csv", OTHER), {"phone_number": ONE[0]}]
    with pytest.raises(AirflowFailException, match=r"list of rows, and has both .EXCLUSIONS_MISSING"):
        task.execute(context())
    assert not sandbox.request_count("upload")


def test_a_list_that_is_set_later_counts(sandbox, campaign, tmp_path):
    """As a cluster policy may do it."""
    task = operator(campaign, [row(OTHER), row(ONE[0])])
    task.exclude = lines(tmp_path / "no.csv", OTHER)
    assert task.execute(context())["excluded"] == 1


def test_a_mapped_list_that_is_none_is_refused(campaign):
    with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        mapped = UploadContactsOperator.partial(task_id="upload", contacts="x.csv").expand(
            campaign_id=["a"], exclude=[None]
        )
    with pytest.raises(ValueError, match="exclude: None says nothing"):
        mapped.unmap({**mapped.partial_kwargs, "campaign_id": "a", "exclude": None})


def test_a_parquet_list(sandbox, campaign, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"mobile": [919812345678, None]}), tmp_path / "no.parquet")
    arguments = {"exclude": str(tmp_path / "no.parquet"), "exclude_column": "mobile", "region": "IN"}
    assert upload(campaign, [row(ONE[1]), row(OTHER)], **arguments)["excluded"] == 1
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "no.parquet")
    with pytest.raises(AirflowFailException, match="it has no column 'mobile'"):
        upload(campaign, [row(ONE[1])], **arguments)


@pytest.mark.parametrize(
    ("region", "on_the_list", "written"),
    [
        ("DE", "4915112345678", "0151 12345678"),
        ("BR", "005511961234567", "(11) 96123-4567"),
        ("AU", "0061412345678", "0412 345 678"),
        ("IN", "(+91) 98123-45678", "098123 45678"),
        ("GB", "07400\u2011123456", "+44 7400 123456"),
        ("RU", "8 (912) 345-67-89", "79123456789"),
        # Might be a date; whoever is on the list is meant all the same.
        ("DE", "20261231", "+49 20261231"),
    ],
)
def test_a_list_in_the_notations_of_a_country(sandbox, campaign, region, on_the_list, written):
    contacts = [row(written), row("+12125550123")]
    assert upload(campaign, contacts, region=region, exclude=[{"phone_number": on_the_list}])["excluded"] == 1


def test_a_later_try_says_that_people_who_were_sent_stay(sandbox, campaign, tmp_path, said):
    contacts = [row(f"+49151900000{index:02d}") for index in range(4)]
    exclude = lines(tmp_path / "no.csv", OTHER)
    store = Store()
    sandbox.inject("delay", "upload", times=1, seconds=0)
    sandbox.inject("close", "upload", after_acting=False)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, contacts, context(store), batch_size=2, exclude=exclude)
    lines(tmp_path / "no.csv", contacts[0]["phone_number"])
    upload(campaign, contacts, context(store, try_number=2), batch_size=2, exclude=exclude)
    assert any(
        "The people in the 2 rows that the earlier try has sent stay in the campaign." in line for line in said()
    )


# The rows that were not sent.


def read(path):
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return list(csv.DictReader(text.splitlines())) if ".csv" in path.name else list(map(json.loads, text.splitlines()))


@pytest.mark.parametrize("name", ["not.csv", "not.jsonl", "not.csv.gz", "not.parquet"])
def test_the_rows_that_were_not_sent_are_in_a_file(sandbox, campaign, tmp_path, said, name):
    contacts = [
        row(OTHER, tags=["a"]),
        row("call me", tags=None),
        row(ONE[4], reason="mine"),
        row(OTHER),
        "no row",
        row("+4915190000001"),
    ]
    arguments = {"exclude": [{"phone_number": ONE[4]}], "rejected_path": str(tmp_path / name), "max_rejected": 2}
    result = upload(campaign, contacts, batch_size=2, **arguments)
    assert (result["uploaded"], result["rejected"], result["duplicates"], result["excluded"]) == (2, 2, 1, 1)
    found = read(tmp_path / name)
    assert [(int(each["row_number"]), each["why"], each["reason"]) for each in found] == [
        (2, "rejected", "has a phone number that cannot be one"),
        (3, "excluded", "is of somebody who must not be called"),
        (4, "duplicate", "has the phone number of row 1"),
        (5, "rejected", 'is no mapping such as {"phone_number": "+1..."}, but of type str'),
    ]
    assert [each["phone_number"] or None for each in found] == ["call me", ONE[4], OTHER, None]
    assert found[1]["reason of the row"] == "mine"
    assert found[0]["name"] == MARKED_PERSON["name"]
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert any(f"4 rows that were not sent were written to {tmp_path / name}. This file holds personal" in line
               for line in said())  # fmt: skip


def test_the_file_is_there_if_too_many_are_rejected(sandbox, campaign, tmp_path):
    with pytest.raises(AirflowFailException, match="CONTACTS_REJECTED"):
        upload(campaign, [row("call me"), row(OTHER)], rejected_path=str(tmp_path / "not.csv"))
    assert [each["why"] for each in read(tmp_path / "not.csv")] == ["rejected"]
    assert upload(campaign, [row(OTHER)], rejected_path=str(tmp_path / "not.csv"))["uploaded"] == 1
    assert read(tmp_path / "not.csv") == []


@pytest.mark.parametrize("name", ["rejected_path", "contact_keys_path"])
def test_a_file_that_cannot_be_written_fails_the_try_before_anything_is_sent(
    sandbox, campaign, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("AIRFLOW_CONN_KEYS", json.dumps({"conn_type": "generic", "password": "a long random secret"}))
    folder = tmp_path / "not.csv"
    folder.mkdir()
    more = {"contact_key_conn_id": "keys"} if name == "contact_keys_path" else {}
    contacts = [{**row(OTHER), "contact_id": "7"}]
    with pytest.raises(VoiceGenieRetryException, match=rf"{name}: '.*not\.csv' cannot be written .*is a folder"):
        upload(campaign, contacts, **{name: str(folder)}, **more)
    assert not sandbox.request_count("upload")


def test_contacts_that_break_while_the_file_is_written_are_named(sandbox, campaign, tmp_path, monkeypatch):
    contacts, write = tmp_path / "x.jsonl", ContactUpload._write_rejected
    contacts.write_text(json.dumps(row(OTHER)) + "\n")

    def break_and_write(self):
        contacts.write_text(contacts.read_text() + "{")
        write(self)

    monkeypatch.setattr(ContactUpload, "_write_rejected", break_and_write)
    with pytest.raises(
        AirflowFailException,
        match=r": contacts: '.*x\.jsonl' cannot be read beyond row 1: .* This try has sent nothing",
    ):
        upload(campaign, str(contacts), rejected_path=str(tmp_path / "not.csv"))
    assert [each.name for each in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_file_that_is_read_is_not_replaced(campaign, tmp_path):
    contacts, exclude = lines(tmp_path / "x.csv", OTHER), lines(tmp_path / "no.csv", ONE[0])
    (tmp_path / "link.csv").symlink_to(tmp_path / "no.csv")
    for target in (f"file://{contacts}", exclude, f"{tmp_path}/link.csv", f"{tmp_path}/../{tmp_path.name}/no.csv"):
        for lists in (exclude, [exclude]):
            with pytest.raises(AirflowFailException, match="is a file that this task reads"):
                upload(campaign, contacts, exclude=lists, rejected_path=target)
    with pytest.raises(AirflowFailException, match="is a file that this task reads"):
        upload(campaign, contacts, rejected_path=contacts)


def test_whatever_a_row_is_it_is_written_down(sandbox, campaign, tmp_path):
    """Most of these are rejected because they cannot be written."""
    contacts = [
        {"phone_number": "1", "name": "\ud800"},
        {"phone_number": "2", "name": 10**5000},
        {"phone_number": "3", "reason": {("a", 1): 2}, "reason of the row": "x", "why": {1}},
        {"phone_number": "4", None: ["more"], "None": "n"},
        {"phone_number": "5", "\udfff": float("nan")},
    ]
    for name in ("not.csv", "not.jsonl", "not.parquet"):
        upload(
            campaign, contacts, rejected_path=str(tmp_path / name), max_rejected=5, outcomes={"NO_CONTACTS": "succeed"}
        )
        found = read(tmp_path / name)
        assert [int(each["row_number"]) for each in found] == [1, 2, 3, 4, 5]
        assert found[0]["name"] == r"\ud800"
        assert found[1]["name"] == "<a value of type int>"
        assert found[2]["reason of the row of the row"] == "x"
        assert found[3]["more fields"] == '["more"]'


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_sent(sandbox, campaign, monkeypatch, tmp_path):
    for path in ("foo://bucket/not.csv", "gs://bucket/not.csv"):
        with pytest.raises(AirflowFailException, match=r"^rejected_path: .*"):
            upload(campaign, [row(OTHER)], rejected_path=path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AirflowFailException, match=r"^rejected_path: Parquet files need pyarrow"):
        upload(campaign, [row(OTHER)], rejected_path=str(tmp_path / "not.parquet"))
    assert not sandbox.request_count("upload")


def test_without_rows_the_file_of_the_last_run_is_replaced(campaign, tmp_path):
    (tmp_path / "not.csv").write_text("yesterday")
    with pytest.raises(AirflowSkipException, match="NO_CONTACTS"):
        upload(campaign, [], rejected_path=str(tmp_path / "not.csv"))
    assert read(tmp_path / "not.csv") == []
