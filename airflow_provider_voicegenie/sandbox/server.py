# SPDX-License-Identifier: Apache-2.0
"""Runs a sandbox, in the foreground or in a thread of its own, and makes the Airflow connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_provider_voicegenie.sandbox.app import create_app, open_connections
from airflow_provider_voicegenie.sandbox.service import Sandbox


class _SandboxProtocol(H11Protocol):
    """Lets the application find a request's connection, so that it can close it without a response."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        open_connections[self.client] = transport  # type: ignore[index]

    def connection_lost(self, exc: Exception | None) -> None:
        open_connections.pop(self.client, None)  # type: ignore[arg-type]
        super().connection_lost(exc)


def listen(host: str, port: int) -> socket.socket:
    """
    Return a listening socket, so that the address is known, and taken, before anything runs.

    :param host: Address to listen on.
    :param port: Port; 0 for any free one.
    :raises OSError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(sandbox: Sandbox) -> uvicorn.Server:
    """Return a server for a sandbox; run it with a listening socket."""
    config = uvicorn.Config(
        create_app(sandbox),
        http=_SandboxProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        headers=[("Server", "voicegenie-sandbox")],
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def running(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """
    Run a sandbox in a thread while the ``with`` block runs; yields its base URL.

    It ends at once: requests that are under way then are broken off.

    :param host: Address to listen on.
    :param port: Port; 0 for any free one.
    """
    # Injected faults make the server log broken responses as errors; they are intended.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = make_server(sandbox)
    loop = asyncio.new_event_loop()
    with listen(host, port) as listener, contextlib.closing(loop):
        # Never waited for to its end: the server would look only every tenth of a second whether it has come.
        serving = loop.create_task(server.serve([listener]))

        def serve() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(serving)
            loop.run_until_complete(_break_off(server))

        thread = threading.Thread(target=serve, name="voicegenie-sandbox", daemon=True)
        thread.start()
        # The socket listens already: a request that comes before the server is ready waits in the queue.
        try:
            yield address_of(listener)
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join()


async def _break_off(server: uvicorn.Server) -> None:
    """Close all connections, and end what still works on requests."""
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def airflow_connection(url: str, api_key: str, **extra: Any) -> str:
    """
    Return an Airflow connection to a sandbox, as JSON for an environment variable.

    :param url: The sandbox's base URL.
    :param api_key: The key it accepts.
    :param extra: Fields of the connection's extra; ``campaign_url`` is the sandbox's page by default.
    """
    extra = {"campaign_url": f"{url}/#campaign-{{campaign_id}}", **extra}
    return json.dumps({"conn_type": "voicegenie", "host": url, "password": api_key, "extra": json.dumps(extra)})
