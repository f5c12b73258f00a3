# SPDX-License-Identifier: Apache-2.0
"""Which module may import which: what decides does no I/O, imports point down, and there is no circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import airflow_provider_voicegenie

ROOT = Path(airflow_provider_voicegenie.__file__).parent
PACKAGE = ROOT.name
MODULES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if "example_dags" not in path.parts
}

#: What decides, and so can be tested by table; whole rooms, and single modules.
DECIDES = [
    *("api.endpoints", "api.errors", "api.models", "api.responses", "api.retries", "api.rate_limit", "api.settings"),
    *("api.times", "rules", "start.guards", "start.evidence", "start.refusals"),
    *("waiting.watch", "waiting.completion", "waiting.readiness", "waiting.pausing", "waiting.limits"),
    *("waiting.progress", "triggers.endings", "feed.plan", "feed.share"),
]
DOES = {"asyncio", "http", "requests", "socket", "subprocess", "time", "urllib3"}
DOES |= {f"{PACKAGE}.{name}" for name in ("api.client", "api.session", "hooks", "operators", "sensors")}

#: The rooms and the loose modules, from the top down; each may import those below it.
ROOMS = [
    *(
        "operators",
        "sensors",
        "transfers",
        "start",
        "pause_run",
        "sensor_run",
        "campaign_task",
        "triggers",
        "waiting",
        "memory",
        "lineage",
        "links",
    ),
    "feed",
    *("hooks", "files", "metrics", "get_provider_info", "rules", "sandbox", "api", "timing"),
]


def imports(path):
    """Yield the names that a module imports, by a type or in a function too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path):
    for name in imports(path):
        if name in MODULES:
            yield name
        elif name.rpartition(".")[0] in MODULES:
            yield name.rpartition(".")[0]


def is_within(name, rooms):
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("module", DECIDES)
def test_what_decides_does_nothing(module):
    paths = [path for name, path in MODULES.items() if is_within(name, [f"{PACKAGE}.{module}"])]
    assert paths
    for path in paths:
        for name in imports(path):
            assert not is_within(name, DOES), (path.name, name)


def test_every_module_has_its_place():
    rooms = [f"{PACKAGE}.{room}" for room in ROOMS]
    assert [name for name in MODULES if name != PACKAGE and not is_within(name, rooms)] == []
    assert [room for room in rooms if not any(is_within(name, [room]) for name in MODULES)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    above = [f"{PACKAGE}.{other}" for other in ROOMS[: ROOMS.index(room)]]
    for module, path in MODULES.items():
        if is_within(module, [f"{PACKAGE}.{room}"]):
            for name in imports(path):
                assert not is_within(name, above), (module, name)


def test_no_modules_import_each_other():
    graph = {module: {name for name in imported_modules(path) if name != module} for module, path in MODULES.items()}
    # It raises an error that names the circle.
    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_else_knows_the_sandbox():
    for module, path in MODULES.items():
        if not is_within(module, [f"{PACKAGE}.sandbox"]):
            assert not any(is_within(name, [f"{PACKAGE}.sandbox"]) for name in imports(path)), module


def test_the_service_knows_nothing_of_airflow():
    for path in (ROOT / "api").glob("*.py"):
        assert not [
            name
            for name in imports(path)
            if name.startswith(PACKAGE) and not name.startswith((f"{PACKAGE}.api", f"{PACKAGE}.__version__"))
        ]
        assert not [name for name in imports(path) if name.partition(".")[0] == "airflow"]
