# SPDX-License-Identifier: Apache-2.0
"""
What thousands of deferred waits cost, ours against ``HttpSensorTrigger`` on the same service and interval.

Each side runs N triggers as tasks of one event loop, as a triggerer does, in a process of its own. Its campaigns run
for a warm-up and a measured round, and then end one by one over a round. ``HttpSensorTrigger`` fires when a URL stops
being a 404, so its campaigns do not exist until they "end"; it is left out above 10,000, where it no longer keeps up.
Memory and the blocks of the event loop are compared with a bare ``TimeDeltaTrigger``. The sandbox runs in the parent
process::

    pip install apache-airflow-providers-http
    python benchmarks/deferred_waits.py --waits 100 1000 10000 30000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

#: The columns; the last three are how long the event loop was blocked, the last one without Python's garbage collector,
#: whose full pass over an idle Airflow process takes its time before there is any trigger.
COLUMNS = (
    *("waits", "side", "requests", "CPU/s", "KiB/wait", "median/s", "worst/s"),
    *("p99/ms", "worst/ms", "w/o gc/ms"),
)
ROW = "{:>6} {:10} {:>9} {:>8} {:>9} {:>15} {:>15} {:>8} {:>8} {:>11}"

SIDES = ("ours", "http", "timedelta")

#: With more waits, a round of ``HttpSensorTrigger`` takes several times its interval.
MOST_OF_HTTP = 10_000


class Measured(NamedTuple):
    """
    What one side took in a round of one poll interval.

    :param requests: Requests to the service.
    :param cpu: Processor seconds.
    :param memory: KiB a wait, at the most.
    :param delays: Seconds from the end of each campaign to its event.
    :param p99: Milliseconds for which the event loop was blocked, but for one in a hundred times.
    :param worst: The longest time.
    :param without_gc: The longest time without the garbage collector.
    """

    requests: float
    cpu: float
    memory: float
    delays: list[float]
    p99: float
    worst: float
    without_gc: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, nargs="+", default=[100, 1000, 10_000, 30_000])
    parser.add_argument("--poll-interval", type=float, default=60.0, help="seconds")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asyncio.run(wait_for_all(options.child, options.waits[0], options.poll_interval))
        return
    print("per round of one poll interval; memory is the peak; delay from the end of a campaign to the event")
    print(ROW.format(*COLUMNS))
    for waits in options.waits:
        measured = {}
        for side in options.sides:
            if side != "http" or waits <= MOST_OF_HTTP:
                measured[side] = measure(side, waits, options.poll_interval)
                show(side, waits, options.poll_interval, measured[side])
        compare(measured, options.poll_interval)


def show(side: str, waits: int, interval: float, measured: Measured) -> None:
    """Print a line."""
    missing = waits - len(measured.delays) if side != "timedelta" else 0
    values = (statistics.median(measured.delays), max(measured.delays)) if measured.delays else ()
    in_time = [f"{value:.1f} ({value / interval:.2f})" for value in values] or ["-", "-"]
    print(
        ROW.format(
            waits,
            side,
            f"{measured.requests:.1f}",
            f"{measured.cpu:.3f}",
            f"{measured.memory:.2f}",
            *in_time,
            *(f"{each:.1f}" for each in (measured.p99, measured.worst, measured.without_gc)),
        )
        + (f"  {missing} without an event" if missing else ""),
        flush=True,
    )


def compare(measured: dict[str, Measured], interval: float) -> None:
    """Print what counts: ours beside the others of the same run."""
    ours, limit, http = (measured.get(side) for side in ("ours", "timedelta", "http"))
    if ours is None:
        return
    parts = [f"median delay {statistics.median(ours.delays) / interval:.2f} of the interval"] if ours.delays else []
    if limit is not None:
        parts += [
            f"longest block {ours.worst / limit.worst:.2f} of TimeDeltaTrigger's",
            f"without gc {ours.without_gc / limit.without_gc:.2f}",
            f"memory {ours.memory / limit.memory:.2f} of it",
        ]
    if http is not None:
        parts.append(f"CPU of HttpSensorTrigger {http.cpu / max(ours.cpu, 0.01):.0f} times ours")
    print("       ", "; ".join(parts), flush=True)


def measure(side: str, waits: int, interval: float, others: int = 0) -> Measured:
    """
    Run one side in a child process, with a sandbox of its own.

    :param side: Which.
    :param waits: How many.
    :param interval: The poll interval, seconds.
    :param others: Campaigns that the account has besides.
    """
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox
    from airflow_provider_voicegenie.sandbox.store import SandboxCampaign, SandboxStore

    sandbox = Sandbox(SandboxStore(seeds=list))
    for number in range(others):
        sandbox.store.put(SandboxCampaign(id=f"other{number}", status="draft"))
    if side == "ours":
        for number in range(waits):
            sandbox.store.put(SandboxCampaign(id=f"c{number}", status="running", total_count=10**7))
    with running(sandbox) as url, tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "AIRFLOW_HOME": home,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
            "AIRFLOW_CONN_VOICEGENIE_DEFAULT": connection("voicegenie", url, sandbox.api_key),
            "AIRFLOW_CONN_HTTP_DEFAULT": connection("http", url, sandbox.api_key),
        }
        command = [sys.executable, __file__, "--child", side, "--waits", str(waits), "--poll-interval", str(interval)]
        child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            line(child, "waiting")
            time.sleep(interval)
            # Watching the loop costs as much as some of what is measured, so it stops meanwhile.
            tell(child, "unwatched")
            before = (len(sandbox.requests), cpu_seconds(child.pid))
            time.sleep(interval)
            after = (len(sandbox.requests), cpu_seconds(child.pid))
            tell(child, "watched")
            ended = end_one_by_one(sandbox, side, waits, interval)
            result = line(child, "result")
        finally:
            child.kill()
            child.wait()
    requests, cpu = after[0] - before[0], after[1] - before[1]
    # Where a side cannot keep up with its interval, a round takes longer: count by what was polled.
    rounds = max(requests / waits, 1e-9) if side == "http" else 1.0
    return Measured(
        requests / rounds,
        cpu / rounds,
        result["memory"] / waits / 1024,
        [result["events"][name] - moment for name, moment in ended.items() if name in result["events"]],
        result["blocked_p99"],
        result["blocked_worst"],
        result["blocked_without_gc"],
    )


def connection(kind: str, url: str, key: str) -> str:
    """Return an Airflow connection to the sandbox."""
    extra = {"requests_per_minute": 1_000_000} if kind == "voicegenie" else {"x-api-key": key}
    return json.dumps({"conn_type": kind, "host": url, "password": key, "extra": extra})


def end_one_by_one(sandbox: Any, side: str, waits: int, interval: float) -> dict[str, float]:
    """End the campaigns in a random order, evenly over a round; return when each ended."""
    from airflow_provider_voicegenie.sandbox.store import SandboxCampaign

    ended = {}
    names = [f"c{number}" for number in range(waits)]
    random.shuffle(names)
    began = time.monotonic()
    for number, name in enumerate(names):
        time.sleep(max(0.0, began + interval * number / waits - time.monotonic()))
        if side == "ours":
            sandbox.store.change(name, status="completed")
        elif side == "http":
            sandbox.store.put(SandboxCampaign(id=name, status="completed"))
        ended[name] = time.time()
    return ended


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def line(child: subprocess.Popen[str], name: str) -> Any:
    """Read the child's next message."""
    assert child.stdout is not None  # noqa: S101
    for text in child.stdout:
        if text.startswith(f"{name} "):
            return json.loads(text.removeprefix(f"{name} "))
    raise SystemExit("the child process ended early")


