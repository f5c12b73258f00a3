# SPDX-License-Identifier: Apache-2.0
"""Rows are data: whatever is written in them, Airflow renders, logs and shows none of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, literal
from airflow.serialization.helpers import serialize_template_field
from helpers.leaks import MARKED_KEY, MARKED_PERSON, leak_in, person_in
from helpers.tasks import context

from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator

try:
    from airflow.sdk.execution_time.context import ConnectionAccessor, VariableAccessor
except ImportError:
    from airflow.utils.context import ConnectionAccessor, VariableAccessor

pytestmark = pytest.mark.usefixtures("nobody_is_named")

SECRET = "{{ conn.voicegenie_default.password }}"
VARIABLE = "{{ var.value.region }}"


@pytest.fixture
def campaign(sandbox, monkeypatch):
    monkeypatch.setenv("AIRFLOW_VAR_REGION", "a-variable")
    return sandbox.add_campaign(total_count=0).id


@pytest.fixture
def sent(sandbox, monkeypatch):
    """All contacts that the service was sent, with their custom fields."""
    contacts = []
    upload = sandbox.sandbox.store.upload

    def note(campaign_id, uploaded):
        contacts.extend(json.loads(json.dumps(uploaded)))
        return upload(campaign_id, uploaded)

    monkeypatch.setattr(sandbox.sandbox.store, "upload", note)
    return contacts


def row(name, number="+4915190817263"):
    return {"phone_number": number, "name": name, "note": VARIABLE}


def run_of(**task_instance):
    run = context(**task_instance)
    run |= {"conn": ConnectionAccessor(), "params": {}, "ds": "2026-05-01", "run_id": "run"}
    run["var"] = {"value": VariableAccessor(deserialize_json=False)}
    run["dag_run"].conf = {}
    return run


def given_literally(campaign, rows):
    with DAG("literal", schedule=None):
        return UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=rows)


def set_later(campaign, rows):
    with DAG("later", schedule=None):
        operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts="x.csv")
    operator.contacts = rows
    return operator


def as_literal(campaign, rows):
    return given_literally(campaign, literal(rows))


def by_function(campaign, rows):
    return given_literally(campaign, lambda context, jinja_env: rows)


def by_partial(campaign, rows):
    with DAG("partial", schedule=None):
        return UploadContactsOperator.partial(task_id="upload", contacts=rows).expand(campaign_id=[campaign])


def by_expand(campaign, rows):
    with DAG("expand", schedule=None):
        return UploadContactsOperator.partial(task_id="upload", campaign_id=campaign).expand(contacts=[rows])


def by_expand_kwargs(campaign, rows):
    with DAG("kwargs", schedule=None):
        mapped = UploadContactsOperator.partial(task_id="upload")
        return mapped.expand_kwargs([{"campaign_id": campaign, "contacts": rows}])


def by_native_template(campaign, rows):
    with DAG("native", schedule=None, render_template_as_native_obj=True, user_defined_macros={"rows": rows}):
        return UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts="{{ rows }}")


ORIGINS = [
    given_literally,
    set_later,
    as_literal,
    by_function,
    by_partial,
    by_expand,
    by_expand_kwargs,
    by_native_template,
]

each_origin = pytest.mark.parametrize("origin", ORIGINS, ids=lambda origin: origin.__name__)


def rendered(operator, run):
    run["dag"] = operator.dag
    operator.render_template_fields(run, operator.get_template_env())
    # Airflow puts the task there that it makes of a mapped operator.
    return run.get("task", operator)


@each_origin
@pytest.mark.parametrize("kind", [list, tuple])
def test_rows_are_never_rendered(sandbox, campaign, sent, origin, kind):
    run = run_of(map_index=0)
    task = rendered(origin(campaign, kind([row(SECRET), row("{% set x = 1 %}", "+491519081726")])), run)
    assert task.execute(run)["uploaded"] == 2
    assert [contact["name"] for contact in sent] == [SECRET, "{% set x = 1 %}"]
    assert [contact["custom_fields"] for contact in sent] == [{"note": VARIABLE}] * 2


@each_origin
def test_rows_that_are_no_template_fail_nothing_and_are_not_logged(sandbox, campaign, sent, origin, caplog):
    run = run_of(map_index=0)
    name = f"{MARKED_PERSON['name']} {{% {{{{ nobody.knows }}}}"
    task = rendered(origin(campaign, [row(name)]), run)
    assert task.execute(run)["uploaded"] == 1
    assert sent[0]["name"] == name
    shown = serialize_template_field(task.contacts, "contacts")
    assert shown == "<1 rows, which are not shown>"
    assert person_in(f"{shown} {task.contacts!r} {caplog.text}") is None


@pytest.mark.parametrize("origin", [given_literally, set_later, as_literal])
def test_rows_are_not_in_the_serialized_dag(sandbox, campaign, origin):
    operator = origin(campaign, [dict(MARKED_PERSON)])
    assert person_in(repr(serialize_template_field(operator.contacts, "contacts"))) is None


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([row(SECRET + MARKED_PERSON["name"])]),
        json.dumps(row(SECRET + MARKED_PERSON["name"])),
        f"phone_number,name\n4915190817263,Xaverine {SECRET}",
        f"phone_number,name\n4915190817263,Xaverine {{% {SECRET}",
        "[{'name': 'Xaverine {%'}]",
        "  [{'name': 'Xaverine {{'}]",
    ],
)
@pytest.mark.parametrize("origin", [given_literally, by_expand, by_expand_kwargs])
def test_rows_as_a_text_are_neither_rendered_nor_logged(sandbox, campaign, origin, text, caplog):
    run = run_of(map_index=0)
    task = rendered(origin(campaign, text), run)
    with pytest.raises(Exception, match="contacts must be rows") as caught:
        task.execute(run)
    shown = f"{task.contacts!r} {serialize_template_field(task.contacts, 'contacts')} {caught.value} {caplog.text}"
    assert person_in(shown) is None
    assert leak_in(shown) is None
    assert not sandbox.request_count("upload")


class Rendered:
    """Something with templates of its own, as a custom XCom backend may return it."""

    template_fields = ("name",)

    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("origin", [given_literally, by_expand, by_expand_kwargs])
@pytest.mark.parametrize("of", [lambda inner: inner, lambda inner: [inner], lambda inner: {"x": inner}])
def test_no_object_in_rows_is_rendered(sandbox, campaign, origin, of):
    inner = Rendered(SECRET)
    rendered(origin(campaign, of(inner)), run_of(map_index=0))
    assert inner.name == SECRET


def test_a_text_and_a_path_are_templates(sandbox, campaign, tmp_path):
    file = tmp_path / "2026-05-01.jsonl"
    file.write_text(json.dumps(row(SECRET)) + "\n")
    folder = tmp_path.as_posix()
    for contacts in (
        f"{folder}/{{{{ ds }}}}.jsonl",
        f"{folder}/{{{{ ds }}}}.{{% if true %}}jsonl{{% endif %}}",
        "{{ dag_run.conf['path'] }}",
        Path(folder) / "{{ ds }}.jsonl",
        ObjectStoragePath(f"file://{folder}/{{{{ ds }}}}.jsonl"),
    ):
        run = run_of()
        run["dag_run"].conf = {"path": str(file)}
        task = rendered(given_literally(campaign, contacts), run)
        assert str(task.contacts).removeprefix("file://") == str(file)
        assert task.execute(run)["campaign_id"] == campaign


def test_a_path_of_python_is_a_path(sandbox, campaign, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row("A")) + "\n")
    assert given_literally(campaign, file).execute(context())["uploaded"] == 1
    with pytest.raises(ValueError, match=r"the text that was given ends in \.xlsx"):
        given_literally(campaign, Path("x.xlsx"))


@pytest.mark.parametrize(
    "rows_of",
    [lambda output: [output], lambda output: [{"phone_number": output}], lambda output: ({"tags": {"a": [output]}},)],
)
def test_the_output_of_a_task_inside_a_row_is_refused(rows_of):
    with DAG("inside", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        upstream = UploadContactsOperator(task_id="upstream", campaign_id="x", contacts="x.csv")
        with pytest.raises(ValueError, match=r"inside a list.* contacts=make_rows"):
            UploadContactsOperator(task_id="upload", campaign_id="x", contacts=rows_of(upstream.output))
        task = UploadContactsOperator(task_id="whole", campaign_id="x", contacts=upstream.output)
        assert task.upstream_task_ids == {"upstream"}


def test_the_contexts_of_these_tests_could_show_the_key(sandbox, campaign):
    with DAG("key", schedule=None):
        operator = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=f"{VARIABLE}/x.csv")
    assert rendered(operator, run_of()).contacts == "a-variable/x.csv"
    template = operator.get_template_env().from_string(SECRET)
    assert template.render(run_of()) == MARKED_KEY
