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
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from demo import airflow, airflow_environment

from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxStore

LOGIN = "admin"
PATIENCE = 240


def main() -> int:
    """Run until Ctrl-C; return the exit code."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    for port in filter(is_taken, (options.port, options.sandbox_port)):
        print(f"Port {port} is in use. Choose other ports: make ui PORT=8081 SANDBOX_PORT=8643", file=sys.stderr)
        return 1
    sandbox = Sandbox(SandboxStore(speed=10))
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
        result = airflow(arguments, environment)
        if result.returncode:
            print(f"`airflow {arguments[0]} {arguments[1]}` failed:\n{result.stdout}{result.stderr}", file=sys.stderr)
            return 1
    print("Starting Airflow (half a minute or more) ...", flush=True)
    log = home / "standalone.log"
    with standalone(environment, log) as process:
        if not wait_until(lambda: process.poll() is not None or is_up(port)) or process.poll() is not None:
            print(f"Airflow did not start. Its log ends with:\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 1
        print(f"""
Airflow   http://127.0.0.1:{port}   login {LOGIN}, password {LOGIN}
Sandbox   {url}   API key {api_key}

The connection voicegenie_default points to the sandbox. Open a DAG, press Trigger, and watch the sandbox's page.
Ctrl-C stops both.
""")
        sys.stdout.flush()
        return process.wait()


@contextlib.contextmanager
def standalone(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``airflow standalone``; leave nothing of it behind."""
    command = [sys.executable, "-m", "airflow", "standalone"]
    with log.open("wb") as output:
        # In its own process session, so that Ctrl-C reaches this script alone.
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        members = [psutil.Process(member.pid) for member in family if psutil.pid_exists(member.pid)]
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(members, timeout=10)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def is_up(port: int) -> bool:
    """Return whether the UI responds and all parts of Airflow are healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/monitor/health", timeout=5) as response:
            health = json.load(response)
    except (OSError, ValueError):
        return False
    return all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor", "triggerer"))


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it came true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.5)
    return False


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