def tell(child: subprocess.Popen[str], text: str) -> None:
    """Send the child a message."""
    assert child.stdin is not None  # noqa: S101
    child.stdin.write(f"{text}\n")
    child.stdin.flush()


# In the child process.


async def wait_for_all(side: str, waits: int, interval: float) -> None:
    """Run the triggers, and report."""
    from airflow.providers.common.compat.sdk import BaseHook

    # Modules are no wait's memory; this one is loaded with the first client.
    import airflow_provider_voicegenie.api.client  # noqa: F401

    make = makers()[side]
    make("warm-up", interval)
    # What reads connections is long loaded in a triggerer.
    BaseHook.get_connection("voicegenie_default")
    events: dict[str, float] = {}

    async def wait(name: str) -> None:
        async for _ in make(name, interval).run():
            events[name] = time.time()
            return

    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    tasks = []
    for number in range(waits):
        tasks.append(asyncio.create_task(wait(f"c{number}")))
        if number % 50 == 0:
            await asyncio.sleep(0)
    blocked: list[tuple[float, float]] = []
    monitor = asyncio.create_task(watch_loop(blocked))
    await asyncio.sleep(1)
    print("waiting {}", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    monitor.cancel()
    await asyncio.to_thread(sys.stdin.readline)
    monitor = asyncio.create_task(watch_loop(blocked))
    peak = memory("VmHWM") - before
    with suppress(TimeoutError):
        async with asyncio.timeout(1 if side == "timedelta" else 4 * interval):
            await asyncio.gather(*tasks)
    monitor.cancel()
    blocked.sort()
    without_gc = max(total - collecting for total, collecting in blocked)
    result = {
        "events": events,
        "memory": peak,
        "blocked_p99": 1000 * blocked[int(len(blocked) * 0.99)][0],
        "blocked_worst": 1000 * blocked[-1][0],
        "blocked_without_gc": 1000 * without_gc,
    }
    print(f"result {json.dumps(result)}", flush=True)


async def watch_loop(blocked: list[tuple[float, float]]) -> None:
    """Note how much longer than asked for the event loop lets a short sleep take, and the garbage collector's part."""
    collector = CollectorTime()
    gc.callbacks.append(collector)
    try:
        while True:
            began, collecting = time.perf_counter(), collector.seconds
            await asyncio.sleep(0.005)
            blocked.append((time.perf_counter() - began - 0.005, collector.seconds - collecting))
    finally:
        gc.callbacks.remove(collector)


class CollectorTime:
    """Adds up the time that Python's garbage collector takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Take note that a pass begins or ends."""
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds += time.perf_counter() - self._began


def memory(field: str) -> int:
    """Return a figure of this process in bytes."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(f"{field}:"):
            return int(text.split()[1]) * 1024
    raise SystemExit(f"no {field}")


def makers() -> dict[str, Any]:
    """Return what makes a trigger of each side."""
    from airflow.providers.http.triggers.http import HttpSensorTrigger
    from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

    from airflow_provider_voicegenie.triggers.wait import WaitTrigger

    return {
        "ours": lambda name, interval: WaitTrigger(
            campaign_id=name,
            voicegenie_conn_id="voicegenie_default",
            watch="airflow_provider_voicegenie.waiting.completion.CompletionWatch",
            arguments={},
            kind="start",
            outcomes={},
            poll_interval=interval,
        ),
        "http": lambda name, interval: HttpSensorTrigger(
            endpoint=f"campaign/{name}", http_conn_id="http_default", poke_interval=interval
        ),
        "timedelta": lambda name, interval: TimeDeltaTrigger(timedelta(hours=12)),
    }


if __name__ == "__main__":
    main()
