# SPDX-License-Identifier: Apache-2.0
"""
What importing our operator and sensor costs a DAG file, on top of Airflow's own base class, against other operators.

Each import runs in fresh processes, in turn with the others, with compiled bytecode; medians count. The others are
measured where they are installed::

    pip install apache-airflow-providers-http apache-airflow-providers-dbt-cloud apache-airflow-providers-airbyte
    python benchmarks/import_cost.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

BASE = "from airflow.sdk import BaseOperator"
IMPORTS = {
    "ours, operator and sensor": "import airflow_provider_voicegenie.operators.campaign\n"
    "import airflow_provider_voicegenie.sensors.campaign",
    "HttpOperator": "from airflow.providers.http.operators.http import HttpOperator",
    "DbtCloudRunJobOperator": "from airflow.providers.dbt.cloud.operators.dbt import DbtCloudRunJobOperator",
    "AirbyteTriggerSyncOperator": "from airflow.providers.airbyte.operators.airbyte import AirbyteTriggerSyncOperator",
    "common-compat and base sensor": "from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in IMPORTS if milliseconds(IMPORTS[name]) is not None}
    for _ in range(rounds):
        for name, samples in times.items():
            samples.append(milliseconds(IMPORTS[name]) or 0.0)
    ours = statistics.median(times["ours, operator and sensor"])
    print(f"median of {rounds} fresh processes, on top of `{BASE}`")
    for name, samples in times.items():
        median = statistics.median(samples)
        spread = f"{min(samples):.1f} to {max(samples):.1f}"
        print(f"{name:32} {median:7.1f} ms ({spread})  {median / ours:5.1f} x ours")


def milliseconds(statement: str) -> float | None:
    """Time one import in a fresh process; ``None`` where it is not installed."""
    code = (
        f"{BASE}\nimport time\nbegin = time.perf_counter()\n{statement}\n"
        "print('TIME', (time.perf_counter() - begin) * 1000)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        return None
    return next(float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("TIME"))


if __name__ == "__main__":
    main()
