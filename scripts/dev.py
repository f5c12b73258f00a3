#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Set up and run what a developer needs: ``demo``, ``ui``, ``test``, ``check``, ``docs``, and ``setup`` alone.

Needs only Python and pip.

Each Airflow version gets a virtual environment of its own below ``.venvs``, made once and again whenever
``pyproject.toml`` or the version's constraints change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEWEST = "3.3"
VERSIONS = sorted(
    (path.stem.removeprefix("airflow-") for path in (ROOT / "constraints").glob("airflow-*.txt")),
    key=lambda version: tuple(map(int, version.split("."))),
)

#: Installing compiles nothing: most of what Airflow brings is never imported.
QUIETLY = ("--quiet", "--disable-pip-version-check", "--no-compile")

#: The documentation is built beside the oldest Airflow: newer ones come with a docutils that is too new for Sphinx.
DOCS_VERSION = VERSIONS[0]

#: Builds the documentation; a warning is an error.
DOCS = ("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (
        ("demo", "run the smallest example in a real Airflow against the local sandbox"),
        ("ui", "run Airflow's UI and the sandbox, to play with; further arguments go to scripts/ui.py"),
        ("test", "run the tests; further arguments go to pytest"),
        ("check", "lint, type-check, build the package and install it somewhere clean"),
        ("docs", "build the documentation into build/docs"),
        ("setup", "make the environment of an Airflow version for its tests, and no more"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("--airflow", choices=VERSIONS, default=NEWEST, help=f"Airflow version (default {NEWEST})")
    options, rest = parser.parse_known_args()
    if rest and options.command not in ("test", "ui"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if sys.version_info < (3, 11):  # noqa: UP036  the one file that an older Python may meet
        parser.error(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}")
    if options.command == "docs":
        return run(environment(DOCS_VERSION, with_tests=True), *DOCS)
    python = environment(options.airflow, with_tests=options.command not in ("demo", "ui"))
    if options.command == "demo":
        return run(python, ROOT / "scripts" / "demo.py")
    if options.command == "ui":
        # In place of this process, so that a signal reaches it directly.
        os.chdir(ROOT)
        os.execve(python, [str(python), "scripts/ui.py", *rest], clean_environment())  # noqa: S606
    if options.command == "test":
        return test(python, rest, with_browser=options.airflow == NEWEST)
    if options.command == "setup":
        return 0
    return check(python)


def environment(version: str, *, with_tests: bool) -> Path:
    """
    Return the Python of an environment with this checkout and an Airflow version, made if need be.

    One with what the tests need serves the rest too.
    """
    constraints = ROOT / "constraints" / f"airflow-{version}.txt"
    wanted = hashlib.sha256(constraints.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for suffix in [""] if with_tests else ["", "-demo"]:
        folder = ROOT / ".venvs" / f"airflow-{version}{suffix}"
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        stamp = folder / "made-from"
        if stamp.exists() and stamp.read_text() == wanted:
            return python
    print(f"Setting up {folder.relative_to(ROOT)} (a minute or two, once) ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    extra = "sandbox,test" if with_tests else "sandbox"
    if with_tests:
        extra += {NEWEST: ",browser", DOCS_VERSION: ",docs"}.get(version, "")
    command = [python, "-m", "pip", "install", *QUIETLY]
    install = subprocess.run([*command, "-c", constraints, "-e", f"{ROOT}[{extra}]"], check=False, cwd=ROOT)
    if install.returncode:
        sys.exit(f"Setting up failed (pip ended with {install.returncode}); its message stands above.")
    stamp.write_text(wanted)
    return python


def test(python: Path, arguments: list[str], *, with_browser: bool) -> int:
    """Run all tests, or those that are asked for."""
    if arguments:
        return run(python, "-m", "pytest", *arguments)
    # The first wait most of the time; of the others, each keeps processors busy with an Airflow of its own.
    parts = [("6", "tests/unit", "tests/contract"), ("2", "tests/integration")]
    if with_browser:
        parts.append(("0", "tests/browser"))
    return next(filter(None, (run(python, "-m", "pytest", "-n", *part) for part in parts)), 0)


def check(python: Path) -> int:
    """Lint, type-check, build, and install the wheel in a clean environment."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    steps = [
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy"),
        ("-m", "build", "--outdir", dist),
    ]
    for step in steps:
        if code := run(python, *step):
            return code
    wheels = sorted(dist.glob("*.whl"))
    return run(python, "-m", "twine", "check", "--strict", *sorted(dist.iterdir())) or check_wheel(wheels[0])


def check_wheel(wheel: Path) -> int:
    """Install a wheel beside Airflow in an environment that has nothing else, and ask Airflow for it."""
    folder = ROOT / ".venvs" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints" / f"airflow-{NEWEST}.txt"
    if code := run(python, "-m", "pip", "install", *QUIETLY, "-c", constraints, wheel):
        return code
    listed = subprocess.run(
        [folder / "bin" / "airflow", "providers", "list", "--output", "plain"],
        env={**os.environ, "AIRFLOW_HOME": str(folder / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode or "airflow-provider-voicegenie" not in listed.stdout:
        print(f"The wheel's provider is not listed by Airflow:\n{listed.stdout}{listed.stderr}")
        return 1
    print("The wheel installs, and `airflow providers list` shows it.")
    return 0


def run(python: Path, *arguments: object) -> int:
    """Run Python with arguments, in the checkout."""
    print("+", *(str(argument) for argument in arguments), flush=True)
    command = [python, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, env=clean_environment()).returncode


def clean_environment() -> dict[str, str]:
    """Return the environment without the settings of another Airflow, and with a home that is not the user's."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return others | {"AIRFLOW_HOME": str(ROOT / ".venvs" / "airflow-home")}


if __name__ == "__main__":
    sys.exit(main())
