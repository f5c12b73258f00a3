# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation is run, and every command of it is one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.request
from importlib.metadata import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for language, text in [found.groups()]
]


def run_python(airflow, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=airflow.variables(), capture_output=True, text=True, check=False)


def python_block(airflow, folder, text):
    file = folder / "test_block.py"
    file.write_text(text)
    if "def test_" in text:
        result = run_python(airflow, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, file)
        assert "1 passed" in result.stdout, result.stdout + result.stderr
    else:
        result = run_python(airflow, "-W", "error::DeprecationWarning:test_block", file)
        assert result.returncode == 0, result.stderr


def export(value):
    name, _, connection = value.partition("=")
    assert re.fullmatch("AIRFLOW_CONN_[A-Z_]+", name)
    script = (
        "import sys; from airflow.models import Connection; from airflow_provider_voicegenie.hooks import connection\n"
        "text = sys.argv[1]; kind = 'from_json' if text.startswith('{') else 'uri'\n"
        "made = Connection.from_json(text) if kind == 'from_json' else Connection(uri=text)\n"
        "print(made.conn_type, connection.client_settings(made).timeout)"
    )
    result = subprocess.run([sys.executable, "-c", script, connection], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1].startswith("voicegenie "), result.stdout + result.stderr


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
def test_each_code_block(airflow, tmp_path, language, text):
    if language == "python":
        airflow.dags = tmp_path / "dags"
        airflow.dags.mkdir()
        python_block(airflow, airflow.dags, text)
    else:
        assert language == "bash"
        for line in text.splitlines():
            bash_line(line)
