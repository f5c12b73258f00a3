# SPDX-License-Identifier: Apache-2.0
"""A browser, and a real Airflow with its UI beside the sandbox, as ``make ui`` runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import airflow as installed_airflow
import pytest

ROOT = Path(__file__).parents[2]
#: Milliseconds for which anything on a page is waited for. They bound a hang, on the slowest of machines.
PATIENCE = 600_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: What keeps the browser from asking the network for anything.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
)
#: Where the pictures go.
PICTURES = Path(os.environ.get("VOICEGENIE_SCREENSHOTS", ROOT / "build" / "screenshots"))


#: The pages of older Airflows are others.
collect_ignore_glob = [] if installed_airflow.__version__.startswith(("3.3.", "3.4.")) else ["test_*.py"]


def pytest_collection_modifyitems(items):
    if any(map(shutil.which, BROWSERS)):
        return
    names = ", ".join(BROWSERS)
    problem = f"not installed: a browser (one of {names}); on Debian and Ubuntu: sudo apt-get install chromium"
    if os.environ.get("VOICEGENIE_BROWSER") == "required":
        pytest.exit(problem, returncode=1)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=problem))


@dataclass
class Playground:
    """
    What ``make ui`` runs.

    :param airflow: URL of Airflow's UI.
    :param sandbox: URL of the sandbox.
    :param api_key: The sandbox's key.
    """

    airflow: str
    sandbox: str
    api_key: str


@pytest.fixture(scope="session")
def playground():
    command = [sys.executable, ROOT / "scripts" / "ui.py", "--port", "0", "--sandbox-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        try:
            found = re.search(r"Airflow +(\S+).*\nSandbox +(\S+) +API key (\S+)", said)
            assert found, said
            yield Playground(*found.groups())
        finally:
            process.send_signal(signal.SIGINT)
            last = process.stdout.read()
    assert "Stopped." in last
    assert process.returncode == 0


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)

    executable = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


#: Without it, what turns on a page takes a third of two processors, as it is drawn without a graphics card.
TURNS_ONCE = """
addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "*, ::before, ::after { animation-iteration-count: 1 !important }";
    document.head.append(style);
});
"""


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.add_init_script(TURNS_ONCE)
    page.set_default_timeout(PATIENCE)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(error))
    yield page
    page.close()
    assert not complaints


@pytest.fixture
def picture(page):
    def take(name, **arguments):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}.png", animations="disabled", **arguments)

    return take
