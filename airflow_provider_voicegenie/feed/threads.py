# SPDX-License-Identifier: Apache-2.0
"""Threads of the triggerer: its event loop must not wait for the network, or for modules to load."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_voicegenie.api.errors import ConnectionFailedError, VoiceGenieError, unchained
from airflow_provider_voicegenie.api.threads import NoMoreThreadsError, start_thread
from airflow_provider_voicegenie.hooks.connection import (
    client_settings,
    make_client,
    no_such_connection,
    unreadable_connection,
)

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.settings import ClientSettings

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def in_thread(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """
    Call a function in a thread of its own, and return what it returns.

    Unlike ``asyncio.to_thread``, it takes no thread of a pool that other triggers share, and does not hold up the
    triggerer's exit. A cancellation leaves the thread behind.

    :param function: The function; it sees the caller's context variables.
    :raises ConnectionFailedError: The process can have no more threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = context.run(function, *arguments, **options)
        except StopIteration as caught:  # which a future does not take
            error = RuntimeError(f"{function!r} raised {caught!r}")
        except BaseException as caught:  # noqa: BLE001  it is raised again, where it is waited for
            error = caught
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(_deliver, future, result, error)

    try:
        start_thread(work, "voicegenie-trigger")
    except NoMoreThreadsError as error:
        raise ConnectionFailedError(f"The triggerer cannot start one more thread ({error}).") from None
    return await future


def _deliver(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


async def send_unless_cancelled(client: VoiceGenieClient, request: Request[Result]) -> Result:
    """
    Send a request that changes something, unless the caller is cancelled before its first byte is sent.

    :raises VoiceGenieError: There is no good response.
    """
    is_cancelled = threading.Event()

    def check() -> None:
        if is_cancelled.is_set():
            raise asyncio.CancelledError

    try:
        return await in_thread(client.send, request, on_sending=check, while_waiting=check)
    except asyncio.CancelledError:
        is_cancelled.set()
        raise


async def read_settings(voicegenie_conn_id: str) -> ClientSettings:
    """
    Read an Airflow connection.

    :raises InvalidConnectionError: It has a missing or wrong value, or is not there.
    :raises ConnectionFailedError: Airflow could not be asked for it.
    """
    # From here, as its own import loads what a worker does not need.
    from airflow.providers.common.compat.connection import get_async_connection

    with unchained():
        try:
            return client_settings(await get_async_connection(voicegenie_conn_id))
        except AirflowNotFoundException:
            raise no_such_connection(voicegenie_conn_id) from None
        except VoiceGenieError:
            raise
        except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
            raise unreadable_connection(voicegenie_conn_id, error) from None


async def open_client(voicegenie_conn_id: str) -> VoiceGenieClient:
    """
    Read an Airflow connection, and return a client for it. Its ``send`` is for :func:`in_thread`.

    :raises VoiceGenieError: As :func:`read_settings` does.
    """
    return await in_thread(make_client, await read_settings(voicegenie_conn_id))
