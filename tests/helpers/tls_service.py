# SPDX-License-Identifier: Apache-2.0
"""A service behind TLS whose handshakes and responses wait for a sign."""

from __future__ import annotations

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme

from helpers.leaks import MARKED_KEY

PATIENCE = 60


class Sign(threading.Event):
    """An event that is sure to come."""

    def wait(self, timeout=PATIENCE):
        assert super().wait(timeout), "the sign never came"
        return True


class TlsService(ThreadingHTTPServer):
    """One campaign, ``c``. Requests that change something are kept, by the first part of their path."""

    daemon_threads = True

    def __init__(self, bundle):
        super().__init__(("127.0.0.1", 0), _Handler)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(bundle))
        self.bundle = bundle
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.tls)
        self.status = "pending"
        self.requests = []
        #: Which connection, counted from now on, is held in its handshake.
        self.held = None
        #: It is held; it may go on; it is over.
        self.is_held, self.go_on, self.is_over = Sign(), Sign(), Sign()
        #: A start has come; its response may be sent.
        self.is_started, self.respond = Sign(), Sign()
        self.respond.set()

    def hold(self, number):
        """Hold the handshake of a connection, counted from the next one on."""
        self.held = number
        self.is_held, self.go_on, self.is_over = Sign(), Sign(), Sign()

    def process_request(self, connection, address):
        is_held = self.held == 1
        self.held = None if self.held is None or is_held else self.held - 1
        threading.Thread(target=self._serve, args=(connection, address, is_held), daemon=True).start()

    def _serve(self, connection, address, is_held):
        try:
            if is_held:
                self.is_held.set()
                self.go_on.wait()
            with self.tls.wrap_socket(connection, server_side=True) as stream:
                self.finish_request(stream, address)
        except OSError:
            pass  # the client has gone
        finally:
            if is_held:
                self.is_over.set()

    def count(self, operation):
        return self.requests.count(operation)

    def connection(self):
        extra = {"verify": str(self.bundle), "max_attempts": 1, "timeout": PATIENCE}
        return json.dumps(
            {
                "conn_type": "voicegenie",
                "host": f"https://127.0.0.1:{self.server_address[1]}",
                "password": MARKED_KEY,
                "extra": json.dumps(extra),
            }
        )


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        service, operation = self.server, self.path.split("/")[1]
        if operation == "startCampaign":
            service.requests.append("start")
            service.status = "running"
            service.is_started.set()
            service.respond.wait()
            self._respond({"campaign_id": "c", "status": "running"})
        elif operation == "pauseTheCampaign":
            service.requests.append("pause")
            service.status = "paused"
            self._respond({"campaign_id": "c", "status": "paused"})
        else:
            self._respond({"id": "c", "name": "c", "campaign_status": service.status, "total_count": 3})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append("upload")
        self._respond({"campaign_id": "c", "uploaded_count": 1, "failed_count": 0, "errors": []})

    def _respond(self, data):
        body = json.dumps({"success": True, "message": "ok", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def tls_service(bundle):
    """Serve; ``bundle`` is where the certificate of its authority goes."""
    with TlsService(bundle) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield service
        finally:
            for sign in (service.go_on, service.respond):
                sign.set()
            service.shutdown()
            thread.join()
