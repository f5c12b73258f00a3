# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation is run, and every command of it is one."""

from __future__ import annotations

import re
import runpy
import shlex
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from importlib.metadata import metadata
from pathlib import Path

import pytest
from airflow.configuration import conf
from services import AIRFLOW_VERSION

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for language, text in [found.groups()]
    # No Docker here.
    if language != "dockerfile"
]


def is_test(language, text):
    return language == "python" and "def test_" in text


def test_the_blocks_that_are_tests(airflow, tmp_path):
    """As a new user runs them: all at once, in any folder, with an Airflow that has no database yet."""
    folder, home = tmp_path / "tests", tmp_path / "home"
    folder.mkdir()
    tests = [block for block in BLOCKS if is_test(*block.values)]
    for number, block in enumerate(tests):
        (folder / f"test_block_{number}.py").write_text(block.values[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
    own = {"AIRFLOW_HOME": str(home), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}"}
    result = subprocess.run(command, env=airflow.variables() | own, capture_output=True, text=True, check=False)
    assert f"{len(tests)} passed" in result.stdout, result.stdout + result.stderr
    assert len(tests) >= 2
    if AIRFLOW_VERSION >= (3, 0):
        # Airflow disables the bundles that it misses, and their DAGs.
        with closing(sqlite3.connect(home / "airflow.db")) as database:
            bundles = dict(database.execute("SELECT name, active FROM dag_bundle"))
        assert bundles["dags-folder"]
        assert len(bundles) == 1 + len(tests)


def test_the_first_dag_of_the_readme_ends_by_itself(airflow, voicegenie_sandbox):
    voicegenie_sandbox.speed = 600
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    airflow.dags = airflow.home / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "first.py").write_text(blocks[0])
    result = airflow.run("dags", "test", "first")
    assert airflow.states("first") == [{"ready": "success", "start": "success"}], result.stdout + result.stderr
    assert voicegenie_sandbox.status("ready") == "completed"


def export(value):
    name, _, text = value.partition("=")
    if name in ("AIRFLOW_VERSION", "PYTHON_VERSION", "CONSTRAINTS"):
        # Names of the page's own, for the command below them.
        return
    if name != "AIRFLOW_CONN_VOICEGENIE_DEFAULT":
        assert name in conf_names()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, text)
        assert VoiceGenieHook().get_conn()


def conf_names():
    options = conf.as_dict(display_source=False)
    return {"AIRFLOW_HOME"} | {
        f"AIRFLOW__{section}__{option}".upper() for section, values in options.items() for option in values
    }


def pip_install(package):
    # Nothing is released yet, so a page names a checkout or a wheel.
    if package.startswith("dist/"):
        wheel, _, extra = package.rstrip("]").partition("[")
        assert wheel == f"dist/airflow_provider_voicegenie-{__version__}-py3-none-any.whl"
        extras(extra)
        return
    if package in ("nox[uv]", "pytest", "apache-airflow-providers-http", "apache-airflow==$AIRFLOW_VERSION"):
        return
    where, _, extra = package.rstrip("]").partition("[")
    assert where in (".", "PATH_TO_CHECKOUT")
    extras(extra)


def extras(text):
    assert {each for each in text.split(",") if each} <= set(
        metadata("airflow-provider-voicegenie").get_all("Provides-Extra")
    )


def sandbox(arguments):
    command = [sys.executable, "-m", "airflow_provider_voicegenie.sandbox", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split(" on ")[1].split(" ")[0]
            assert urllib.request.urlopen(url, timeout=10).status == 200
        finally:
            process.terminate()


def bash_line(line):
    match shlex.split(line, comments=True):
        case []:
            pass
        case ["make", target, *variables]:
            # What they do, other tests and CI do.
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
            assert all(f"$({variable.partition('=')[0]})" in makefile for variable in variables)
        case ["export", *values]:
            for value in values:
                export(value)
        case ["pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."] | ["airflow", "providers", "list"]:
            # As `nox -s check` does.
            pass
        case ["python", script, *arguments] if script.startswith("benchmarks/"):
            assert (
                subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, check=False).returncode
                == 0
            )
            assert not arguments or arguments[0].replace("-", "_") in (ROOT / script).read_text()
        case ["pip", "install", *packages, "--constraint", "$CONSTRAINTS"]:
            for package in packages:
                pip_install(package)
        case ["pip", "install", *packages]:
            for package in packages:
                pip_install(package)
        case ["sudo", "apt-get", "install", *packages]:
            # What the tests that need them name.
            assert set(packages) <= {"redis-server", "postgresql", "chromium"}
        case ["airflow", "db", "migrate"] | ["pytest", "test_call.py"] | ["airflow", "dags", "test", "first"]:
            # As the fixture `airflow` and the first two tests do.
            pass
        case ["voicegenie-sandbox", *arguments]:
            sandbox([argument for argument in arguments if argument != "&"])
        case ["nox", "-s", session, *arguments]:
            command = [sys.executable, "-m", "nox", "--list", "-s", session]
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert re.search(rf"^\* {session.partition('(')[0]}", listed.stdout, re.MULTILINE), listed.stdout
            files = [argument.partition("::")[0] for argument in arguments if argument.startswith("tests/")]
            assert all((ROOT / file).exists() for file in files)
        case other:
            pytest.fail(f"what is {other}?")


@pytest.mark.parametrize(("language", "text"), [block for block in BLOCKS if not is_test(*block.values)])
def test_each_code_block(tmp_path, language, text):
    if language != "python" and AIRFLOW_VERSION < (3, 3):
        pytest.skip("a command does on the newest Airflow what it does on the others")
    if language == "python":
        file = tmp_path / "block.py"
        file.write_text(text)
        runpy.run_path(str(file))
    else:
        assert language == "bash"
        for line in text.splitlines():
            bash_line(line)
