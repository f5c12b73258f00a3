# SPDX-License-Identifier: Apache-2.0
"""
What a start does when something goes wrong, beside Airflow's ``HttpOperator`` that sends the same request.

Both run against a sandbox over real HTTP, with one retry. Nobody is phoned::

    pip install '.[sandbox]' apache-airflow-providers-http
    python benchmarks/beside_http_operator.py            # everything
    python benchmarks/beside_http_operator.py redirect   # one of them
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

KEY = "sandbox-key"


class OtherHost(BaseHTTPRequestHandler):
    """A host that a redirect leads to: it keeps what it was sent."""

    got: list[str]

    def do_GET(self) -> None:
        """Keep the key, and answer as the service would."""
        self.got.append(self.headers.get("x-api-key", ""))
        body = json.dumps({"success": True, "data": {"status": "running"}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def other_host() -> Iterator[tuple[str, list[str]]]:
    """Run a host that is not the service's; yield its address, and the keys that it was sent."""
    got: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Other", (OtherHost,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def context(try_number: int) -> dict[str, Any]:
    """Return what Airflow gives a task."""
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        dag_id="dag",
        task_id="task",
        run_id="run",
        map_index=-1,
        try_number=try_number,
        max_tries=1,
        task=SimpleNamespace(retries=1),
        start_date=datetime.now(UTC),
        next_method=None,
        xcom_push=lambda key, value: pushed.update({key: value}),
        xcom_pull=lambda **_: None,
    )
    run = SimpleNamespace(
        run_type="manual",
        run_after=datetime.now(UTC),
        start_date=datetime.now(UTC),
        clear_number=0,
        consumed_asset_events=[],
    )
    return {"ti": instance, "dag_run": run}


def ours(campaign_id: str) -> Any:
    """Return our operator."""
    from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

    return StartCampaignOperator(task_id="task", campaign_id=campaign_id)


def http(campaign_id: str) -> Any:
    """Return one that sends the bare request."""
    from airflow.providers.http.operators.http import HttpOperator

    return HttpOperator(
        task_id="task", http_conn_id="http", endpoint=f"startCampaign/{campaign_id}", method="GET", log_response=False
    )


def run(operator: Callable[[str], Any], campaign_id: str) -> str:
    """Run a task with one retry; return how it ended."""
    said = ""
    for try_number in (1, 2):
        try:
            operator(campaign_id).execute(context(try_number))
        except Exception as error:  # noqa: BLE001  how it fails is what is shown
            said += f"try {try_number} failed ({type(error).__name__}); "
            if type(error).__name__ in ("AirflowFailException", "AirflowSkipException"):
                break
        else:
            said += f"try {try_number} succeeded; "
            break
    return said


def inject(sandbox: Any, kind: str, **fields: Any) -> None:
    """Let the next start go wrong."""
    from airflow_provider_voicegenie.sandbox.faults import Fault, FaultKind

    sandbox.faults.add(Fault(FaultKind(kind), "start", **fields))


def lost_response(sandbox: Any, operator: Callable[[str], Any]) -> str:
    """The campaign was started, and the response gets lost."""
    inject(sandbox, "close", after_acting=True)
    return run(operator, "ready")


def redirect(sandbox: Any, operator: Callable[[str], Any]) -> str:
    """A proxy answers with a redirect to another host."""
    with other_host() as (address, got):
        inject(sandbox, "redirect", location=address, times=None)
        ended = run(operator, "ready")
    return f"{ended}the other host {'GOT THE API KEY' if KEY in got else 'got no key'}; "


def refused(sandbox: Any, operator: Callable[[str], Any]) -> str:
    """The service takes no more requests in this second (429)."""
    inject(sandbox, "status", status=429, headers={"Retry-After": "1"})
    return run(operator, "ready")


def refused_with_200(sandbox: Any, operator: Callable[[str], Any]) -> str:
    """The service refuses in the body of a response with status 200."""
    inject(sandbox, "status", status=200, times=None)
    return run(operator, "ready")


CASES = {each.__name__.replace("_", "-"): each for each in (lost_response, redirect, refused, refused_with_200)}


def main() -> None:
    """Print what comes of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=CASES, help="only this one")
    chosen = parser.parse_args().case
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp())
    # Airflow says that no task runner is around.
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "CRITICAL"
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox

    logging.disable(logging.CRITICAL)
    for name, case in CASES.items():
        if chosen not in (None, name):
            continue
        print(f"{name}: {case.__doc__}")
        for label, operator in (("StartCampaignOperator", ours), ("HttpOperator", http)):
            sandbox = Sandbox(api_key=KEY)
            with running(sandbox) as url:
                for conn_id, kind, more in (
                    ("VOICEGENIE_DEFAULT", "voicegenie", {"password": KEY}),
                    ("HTTP", "http", {"extra": {"x-api-key": KEY}}),
                ):
                    connection = json.dumps({"conn_type": kind, "host": url, **more})
                    os.environ[f"AIRFLOW_CONN_{conn_id}"] = connection
                said = case(sandbox, operator)
                campaign = sandbox.store.find("ready")
                print(
                    f"  {label}: {said}{sandbox.count_requests('start', None)} start(s) sent, "
                    f"the campaign was started {campaign.start_count} time(s)"
                )


if __name__ == "__main__":
    main()
