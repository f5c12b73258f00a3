# SPDX-License-Identifier: Apache-2.0
"""
What one deferred start asks of Airflow and of the service, from the worker to the end, beside a bare deferral.

A real Airflow runs ``nothing`` and ``ours`` of ``mapped_starts.py`` with one task each. The DAG file, which each task's
process loads too, notes what the process sends to its supervisor: nearly each of these messages is a request to
Airflow's API server. It also notes the modules that are loaded in the end::

    pip install apache-airflow-providers-http
    python benchmarks/requests_of_a_start.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from mapped_starts import airflow, connections, run, write_dags

NOTES = """
import os, sys
from pathlib import Path
from airflow.sdk.execution_time.comms import CommsDecoder

plain_send = CommsDecoder.send


def send(self, msg):
    what = [type(msg).__name__, getattr(msg, "key", None)]
    with Path({notes!r}, str(os.getpid())).open("a") as file:
        file.write(" ".join(str(each) for each in what if each) + "\\n")
    Path({notes!r}, f"modules-{{os.getpid()}}").write_text("\\n".join(sys.modules))
    return plain_send(self, msg)


CommsDecoder.send = send
"""


def main() -> None:
    """Measure and print."""
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox
    from airflow_provider_voicegenie.sandbox.store import CALL_SECONDS, SandboxCampaign, SandboxStore

    store = SandboxStore(seeds=list, speed=(CALL_SECONDS + 1) / 5)
    for number in range(2):
        store.put(SandboxCampaign(id=f"ours_1_{number}", total_count=1))
    sandbox = Sandbox(store)
    with tempfile.TemporaryDirectory() as home, running(sandbox) as url:
        notes = Path(home, "notes")
        notes.mkdir()
        for side in ("nothing", "ours"):
            options = argparse.Namespace(tasks=1, rounds=1, campaign=5, interval=2)
            write_dags(Path(home), side, options, NOTES.format(notes=str(notes)))
        with airflow(Path(home), connections(url, sandbox.api_key, 1_000_000)) as services:
            run("nothing_1", services)
            nothing = processes(notes)
            run("ours_1", services)
            ours = processes(notes)
    for number, ((bare, bare_modules), (sent, modules)) in enumerate(zip(nothing, ours, strict=True), 1):
        print(f"process {number}: {len(sent)} messages to Airflow, {len(bare)} of a bare deferral; more, in order:")
        left = Counter(bare)
        for message in sent:
            left[message] -= 1
            if left[message] < 0:
                print(f"  {message}")
        more = sorted(modules - bare_modules)
        own = [name for name in more if name.startswith("airflow_provider_voicegenie")]
        print(f"  {len(own)} more modules of ours, {len(more) - len(own)} others:")
        print("   ", *own)
        print("   ", *(name for name in more if name not in own))
    print("requests to the service:", dict(Counter(request.operation for request in sandbox.requests)))


def processes(notes: Path) -> list[tuple[list[str], set[str]]]:
    """Return what each process of a task has sent, and its modules, in the order in which they began; forget it all."""
    found = []
    # By their last message: the numbers of processes begin anew at times.
    for path in sorted(notes.glob("[0-9]*"), key=lambda path: path.stat().st_mtime):
        sent = path.read_text().splitlines()
        modules = path.with_name(f"modules-{path.name}")
        if "DagFileParsingResult" not in sent:
            found.append((sent, set(modules.read_text().splitlines())))
        path.unlink()
        modules.unlink()
    return found


if __name__ == "__main__":
    main()
