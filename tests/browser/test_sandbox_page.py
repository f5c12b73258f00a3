# SPDX-License-Identifier: Apache-2.0
"""The sandbox's page: what it shows, by keyboard, to a screen reader, and to pages of others."""

from __future__ import annotations

import re
import time

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect


@pytest.fixture
def sandbox(voicegenie_sandbox):
    voicegenie_sandbox.speed = 12
    return voicegenie_sandbox


def send(sandbox, path, method="GET", **arguments):
    headers = {"x-api-key": sandbox.api_key}
    return requests.request(method, f"{sandbox.url}{path}", headers=headers, timeout=600, **arguments)


def test_campaigns_and_requests_refresh_by_themselves(sandbox, page, picture):
    sandbox.speed = 6
    page.goto(sandbox.url)
    row = page.locator("[id='campaign-ready']")
    bar = page.get_by_role("progressbar", name="Progress of ready")
    expect(row).to_contain_text("scheduled")
    send(sandbox, "/startCampaign/ready")
    expect(row).to_contain_text("running")
    expect(page.locator("#requests tr").first).to_contain_text("start")
    expect(row).to_contain_text(re.compile(r"running\s*[1-9][0-9]? of 20"))
    picture("sandbox", full_page=True)
    expect(row).to_contain_text("completed")
    expect(bar).to_have_attribute("value", "20")


def test_uploads_are_counted(sandbox, page):
    page.goto(sandbox.url)
    row = page.locator("[id='campaign-no-contacts']")
    uploaded = row.locator("td:nth-child(8)")
    expect(page.get_by_role("columnheader").nth(7)).to_have_text("Uploaded")
    expect(uploaded).to_have_text("0")
    contacts = [{"phone_number": "+34600111222"}, {"phone_number": "+34600111223"}]
    send(sandbox, "/uploadCampaignData", "POST", json={"campaign_id": "no-contacts", "contacts": contacts})
    expect(uploaded).to_have_text("2")
    expect(row).to_contain_text("0 of 2")
    expect(page.locator("#requests tr").first).to_contain_text(re.compile("upload.*no-contacts.*200.*yes", re.DOTALL))


def test_faults_are_switched_on_by_keyboard(sandbox, page):
    page.goto(sandbox.url)
    kind = page.get_by_label("What goes wrong")
    for _ in range(20):
        page.keyboard.press("Tab")
        if kind.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.type("another")
    page.keyboard.press("Tab")
    page.keyboard.type("start")
    page.keyboard.press("Tab")
    page.keyboard.type("ready")
    page.keyboard.press("Enter")
    for _ in range(6):
        if page.get_by_role("button", name="Switch on").evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The fault is switched on.")
    expect(page.get_by_role("list", name="Switched on")).to_have_text(
        "another HTTP status (500), start about ready, once"
    )
    assert send(sandbox, "/startCampaign/ready").status_code == 500
    expect(page.get_by_role("list", name="Switched on")).to_have_text("none")
    expect(page.get_by_role("status")).to_have_count(0)
    page.get_by_label("how often").fill("")
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("list", name="Switched on")).to_contain_text("until you switch it off")
    page.get_by_role("button", name="Switch all off").click()
    expect(page.get_by_role("status")).to_have_text("All faults are switched off.")
    assert send(sandbox, "/campaign/ready").ok


def test_campaigns_are_reset(sandbox, page):
    sandbox.add_campaign(id="new")
    page.goto(sandbox.url)
    send(sandbox, "/startCampaign/ready")
    row = page.locator("[id='campaign-ready']")
    expect(row).to_contain_text("running")
    page.get_by_role("button", name="Reset campaigns").click()
    expect(page.get_by_role("status")).to_have_text("The campaigns were reset.")
    expect(row).to_contain_text("scheduled")
    expect(row.locator("td").last).to_have_text("0")
    expect(page.locator("[id='campaign-new']")).to_have_count(0)
    expect(page.locator("#requests tr").first).to_contain_text("start")


