# SPDX-License-Identifier: Apache-2.0
"""The tests of this folder need neither Airflow nor the sandbox, and so run beside one version of Airflow only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

IMPORT = """
import importlib.util, sys
sys.path.insert(0, sys.argv[2])
sys.modules["airflow"] = sys.modules["starlette"] = None  # which makes their import an error
spec = importlib.util.spec_from_file_location("tested", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


@pytest.mark.parametrize("name", [path.name for path in HERE.glob("test_*.py") if path != Path(__file__)])
def test_each_file_loads_without_airflow(name):
    command = [sys.executable, "-c", IMPORT, str(HERE / name), str(HERE.parent)]
    subprocess.run(command, check=True, cwd=HERE.parents[1])
