# SPDX-License-Identifier: Apache-2.0
"""
What an upload of a million contacts and an export of a million calls take, beside those of ten thousand.

Each runs in a process of its own, against a server that does nothing. Printed are seconds, and the most memory that
the process had (``ru_maxrss``), also above that of a process that only imports Airflow and the operator. The limit of
uploads a minute is lifted, without which a million contacts take twenty minutes.

    python benchmarks/large_files.py [rows]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SMALL = 10_000


class Service(BaseHTTPRequestHandler):
    """Takes every contact, and has as many calls as it is asked for by the campaign's id."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Return a campaign."""
        self._respond({"id": self.path.rpartition("/")[2], "campaign_status": "paused"})

    def do_POST(self) -> None:
        """Take contacts, or return calls."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        campaign_id = body["campaign_id"]
        if "contacts" in body:
            count = len(body["contacts"])
            self._respond({"campaign_id": campaign_id, "uploaded_count": count, "failed_count": 0, "errors": []})
            return
        total = int(campaign_id)
        calls = [
            {
                "call_id": f"0f8fad5b-d9cb-469f-a165-{number:012}",
                "contact_name": f"Person {number}",
                "phone_number": f"+1555{number:07}",
                "status": "answered" if number % 3 else "busy",
                "duration": number % 300,
                "call_time": "2026-05-01T08:00:00Z",
                "recording_url": f"https://recordings.example/0f8fad5b-d9cb-469f-a165-{number:012}.mp3",
            }
            for number in range(body["offset"], min(total, body["offset"] + body["limit"]))
        ]
        pagination = {"total": total, "limit": body["limit"], "offset": body["offset"]}
        self._respond({"history": calls, "pagination": pagination})

    def _respond(self, data: object) -> None:
        body = json.dumps({"success": True, "data": data}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def work(what: str, rows: int, path: str) -> None:
    """Do one thing, and print what it took."""
    from airflow_provider_voicegenie.api import endpoints
    from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
    from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

    endpoints._UPLOADS_PER_MINUTE = 10**9
    context = {"dag_run": type("Run", (), {"run_type": "manual"}), "ti": None}
    began = time.perf_counter()
    if what == "upload":
        UploadContactsOperator(task_id="upload", campaign_id="x", contacts=path).execute(context)
    elif what == "checked":
        # As much as an upload can do: numbers of a region, people who must not be called, and a file of both.
        more = {"region": "US", "exclude": f"{path}.exclude.csv", "rejected_path": f"{path}.rejected.csv"}
        UploadContactsOperator(task_id="upload", campaign_id="x", contacts=path, **more).execute(context)
    elif what == "history":
        CallHistoryToObjectStorageOperator(task_id="history", campaign_id=str(rows), path=path).execute(context)
    else:
        import airflow_provider_voicegenie.files
        import airflow_provider_voicegenie.hooks.voicegenie  # noqa: F401
    seconds = time.perf_counter() - began
    print("took", json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measured(what: str, rows: int, path: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Do one thing in a process of its own."""
    command = [sys.executable, __file__, what, str(rows), str(path)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    (line,) = [line for line in output.splitlines() if line.startswith("took ")]
    seconds, megabytes = json.loads(line.removeprefix("took "))
    return seconds, megabytes


def write_contacts(path: Path, rows: int) -> None:
    """Write a file of contacts."""
    with path.open("w") as file:
        file.write("phone_number,name,email,segment,balance\n")
        for number in range(rows):
            file.write(f"+1555{number:07},Person {number},person{number}@example.com,spring,{number % 1000}.50\n")


def main(large: int) -> None:
    """Compare small and large."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        extra = {"requests_per_minute": 10**6}
        connection = {
            "conn_type": "voicegenie",
            "host": f"http://127.0.0.1:{server.server_address[1]}",
            "password": "a-key-of-the-benchmark",
            "extra": json.dumps(extra),
        }
        environment = os.environ | {
            "AIRFLOW_HOME": folder,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_VOICEGENIE_DEFAULT": json.dumps(connection),
        }
        _, base = measured("import", 0, Path(folder), environment)
        print(f"Imports alone take {base:.0f} MB.")
        print(f"{'':18} {'rows':>10} {'seconds':>8} {'MB':>6} {'more':>6}")
        histories = ("history .csv", "history .jsonl.gz", "history .parquet")
        for what in ("upload .csv", "checked .csv", "upload .parquet", *histories):
            kind, suffix = what.split()
            for rows in (SMALL, large):
                path = Path(folder, f"{kind}-{rows}{suffix}")
                if kind in ("upload", "checked"):
                    write_contacts(path.with_suffix(".csv"), rows)
                    write_contacts(Path(f"{path}.exclude.csv"), rows // 10)
                    if suffix == ".parquet":
                        to_parquet(path)
                seconds, megabytes = measured(kind, rows, path, environment)
                print(f"{what:18} {rows:>10,} {seconds:>8.1f} {megabytes:>6.0f} {megabytes - base:>6.0f}", flush=True)
                path.unlink()
    server.shutdown()


def to_parquet(path: Path) -> None:
    """Make a Parquet file of the CSV file beside it, in a process that may take what memory it likes."""
    code = (
        "import sys, pyarrow.csv as c, pyarrow.parquet as p; "
        "o = c.ConvertOptions(column_types={'phone_number': 'string'}); "
        "p.write_table(c.read_csv(sys.argv[1], convert_options=o), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, path.with_suffix(".csv"), path], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