def test_a_response_is_late_by_as_many_seconds_as_the_page_says(sandbox, page):
    page.goto(sandbox.url)
    page.get_by_label("What goes wrong").select_option("the response comes late")
    page.get_by_label("seconds", exact=True).fill("1.5")
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("list", name="Switched on")).to_contain_text("late (1.5 s), every request")
    begun = time.monotonic()
    assert send(sandbox, "/campaign/ready").ok
    assert time.monotonic() - begun >= 1.5


def test_a_fault_asks_only_for_what_it_uses(sandbox, page):
    page.goto(sandbox.url)
    kind = page.get_by_label("What goes wrong")
    status, seconds = page.get_by_label("its HTTP status"), page.get_by_label("seconds", exact=True)
    for choice, uses in (
        ("no response at all", ()),
        ("another HTTP status", (status,)),
        ("byte by byte, slowly", (seconds,)),
    ):
        kind.select_option(choice)
        for field in (status, seconds):
            expect(field).to_be_visible(visible=field in uses)


def test_a_screen_reader_can_use_it(sandbox, page):
    page.goto(sandbox.url)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_focus_and_input_stay_while_the_page_refreshes(sandbox, page):
    page.goto(sandbox.url)
    field = page.get_by_label("how often")
    field.fill("7")
    sandbox.add_campaign(id="new")
    expect(page.locator("[id='campaign-new']")).to_be_visible()
    expect(field).to_have_value("7")
    expect(field).to_be_focused()


@pytest.mark.parametrize("width", [360, 400, 1280])
def test_the_page_fits_the_screen(sandbox, page, width):
    page.set_viewport_size({"width": width, "height": 860})
    send(sandbox, "/startCampaign/ready")
    sandbox.inject("gzip_bomb", "pause", campaign_id="not-yet-started", after_acting=True)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(sandbox.url)
    expect(page.locator("#requests tr")).to_have_count(1)
    # The style is the tests' own, see conftest.py.
    assert not [each for each in said if "inline style" not in each]
    campaigns = page.get_by_role("group", name="Campaigns")
    assert campaigns.evaluate("element => element.scrollHeight - element.clientHeight") == 0
    choice = page.get_by_label("What goes wrong")
    text = "element => [...element.options].map(each => each.text).sort((a, b) => a.length - b.length).at(-1)"
    # The longest choice, and the arrow beside it.
    size = """(element, text) => {
        const pen = document.createElement("canvas").getContext("2d");
        pen.font = getComputedStyle(element).font;
        return element.clientWidth - pen.measureText(text).width;
    }"""
    assert choice.evaluate(size, choice.evaluate(text)) > 24
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for table in page.locator(".scroll").all():
        assert table.evaluate("element => element.scrollWidth - element.clientWidth") == 0


def test_the_page_works_without_its_script(sandbox, browser):
    page = browser.new_page(java_script_enabled=False)
    page.goto(sandbox.url)
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("status")).to_have_text("The fault is switched on.")
    sandbox.sandbox.faults.clear()
    page.reload()
    expect(page.get_by_role("status")).to_have_count(0)
    page.close()


def test_names_are_text(sandbox, page):
    sandbox.add_campaign(id="<img src=x>&", name="<script>document.title = 'broken'</script>")
    page.goto(f"{sandbox.url}/#campaign-%3Cimg%20src%3Dx%3E%26")
    expect(page.locator("tr:target")).to_contain_text("<script>")
    expect(page).to_have_title("VoiceGenie sandbox")


def test_a_page_of_another_origin_can_neither_read_nor_control_it(sandbox, page):
    # The same host, but another origin.
    page.route(
        "http://127.0.0.1:1/", lambda route: route.fulfill(body="<title>other</title>", content_type="text/html")
    )
    page.goto("http://127.0.0.1:1/")
    reading = "url => fetch(url).then(answer => answer.text()).catch(() => 'refused')"
    assert page.evaluate(reading, f"{sandbox.url}/_sandbox/state") == "refused"
    posting = """url => fetch(url, {method: "POST", mode: "no-cors", body: "kind=close&operation=*"}).catch(() => 0)"""
    page.evaluate(posting, f"{sandbox.url}/_sandbox/page/faults")
    page.evaluate(posting.replace("kind=close&operation=*", "{}"), f"{sandbox.url}/_sandbox/faults")
    assert not sandbox.sandbox.faults.waiting()
