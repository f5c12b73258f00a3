# SPDX-License-Identifier: Apache-2.0
"""
How long ``execute`` takes against the sandbox, ours against ``HttpOperator``.

Our operator applies its guards and reads the campaign first; ``HttpOperator`` sends the bare ``GET``. Both run in turn,
each with a new operator and hook, as in a task; the sandbox is a process of its own. Medians count::

    pip install apache-airflow-providers-http
    python benchmarks/execute_time.py
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace

import requests

KEY = "sandbox-key"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    rounds = parser.parse_args().rounds
    sandbox = subprocess.Popen(
        [sys.executable, "-m", "airflow_provider_voicegenie.sandbox", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert sandbox.stdout is not None  # noqa: S101
        url = sandbox.stdout.readline().split(" on ")[1].split()[0]
        with tempfile.TemporaryDirectory() as home:
            os.environ["AIRFLOW_HOME"] = home
            measure(url, rounds)
    finally:
        sandbox.terminate()
        sandbox.wait(timeout=10)


def measure(url: str, rounds: int) -> None:
    """Run both in turn."""
    connection = {"host": url, "password": KEY, "extra": {"requests_per_minute": 1_000_000}}
    os.environ["AIRFLOW_CONN_VOICEGENIE_DEFAULT"] = json.dumps({"conn_type": "voicegenie", **connection})
    os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = json.dumps(
        {"conn_type": "http", "host": url, "extra": {"x-api-key": KEY}}
    )
    from airflow.providers.http.operators.http import HttpOperator

    from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

    logging.disable(logging.CRITICAL)
    context = {"dag_run": SimpleNamespace(run_type="manual", run_after=datetime.now(UTC))}
    sides: dict[str, Callable[[str], object]] = {
        "StartCampaignOperator": lambda campaign: StartCampaignOperator(task_id="start", campaign_id=campaign).execute(
            context
        ),
        "HttpOperator": lambda campaign: HttpOperator(
            task_id="start", method="GET", endpoint=f"startCampaign/{campaign}"
        ).execute(context),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 3):
        for name, execute in sides.items():
            campaign = f"{name}-{number}"
            requests.post(f"{url}/_sandbox/campaigns", json={"id": campaign}, timeout=10).raise_for_status()
            begin = time.perf_counter()
            execute(campaign)
            if number >= 3:  # the first ones pay for imports
                times[name].append((time.perf_counter() - begin) * 1000)
    ours, theirs = (statistics.median(samples) for samples in times.values())
    print(f"median of {rounds} rounds in turn")
    for name, samples in times.items():
        print(f"{name:24} {statistics.median(samples):6.2f} ms ({min(samples):.2f} to {max(samples):.2f})")
    print(f"ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
