# SPDX-License-Identifier: Apache-2.0
"""
What a developer runs; ``make`` calls it, and ``nox -l`` lists it.

Each Airflow version gets a virtual environment below ``.venvs``. It is made once, and again when ``pyproject.toml`` or
the constraints of the version change.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
import zipfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.10"
nox.options.sessions = ["check", "docs", "tests"]
# The sessions share environments, which `environment` makes.
nox.options.default_venv_backend = "none"

#: Airflow version -> the Pythons it runs on, of those that this provider supports.
VERSIONS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13", "3.14"),
    "3.3": ("3.11", "3.12", "3.13", "3.14"),
    # Its second beta, until the registry has the final version.
    "3.4": ("3.11", "3.12", "3.13", "3.14"),
}
OLDEST = next(iter(VERSIONS))
#: The newest with a final version. What does not depend on Airflow runs beside this one only.
NEWEST = "3.3"
#: The next one, of which there is a beta.
NEXT = "3.4"
#: The Python that runs this.
THIS_PYTHON = "{}.{}".format(*sys.version_info)

#: The documentation is built beside the oldest Airflow: newer ones need a docutils that is too new for Sphinx.
DOCS_VERSION = OLDEST
#: The groups of pyproject.toml that an environment for tests has; `test` alone if none are named.
GROUPS = {
    NEWEST: ("test", "browser", "distributed"),
    # Its constraints name a Celery that Airflow's executor cannot be imported with.
    NEXT: ("test", "browser"),
    DOCS_VERSION: ("test", "docs"),
}

DISTRIBUTED = "tests/integration/test_distributed.py"

#: What the processes of Airflow and of tests import; of each version, some.
HEAVY = [
    "airflow.cli.cli_parser",
    "airflow.jobs.scheduler_job_runner",
    "airflow.jobs.triggerer_job_runner",
    "airflow.dag_processing.manager",
    "airflow.api_fastapi.app",
    "airflow.api_fastapi.core_api.routes.public",
    "airflow.api_fastapi.execution_api.app",
    "airflow.www.app",
    "pytest",
    "xdist.plugin",
    "hypothesis",
]

#: Installs Airflow and all that it needs in seconds, where pip takes minutes.
UV = (sys.executable, "-m", "uv")

ROOT = Path(__file__).resolve().parent
VENVS = ROOT / ".venvs"

# No settings of another Airflow. And Python keeps its bytecode: without it, each process of Airflow takes twice as long
# to begin.
for name in [name for name in os.environ if name.startswith("AIRFLOW") or name == "PYTHONDONTWRITEBYTECODE"]:
    del os.environ[name]


@nox.session
def demo(session: nox.Session) -> None:
    """Run the example of the whole pipeline in a real Airflow, against the sandbox."""
    session.run(environment(session, with_tests=False), "scripts/demo.py")


@nox.session
def ui(session: nox.Session) -> None:
    """Run Airflow's UI and the sandbox; arguments after -- go to scripts/ui.py."""
    python = environment(session, with_tests=False)
    # Replaces nox, so that a signal reaches the script directly and it can stop Airflow.
    os.execv(python, [python, "scripts/ui.py", *session.posargs])  # noqa: S606


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests on the newest Airflow; with arguments after --, those of pytest."""
    run_tests(session, NEWEST, THIS_PYTHON)


@nox.session
@nox.parametrize("python,airflow", [(python, airflow) for airflow, pythons in VERSIONS.items() for python in pythons])
def matrix(session: nox.Session, airflow: str) -> None:
    """Run all tests on one Airflow and one Python; skipped if that Python is not installed."""
    run_tests(session, airflow, str(session.python))


@nox.session
def distributed(session: nox.Session) -> None:
    """Start 1,000 campaigns in an Airflow on several machines, and kill those; a number after -- for fewer."""
    python = environment(session)
    size = {"VOICEGENIE_DISTRIBUTED": session.posargs[0] if session.posargs else "1000"}
    session.run(python, "-m", "pytest", "--log-cli-level=INFO", DISTRIBUTED, env=size)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs; a warning is an error."""
    python = environment(session, DOCS_VERSION)
    session.run(python, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")
    session.log("The documentation is built: open build/docs/index.html")


@nox.session
def check(session: nox.Session) -> None:
    """Lint, check spelling and types, build the package and install it in a clean environment."""
    python = environment(session)
    session.run(python, "-m", "ruff", "check", ".")
    session.run(python, "-m", "ruff", "format", "--check", ".")
    session.run(python, "-m", "codespell_lib")
    session.run(python, "-m", "mypy")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run(*UV, "build", "--quiet", "--out-dir", "dist")
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    session.run(python, "-m", "twine", "check", "--strict", str(wheel), str(source))
    check_wheel(session, wheel)
    session.log(f"Everything is in order. The wheel: {wheel.relative_to(ROOT)}")


@nox.session
@nox.parametrize("airflow,versions", [(each, kind) for each in (OLDEST, NEWEST) for kind in ("lowest", "highest")])
def wheel(session: nox.Session, airflow: str, versions: str) -> None:
    """Run the demo with the wheel of dist and the lowest or the highest versions of what it needs."""
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        session.error("dist has no wheel, or several: run `make check` first")
    folder = VENVS / f"wheel-{airflow}-{versions}"
    os.environ["AIRFLOW_HOME"] = str(folder / "airflow-home")
    new_environment(session, folder, THIS_PYTHON)
    # All but what the package itself names is as Airflow is tested with.
    named = {re.match(r"[\w.-]+", each)[0].lower() for each in own_requirements()} - {"apache-airflow"}
    lines = (ROOT / f"constraints/airflow-{airflow}.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if line.partition("==")[0].lower() not in named))
    resolution = "lowest-direct" if versions == "lowest" else "highest"
    install(session, folder, "-c", str(constraints), f"--resolution={resolution}", f"{wheels[0]}[sandbox]")
    # Not the checkout, which `python -m` would find first.
    safe = {"PYTHONSAFEPATH": "1"}
    python = str(folder / "bin" / "python")
    imported = "import airflow_provider_voicegenie as own, sys; sys.exit(sys.prefix not in own.__file__)"
    session.run(python, "-c", imported, env=safe)
    session.run(python, "scripts/demo.py", env=safe)


def own_requirements() -> list[str]:
    """Return what the package needs, and its sandbox."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["sandbox"]]


def environment(
    session: nox.Session, airflow: str = NEWEST, python: str = THIS_PYTHON, *, with_tests: bool = True
) -> str:
    """
    Return the Python of an environment with this checkout and an Airflow version; make the environment if need be.

    An environment with what the tests need serves the rest too.
    """
    constraints = f"constraints/airflow-{airflow}.txt"
    wanted = hashlib.sha256((ROOT / constraints).read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    suffix = "" if python == THIS_PYTHON else f"-python-{python}"
    for purpose in [""] if with_tests else ["", "-demo"]:
        folder = VENVS / f"airflow-{airflow}{suffix}{purpose}"
        # One for each version, which writes a configuration of its own into it, and not the user's.
        os.environ["AIRFLOW_HOME"] = str(folder / "airflow-home")
        stamp = folder / "made-from"
        if stamp.exists() and stamp.read_text() == wanted:
            return str(folder / "bin" / "python")
    session.log(f"Making {folder.relative_to(ROOT)} (once) ...")
    new_environment(session, folder, python)
    extras, groups = "sandbox", ()
    if with_tests:
        extras += ",parquet,phone" + (",lineage" if airflow in (NEWEST, NEXT) else "")
        groups = GROUPS.get(airflow, ("test",))
    install(session, folder, "-c", constraints, "-e", f".[{extras}]", *(f"--group={group}" for group in groups))
    compile_imports(session, folder)
    stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def new_environment(session: nox.Session, folder: Path, python: str) -> None:
    """Make an empty environment."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted = sys.executable if python == THIS_PYTHON else python
    try:
        session.run_install(*UV, "venv", "--quiet", "--python", wanted, str(folder), silent=True)
    except CommandFailed:
        session.skip(f"Python {python} is not installed")


def install(session: nox.Session, folder: Path, *arguments: str) -> None:
    """Install packages."""
    session.run_install(*UV, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *arguments)


def compile_imports(session: nox.Session, folder: Path) -> None:
    """Let Python compile what it imports, once. Otherwise, each of the processes that begin at once does so."""
    imports = f"""
import contextlib, importlib
for name in {HEAVY!r}:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
"""
    session.run_install(str(folder / "bin" / "python"), "-W", "ignore", "-c", imports, silent=True, log=False)


def run_tests(session: nox.Session, airflow: str, python: str) -> None:
    """
    Run all tests, or what the arguments after ``--`` say.

    What needs no Airflow (``tests/pure``), and what the sandbox is like (``tests/contract``), depend on no version of
    it: they run beside the newest one only.
    """
    interpreter = environment(session, airflow, python)
    if session.posargs:
        session.run(interpreter, "-m", "pytest", *session.posargs)
        return
    parts: dict[str, tuple[str, ...]] = {
        # Tests of one group share an Airflow.
        "integration": ("-n", "3", "--dist", "loadgroup", "tests/integration", f"--ignore={DISTRIBUTED}"),
        "unit": ("-n", "4", "--dist", "worksteal", "tests/unit"),
    }
    if airflow == NEWEST:
        parts["pure"] = ("tests/pure", "tests/contract")
    if airflow in (NEWEST, NEXT):
        parts["browser"] = ("tests/browser",)
    if airflow == NEWEST:
        parts["distributed"] = (DISTRIBUTED,)
    reports = ROOT / "build" / "tests" / f"airflow-{airflow}-python-{python}"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)

    def run_part(name: str) -> None:
        report, log = reports / f"{name}.xml", reports / f"{name}.log"
        with log.open("wb") as output, contextlib.suppress(CommandFailed):
            command = (interpreter, "-m", "pytest", f"--junitxml={report}", *parts[name])
            session.run(*command, stdout=output, stderr=subprocess.STDOUT)

    # Most tests wait most of the time, so two parts run at once. With more, each Airflow waits longer and costs more.
    session.log(f"What the tests print goes to {reports.relative_to(ROOT)}.")
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(run_part, parts))
    if "--install-only" in sys.argv:
        return
    print(f"\nAirflow {airflow}, Python {python}:")
    if failed := summarize(reports, parts):
        for part in failed:
            print(f"\n{part}\n{'=' * len(part)}\n{(reports / f'{part}.log').read_text()[-30_000:]}")
        session.error("not all tests passed")


