# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation is run, and every command of it is one."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import urllib.request
from importlib.metadata import metadata
from pathlib import Path

import pytest

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for language, text in [found.groups()]
]


def python_block(airflow, text):
    airflow.dags = airflow.home / "dags"
    airflow.dags.mkdir()
    file = airflow.dags / "test_block.py"
    file.write_text(text)
    if "def test_" not in text:
        runpy.run_path(str(file))
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", airflow.dags, file]
    result = subprocess.run(command, env=airflow.variables(), capture_output=True, text=True, check=False)
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def export(value):
    name, _, text = value.partition("=")
    assert name == "AIRFLOW_CONN_VOICEGENIE_DEFAULT"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, text)
        assert VoiceGenieHook().get_conn()


def pip_install(package):
    name, _, extra = package.rstrip("]").partition("[")
    assert name == "airflow-provider-voicegenie"
    assert not extra or extra in metadata(name).get_all("Provides-Extra")


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
        case ["make", target]:
            # What they do, other tests and CI do.
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["export", value]:
            export(value)
        case ["pip", "install", package]:
            pip_install(package)
        case ["voicegenie-sandbox", *arguments]:
            sandbox(arguments)
        case ["python3", "scripts/dev.py", "test", *arguments]:
            files = [argument.partition("::")[0] for argument in arguments if argument.startswith("tests/")]
            assert files
            assert all((ROOT / file).exists() for file in files)
        case ["nox", "-s", session]:
            command = [sys.executable, "-m", "nox", "--list"]
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert session == "tests" or f"* {session} " in listed.stdout
        case other:
            pytest.fail(f"what is {other}?")


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_each_code_block(airflow, language, text):
    if language == "python":
        python_block(airflow, text)
    else:
        assert language == "bash"
        for line in text.splitlines():
            bash_line(line)
