# SPDX-License-Identifier: Apache-2.0
"""Which module may import which: what decides does no I/O, and imports point down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import airflow_provider_voicegenie

ROOT = Path(airflow_provider_voicegenie.__file__).parent
PACKAGE = ROOT.name

#: What decides, and so can be tested by table.
DECIDES = [
    *("api/endpoints", "api/errors", "api/models", "api/responses", "api/retries", "api/rate_limit", "api/times"),
    *(
        "rules/outcomes",
        "rules/parameters",
        "rules/prerequisites",
        "rules/calling_hours",
        "rules/contacts",
        "rules/file_formats",
    ),
    *("start/guards", "start/evidence", "start/options"),
    *("waiting/watch", "waiting/completion", "waiting/readiness", "waiting/pausing"),
    *("waiting/progress", "waiting/final_statistics"),
    "triggers/endings",
    "feed/plan",
]
DOES = {"asyncio", "http", "requests", "socket", "subprocess", "time", "urllib3"}
DOES |= {f"{PACKAGE}.{name}" for name in ("api.client", "api.session", "hooks", "operators", "sensors")}

#: The rooms, from the top down; each may import those below it.
ROOMS = ["operators", "sensors", "transfers", "start", "triggers", "waiting", "feed", "hooks", "rules", "api"]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", DECIDES)
def test_what_decides_does_nothing(module):
    for name in imports(ROOT / f"{module}.py"):
        assert not any(f"{name}.".startswith(f"{banned}.") for banned in DOES), name


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    above = ROOMS[: ROOMS.index(room)]
    for path in (ROOT / room).glob("*.py"):
        for name in imports(path):
            assert not any(name.startswith(f"{PACKAGE}.{other}.") for other in above), (path.name, name)


def test_the_service_knows_nothing_of_airflow():
    for path in (ROOT / "api").glob("*.py"):
        assert not [
            name
            for name in imports(path)
            if name.startswith(PACKAGE) and not name.startswith((f"{PACKAGE}.api", f"{PACKAGE}.__version__"))
        ]
        assert not [name for name in imports(path) if name.partition(".")[0] == "airflow"]
