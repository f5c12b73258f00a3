# SPDX-License-Identifier: Apache-2.0
"""What a data engineer does in Airflow's UI: connect, test, trigger, look at a skip, follow the link."""

from __future__ import annotations

from urllib.parse import urlsplit

import airflow as installed_airflow
import pytest
from playwright.sync_api import expect

from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, UI_FIELD_BEHAVIOUR

pytestmark = pytest.mark.airflow

#: Airflow 3.3 opens one part of the form at a time; later versions show all.
HAS_PARTS_TO_OPEN = installed_airflow.__version__.startswith("3.3.")


@pytest.fixture
def signed_in(page, playground):
    page.goto(playground.airflow)
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Dags").first).to_be_visible()
    return page


def new_connection(page, playground, name):
    page.goto(f"{playground.airflow}/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("[name=connection_id]").fill(name)
    form.get_by_role("combobox").first.click()
    page.keyboard.type("voicegenie")
    page.get_by_role("option", name="VoiceGenie").click()
    return form


def open_part(form, name):
    if HAS_PARTS_TO_OPEN:
        form.get_by_role("button", name=name, exact=True).click()


#: Pixels that the placeholder of a field leaves free.
ROOM_BEHIND_PLACEHOLDER = """element => {
    const pen = document.createElement("canvas").getContext("2d"), style = getComputedStyle(element);
    pen.font = style.font;
    const room = element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return room - pen.measureText(element.placeholder).width;
}"""


def check_fields(form):
    for label in ("Base URL", "API key", "Port"):
        expect(form.get_by_text(label, exact=True)).to_be_visible()
    for absent in ("login", "schema"):
        expect(form.locator(f"[name={absent}]")).to_have_count(0)
    expect(form.locator("[name=password]")).to_have_attribute("type", "password")
    for name, placeholder in UI_FIELD_BEHAVIOUR["placeholders"].items():
        field = form.locator(f"[name={name}]")
        expect(field).to_have_attribute("placeholder", placeholder)
        assert field.evaluate(ROOM_BEHIND_PLACEHOLDER) >= 0, placeholder


def check_extra_fields(form):
    for field in CONNECTION_FIELDS.values():
        expect(form.get_by_text(field["label"], exact=True)).to_be_visible()
        expect(form.get_by_text(field["description"])).to_be_visible()
    # An object has an editor; a plain field would show "[object Object]" once it is stored.
    expect(form.locator(".monaco-editor").first).to_be_visible()


def test_the_connection_form_and_its_test(signed_in, playground, picture):
    page = signed_in
    host, port = urlsplit(playground.sandbox).hostname, urlsplit(playground.sandbox).port
    connections = {
        "right": (playground.api_key, f"http://{host}", port, "The VoiceGenie service accepts the API key"),
        "wrong_key": (
            "another-key",
            f"http://{host}",
            port,
            "The service does not accept the API key of the connection: enter it again",
        ),
        "wrong_host": (
            playground.api_key,
            "https://voicegenie.invalid",
            443,
            "(voicegenie.invalid:443) cannot be resolved",
        ),
    }
    for name, (key, host, port, answer) in connections.items():
        conn_id = f"voicegenie_{name}"
        form = new_connection(page, playground, conn_id)
        if name == "right":
            check_fields(form)
            picture("connection-form")
            open_part(form, "Extra Fields")
            page.set_viewport_size({"width": 1280, "height": 1400})
            check_extra_fields(form)
            picture("connection-form-extra")
            page.set_viewport_size({"width": 1280, "height": 860})
            open_part(form, "Standard Fields")
        form.locator("[name=host]").fill(host)
        form.locator("[name=password]").fill(key)
        form.locator("[name=port]").fill(str(port))
        form.get_by_role("button", name="Save").click()
        expect(form).to_have_count(0)
        row = page.get_by_role("row").filter(has=page.get_by_text(conn_id, exact=True))
        row.get_by_role("button", name="Test Connection").click()
        expect(page.get_by_text(answer)).to_be_visible()
        picture(f"connection-test-{name.replace('_', '-')}")


def trigger(page, playground, dag_id, campaign_id=None):
    page.goto(f"{playground.airflow}/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    if campaign_id is not None:
        form.locator("[name=element_campaign_id]").fill(campaign_id)
    return form


def run_of(page, playground, dag_id, form):
    with page.expect_response(lambda answer: answer.request.method == "POST" and "dagRuns" in answer.url) as answer:
        form.get_by_test_id("trigger-dag-submit").click()
    return f"{playground.airflow}/dags/{dag_id}/runs/{answer.value.json()['dag_run_id']}"


def wait_for_state(page, run, task, state):
    page.goto(run)
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=task, exact=True))
    expect(row.get_by_text(state)).to_be_visible()


def test_a_run_from_the_trigger_form_and_the_link_to_the_campaign(signed_in, playground, picture):
    page = signed_in
    form = trigger(page, playground, "voicegenie_smallest", "ready")
    picture("trigger-form")
    run = run_of(page, playground, "voicegenie_smallest", form)
    for task in ("ready", "start"):
        wait_for_state(page, run, task, "Success")
    picture("run")
    page.goto(f"{run}/tasks/start/details")
    link = page.get_by_role("link", name="VoiceGenie campaign")
    expect(link).to_be_visible()
    picture("campaign-link")
    with page.expect_popup() as popup:
        link.click()
    campaign = popup.value
    assert campaign.url == f"{playground.sandbox}/#campaign-ready"
    row = campaign.locator("tr:target")
    expect(row).to_contain_text("ready")
    expect(row.locator("td").last).to_have_text("1")
    campaign.close()


def test_a_skipped_task_says_why(signed_in, playground, picture):
    page = signed_in
    form = trigger(page, playground, "voicegenie_smallest", "always-running")
    run = run_of(page, playground, "voicegenie_smallest", form)
    wait_for_state(page, run, "ready", "Skipped")
    page.goto(f"{run}/tasks/ready")
    reason = page.get_by_text("CAMPAIGN_ALREADY_RUNNING: the task is skipped").first
    expect(reason).to_be_visible()
    # As the quick start says; without it, the reason is longer than the screen.
    page.keyboard.press("w")
    expect(reason).to_have_css("white-space", "pre-wrap")
    picture("skipped")


def test_the_graph_of_the_pipeline(signed_in, playground, picture):
    page = signed_in
    page.evaluate("localStorage.setItem('direction-voicegenie_pipeline', JSON.stringify('DOWN'))")
    form = trigger(page, playground, "voicegenie_pipeline")
    run = run_of(page, playground, "voicegenie_pipeline", form)
    wait_for_state(page, run, "report", "Success")
    page.goto(run)
    page.get_by_role("button", name="Show Graph").click()
    expect(page.locator(".react-flow__node")).to_have_count(8)
    picture("pipeline")
