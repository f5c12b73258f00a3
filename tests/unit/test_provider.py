# SPDX-License-Identifier: Apache-2.0
"""What Airflow sees of the provider."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import airflow
import jsonschema
import pytest

import airflow_provider_voicegenie
from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.get_provider_info import get_provider_info
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

KINDS = ("operators", "sensors", "triggers", "hooks")

#: Modules that cannot be loaded before.
ONLY_ON_AIRFLOW_3 = () if airflow.__version__ >= "3" else ("airflow_provider_voicegenie.triggers.events",)


def classes_of(module):
    """Return the public classes that a module defines."""
    if module in ONLY_ON_AIRFLOW_3:
        return []
    members = vars(importlib.import_module(module)).values()
    return [
        each for each in members if isinstance(each, type) and each.__module__ == module and each.__name__[0] != "_"
    ]


@pytest.mark.parametrize(
    ("kind", "end"), [("operators", "Operator"), ("sensors", "Sensor"), ("triggers", "Trigger"), ("hooks", "Hook")]
)
def test_each_module_with_a_class_that_airflow_runs_is_named(kind, end):
    package = Path(airflow_provider_voicegenie.__file__).parent
    pattern = re.compile(rf"^class [A-Z]\w*{end}\(", re.MULTILINE)
    found = {
        f"{package.name}.{kind}.{file.stem}"
        for file in (package / kind).glob("*.py")
        if pattern.search(file.read_text())
    }
    assert found == {module for entry in get_provider_info()[kind] for module in entry["python-modules"]}


def test_the_description_is_one_that_airflow_accepts():
    from importlib.resources import files

    schema = json.loads((files(airflow) / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_everything_named_exists():
    info = get_provider_info()
    assert info["versions"] == [__version__]
    for kind in KINDS:
        for entry in info[kind]:
            for module in entry["python-modules"]:
                assert classes_of(module) or module in ONLY_ON_AIRFLOW_3
    (connection_type,) = info["connection-types"]
    assert connection_type["hook-class-name"] == f"{VoiceGenieHook.__module__}.{VoiceGenieHook.__name__}"
    assert connection_type["connection-type"] == VoiceGenieHook.conn_type
    assert connection_type["hook-name"] == VoiceGenieHook.hook_name


def test_each_class_that_a_user_may_use_says_what_its_arguments_are():
    info = get_provider_info()
    for kind in KINDS:
        for name in info[kind][0]["python-modules"]:
            for cls in classes_of(name):
                # Beside a trigger may be what it is made of.
                if kind != "triggers" or cls.__name__.endswith("Trigger"):
                    assert ":param campaign_id:" in cls.__doc__ or ":param voicegenie_conn_id:" in cls.__doc__


def test_the_old_form_is_the_new_one():
    behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
    old = VoiceGenieHook.get_ui_field_behaviour()
    assert old == {name.replace("-", "_"): value for name, value in behaviour.items()}
    try:
        widgets = VoiceGenieHook.get_connection_form_widgets()
    except ImportError:
        pytest.skip("no form library beside this Airflow, which then does not ask for widgets")
    assert list(widgets) == list(get_provider_info()["connection-types"][0]["conn-fields"])


@pytest.mark.parametrize("cls", [StartCampaignOperator, PauseCampaignOperator, CampaignReadySensor])
def test_only_what_may_be_decided_upstream_is_templated(cls):
    more = ("check_only", "max_contacts") if cls is StartCampaignOperator else ()
    assert tuple(cls.template_fields) == ("campaign_id", "voicegenie_conn_id", *more)


def test_the_hook_can_be_pickled_without_the_key(voicegenie_sandbox):
    hook = VoiceGenieHook()
    hook.get_campaign("ready")
    data = pickle.dumps(hook)
    assert voicegenie_sandbox.api_key.encode() not in data
    assert pickle.loads(data).get_campaign("ready").campaign_id == "ready"


@pytest.mark.timeout(600)
def test_parsing_a_dag_loads_no_http_library_and_no_trigger():
    """Only what Airflow's own base classes have not loaded already counts."""
    code = """
import sys
from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator
before = set(sys.modules)
import airflow_provider_voicegenie.operators.campaign, airflow_provider_voicegenie.sensors.campaign
print(*sorted(set(sys.modules) - before))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = output.splitlines()[-1].split()
    ours = [name for name in loaded if name.startswith("airflow_provider_voicegenie")]
    assert not [name for name in ours if ".api" in name or ".hooks" in name or ".sandbox" in name]
    heavy = ("requests", "httpx", "urllib3", "tenacity", "airflow.triggers", "aiohttp")
    assert not [name for name in loaded if name.startswith(heavy)]


def test_the_label_of_a_field_is_its_name():
    for name, field in get_provider_info()["connection-types"][0]["conn-fields"].items():
        assert field["label"].lower() == name.replace("_", " ")


def test_what_the_description_points_to_is_there():
    integration = get_provider_info()["integrations"][0]
    root = Path(__file__).parents[2]
    assert all((root / path).is_file() for path in [*integration["how-to-guide"], integration["logo"]])
