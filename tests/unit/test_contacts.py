# SPDX-License-Identifier: Apache-2.0
"""The upload of contacts: what is a contact, what is sent, what is told, and what a later try does."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import math
from datetime import date
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.leaks import MARKED_PERSON, person_in
from helpers.tasks import Store, context, meanwhile

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.contacts import ContactColumns, RejectedLimit
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.rules.phone_numbers import NotAContactError
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.transfers.contacts import ContactUpload

pytestmark = pytest.mark.usefixtures("nobody_is_named")


@pytest.fixture
def campaign(sandbox):
    return sandbox.add_campaign(total_count=0).id


def rows(count, first=0):
    return [{**MARKED_PERSON, "phone_number": number(i)} for i in range(first, first + count)]


def number(index):
    return f"+4915190817263{index:02d}"


def upload(campaign_id, contacts, run=None, **arguments):
    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign_id, contacts=contacts, **arguments)
    # As Airflow does when it renders the task's templates.
    operator.contacts = operator.contacts
    run = run or context()
    result = operator.execute(run)
    assert person_in(json.dumps([result, run["ti"].xcom])) is None
    return result


# What a contact is.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("+49 151 2345-678", "+49 151 2345-678"),
        (" 4915123456 ", "4915123456"),
        ("(0151) 234.56/7", "(0151) 234.56/7"),
        (4915123456, "4915123456"),
        (4915123456.0, "4915123456"),
        ("4915123456.0", "4915123456"),
    ],
)
def test_a_phone_number_is_sent_as_it_is(value, expected):
    assert ContactColumns().contact({"phone_number": value}) == {"phone_number": expected}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "has no phone number"),
        ({"phone_number": None}, "has no phone number"),
        ({"phone_number": "  "}, "has no phone number"),
        ({"phone_number": math.nan}, "has no phone number"),
        ({"phone_number": "123"}, "cannot be one"),
        ({"phone_number": "1" * 20}, "cannot be one"),
        ({"phone_number": "call me"}, "cannot be one"),
        ({"phone_number": "1-800-FLOWERS"}, "cannot be one"),
        ({"phone_number": "٠١٥١٢٣٤٥٦٧"}, "cannot be one"),
        ({"phone_number": True}, "of type bool"),
        ({"phone_number": ["1"]}, "of type list"),
        ({"phone_number": "4915123456", None: ["more"]}, "more fields"),
        ("4915123456", "of type str"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_contact(row, reason):
    with pytest.raises(NotAContactError, match=reason):
        ContactColumns().contact(row)


def test_columns_become_parts_and_custom_fields():
    columns = ContactColumns({"mobile": "phone_number", "full name": "name"})
    row = {
        "mobile": "4915123456",
        "full name": "A",
        "email": "",
        "phone_number": "x",
        "since": date(2026, 5, 1),
        "n": 1,
    }
    assert columns.contact(row) == {
        "phone_number": "4915123456",
        "name": "A",
        "custom_fields": {"phone_number": "x", "since": "2026-05-01", "n": 1},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"mobile": "phone_numer"}}, "did you mean 'phone_number'"),
        ({"columns": {"a": "name", "b": "name"}}, "'a' and 'b' are both name"),
        ({"columns": ["phone"]}, "columns must be a mapping"),
        ({"max_rejected": -1}, "max_rejected must be"),
        ({"max_rejected": True}, "max_rejected must be"),
        ({"max_rejected": "101%"}, "max_rejected must be a percentage"),
        ({"max_rejected": "2"}, "max_rejected must be"),
        (
            {"contacts": "x.xlsx"},
            r"contacts must be a path that ends in \.csv, .*the text that was given ends in \.xlsx",
        ),
        ({"contacts": "x.parquet.gz"}, r"ends in \.parquet\.gz"),
        ({"contacts": None}, "contacts must be a path"),
        ({"contacts": "phone_number\n4915190817263"}, "contacts must be a path .*has no such end"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        ({"upload_in_backfill": "no"}, "upload_in_backfill must be True or False"),
        ({"outcomes": {"CONTACTS_REJECTED": "wait"}}, "not a valid outcome"),
        ({"outcomes": {"CAMPAIGN_PAUSED": "skip"}}, "not a condition of this task"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(ValueError, match=message):
        UploadContactsOperator(**{"task_id": "upload", "campaign_id": "x", "contacts": "x.csv", **arguments})


@pytest.mark.parametrize(
    ("limit", "rejected", "count", "exceeded"),
    [
        (0, 0, 1, False),
        (0, 1, 9, True),
        (2, 2, 9, False),
        (2, 3, 9, True),
        ("2%", 2, 100, False),
        ("2 %", 3, 100, True),
    ],
)
def test_limit_of_rejected_rows(limit, rejected, count, exceeded):
    assert RejectedLimit(limit).is_exceeded(rejected, count) is exceeded


# What is sent.


def test_rows_are_uploaded_in_batches(sandbox, campaign):
    result = upload(campaign, rows(25), batch_size=10)
    assert result == {
        "campaign_id": campaign,
        "campaign_name": sandbox.sandbox.store.find(campaign).name,
        "campaign_created": False,
        "uploaded": 25,
        "rejected": 0,
        "duplicates": 0,
        "excluded": 0,
        "batches": 3,
    }
    assert sandbox.uploaded(campaign) == [number(i) for i in range(25)]
    assert sandbox.request_count("get") == 1


def write_csv(path, content):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, content[0])
        writer.writeheader()
        writer.writerows(content)


def write_json_lines(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def write_gzipped(path, content):
    plain = path.with_suffix("")
    (write_csv if plain.suffix == ".csv" else write_json_lines)(plain, content)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def write_parquet(path, content):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(content), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("contacts.csv", write_csv),
        ("contacts.CSV", write_csv),
        ("contacts.jsonl", write_json_lines),
        ("contacts.ndjson", write_json_lines),
        ("contacts.csv.gz", write_gzipped),
        ("contacts.jsonl.gz", write_gzipped),
        ("contacts.parquet", write_parquet),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_of_each_format(sandbox, campaign, tmp_path, name, write, scheme):
    write(tmp_path / name, rows(12))
    assert upload(campaign, f"{scheme}{tmp_path / name}")["uploaded"] == 12
    assert sandbox.uploaded(campaign) == [number(i) for i in range(12)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"phone_number": "4915190817263"}\nXaverine', "beyond row 1: it breaks the rules"),
        ("x.jsonl", b'["Xaverine"]', "from its beginning: the next line is no JSON object; each"),
        (
            "x.csv",
            b"phone_number,name\n4915190817263,Xaverine\xe4",
            "from its beginning: it is not UTF-8; save it as UTF-8",
        ),
        ("x.csv", b'phone_number,name\n"4915190817263,Xaverine', "it breaks the rules"),
        ("x.csv", b"Xaverine,Xaverine\n1,2", "two of its columns have the same name"),
        ("x.csv.gz", b"Xaverine", "not compressed with gzip"),
        ("x.csv.gz", gzip.compress(b"phone_number\n4915190817263\n", mtime=0)[:-9], "it is not whole"),
    ],
)
def test_files_that_cannot_be_read(sandbox, campaign, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AirflowFailException, match=message) as caught:
        upload(campaign, str(tmp_path / name))
    assert person_in(f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}") is None
    assert not sandbox.request_count("upload")


def test_a_broken_parquet_file(sandbox, campaign, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(AirflowFailException, match="no Parquet file"):
        upload(campaign, str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("text", ["", "[{'phone_number': '4915190817263'}]", "{}"])
def test_rows_that_a_template_made_text_of(sandbox, campaign, text):
    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts="{{ ti.xcom_pull('extract') }}")
    operator.contacts = text
    with pytest.raises(AirflowFailException, match=r"contacts=extract\.output") as caught:
        operator.execute(context())
    assert person_in(str(caught.value)) is None


def test_a_misspelled_column_is_noticed_before_anything_is_sent(sandbox, campaign):
    with pytest.raises(AirflowFailException, match=r"no row has a column 'fullname'. The first row has 4 column"):
        upload(campaign, rows(3), columns={"fullname": "name"})
    assert not sandbox.request_count("upload")


# What may keep the task from uploading.


@pytest.mark.parametrize(
    ("status", "condition"),
    [
        ("running", "CAMPAIGN_ALREADY_RUNNING"),
        ("in_progress", "CAMPAIGN_ALREADY_RUNNING"),
        ("completed", "CAMPAIGN_COMPLETED"),
        ("stopped", "CAMPAIGN_COMPLETED"),
    ],
)
@pytest.mark.parametrize(("outcome", "end"), [(None, AirflowFailException), ("skip", AirflowSkipException)])
def test_nothing_is_sent_to_a_campaign_that_runs_or_is_over(sandbox, status, condition, outcome, end):
    campaign_id = sandbox.add_campaign(status=status, total_count=10_000).id
    with pytest.raises(end, match=condition):
        upload(campaign_id, rows(3), outcomes={condition: outcome} if outcome else None)
    assert not sandbox.request_count("upload")


def test_a_running_campaign_gets_contacts_if_the_author_says_so(sandbox):
    assert upload("long", rows(3), outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})["uploaded"] == 3


def test_an_upload_ends_when_the_campaign_is_started_meanwhile(sandbox, campaign, monkeypatch):
    monkeypatch.setattr(timing, "upload_look_interval", 0.0)
    looks = iter(["scheduled", "paused", "running"])
    look = ContactUpload._look

    def change_and_look(self):
        sandbox.sandbox.store.change(campaign, status=next(looks))
        look(self)

    monkeypatch.setattr(ContactUpload, "_look", change_and_look)
    with pytest.raises(AirflowFailException, match=r"phones whoever .* \(10 of 25 rows were uploaded before\)"):
        upload(campaign, rows(25), batch_size=10)
    assert len(sandbox.uploaded(campaign)) == 10


def test_backfills_upload_nothing(sandbox, campaign):
    run = {**context(), "dag_run": SimpleNamespace(run_type="backfill")}
    with pytest.raises(AirflowSkipException, match=r"upload_in_backfill=True.*BACKFILL_RUN"):
        upload(campaign, rows(3), run)
    assert not sandbox.sandbox.requests
    assert upload(campaign, rows(3), run, upload_in_backfill=True)["uploaded"] == 3


def test_rows_that_the_campaign_has_already_are_told_apart(sandbox, campaign, said):
    upload(campaign, rows(3))
    said()
    upload(campaign, rows(5))
    assert (
        "of 5 rows, 2 were uploaded (batches: 1), 0 were rejected, 0 came twice, and 3 were in the campaign already"
        in said()[-1]
    )


def test_the_hook_refuses_a_contact_without_a_number(sandbox, campaign):
    with pytest.raises(ValueError, match="number 2 has no phone_number; nothing was sent"):
        VoiceGenieHook().upload_contacts(campaign, [rows(1)[0], {"mobile": "4915190817263"}])
    result = VoiceGenieHook().upload_contacts(campaign, [{**MARKED_PERSON, "phone_number": "81726"}])
    assert result.failed_count == 1
    assert "81726" not in f"{result!r} {result.to_json()}"


def test_no_rows_are_a_condition(sandbox, campaign):
    with pytest.raises(AirflowSkipException, match="NO_CONTACTS"):
        upload(campaign, [])
    result = upload(campaign, [], outcomes={"NO_CONTACTS": "succeed"})
    assert (result["uploaded"], result["batches"]) == (0, 0)


@pytest.mark.parametrize(
    ("condition", "status", "code"),
    [("UNAUTHORIZED", 401, None), ("NOT_FOUND", 404, "NOT_FOUND"), ("REFUSED", 400, "BAD_REQUEST")],
)
def test_refusals_of_the_service(sandbox, campaign, condition, status, code):
    body = json.dumps(
        {"success": False, "error": code, "message": "Xaverine Quastenflosser, +49 1519 0817263, is wrong"}
    )
    sandbox.inject("status", "upload", status=status, body=body)
    with pytest.raises(AirflowFailException, match=condition) as caught:
        upload(campaign, rows(3))
    assert person_in(str(caught.value)) is None
    assert sandbox.request_count("upload") == 1


# Rejected contacts.


def test_rows_without_a_number_are_named_by_their_own_and_nothing_is_sent(sandbox, campaign, said):
    content = rows(10)
    content[3].pop("phone_number")
    content[6]["phone_number"] = "Quasti"
    with pytest.raises(
        AirflowFailException, match=r"2 of 10 rows are rejected, more than max_rejected=1 .*nothing was sent"
    ):
        upload(campaign, content, max_rejected=1)
    assert "row 4 has no phone number; row 7 has a phone number that cannot be one." in "".join(said())
    assert not sandbox.request_count("upload")


def test_rejected_rows_within_the_limit_are_counted(sandbox, campaign):
    content = [*rows(8), {"name": "x"}, {"phone_number": "?"}]
    result = upload(campaign, content, max_rejected="20%", batch_size=3)
    assert (result["uploaded"], result["rejected"], result["batches"]) == (8, 2, 3)


def test_contacts_that_the_service_rejects(sandbox, campaign, said):
    # A number for us, and written in a way that the sandbox does not know.
    content = [*rows(3), {**MARKED_PERSON, "phone_number": "81726/33"}]
    with pytest.raises(AirflowFailException, match=r"1 of 4 rows are rejected.*3 contacts were uploaded") as caught:
        upload(campaign, content)
    assert "81726" not in f"{caught.value}{said()}"
    result = upload(campaign, content, outcomes={"CONTACTS_REJECTED": "succeed"})
    assert (result["uploaded"], result["rejected"]) == (0, 1)


# Lost responses, large batches, later tries.


@pytest.mark.parametrize("kind", ["close", "truncated", "not_json", "status"])
@pytest.mark.parametrize("after_acting", [False, True])
def test_a_batch_whose_response_is_lost_is_sent_again(sandbox, campaign, monkeypatch, kind, after_acting):
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=3))
    sandbox.inject(kind, "upload", after_acting=after_acting)
    result = upload(campaign, rows(25), batch_size=10)
    assert (result["uploaded"], result["batches"]) == (25, 3)
    assert sandbox.uploaded(campaign) == [number(i) for i in range(25)]
    assert sandbox.request_count("upload") == 4


def test_a_batch_that_is_too_large_is_sent_in_parts(sandbox, campaign):
    sandbox.sandbox.max_upload_bytes = 1500
    result = upload(campaign, rows(40), batch_size=40)
    assert result["uploaded"] == 40
    assert sandbox.uploaded(campaign) == [number(i) for i in range(40)]
    # 40, 20 and 10 are too many; then no batch is too large any more.
    answers = [request.status for request in sandbox.sandbox.requests if request.operation == "upload"]
    assert answers == [413] * 3 + [200] * 8


def test_a_contact_that_is_too_large_by_itself_is_rejected(sandbox, campaign):
    sandbox.sandbox.max_upload_bytes = 1500
    content = rows(4)
    content[2]["note"] = "Quasti" * 500
    with pytest.raises(AirflowFailException, match="1 of 4 rows are rejected"):
        upload(campaign, content)
    assert len(sandbox.uploaded(campaign)) == 3


def test_a_later_try_goes_on_behind_the_last_batch(sandbox, campaign, tmp_path):
    write_csv(tmp_path / "x.csv", rows(50))
    store = Store()
    for try_number, has_acted in ((1, False), (2, True)):
        # Of each try, the third batch gets no response.
        sandbox.inject("delay", "upload", times=2, seconds=0)
        sandbox.inject("close", "upload", after_acting=has_acted)
        with pytest.raises(VoiceGenieRetryException):
            upload(campaign, str(tmp_path / "x.csv"), context(store, try_number=try_number), batch_size=10)
        assert sandbox.request_count("upload") == 3 * try_number
        assert person_in(json.dumps(store)) is None
    result = upload(campaign, str(tmp_path / "x.csv"), context(store, try_number=3), batch_size=10)
    assert (result["uploaded"], result["rejected"], result["batches"]) == (50, 0, 5)
    assert sandbox.uploaded(campaign) == [number(i) for i in range(50)]
    # Two batches in the first try, two in the second, and the last, which the second has sent, too.
    assert sandbox.request_count("upload") == 3 + 3 + 1


def test_of_a_batch_that_may_have_been_sent_before_all_parts_count(sandbox, campaign):
    store = Store()
    sandbox.inject("delay", "upload", seconds=0)
    sandbox.inject("close", "upload", after_acting=True)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, rows(20), context(store), batch_size=10)
    assert len(sandbox.uploaded(campaign)) == 20
    # By now, the service takes fewer at a time.
    sandbox.inject("status", "upload", status=413)
    result = upload(campaign, rows(20), context(store, try_number=2), batch_size=10)
    assert (result["uploaded"], result["batches"]) == (20, 3)


def test_a_misspelled_column_is_noticed_by_each_task_made_from_the_same_operator(sandbox, campaign):
    operator = UploadContactsOperator(
        task_id="upload", campaign_id=campaign, contacts=rows(1), columns={"nickname": "name"}
    )
    operator.execute(context())
    other = copy.copy(operator)
    other.contacts = [{"phone_number": number(1)}]
    with pytest.raises(AirflowFailException, match="no row has a column 'nickname'"):
        other.execute(context())


def test_a_later_try_sends_a_changed_file_from_the_beginning(sandbox, campaign, tmp_path):
    file = tmp_path / "x.csv"
    write_csv(file, rows(20))
    store = Store()
    sandbox.inject("delay", "upload", seconds=0)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, str(file), context(store), batch_size=10)
    write_csv(file, rows(21, first=50))
    assert upload(campaign, str(file), context(store, try_number=2), batch_size=10)["uploaded"] == 21
    assert set(sandbox.uploaded(campaign)) >= {number(i) for i in range(50, 71)}


def test_a_later_try_without_a_state_sends_everything_again(sandbox, campaign):
    upload(campaign, rows(20))
    assert upload(campaign, rows(20), context(try_number=2))["uploaded"] == 20
    assert len(sandbox.uploaded(campaign)) == 20


def test_a_later_try_uploads_to_no_other_campaign(sandbox, campaign):
    store = Store()
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, rows(20), context(store))
    other = sandbox.add_campaign(total_count=0).id
    with pytest.raises(AirflowFailException, match=f"was about campaign '{campaign}'.*now gives '{other}'"):
        upload(other, rows(20, first=50), context(store, try_number=2))
    assert not sandbox.uploaded(other)
    assert not sandbox.uploaded(campaign)
    # Clearing the task makes it forget.
    assert upload(other, rows(20), context(store, try_number=2, max_tries=3))["campaign_id"] == other


@pytest.mark.parametrize("change", [list.reverse, lambda some: some.append(some.pop(0))])
def test_a_later_try_skips_no_other_rows(sandbox, campaign, change):
    content = rows(4)
    store = Store()
    sandbox.inject("delay", "upload", seconds=0)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, content, context(store), batch_size=2)
    change(content)
    upload(campaign, content, context(store, try_number=2), batch_size=2)
    assert sorted(sandbox.uploaded(campaign)) == [number(i) for i in range(4)]


def test_a_campaign_of_unknown_status_gets_no_contacts(sandbox):
    campaign_id = sandbox.add_campaign(status="Dialing", total_count=0).id
    with pytest.raises(AirflowFailException, match=r"'Dialing' is unknown here.*CAMPAIGN_ALREADY_RUNNING"):
        upload(campaign_id, rows(3))
    assert not sandbox.request_count("upload")


def test_the_campaign_is_looked_at_before_a_batch_is_sent_again(sandbox, campaign, monkeypatch):
    monkeypatch.setattr(timing, "upload_look_interval", 0.0)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=5))
    sandbox.inject("status", "upload", status=503)
    before_attempt = ContactUpload._before_attempt

    def start_and_look(self, error):
        if error is not None:
            sandbox.sandbox.store.change(campaign, status="running", total_count=100_000)
        before_attempt(self, error)

    monkeypatch.setattr(ContactUpload, "_before_attempt", start_and_look)
    with pytest.raises(AirflowFailException, match="CAMPAIGN_ALREADY_RUNNING"):
        upload(campaign, rows(3))
    assert not sandbox.uploaded(campaign)


def test_a_request_that_was_refused_for_now_sent_nobody(sandbox, campaign, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=2))
    upload(campaign, rows(3))
    sandbox.inject("status", "upload", status=429, headers={"Retry-After": "0"})
    assert upload(campaign, rows(5))["uploaded"] == 2


def test_a_task_that_was_told_to_end_sends_nothing_more(sandbox, campaign, monkeypatch):
    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=rows(30), batch_size=10)
    keep = ContactUpload._keep

    def keep_and_end(self):
        keep(self)
        if self._progress.rows == 20:
            operator.on_kill()

    monkeypatch.setattr(ContactUpload, "_keep", keep_and_end)
    with pytest.raises(VoiceGenieRetryException, match="ended from outside after 20 rows"):
        operator.execute(context())
    assert len(sandbox.uploaded(campaign)) == 20
    assert sandbox.request_count("upload") == 2


def test_an_upload_that_a_user_clears_while_it_runs_may_go_to_another_campaign(sandbox, campaign):
    """Together with others: then Airflow 3.3 loses by what a clear is told from a retry."""
    store, other = Store(), sandbox.add_campaign(total_count=0).id
    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=rows(30), batch_size=10)
    run = context(store)

    def clear():
        run["ti"].state = "restarting"
        operator.on_kill()

    sandbox.inject("delay", "upload", seconds=0.5)
    with (
        meanwhile(lambda: sandbox.request_count("upload") == 1, clear),
        pytest.raises(VoiceGenieRetryException, match="ended from outside"),
    ):
        operator.execute(run)
    assert "voicegenie_ended_by_user" in run["ti"].xcom
    again = context(store, try_number=2, clear_number=1, was_ended_by_user=True)
    assert upload(other, rows(20), again)["campaign_id"] == other


# What Airflow shows.


def test_rendered_rows_are_not_shown(sandbox, campaign):
    from airflow.serialization.helpers import serialize_template_field

    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=[{"phone_number": "{{ 1 }}"}])
    operator.render_template_fields(context())
    assert list(operator.contacts) == [{"phone_number": "{{ 1 }}"}]
    operator.contacts = rows(2)
    assert serialize_template_field(operator.contacts, "contacts") == "<2 rows, which are not shown>"
    assert len(operator.contacts) == 2


@pytest.mark.parametrize(
    "given",
    [
        rows(1),
        tuple(rows(1)),
        rows(1)[0],
        {"rows": rows(1)},
        dict(enumerate(rows(1))).values(),
        {MARKED_PERSON["name"]},
        str(rows(1)),
        json.dumps(rows(1)),
        "phone_number,name\n4915190817263,Xaverine Quastenflosser",
        "Xaverine Quastenflosser",
        "Xaverine\n.csv",
        iter(rows(1)),
        None,
        17,
    ],
)
def test_whatever_a_template_gave_is_not_shown(sandbox, campaign, given):
    from airflow.serialization.helpers import serialize_template_field

    operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts="x.csv")
    operator.contacts = given
    shown = serialize_template_field(operator.contacts, "contacts")
    assert person_in(f"{operator!r} {operator.contacts!r} {shown}") is None
    if not isinstance(given, list | tuple):
        with pytest.raises(AirflowFailException, match="contacts must be rows") as caught:
            operator.execute(context())
        assert person_in(f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}") is None


@pytest.mark.parametrize("given", ["/x/contacts.csv", "s3://aws@bucket/{{ ds }}", "{{ params.rows }}", ""])
def test_a_path_is_shown(given):
    operator = UploadContactsOperator(task_id="upload", campaign_id="c", contacts="x.csv")
    operator.contacts = given
    assert operator.contacts == given


def test_uploads_keep_within_the_documented_rate(sandbox, campaign, monkeypatch):
    from airflow_provider_voicegenie.api import client

    waits = []
    monkeypatch.setattr(client.VoiceGenieClient.__init__, "__kwdefaults__", {"sleep": waits.append})
    upload(campaign, rows(52), batch_size=1)
    # Of which the first fifty need not wait.
    assert len(waits) == 2
    assert all(50 < wait <= 60 for wait in waits)


# How many, when something goes wrong.


def upload_answers(sandbox):
    return [request.status for request in sandbox.sandbox.requests if request.operation == "upload"]


def test_after_a_contact_that_is_too_large_batches_are_as_large_as_before(sandbox, campaign):
    sandbox.sandbox.max_upload_bytes = 1500
    content = rows(13)
    content[0]["note"] = "Quasti" * 500
    result = upload(campaign, content, batch_size=4, max_rejected=1)
    assert (result["uploaded"], result["rejected"]) == (12, 1)
    # 4, 2 and the one alone are refused; then four at a time, as one of them alone was too large.
    assert upload_answers(sandbox) == [413] * 3 + [200] * 4
    assert result["batches"] == 4


@pytest.mark.parametrize("keeps", [True, False])
def test_of_a_later_try_only_what_may_have_been_sent_counts_whole(sandbox, campaign, keeps):
    """Of the third batch, five contacts were in the campaign before the task began."""
    upload(campaign, rows(5, first=20))
    store = Store() if keeps else None
    sandbox.inject("delay", "upload", seconds=0)
    sandbox.inject("close", "upload", after_acting=True)
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, rows(30), context(store), batch_size=10)
    result = upload(campaign, rows(30), context(store, try_number=2), batch_size=10)
    # Without a state, nobody knows which batches were sent, so all count.
    assert (result["uploaded"], result["batches"]) == (25 if keeps else 30, 3)


@pytest.mark.parametrize(("failed_count", "rejected"), [(3, 3), (4, 4), (99, 4)])
def test_no_more_are_rejected_than_were_sent(sandbox, campaign, failed_count, rejected):
    data = {"campaign_id": campaign, "uploaded_count": 4 - rejected, "failed_count": failed_count, "errors": []}
    sandbox.inject("status", "upload", status=200, body=json.dumps({"success": True, "data": data}))
    for run in (context(), context(try_number=2)):
        result = upload(campaign, rows(4), run, max_rejected=4)
        if run["ti"].try_number == 1:
            assert (result["uploaded"], result["rejected"]) == (4 - rejected, rejected)
            sandbox.inject("status", "upload", status=200, body=json.dumps({"success": True, "data": data}))
        else:
            assert (result["uploaded"], result["rejected"]) == (4 - rejected, rejected)


def test_rows_behind_one_that_is_no_contact_are_skipped_by_their_own_numbers(sandbox, campaign):
    content = rows(6)
    content[1]["phone_number"] = ""
    store = Store()
    sandbox.inject("delay", "upload", seconds=0, times=2)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, content, context(store), batch_size=2, max_rejected=1)
    assert store["voicegenie_task"]["progress"]["rows"] == 4
    result = upload(campaign, content, context(store, try_number=2), batch_size=2, max_rejected=1)
    assert (result["uploaded"], result["rejected"], result["batches"]) == (5, 1, 3)
    assert sandbox.request_count("upload") == 4


@pytest.mark.parametrize("progress", [None, 5, {"rows": 4, "of_a_later_version": 1}])
def test_the_progress_of_another_version_breaks_no_try(sandbox, campaign, progress):
    store = Store()
    sandbox.inject("delay", "upload", seconds=0, times=2)
    sandbox.inject("close", "upload")
    with pytest.raises(VoiceGenieRetryException):
        upload(campaign, rows(6), context(store), batch_size=2)
    store["voicegenie_task"]["progress"] = progress
    # What is sent again is not added again.
    assert upload(campaign, rows(6), context(store, try_number=2), batch_size=2)["batches"] == 3
    assert len(sandbox.uploaded(campaign)) == 6


# Files as other programs write them.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "phone_number,name\n+4915190817263,Xaverine\n"),
        ("x.csv.gz", "phone_number,name\n+4915190817263,Xaverine\n"),
        ("x.jsonl", '{"phone_number": "+4915190817263"}\n'),
        ("x.ndjson.gz", '{"phone_number": "+4915190817263"}\n'),
    ],
)
@pytest.mark.parametrize("mark", [True, False])
def test_the_byte_order_mark_of_a_spreadsheet_hides_no_column(sandbox, campaign, tmp_path, name, text, mark):
    data = text.encode("utf-8-sig" if mark else "utf-8")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert upload(campaign, str(tmp_path / name))["uploaded"] == 1
    assert sandbox.uploaded(campaign) == ["+4915190817263"]


@pytest.mark.parametrize("value", [None, "", math.nan])
def test_a_part_that_is_empty_is_left_out(value):
    row = {"phone_number": "4915123456", "name": value, "email": value}
    assert ContactColumns().contact(row) == {"phone_number": "4915123456"}


def test_an_upload_goes_on_with_the_key_that_the_connection_has_now(sandbox, campaign, monkeypatch):
    send = VoiceGenieHook.upload_contacts

    def upload_then_replace(hook, *arguments, **options):
        result = send(hook, *arguments, **options)
        sandbox.sandbox.api_key += "-replaced"
        connection = sandbox.connection(max_attempts=1, timeout=20, requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
        return result

    monkeypatch.setattr(VoiceGenieHook, "upload_contacts", upload_then_replace)
    result = upload(campaign, rows(6), batch_size=2)
    assert (result["uploaded"], result["batches"]) == (6, 3)
