# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that answers byte by byte as a test wants it."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager


@contextmanager
def raw_server(handle, tls=None):
    """Serve each connection with ``handle(connection, request)``; gives the port and the requests."""
    requests = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                    with connection, tls.wrap_socket(connection, server_side=True) if tls else connection as stream:
                        request = received(stream)
                        requests.append(request)
                        handle(stream, request)
                except OSError:
                    if listener.fileno() == -1:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], requests
        # Closing alone does not wake up the thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def received(stream):
    """Return a request, its body included."""
    request = stream.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        missing = int(value) - len(body) if name == b"content-length" else 0
        while missing > 0:
            part = stream.recv(65536)
            request, missing = request + part, missing - len(part)
    return request


def refuse(stream, request):
    stream.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def closed_port():
    """Give a port at which nobody listens, and which nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def chain_of(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