def summarize(reports: Path, parts: Iterable[str]) -> list[str]:
    """Print what came of each part, which tests failed, and what to install for more; return the parts that failed."""
    failed: dict[str, list[str]] = {}
    lacking: Counter[str] = Counter()
    print(f"{'part':14}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for part in parts:
        try:
            tree = xml.etree.ElementTree.parse(reports / f"{part}.xml")  # noqa: S314  pytest has just written it
        except (OSError, xml.etree.ElementTree.ParseError):
            failed[part] = [f"{part}: pytest ended before it wrote its report"]
            continue
        (suite,) = tree.iter("testsuite")
        count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        wrong = count["failures"] + count["errors"]
        passed = count["tests"] - wrong - count["skipped"]
        print(f"{part:14}{passed:8,}{wrong:8,}{count['skipped']:8,}{float(suite.attrib['time']):9,.0f}")
        names = [
            f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
        if names or not count["tests"]:
            failed[part] = names or [f"{part}: no test ran"]
        for skipped in suite.iter("skipped"):
            if "not installed" in skipped.attrib["message"]:
                lacking[skipped.attrib["message"]] += 1
    for reason, number in lacking.items():
        print(f"{number} skipped: {reason}")
    for name in itertools.chain.from_iterable(failed.values()):
        print(f"failed: {name}")
    return list(failed)


def check_wheel(session: nox.Session, wheel: Path) -> None:
    """Check what is in the wheel, install it beside Airflow in an empty environment, and ask Airflow for it."""
    examples = {f"airflow_provider_voicegenie/example_dags/{path.name}" for path in Path("example_dags").glob("*.py")}
    if missing := examples - set(zipfile.ZipFile(wheel).namelist()):
        session.error(f"The wheel lacks {', '.join(sorted(missing))}")
    folder = VENVS / "wheel"
    os.environ["AIRFLOW_HOME"] = str(folder / "airflow-home")
    new_environment(session, folder, THIS_PYTHON)
    install(session, folder, "-c", f"constraints/airflow-{NEWEST}.txt", str(wheel))
    listed = session.run(str(folder / "bin" / "airflow"), "providers", "list", "--output", "plain", silent=True)
    if "airflow-provider-voicegenie" not in str(listed):
        session.error(f"Airflow does not list the provider of the wheel:\n{listed}")
