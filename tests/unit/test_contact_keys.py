# SPDX-License-Identifier: Apache-2.0
"""Contacts and calls of one person join by a keyed hash, so that no phone number is in the warehouse."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import time

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.tasks import Store, context

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

SECRET = "a-secret-of-the-tests"
ROWS = [
    {"mobile": "09812345678", "customer": 17, "name": "Ana"},
    {"mobile": "+91 98123 45679", "customer": "K-18", "name": "Ben"},
    {"mobile": "+91-98123-45679", "customer": 19, "name": "Ben"},
    {"mobile": "no number", "customer": 20},
]
COLUMNS = {"mobile": "phone_number", "customer": "contact_id"}


def key(number, secret=SECRET):
    return hmac.new(secret.encode(), number.encode(), hashlib.sha256).hexdigest()


@pytest.fixture
def sandbox(voicegenie_sandbox, monkeypatch):
    for name, password in (("KEYS", SECRET), ("SHORT", "x" * 15), ("NONE", "")):
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({"conn_type": "generic", "password": password}))
    voicegenie_sandbox.speed = 600
    voicegenie_sandbox.add_campaign(id="c", total_count=0)
    return voicegenie_sandbox


def upload(path, *, contacts=ROWS, region="IN", run=None, **arguments):
    operator = UploadContactsOperator(
        **{
            "task_id": "upload",
            "campaign_id": "c",
            "contacts": contacts,
            "columns": COLUMNS,
            "region": region,
            "max_rejected": 1,
            "contact_keys_path": str(path),
            "contact_key_conn_id": "keys",
            **arguments,
        }
    )
    return operator.execute(run or context(Store()))


def exported(path, columns=("call_id", "status", "contact_key"), **arguments):
    operator = CallHistoryToObjectStorageOperator(
        task_id="export",
        campaign_id="c",
        path=str(path),
        columns=columns,
        **{"contact_key_conn_id": "keys", "outcomes": {"CAMPAIGN_STILL_RUNNING": "succeed"}} | arguments,
    )
    operator.execute(context(Store()))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_calls_and_customers_join_without_a_phone_number(sandbox, tmp_path):
    upload(tmp_path / "keys.csv")
    with (tmp_path / "keys.csv").open(newline="") as file:
        keys = {row["contact_key"]: row["contact_id"] for row in csv.DictReader(file)}
    assert keys == {key("+919812345678"): "17", key("+919812345679"): "K-18"}
    sandbox.sandbox.store.start("c")
    while sandbox.status("c") == "running":
        time.sleep(0.05)
    calls = exported(tmp_path / "calls.jsonl")
    assert {keys[call["contact_key"]] for call in calls} == {"17", "K-18"}
    for text in ((tmp_path / "keys.csv").read_text(), (tmp_path / "calls.jsonl").read_text()):
        assert not [part for part in ("98123", "Ana", "Ben", SECRET) if part in text]
    by_hook = list(VoiceGenieHook().iter_call_history("c", contact_key_conn_id="keys"))
    assert {keys[call.contact_key] for call in by_hook} == {"17", "K-18"}
    assert {call.contact_key for call in VoiceGenieHook().iter_call_history("c")} == {None}


def test_the_own_id_is_a_custom_field_and_nothing_else(sandbox, tmp_path, monkeypatch):
    sent, upload_contacts = [], VoiceGenieHook.upload_contacts

    def note(hook, campaign_id, contacts, **options):
        sent.extend(contacts)
        return upload_contacts(hook, campaign_id, contacts, **options)

    monkeypatch.setattr(VoiceGenieHook, "upload_contacts", note)
    upload(tmp_path / "keys.csv")
    assert sent[0] == {"phone_number": "+919812345678", "name": "Ana", "custom_fields": {"contact_id": 17}}
    # A column of that name needs no mapping.
    upload(tmp_path / "keys.csv", contacts=[{"phone_number": "+919812345670", "contact_id": "own"}], columns=None)
    assert sent[-1]["custom_fields"] == {"contact_id": "own"}
    assert key("+919812345670") in (tmp_path / "keys.csv").read_text()


def test_a_later_try_writes_the_keys_of_all(sandbox, tmp_path):
    store = Store()
    sandbox.inject("status", "upload", status=503, times=None)
    with pytest.raises(VoiceGenieRetryException):
        upload(tmp_path / "keys.jsonl", run=context(store), batch_size=1)
    # They are there before anything is sent.
    (tmp_path / "keys.jsonl").unlink()
    sandbox.sandbox.faults.clear()
    upload(tmp_path / "keys.jsonl", run=context(store, try_number=2), batch_size=1)
    lines = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    assert [line["contact_id"] for line in lines] == ["17", "K-18"]


def test_who_must_not_be_called_has_no_key(sandbox, tmp_path):
    upload(tmp_path / "keys.csv", exclude=[{"phone_number": "09812345678"}])
    assert key("+919812345678") not in (tmp_path / "keys.csv").read_text()


def test_contacts_without_an_id_are_counted(sandbox, tmp_path, said):
    rows = [*ROWS, {"mobile": "+919812345671"}]
    upload(tmp_path / "keys.csv", contacts=rows)
    assert any("1 contacts have no contact_id" in line for line in said())


def test_keys_that_would_say_nothing_are_refused_before_anything_is_sent(sandbox, tmp_path):
    with pytest.raises(AirflowFailException, match=r'contact_keys_path: no row has a contact_id.*"contact_id"}'):
        upload(tmp_path / "keys.csv", columns={"mobile": "phone_number"})
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    ("conn_id", "problem"),
    [
        ("short", "fewer than 16 characters"),
        ("none", "has no password"),
        ("nowhere", "no Airflow connection 'nowhere'"),
    ],
)
def test_a_secret_that_is_none_is_refused_before_anything_is_sent(sandbox, tmp_path, conn_id, problem):
    for work in (
        lambda: upload(tmp_path / "keys.csv", contact_key_conn_id=conn_id),
        lambda: exported(tmp_path / "calls.jsonl", contact_key_conn_id=conn_id),
    ):
        with pytest.raises(AirflowFailException, match=f"contact_key_conn_id.*{problem}") as caught:
            work()
        assert "x" * 15 not in str(caught.value)
    with pytest.raises(ValueError, match=problem):
        VoiceGenieHook().iter_call_history("c", contact_key_conn_id=conn_id)
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"contact_keys_path": "/tmp/k.csv"}, "contact_keys_path needs a secret"),
        ({"contact_keys_path": "/tmp/k.csv", "contact_key_conn_id": " "}, "contact_keys_path needs a secret"),
        ({"contact_key_conn_id": "keys"}, "nothing here has keys. Add contact_keys_path"),
        ({"contact_keys_path": "/tmp/k.txt", "contact_key_conn_id": "keys"}, "contact_keys_path"),
    ],
)
def test_an_upload_with_keys_and_no_secret_is_refused_at_parse_time(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        UploadContactsOperator(task_id="upload", campaign_id="c", contacts=ROWS, **arguments)


@pytest.mark.parametrize(
    ("columns", "conn_id", "problem"),
    [
        (["status", "contact_key"], None, "contact_key.* needs a secret"),
        (["status"], "keys", "nothing here has keys"),
        (None, "keys", "nothing here has keys"),
    ],
)
def test_an_export_with_keys_and_no_secret_is_refused_at_parse_time(columns, conn_id, problem):
    with pytest.raises(ValueError, match=problem):
        CallHistoryToObjectStorageOperator(
            task_id="export", campaign_id="c", path="/tmp/c.csv", columns=columns, contact_key_conn_id=conn_id
        )


def test_the_keys_replace_nothing_that_the_task_reads_or_writes_besides(sandbox, tmp_path):
    with pytest.raises(AirflowFailException, match=r"contact_keys_path.*reads, or writes besides"):
        upload(tmp_path / "a.csv", rejected_path=str(tmp_path / "a.csv"))
    assert not sandbox.sandbox.requests
