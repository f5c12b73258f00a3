# SPDX-License-Identifier: Apache-2.0
"""Each parse of a DAG serializes it alike: another text in any process would be a new DAG version for each run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "example_dags"

#: Every operator and sensor, mapped and not, with whatever a DAG author may hand to them.
DAGS = """
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import (
    CallingHours, Condition, Outcome, PauseCampaignOperator, StartCampaignOperator,
)
from airflow_provider_voicegenie.sensors.campaign import (
    CampaignCompletedSensor, CampaignReadySensor, Check, HasContacts, HasQuota, HasScript, IsStartable,
    Prerequisite,
)


@dataclass(frozen=True)
class Own(Prerequisite):
    words: list
    limits: dict = field(default_factory=lambda: {"b": 1, "a": 2})

    def check(self, campaign, now):
        return Check.met()


class KeepsNothing(Prerequisite):
    def __init__(self, thing):
        pass

    def check(self, campaign, now):
        return Check.met()


def is_holiday(day):
    return False


days = {"mon", "tue", "friday"}
hours = CallingHours("22:00", "02:00", "Europe/Berlin", days, except_dates=is_holiday, over_midnight=True)
noon = CallingHours("12:00", "13:00", "Europe/Berlin", except_dates={"2026-12-25", "2026-01-01"})
start = dict(
    calling_hours=[hours, noon],
    max_contacts=10,
    check_only="{{ params.check_only }}",
    outcomes={Condition.NOT_FOUND: Outcome.SKIP, "CAMPAIGN_PAUSED": "fail"},
    max_lateness=timedelta(hours=1),
    wait_for_completion=True,
    completion_timeout=timedelta(hours=2),
    stall_timeout=60,
    min_success_rate=50,
    poll_interval=timedelta(seconds=30),
)
ready = dict(
    prerequisites=[HasContacts(5), HasScript(), IsStartable(), hours, noon, HasQuota(calls=1), Own(["x", "y"])],
    outcomes={"NOT_FOUND": "wait"}
)
completed = dict(stall_timeout=timedelta(minutes=5), min_success_rate=1, outcomes={Condition.CAMPAIGN_PAUSED: "fail"})
kinds = {
    "start": (StartCampaignOperator, start),
    "pause": (PauseCampaignOperator, {"outcomes": {"NOT_FOUND": Outcome.SKIP}, "keep_paused_for": timedelta(hours=1)}),
    "ready": (CampaignReadySensor, ready),
    "completed": (CampaignCompletedSensor, completed),
}
with DAG("all", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)) as dag:
    for name, (cls, arguments) in kinds.items():
        cls(task_id=name, campaign_id="c", **arguments)
        cls.partial(task_id=f"{name}_mapped", **arguments).expand(campaign_id=["a", "b"])
        cls.partial(task_id=f"{name}_by_kwargs", **arguments).expand_kwargs(
            [{"campaign_id": "a", "voicegenie_conn_id": "x"}, {"campaign_id": "b"}]
        )
        own = [{name: value} for name, value in arguments.items() if name in ("prerequisites", "calling_hours")]
        for number, argument in enumerate(own):
            ((argument, value),) = argument.items()
            cls.partial(task_id=f"{name}_over_{argument}", campaign_id="c").expand(**{argument: [value]})
    # Refused when it runs, and still no reason for a new version.
    CampaignReadySensor.partial(task_id="odd", prerequisites=[KeepsNothing(object()), Own({"p", "q", "r"})]).expand(
        campaign_id=["a"]
    )
"""

SERIALIZE = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
from airflow.serialization import serialized_objects

serialize = getattr(serialized_objects, "DagSerialization", None) or serialized_objects.SerializedDAG
texts = {}
options = {} if hasattr(serialized_objects, "DagSerialization") else {"include_examples": False}
for folder in sys.argv[1:]:
    bag = DagBag(folder, **options)
    # Some examples are for a later Airflow.
    errors = [error for error in bag.import_errors.values() if "ImportError" not in error and "NotFound" not in error]
    assert not errors, errors
    texts |= {name: serialize.to_dict(dag) for name, dag in bag.dags.items()}
print("SERIALIZED " + json.dumps(texts))
"""


@pytest.fixture(scope="module")
def serialized(tmp_path_factory):
    """Serialize all DAGs in two processes, which write sets in another order."""
    folder = tmp_path_factory.mktemp("dags")
    (folder / "all.py").write_text(DAGS)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SERIALIZE, str(folder), str(EXAMPLES)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    found = []
    for run in runs:
        output, errors = run.communicate(timeout=500)
        line = next((line for line in output.splitlines() if line.startswith("SERIALIZED ")), None)
        assert line is not None, output + errors
        found.append(json.loads(line.removeprefix("SERIALIZED ")))
    return found


@pytest.mark.timeout(600)
def test_every_dag_is_the_same_in_each_process(serialized):
    first, second = serialized
    assert len(first) >= 8
    assert "all" in first
    for name, dag in first.items():
        # Airflow compares them in this way too.
        assert json.dumps(dag, sort_keys=True) == json.dumps(second[name], sort_keys=True)


@pytest.mark.timeout(600)
def test_no_dag_holds_the_place_of_an_object_in_memory(serialized):
    assert " at 0x" not in json.dumps(serialized)


@pytest.mark.timeout(600)
def test_what_an_author_changes_is_a_new_version(serialized):
    text = json.dumps(serialized[0])
    assert "HasContacts(minimum=5)" in text
    assert "Own(words=['x', 'y'], limits={'b': 1, 'a': 2})" in text
    assert "22:00:00 to 02:00:00 Europe/Berlin, monday, tuesday, friday" in text
