# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong with a call, by the names that the table in ``fault_matrix.md`` has for it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from email.utils import formatdate
from urllib.parse import urlsplit

import trustme

from helpers.raw_server import closed_port

HTML = "<html><body>No such page</body></html>"


def status(number, body=None, **headers):
    fields = {"status": number, "headers": {name.replace("_", "-"): text for name, text in headers.items()}}
    return "status", fields if body is None else {**fields, "body": body}


def answer(data, number=200, **envelope):
    return status(number, json.dumps({"success": True, "data": data, "message": "OK", **envelope}))


def refusal(number, code):
    return status(number, json.dumps({"success": False, "message": "No", "error": code}))


def about(**changed):
    """Return what makes an answer to any call about some campaigns, the first being the one that is asked for."""

    def make(names, elsewhere):
        def data(name):
            times = dict.fromkeys(("created_at", "updated_at", "started_at", "completed_at", "paused_at"))
            return {"id": name, "campaign_id": name, **times, **changed}

        pagination = {"total": len(names), "limit": 1000, "offset": 0}
        return answer({**data(names[0]), "campaigns": list(map(data, names)), "pagination": pagination})

    return make


def redirect_elsewhere(names, elsewhere):
    return "redirect", {"location": elsewhere, "status": 301}


#: What is answered in place of the service: a fault of the sandbox, and its fields, or what makes them from the
#: campaigns that it is about and the URL of another server.
ANSWERS = {
    "no response, connection reset": ("close", {}),
    "no response in time": ("delay", {"seconds": 3.0}),
    "half a response": ("truncated", {}),
    "slow drip": ("drip", {"seconds": 0.05}),
    "oversized body": ("oversized", {"size": 17 * 1024 * 1024}),
    "gzip bomb": ("gzip_bomb", {"size": 17 * 1024 * 1024}),
    "invalid gzip": status(200, "not gzip", content_encoding="gzip"),
    "not JSON": ("not_json", {}),
    "JSON, but no object": status(200, "[1, 2]"),
    "an object of another shape": status(200, '{"hello": "world"}'),
    "deeply nested JSON": status(200, "[" * 100_000),
    "empty body": status(200, ""),
    "204": status(204, ""),
    "success: false with 200": answer({}, success=False, error="SOMETHING"),
    "success: false with 200, NOT_FOUND": answer({}, success=False, error="NOT_FOUND"),
    "success: true with 400": answer({}, 400),
    "data without fields": answer({}),
    "data with nulls": answer(dict.fromkeys(("id", "campaign_id", "status", "campaign_status", "campaigns"))),
    "about another campaign": answer(
        {"id": "other", "campaign_id": "other", "campaign_status": "running", "status": "running"}
    ),
    "unknown status": about(campaign_status="verifying", status="verifying"),
    "malformed times": about(
        campaign_status="scheduled", status="running", updated_at="yesterday", started_at=17, completed_at="2026-13-45"
    ),
    "400": refusal(400, "BAD_REQUEST"),
    "401": refusal(401, "UNAUTHORIZED"),
    "403": refusal(403, "FORBIDDEN"),
    "404": refusal(404, "NOT_FOUND"),
    "404, a proxy's page": status(404, HTML, content_type="text/html"),
    "408": status(408),
    "409": refusal(409, "CONFLICT"),
    "418": status(418),
    "425": status(425),
    "429": refusal(429, "RATE_LIMIT_EXCEEDED"),
    "429, Retry-After: seconds": status(429, Retry_After="1"),
    "429, Retry-After: date": status(429, Retry_After=formatdate(time.time() + 1, usegmt=True)),
    "429, Retry-After: past date": status(429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
    "429, Retry-After: absurd": status(429, Retry_After="99999999999"),
    "429, Retry-After: garbage": status(429, Retry_After="soon; or later"),
    "429, Retry-After: negative": status(429, Retry_After="-5"),
    "500": refusal(500, "INTERNAL_SERVER_ERROR"),
    "502, a proxy's page": status(502, HTML, content_type="text/html"),
    "503, Retry-After": status(503, Retry_After="1"),
    "504": status(504, ""),
    "302 to the same host": ("redirect", {"location": "/campaign/ready"}),
    "301 to another host": redirect_elsewhere,
    "307 to a file": ("redirect", {"location": "file:///etc/passwd", "status": 307}),
    "308 without a place": ("redirect", {"location": "", "status": 308}),
}

#: What goes wrong before there is a request.
CONNECTIONS = (
    "connection refused",
    "unknown host name",
    "certificate of an unknown authority",
    "certificate of another",
)


class Front:
    """
    Stands before the sandbox with TLS, and lets connections go wrong.

    :param url: The sandbox's.
    :param trouble: One of ``CONNECTIONS``.
    :param which: Tells by its number whether a connection goes wrong; the first has the number 0.
    """

    def __init__(self, url, trouble, which, folder):
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._trouble = trouble
        self._which = which
        known, unknown = trustme.CA(), trustme.CA()
        self.bundle = str(folder / "ca.pem")
        known.cert_pem.write_to_path(self.bundle)
        self._contexts = {
            None: self._context(known, "localhost"),
            "certificate of an unknown authority": self._context(unknown, "localhost"),
            "certificate of another": self._context(known, "elsewhere.example.com"),
        }
        self._nobody = closed_port()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._number = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @staticmethod
    def _context(authority, name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        return context

    def __enter__(self):
        self._original = socket.getaddrinfo
        socket.getaddrinfo = self._resolve
        self._closed_port = self._nobody.__enter__()
        self._thread.start()
        return self

    def begin(self):
        """Count connections from the first again."""
        self._number = 0

    def __exit__(self, *error):
        socket.getaddrinfo = self._original
        self._over.set()
        self._thread.join(timeout=5)
        self._listener.close()
        self._nobody.__exit__(None, None, None)

    def _resolve(self, host, port, *rest, **more):
        if host not in ("localhost", b"localhost") or port != self.port:
            return self._original(host, port, *rest, **more)
        if self._trouble in ("unknown host name", "connection refused") and self._which(self._number):
            self._number += 1
            if self._trouble == "unknown host name":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            port = self._closed_port
        return self._original("127.0.0.1", port, *rest, **more)

    def _serve(self):
        while not self._over.is_set():
            try:
                ready, _, _ = select.select([self._listener], [], [], 0.02)
                if not ready:
                    continue
                connection, _ = self._listener.accept()
            except (OSError, ValueError):
                time.sleep(0.02)
                continue
            wrong = self._which(self._number)
            self._number += 1
            context = self._contexts.get(self._trouble if wrong else None) or self._contexts[None]
            threading.Thread(target=self._forward, args=(connection, context), daemon=True).start()

    def _forward(self, connection, context):
        with (
            contextlib.suppress(OSError),
            connection,
            context.wrap_socket(connection, server_side=True) as client,
            socket.create_connection(self._target) as server,
        ):
            server.sendall(client.recv(65536))
            while data := server.recv(65536):
                client.sendall(data)
