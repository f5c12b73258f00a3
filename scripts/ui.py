# SPDX-License-Identifier: Apache-2.0
"""
Run Airflow's UI with the examples, and the sandbox with its page. Ctrl-C stops both.

Airflow gets a temporary home on SQLite, which is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from demo import airflow_environment, succeeds

from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxStore

LOGIN = "admin"
#: Seconds after which a campaign that has ended can be started again.
RESET_AFTER = 150
#: Airflow's services. Two of them would serve their logs to the whole network.
SERVICES = (
    ("api-server",),
    ("dag-processor",),
    ("scheduler", "--skip-serve-logs"),
    ("triggerer", "--skip-serve-logs"),
)
#: Seconds between two lines that say what is still missing.
REMINDER = 30


def main() -> int:
    """Run until Ctrl-C; return the exit code."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    for port in filter(is_taken, (options.port, options.sandbox_port)):
        print(f"Port {port} is in use. Choose other ports: make ui PORT=8081 SANDBOX_PORT=8643", file=sys.stderr)
        return 1
    # The examples share campaigns. A wait looks once a minute, and has to see that its campaign has ended.
    sandbox = Sandbox(SandboxStore(speed=10, reset_after=RESET_AFTER))
    port = options.port or free_port()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="voicegenie-ui-", ignore_cleanup_errors=True) as home,
            running(sandbox, port=options.sandbox_port) as url,
        ):
            environment = ui_environment(Path(home), url, sandbox.api_key, port)
            return serve(Path(home), environment, port, url, sandbox.api_key)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="of Airflow's UI, 0 for any free one (default 8080)")
    parser.add_argument("--sandbox-port", type=int, default=8642, help="of the sandbox, likewise (default 8642)")
    return parser


def ui_environment(home: Path, url: str, api_key: str, port: int) -> dict[str, str]:
    """Return the environment of an Airflow with a UI."""
    environment = airflow_environment(home, url, api_key)
    # In the database instead, so that the UI shows it.
    del environment["AIRFLOW_CONN_VOICEGENIE_DEFAULT"]
    # The file in which Airflow keeps generated passwords.
    (home / "simple_auth_manager_passwords.json.generated").write_text(json.dumps({LOGIN: LOGIN}))
    return environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
        # Airflow forks all its workers before it does anything, 32 of them if it is not told otherwise.
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{LOGIN}:admin",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    }


def serve(home: Path, environment: dict[str, str], port: int, url: str, api_key: str) -> int:
    """Run Airflow until it ends, or until Ctrl-C."""
    print("Setting up Airflow's database ...", flush=True)
    host, _, sandbox_port = url.rpartition(":")
    # The port in its own field: Airflow 3.3.1 and 3.3.2 refuse to test a connection that has none.
    address = ["--conn-host", host, "--conn-port", sandbox_port]
    extra = json.dumps({"campaign_url": f"{url}/#campaign-{{campaign_id}}"})
    connection = ["--conn-type", "voicegenie", *address, "--conn-password", api_key, "--conn-extra", extra]
    for arguments in (
        ["db", "migrate"],
        ["connections", "add", "voicegenie_default", *connection],
        ["pools", "set", "voicegenie", "4", "For the example voicegenie_mapped_start"],
    ):
        if not succeeds(arguments, environment):
            return 1
    print("Starting Airflow (half a minute or more) ...", flush=True)
    with services(home, environment) as processes:
        if ended := wait_until_up(port, processes):
            log = (home / f"{ended}.log").read_text()[-4000:]
            print(f"Airflow's {ended} has ended. Its log ends with:\n{log}", file=sys.stderr)
            return 1
        print(f"""
Airflow   http://127.0.0.1:{port}   login {LOGIN}, password {LOGIN}
Sandbox   {url}   API key {api_key}

The connection voicegenie_default points to the sandbox. Open a DAG, press Trigger, and watch the sandbox's page.
Ctrl-C stops both.
""")
        sys.stdout.flush()
        return processes["api-server"].wait()


@contextlib.contextmanager
def services(home: Path, environment: dict[str, str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run Airflow's services; leave nothing of them behind."""
    processes = {}
    try:
        for command in SERVICES:
            with (home / f"{command[0]}.log").open("wb") as output:
                # In process sessions of their own, so that Ctrl-C reaches this script alone.
                processes[command[0]] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *command],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        yield processes
    finally:
        members = []
        for process in processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                member = psutil.Process(process.pid)
                members += [member, *member.children(recursive=True)]
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(members, timeout=10)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in processes.values():
            process.wait()


def wait_until_up(port: int, processes: dict[str, subprocess.Popen[bytes]]) -> str | None:
    """Wait until all parts of Airflow are healthy; return the name of a service that has ended instead, if one has."""
    reminder = time.monotonic() + REMINDER
    while missing := unhealthy(port):
        for name, process in processes.items():
            if process.poll() is not None:
                return name
        if time.monotonic() > reminder:
            print(f"Still waiting for: {', '.join(missing)}", flush=True)
            reminder += REMINDER
        time.sleep(0.5)
    return None


def unhealthy(port: int) -> list[str]:
    """Return the parts of Airflow that are not up yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/monitor/health", timeout=60) as response:
            health = json.load(response)
    except (OSError, ValueError):
        return ["api-server"]
    return [part for part in ("scheduler", "dag_processor", "triggerer") if health[part]["status"] != "healthy"]


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_taken(port: int) -> bool:
    """Return whether a port cannot be used."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
