# SPDX-License-Identifier: Apache-2.0
"""Prerequisites on their way to the triggerer: which can be imported there, and that only prerequisites are made."""

from __future__ import annotations

import os
import sys

import airflow
import pytest

from airflow_provider_voicegenie.rules.prerequisites import (
    HasContacts,
    Prerequisite,
    check_importable,
    load_prerequisite,
)
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

IS_AIRFLOW_2 = airflow.__version__.startswith("2.")

MODULE = """
import builtins
from dataclasses import dataclass
builtins.voicegenie_loaded = getattr(builtins, "voicegenie_loaded", []) + [__name__]
from airflow_provider_voicegenie.sensors.campaign import Check, Prerequisite

@dataclass(frozen=True)
class Named(Prerequisite):
    name: str = "x"

    def check(self, campaign, now):
        return Check.met()

class Other:
    pass

made_elsewhere = type("Dynamic", (Prerequisite,), {"check": Named.check})
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    package = tmp_path / "own_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text(MODULE.partition("from airflow")[0])
    (package / "checks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = []
    monkeypatch.setattr("builtins.voicegenie_loaded", loaded, raising=False)
    yield lambda: __import__("builtins").voicegenie_loaded
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


def test_what_an_author_wrote_is_loaded(modules):
    prerequisite = load_prerequisite("own_package.inner.checks.Named", {"name": "y"})
    assert (type(prerequisite).__name__, prerequisite.name) == ("Named", "y")
    assert modules() == ["own_package", "own_package.inner", "own_package.inner.checks"]


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_the_triggerer_cannot_import_is_refused_when_the_dag_is_parsed(modules, tmp_path, monkeypatch, everywhere):
    """Airflow 3 has the DAG folder on the import path of what reads DAG files, and not on the triggerer's."""
    prerequisite = load_prerequisite("own_package.inner.checks.Named", {"name": "y"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}/elsewhere" if everywhere else "/elsewhere")
    # The folder of another package, ours, and none, as on Airflow 2.
    check_importable([prerequisite, HasContacts(3)], str(tmp_path / "own_package"))
    check_importable([prerequisite, HasContacts(3)], None)
    if everywhere:
        check_importable([prerequisite, HasContacts(3)], str(tmp_path))
    else:
        with pytest.raises(ValueError, match=r"Named is defined in the DAG folder \(module own_package.inner.checks\)"):
            check_importable([HasContacts(3), prerequisite], str(tmp_path))


def test_what_is_defined_in_a_dag_file_is_refused_when_the_dag_is_parsed():
    cls = type("Local", (Prerequisite,), {"__module__": "unusual_prefix_0123_dag", "check": lambda *_: None})
    with pytest.raises(ValueError, match="Local is defined in a DAG file, and the triggerer cannot import it"):
        check_importable([cls()], None)


def test_a_sensor_that_defers_checks_that_its_prerequisites_can_be_imported(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(tmp_path))
    prerequisite = load_prerequisite("own_package.inner.checks.Named", {"name": "y"})

    def sensor(deferrable):
        return CampaignReadySensor(task_id="t", campaign_id="c", prerequisites=[prerequisite], deferrable=deferrable)

    assert sensor(False)
    if IS_AIRFLOW_2:
        assert sensor(True)
    else:
        with pytest.raises(ValueError, match="the DAG folder"):
            sensor(True)


def test_ours_are_loaded():
    assert load_prerequisite(*HasContacts(3).serialize()).minimum == 3


@pytest.mark.parametrize(
    "path",
    [
        "own_package.inner.checks.Missing",
        "own_package.inner.checks.Other",
        "own_package.inner.checks.Named.check",
        "own_package.inner.checks.deeper.Named",
        "own_package.missing.Named",
        "no_such_package.Named",
        "own_package..checks.Named",
        "own_package/inner.checks.Named",
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "Named",
        "",
        ".",
    ],
)
def test_what_is_no_prerequisite_is_not_made(modules, path):
    with pytest.raises(ValueError, match="is no Prerequisite that can be imported here"):
        load_prerequisite(path, {})
