# SPDX-License-Identifier: Apache-2.0
"""A campaign of a name is found, or made once, whatever is lost; nobody is phoned by that."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from helpers.leaks import person_in
from helpers.tasks import Store, context

from airflow_provider_voicegenie.api.models import NamedCampaign
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.transfers import named_campaign

ROWS = [{"phone_number": f"+4915112345{number:03}", "name": "Xaverine"} for number in range(5)]
NAME = "reminders 2026-11-30"


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    connection = voicegenie_sandbox.connection(max_attempts=2, timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    return voicegenie_sandbox


def upload(run=None, *, contacts=ROWS, **arguments):
    arguments = {"campaign_name": NAME, "script_id": "s-1", **arguments}
    operator = UploadContactsOperator(task_id="upload", contacts=contacts, **arguments)
    return operator.execute(context(Store()) if run is None else run)


def named(sandbox, name=NAME):
    return [campaign for campaign in sandbox.sandbox.store.all() if campaign.name == name]


def requests(sandbox, operation):
    return [request for request in sandbox.sandbox.requests if request.operation == operation]


def test_a_campaign_is_made_with_one_contact_and_gets_the_others(sandbox):
    result = upload()
    (campaign,) = named(sandbox)
    assert result == {
        "campaign_id": campaign.id,
        "campaign_name": NAME,
        "campaign_created": True,
        "uploaded": 5,
        "rejected": 0,
        "duplicates": 0,
        "excluded": 0,
        "batches": 1,
    }
    assert sandbox.uploaded(campaign.id) == [row["phone_number"] for row in ROWS]
    assert (campaign.script_id, campaign.start_count) == ("s-1", 0)
    assert [request.campaign_id for request in requests(sandbox, "upload")] == [None, campaign.id]


@pytest.mark.parametrize(
    "name",
    [
        "നൻമ\u200d",
        "می\u200cخو",
        "a\u3000b",
        'says "now"',
        "a/b/../c?d=1&e#f",
        "напоминание 30",
        "予約 · té",
        "{{ ds }}",
        "x" * 256,
        "a'b\\c",
    ],
)
def test_a_name_is_data(sandbox, name):
    operator = UploadContactsOperator(task_id="upload", campaign_name="{{ dag_run.conf['name'] }}", contacts=ROWS)
    operator.render_template_fields({"dag_run": SimpleNamespace(conf={"name": name})})
    assert operator.execute(context(Store()))["campaign_name"] == name
    assert len(named(sandbox, name)) == 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (" a", "white space around it"),
        ("a\n", "white space around it"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\tb", "control or invisible"),
        ("None", "is missing"),
        (None, "is missing"),
        (42, "must be a string"),
        ("x" * 257, "257 characters"),
    ],
)
def test_what_can_be_no_name_is_refused_before_anything_is_sent(sandbox, name, problem):
    operator = UploadContactsOperator(task_id="upload", campaign_name="later", contacts=ROWS)
    operator.campaign_name = name
    with pytest.raises(AirflowFailException, match=rf"campaign_name.* {problem}.*INVALID_CAMPAIGN_ID"):
        operator.execute(context(Store()))
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "neither is given"),
        ({"campaign_id": "a", "campaign_name": "b"}, "both are given. Give only"),
        ({"campaign_id": None, "campaign_name": "b"}, "both are given. Give only"),
        ({"campaign_name": " b"}, "white space around it"),
        ({"campaign_name": "b {{ ds }} "}, "white space around it"),
        ({"campaign_name": ""}, "nothing in it"),
        ({"campaign_name": None}, "must be a text"),
        ({"campaign_name": 42}, "must be a text; got 42"),
        ({"campaign_id": "a", "script_id": "s"}, "script_id: a campaign that exists has its script"),
    ],
)
def test_wrong_arguments_are_refused_at_parse_time(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        UploadContactsOperator(task_id="upload", contacts=ROWS, **arguments)


def test_a_campaign_of_somebody_else_is_left_alone(sandbox):
    sandbox.add_campaign(id="theirs", name=NAME, total_count=3)
    with pytest.raises(AirflowFailException, match=r"'theirs'.*CAMPAIGN_NAME_TAKEN"):
        upload()
    with pytest.raises(AirflowSkipException):
        upload(outcomes={"CAMPAIGN_NAME_TAKEN": "skip"})
    assert not requests(sandbox, "upload")
    result = upload(outcomes={"CAMPAIGN_NAME_TAKEN": "succeed"})
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == ("theirs", False, 5)
    assert len(named(sandbox)) == 1


@pytest.mark.parametrize("other", [NAME.upper(), f"{NAME} ", NAME[:-1]])
def test_only_exactly_the_name_is_the_name(sandbox, other):
    sandbox.add_campaign(id="theirs", name=other)
    assert upload()["campaign_created"] is True


@pytest.mark.parametrize(
    ("template", "conf", "is_refused"),
    [
        ("rem {{ dag_run.conf.get('day') }}", {}, True),
        ("rem {{ dag_run.conf.get('day') }}", {"day": "None-Such"}, False),
        ("None of {{ dag_run.conf.get('day') }}", {"day": "x"}, False),
    ],
)
def test_a_name_with_a_missing_value_in_it_is_refused(sandbox, template, conf, is_refused):
    operator = UploadContactsOperator(task_id="upload", campaign_name=template, contacts=ROWS)
    operator.render_template_fields({"dag_run": SimpleNamespace(conf=conf)})
    if is_refused:
        with pytest.raises(AirflowFailException, match="campaign_name 'rem None': the template made None"):
            operator.execute(context(Store()))
        assert not sandbox.sandbox.requests
    else:
        assert operator.execute(context(Store()))["campaign_created"] is True


def test_several_of_one_name_fail_with_their_ids(sandbox):
    for campaign_id in ("one", "two"):
        sandbox.add_campaign(id=campaign_id, name=NAME)
    with pytest.raises(AirflowFailException, match=r"2 campaigns have this name \('\w+', '\w+'\)"):
        upload(outcomes={"CAMPAIGN_NAME_TAKEN": "succeed"})
    assert not requests(sandbox, "upload")


@pytest.mark.parametrize("kind", ["close", "not_json", "status"])
def test_a_lost_response_is_settled_by_the_names(sandbox, kind):
    sandbox.inject(kind, "upload", after_acting=True, **({"status": 500} if kind == "status" else {}))
    result = upload()
    (campaign,) = named(sandbox)
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == (campaign.id, True, 5)


def test_names_that_cannot_be_read_at_first_are_read_again(sandbox, monkeypatch):
    make = VoiceGenieHook.create_campaign

    def make_and_fail(hook, *arguments, **options):
        sandbox.inject("close", "upload", after_acting=True)
        # Two attempts each.
        sandbox.inject("status", "names", status=500, times=4)
        return make(hook, *arguments, **options)

    monkeypatch.setattr(VoiceGenieHook, "create_campaign", make_and_fail)
    assert upload()["campaign_created"] is True
    assert len(named(sandbox)) == 1


def test_names_that_cannot_be_read_at_all_are_read_by_the_next_try(sandbox, monkeypatch):
    make, store = VoiceGenieHook.create_campaign, Store()

    def make_and_fail(hook, *arguments, **options):
        sandbox.inject("close", "upload", after_acting=True)
        sandbox.inject("status", "names", status=500, times=None)
        return make(hook, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(VoiceGenieHook, "create_campaign", make_and_fail)
        with pytest.raises(VoiceGenieRetryException, match="INTERNAL_SERVER_ERROR"):
            upload(context(store))
    sandbox.sandbox.faults.clear()
    assert upload(context(store, try_number=2))["campaign_created"] is True
    assert len(named(sandbox)) == 1


def lose(sandbox):
    """Lose the request that makes the campaign, and return what the task then remembers."""
    store = Store()
    sandbox.inject("close", "upload")
    with pytest.raises(AirflowFailException, match=r"no campaign of this name is there.*CREATION_UNCONFIRMED"):
        upload(context(store))
    assert len(requests(sandbox, "names")) == 1 + len(timing.creation_read_delays)
    return store


def test_one_that_is_not_there_is_made_by_no_retry_while_the_service_may_still_make_it(sandbox, clock):
    store = lose(sandbox)
    clock.limit = 2000
    with pytest.raises(AirflowFailException, match="CREATION_UNCONFIRMED"):
        upload(context(store, try_number=2))
    assert len(requests(sandbox, "upload")) == 1
    clock.sleep(600)
    assert upload(context(store, try_number=3))["campaign_created"] is True
    assert len(named(sandbox)) == 1


@pytest.mark.parametrize("changes", [{"try_number": 2}, {"try_number": 2, "max_tries": 3}], ids=["retry", "clear"])
def test_one_that_came_late_is_gone_on_with(sandbox, changes):
    store = lose(sandbox)
    sandbox.add_campaign(id="late", name=NAME, total_count=0)
    result = upload(context(store, **changes))
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == ("late", True, 5)
    assert len(requests(sandbox, "upload")) == 2


def test_a_clear_makes_it_no_sooner(sandbox, clock):
    """The request of a process that was cleared may still be under way."""
    store = lose(sandbox)
    clock.limit = 2000
    with pytest.raises(AirflowFailException, match=r"Clear this task after 20.*CREATION_UNCONFIRMED"):
        upload(context(store, try_number=2, max_tries=3))
    clock.sleep(600)
    assert upload(context(store, try_number=3, max_tries=4))["campaign_created"] is True
    assert len(named(sandbox)) == 1


@pytest.mark.parametrize("is_made_meanwhile", [True, False], ids=["by the time it looks", "later"])
@pytest.mark.parametrize("contacts", [2, 3000, None])
def test_what_has_more_than_the_one_contact_is_somebody_elses(sandbox, monkeypatch, is_made_meanwhile, contacts):
    def theirs():
        sandbox.add_campaign(id="theirs", name=NAME, total_count=contacts or 0)
        if contacts is None:
            # The service does not say how many.
            get = VoiceGenieHook.get_campaign
            unknown = lambda hook, *args, **more: replace(get(hook, *args, **more), total_count=None)  # noqa: E731
            monkeypatch.setattr(VoiceGenieHook, "get_campaign", unknown)

    if is_made_meanwhile:
        make, store = VoiceGenieHook.create_campaign, Store()

        def lost_while_another_makes_it(hook, *arguments, **options):
            theirs()
            sandbox.inject("close", "upload")
            return make(hook, *arguments, **options)

        monkeypatch.setattr(VoiceGenieHook, "create_campaign", lost_while_another_makes_it)
        run = context(store)
    else:
        run = context(lose(sandbox), try_number=2)
        theirs()
    with pytest.raises(AirflowFailException, match=r"'theirs'.*CAMPAIGN_NAME_TAKEN"):
        upload(run)
    assert not sandbox.uploaded("theirs")


def test_one_that_was_made_is_the_tasks_own_after_several_clears(sandbox):
    store = Store()
    for try_number in (1, 2, 3, 4):
        # Each try after a clear, and a retry of it.
        sandbox.inject("status", "get", status=404)
        with pytest.raises(AirflowFailException, match="NOT_FOUND"):
            upload(context(store, try_number=try_number, max_tries=2 + (try_number + 1) // 2))
    assert upload(context(store, try_number=5, max_tries=6))["campaign_created"] is True
    assert len(named(sandbox)) == 1


def test_a_double_that_could_not_be_seen_at_first_is_seen_by_the_next_try(sandbox, monkeypatch):
    make, store = VoiceGenieHook.create_campaign, Store()

    def make_and_fail(hook, *arguments, **options):
        made = make(hook, *arguments, **options)
        sandbox.add_campaign(id="theirs", name=NAME)
        sandbox.inject("status", "names", status=500, times=2)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(VoiceGenieHook, "create_campaign", make_and_fail)
        with pytest.raises(VoiceGenieRetryException, match="INTERNAL_SERVER_ERROR"):
            upload(context(store))
    for run in (context(store, try_number=2), context(store, try_number=3, max_tries=4)):
        with pytest.raises(AirflowFailException, match="2 campaigns have this name"):
            upload(run)


def test_a_list_that_shows_only_the_double_fails(sandbox, monkeypatch):
    find, looks = VoiceGenieHook.find_campaigns, []

    def lag(hook, name):
        looks.append(name)
        if len(looks) == 1:
            return find(hook, name)
        return (NamedCampaign("theirs", name, None),)

    monkeypatch.setattr(VoiceGenieHook, "find_campaigns", lag)
    with pytest.raises(AirflowFailException, match=r"2 campaigns have this name \('.*', 'theirs'\)"):
        upload()


def test_a_list_that_does_not_show_it_yet_is_a_warning(sandbox, monkeypatch, said):
    monkeypatch.setattr(VoiceGenieHook, "find_campaigns", lambda *_: ())
    assert upload()["uploaded"] == 5
    assert any("not in the list of names yet" in line for line in said())


@pytest.mark.parametrize("is_cleared", [True, False])
def test_one_that_was_deleted_is_made_again_if_the_task_is_cleared(sandbox, is_cleared):
    store = Store()
    first = upload(context(store))["campaign_id"]
    sandbox.sandbox.store.remove(first)
    if not is_cleared:
        with pytest.raises(AirflowFailException, match="NOT_FOUND"):
            upload(context(store, try_number=2))
        return
    result = upload(context(store, try_number=2, max_tries=3))
    assert (result["campaign_created"], result["uploaded"]) == (True, 5)
    assert result["campaign_id"] != first


def test_progress_is_of_one_campaign(sandbox):
    """The DAG is changed between two tries: from an id to a name."""
    store = Store()
    sandbox.add_campaign(id="old", total_count=0)
    UploadContactsOperator(task_id="upload", campaign_id="old", contacts=ROWS).execute(context(store))
    with pytest.raises(AirflowFailException, match=r"was about campaign 'old'.*Nothing was sent"):
        upload(context(store, try_number=2))
    assert not named(sandbox)
    assert upload(context(store, try_number=3, max_tries=4))["uploaded"] == 5


def test_a_taken_name_that_changes_at_a_retry_uploads_to_no_other(sandbox):
    store, outcomes = Store(), {"CAMPAIGN_NAME_TAKEN": "succeed"}
    for name in ("one", "two"):
        sandbox.add_campaign(id=name, name=name, total_count=0)
    assert upload(context(store), campaign_name="one", outcomes=outcomes)["uploaded"] == 5
    with pytest.raises(AirflowFailException, match="campaign_name now gives 'two' instead of 'one'"):
        upload(context(store, try_number=2), campaign_name="two", outcomes=outcomes)
    assert not sandbox.uploaded("two")


def test_a_record_of_another_connection_says_nothing(sandbox, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER", sandbox.connection(requests_per_minute=60_000))
    store = Store()
    upload(context(store))
    with pytest.raises(AirflowFailException, match="CAMPAIGN_NAME_TAKEN"):
        upload(context(store, try_number=2, max_tries=3), voicegenie_conn_id="another")


def test_an_execution_timeout_while_it_is_sent_leaves_the_record(sandbox, monkeypatch):
    def interrupted(hook, name, contacts, *, on_sending, **options):
        on_sending()
        raise AirflowTaskTimeout

    store = Store()
    with monkeypatch.context() as patch:
        patch.setattr(VoiceGenieHook, "create_campaign", interrupted)
        with pytest.raises(AirflowTaskTimeout):
            upload(context(store))
    assert store["voicegenie_task"]["creation"]["sent_at"]
    with pytest.raises(AirflowFailException, match="CREATION_UNCONFIRMED"):
        upload(context(store, try_number=2))
    assert not requests(sandbox, "upload")


def test_a_process_that_was_suspended_sends_nothing_and_takes_nothing_back(sandbox, clock, monkeypatch):
    make = VoiceGenieHook.create_campaign

    def suspended(hook, *arguments, **options):
        clock.limit = 2000
        clock.sleep(600)
        return make(hook, *arguments, **options)

    store = Store()
    monkeypatch.setattr(VoiceGenieHook, "create_campaign", suspended)
    with pytest.raises(VoiceGenieRetryException, match="before the campaign was made"):
        upload(context(store))
    assert store["voicegenie_task"]["creation"]["sent_at"]
    assert not requests(sandbox, "upload")


@pytest.mark.parametrize("run", [{"max_tries": 3}, {}], ids=["cleared on 3.4", "retried before 3.3"])
def test_a_record_that_may_be_lost_is_made_up_for_by_several_looks(sandbox, run):
    upload(context(Store() if run else None, try_number=2, **run), retries=2)
    assert len(requests(sandbox, "names")) == len(timing.creation_read_delays) + 1


def test_a_document_of_another_version_may_hold_the_record(sandbox):
    upload(context(Store(voicegenie_task={"format": 2}), try_number=2))
    assert len(requests(sandbox, "names")) == len(timing.creation_read_delays) + 1


@pytest.mark.parametrize("are_read", [True, False])
def test_before_airflow_3_3_nothing_that_is_unconfirmed_is_retried(sandbox, monkeypatch, are_read):
    make = VoiceGenieHook.create_campaign

    def make_and_fail(hook, *arguments, **options):
        sandbox.inject("close", "upload")
        if not are_read:
            sandbox.inject("status", "names", status=500, times=None)
        return make(hook, *arguments, **options)

    monkeypatch.setattr(VoiceGenieHook, "create_campaign", make_and_fail)
    with pytest.raises(AirflowFailException, match="CREATION_UNCONFIRMED"):
        upload(context(None), outcomes={"CREATION_UNCONFIRMED": "retry"})


@pytest.mark.parametrize("data", [[{"name": "x"}], [["x"]], [{"campaigns": []}], ["x"], {}, None])
def test_a_list_that_is_not_the_documented_one_is_not_taken_for_an_empty_one(sandbox, monkeypatch, data):
    sandbox.inject("status", "names", status=200, body=json.dumps({"success": True, "data": data}), times=None)
    with pytest.raises(VoiceGenieRetryException, match="INVALID_RESPONSE"):
        upload()
    assert not requests(sandbox, "upload")


@pytest.mark.parametrize("script_id", ["None", "", " s", "a\nb"])
def test_a_script_that_can_be_none_is_refused(sandbox, script_id):
    with pytest.raises(AirflowFailException, match=r"script_id.*INVALID_CAMPAIGN_ID"):
        upload(script_id=script_id)
    with pytest.raises(ValueError, match="script_id must be a text; got 42"):
        UploadContactsOperator(task_id="upload", campaign_name="a", contacts=ROWS, script_id=42)
    assert not requests(sandbox, "upload")


def test_a_cleared_task_with_other_contacts_says_who_stays(sandbox, said):
    store = Store()
    upload(context(store))
    new = [{"phone_number": "+4915112345999"}]
    assert upload(context(store, try_number=2, max_tries=3), contacts=new)["uploaded"] == 1
    assert any("The people in the 5 rows that the earlier try has sent stay" in line for line in said())


def test_no_name_and_no_number_is_in_what_is_logged_or_kept(sandbox, caplog, said):
    store = Store()
    sandbox.inject("close", "upload", after_acting=True)
    result = upload(context(store))
    assert person_in(f"{caplog.text} {said()} {result} {dict(store)}".encode()) is None
    assert "5112345" not in f"{caplog.text} {said()} {result} {dict(store)}"


def test_a_clear_uploads_all_contacts_once_more(sandbox):
    """As with an id: somebody may have taken some of them out."""
    store = Store()
    campaign_id = upload(context(store))["campaign_id"]
    sent = len(requests(sandbox, "upload"))
    assert upload(context(store, try_number=2, max_tries=3))["campaign_id"] == campaign_id
    assert len(requests(sandbox, "upload")) == sent + 1
    # A retry goes on behind them.
    assert upload(context(store, try_number=3, max_tries=3))["uploaded"] == 5
    assert len(requests(sandbox, "upload")) == sent + 1


def test_somebody_elses_campaign_is_not_the_tasks_own_after_a_lost_response(sandbox, monkeypatch):
    make, store, outcomes = VoiceGenieHook.create_campaign, Store(), {"CAMPAIGN_NAME_TAKEN": "succeed"}

    def lost_while_another_makes_it(hook, *arguments, **options):
        sandbox.add_campaign(id="theirs", name=NAME, total_count=3000)
        sandbox.inject("close", "upload")
        return make(hook, *arguments, **options)

    monkeypatch.setattr(VoiceGenieHook, "create_campaign", lost_while_another_makes_it)
    result = upload(context(store), outcomes=outcomes)
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == ("theirs", False, 5)
    with pytest.raises(AirflowFailException, match="CAMPAIGN_NAME_TAKEN"):
        upload(context(store, try_number=2))


@pytest.mark.parametrize("name", ["contacts", "exclude"])
def test_what_is_no_row_is_named_by_its_own_type(sandbox, name):
    operator = UploadContactsOperator(task_id="upload", campaign_name=NAME, contacts=ROWS, exclude=ROWS)
    # As a template, or an upstream task, gives it.
    setattr(operator, name, ["+4915112345678"])
    with pytest.raises(AirflowFailException) as caught:
        operator.execute(context(Store()))
    assert "Hidden" not in str(caught.value)


def test_the_hook_makes_no_campaign_for_nobody(sandbox):
    for contacts in ([], [{"name": "Xaverine"}]):
        with pytest.raises(ValueError, match=r"contacts: .*nothing was sent"):
            VoiceGenieHook().create_campaign(NAME, contacts)
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize("is_cleared", [True, False])
def test_a_later_try_goes_on_with_the_campaign_that_was_made(sandbox, is_cleared):
    store = Store()
    sandbox.inject("status", "get", status=404)
    with pytest.raises(AirflowFailException, match="NOT_FOUND"):
        upload(context(store))
    (campaign,) = named(sandbox)
    found = len(requests(sandbox, "names"))
    result = upload(context(store, try_number=2, **({"max_tries": 3} if is_cleared else {})))
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == (campaign.id, True, 5)
    # Another task may have made one, too.
    assert len(requests(sandbox, "names")) == found + 1


def test_a_process_that_dies_between_the_record_and_the_request_makes_none_at_once(sandbox, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*arguments, **options):
        raise Crash

    store = Store()
    with monkeypatch.context() as patch:
        patch.setattr(VoiceGenieHook, "create_campaign", crash)
        record = named_campaign.CampaignOfName._record

        # A process that is killed outright takes nothing back.
        def keep(of_name, **creation):
            if creation:
                record(of_name, **creation)

        patch.setattr(named_campaign.CampaignOfName, "_record", keep)
        with pytest.raises(Crash):
            upload(context(store))
    with pytest.raises(AirflowFailException, match="CREATION_UNCONFIRMED"):
        upload(context(store, try_number=2))
    assert not requests(sandbox, "upload")


def test_what_is_surely_not_made_is_made_by_the_next_try(sandbox):
    store = Store()
    sandbox.inject("status", "upload", status=429)
    with pytest.raises(VoiceGenieRetryException, match="RATE_LIMIT_EXCEEDED"):
        upload(context(store))
    assert upload(context(store, try_number=2))["campaign_created"] is True
    assert len(named(sandbox)) == 1


def test_a_record_that_airflow_cannot_keep_makes_no_campaign(sandbox, monkeypatch):
    class Broken(Store):
        def set(self, key, value):
            if value.get("creation"):
                raise RuntimeError("no database")
            super().set(key, value)

    with pytest.raises(RuntimeError, match="no database"):
        upload(context(Broken()))
    assert not named(sandbox)


def test_two_tasks_at_once_are_seen_by_at_least_one(sandbox, monkeypatch):
    make = VoiceGenieHook.create_campaign

    def another_is_faster(hook, name, contacts, **options):
        sandbox.add_campaign(id="theirs", name=name)
        return make(hook, name, contacts, **options)

    monkeypatch.setattr(VoiceGenieHook, "create_campaign", another_is_faster)
    with pytest.raises(AirflowFailException, match="2 campaigns have this name"):
        upload()
    # Of its contacts, nobody but the first is there.
    assert sum(len(sandbox.uploaded(campaign.id)) for campaign in named(sandbox)) == 1


def test_a_task_that_is_killed_makes_none(sandbox):
    operator = UploadContactsOperator(task_id="upload", campaign_name=NAME, contacts=ROWS)
    operator.on_kill()
    store = Store()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside before the campaign was made"):
        operator.execute(context(store))
    assert not requests(sandbox, "upload")
    assert not store["voicegenie_task"]["creation"]


@pytest.mark.parametrize(
    "contacts", [[], [{"phone_number": "no"}], [{"phone_number": "+4915112345000", "left": "out"}]], ids=str
)
def test_for_nobody_no_campaign_is_made(sandbox, contacts):
    exclude = [{"phone_number": "+4915112345000"}]
    with pytest.raises(AirflowSkipException, match="NO_CONTACTS"):
        upload(contacts=contacts, exclude=exclude, max_rejected="100%")
    outcomes = {"NO_CONTACTS": "succeed"}
    result = upload(contacts=contacts, exclude=exclude, max_rejected="100%", outcomes=outcomes)
    assert (result["campaign_id"], result["campaign_created"], result["uploaded"]) == (None, False, 0)
    assert result["excluded"] == sum("left" in row for row in contacts)
    assert not requests(sandbox, "upload")


def test_a_backfill_makes_nothing(sandbox):
    run = context(Store())
    run["dag_run"].run_type = "backfill"
    with pytest.raises(AirflowSkipException, match="BACKFILL_RUN"):
        upload(run)
    assert not sandbox.sandbox.requests
    assert upload(run, upload_in_backfill=True)["campaign_created"] is True


def test_templates_that_give_another_name_at_a_retry_send_nothing(sandbox):
    store = Store()
    upload(context(store))
    sent = len(sandbox.sandbox.requests)
    with pytest.raises(AirflowFailException, match=r"campaign_name now gives 'another'.*Nothing was sent"):
        upload(context(store, try_number=2), campaign_name="another")
    assert len(sandbox.sandbox.requests) == sent
    assert upload(context(store, try_number=2, max_tries=3), campaign_name="another")["campaign_created"] is True
    assert len(named(sandbox, "another")) == 1


@pytest.mark.parametrize(
    ("age", "store", "try_number", "is_own"),
    [
        (-60, None, 2, True),
        (60, None, 2, False),
        # It is the first try, or Airflow would know of it.
        (-60, None, 1, False),
        (-60, Store(), 2, False),
        (None, None, 2, False),
    ],
)
def test_where_airflow_keeps_nothing_a_later_try_takes_what_was_made_in_its_run(
    sandbox, monkeypatch, age, store, try_number, is_own
):
    made = datetime.now(UTC)
    sandbox.add_campaign(id="found", name=NAME, created_at=made, total_count=0)
    run = context(store, try_number=try_number)
    run["dag_run"].start_date = made + timedelta(seconds=age or -60)
    if age is None:
        monkeypatch.setattr(VoiceGenieHook, "find_campaigns", lambda *_: (NamedCampaign("found", NAME, None),))
    if is_own:
        assert upload(run, retries=2)["campaign_created"] is True
    else:
        with pytest.raises(AirflowFailException, match="CAMPAIGN_NAME_TAKEN"):
            upload(run, retries=2)


def test_the_hook_finds_campaigns_by_name(sandbox):
    sandbox.add_campaign(id="one", name=NAME)
    found = VoiceGenieHook().find_campaigns(NAME)
    assert [(each.campaign_id, each.name) for each in found] == [("one", NAME)]
    assert VoiceGenieHook().find_campaigns("nobody") == ()
