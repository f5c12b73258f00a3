# SPDX-License-Identifier: Apache-2.0
"""What is tested in this folder depends on no Airflow: it is run with one of them only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"airflow", "starlette"} & set(sys.modules)))
"""


def test_nothing_here_loads_airflow_or_the_sandbox():
    modules = sorted(path.stem for path in HERE.glob("test_*.py"))
    assert Path(__file__).stem in modules
    command = [sys.executable, "-c", LOADED, *modules]
    path = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    result = subprocess.run(
        command, env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, check=False, timeout=100
    )
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


def test_no_test_here_asks_for_the_sandbox():
    others = [path for path in HERE.glob("test_*.py") if path.name not in (Path(__file__).name, "test_rooms.py")]
    asking = [path.name for path in others if "sandbox" in path.read_text()]
    assert asking == []
