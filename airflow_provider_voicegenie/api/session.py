# SPDX-License-Identifier: Apache-2.0
"""
A ``requests.Session`` that is bound to one service, and bounded in time and size.

- The API key is put on a request right before it is sent, if it goes to the service's own scheme, host and port.
- A request has a time limit as a whole, from resolving the host to the last byte. It runs in a thread of its own, which
  asks its caller for leave before it sends. A caller whose time is over, or who was interrupted, no longer gives leave.
- No redirect is followed, no cookie kept, no connection used twice, and no response read beyond a limit.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import email.errors
import http.client
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import select_proxy

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.endpoints import leads_out
from airflow_provider_voicegenie.api.responses import MAX_RESPONSE_BYTES
from airflow_provider_voicegenie.api.settings import ClientSettings, is_proxy_url
from airflow_provider_voicegenie.api.threads import NoMoreThreadsError, start_thread

#: The header that carries the API key.
API_KEY_HEADER = "x-api-key"

#: A connection that was kept could turn out to be closed only after a start had been sent over it.
_HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Cache-Control": "no-store",
    "Connection": "close",
    "User-Agent": f"airflow-provider-voicegenie/{__version__}",
}

_PART_BYTES = 64 * 1024

_DEFAULT_PORTS = {"http": 80, "https": 443}

#: The exchange that a thread is about.
_current: contextvars.ContextVar[Exchange] = contextvars.ContextVar("voicegenie_exchange")

#: What the thread of an exchange says to its caller.
_ASKS_FOR_LEAVE, _IS_OVER = object(), object()

#: Seconds between two calls of ``while_waiting``.
_CHECK_INTERVAL = 0.2


class ResponseTooLargeError(requests.RequestException):
    """The response is larger than :data:`MAX_RESPONSE_BYTES`."""


class Callbacks(NamedTuple):
    """
    What the caller of a request does while it is on its way. Both are called in the caller's thread.

    :param on_sending: Called once the connection is made, right before the first byte is sent. If it raises, nothing is
        sent.
    :param while_waiting: Called several times a second while the connection is made or the response awaited. If it
        raises, that ends, and a request that was not sent by then is never sent.
    """

    on_sending: Callable[[], None] | None = None
    while_waiting: Callable[[], None] | None = None


_NO_CALLBACKS = Callbacks()


class Exchange:
    """
    One request and its response, in a thread of its own.

    The thread sends nothing without leave, and only a caller that still waits gives leave. So whatever interrupts the
    caller, and wherever, an interrupted request that was not sent by then is never sent.

    :param send: Sends the request and returns the response, within the thread.
    :param timeout: Seconds that it may take.
    :param callbacks: What the caller does meanwhile.
    """

    def __init__(
        self, send: Callable[[], requests.Response], timeout: float, callbacks: Callbacks = _NO_CALLBACKS
    ) -> None:
        self._send = send
        self._timeout = timeout
        self._callbacks = callbacks
        self._deadline = 0.0
        self._said: SimpleQueue[object] = SimpleQueue()
        self._leave: SimpleQueue[bool] = SimpleQueue()
        self._connection: Any = None
        self._response: requests.Response | None = None
        self._error: Exception | None = None
        #: Whether any of the request may have reached the service.
        self.is_sent = False
        #: Whether a callback has ended it. What that raised is no trouble with the service.
        self.is_ended_by_caller = False

    def run(self) -> requests.Response:
        """
        Send the request and return the response.

        :raises requests.RequestException: There is no response.
        :raises OSError: The CA bundle cannot be read.
        """
        self._deadline = time.monotonic() + self._timeout
        try:
            start_thread(self._work, "voicegenie-request")
            while self._hear() is _ASKS_FOR_LEAVE:
                self._call_back(self._callbacks.on_sending)
                if self._seconds_left() == 0:
                    raise requests.Timeout("its time was over before it was sent")
                self.is_sent = True
                self._leave.put(True)
        except NoMoreThreadsError as error:
            raise requests.ConnectionError(f"no thread for the request: {error}") from None
        finally:
            self._leave.put(False)
            self._wake_thread()
        if self._error is not None:
            raise self._error
        assert self._response is not None  # noqa: S101
        return self._response

    def ask_for_leave(self, connection: Any) -> None:
        """
        Ask, in the thread, whether a connected connection may send the request.

        :param connection: The connection.
        :raises requests.Timeout: Nobody waits for the request any more.
        """
        self._connection = connection
        self._said.put(_ASKS_FOR_LEAVE)
        may_send = False
        with contextlib.suppress(Empty):
            may_send = self._leave.get(timeout=self._seconds_left())
        if not may_send:
            raise requests.Timeout("nobody waits for it any more, and it was not sent")

    def _hear(self) -> object:
        """
        Return what the thread says next.

        :raises requests.Timeout: It says nothing in time.
        """
        while (left := self._seconds_left()) > 0:
            with contextlib.suppress(Empty):
                return self._said.get(timeout=left if self._callbacks.while_waiting is None else _CHECK_INTERVAL)
            self._call_back(self._callbacks.while_waiting)
        raise requests.Timeout(f"no whole response within {self._timeout:g} s")

    def _call_back(self, callback: Callable[[], None] | None) -> None:
        if callback is None:
            return
        self.is_ended_by_caller = True
        callback()
        self.is_ended_by_caller = False

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _work(self) -> None:
        _current.set(self)
        try:
            self._response = self._send()
        except Exception as error:  # noqa: BLE001  it is raised again, where it is waited for
            for each in causes_of(error):
                each.__traceback__ = None  # its frames hold the key
            self._error = error
        self._connection = None
        self._said.put(_IS_OVER)

    def _wake_thread(self) -> None:
        """End a thread that is left behind in a read, as well as that can be done."""
        connection = self._connection
        with contextlib.suppress(Exception):
            # Behind a proxy that speaks TLS, the socket is one level deeper.
            inner = getattr(connection.sock, "socket", connection.sock)
            # Not the method of an SSL socket, which is not for two threads.
            socket.socket.shutdown(inner, socket.SHUT_RDWR)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and everything it wraps: cause, context, ``reason`` and ``args``."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, BaseException) and id(candidate) not in seen:
            seen.add(id(candidate))
            yield candidate
            pending += [candidate.__cause__, candidate.__context__, getattr(candidate, "reason", None), *candidate.args]


#: Those of a response in parts, whose parts are not read as headers.
_HARMLESS_DEFECTS = (email.errors.StartBoundaryNotFoundDefect, email.errors.MultipartInvariantViolationDefect)


class _StrictResponse(http.client.HTTPResponse):
    """Refuses malformed headers, which the library would log: a server may have put the key into them."""

    def begin(self) -> None:
        super().begin()
        defects = [defect for defect in self.msg.defects if not isinstance(defect, _HARMLESS_DEFECTS)]
        if defects or (not self.msg.is_multipart() and self.msg.get_payload()):
            raise http.client.HTTPException("malformed headers")


class _Gate:
    """What a connection class of the library becomes with it: it asks whether it may still send."""

    sock: Any
    response_class = _StrictResponse

    def request(self, *arguments: Any, **options: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        _current.get().ask_for_leave(self)
        super().request(*arguments, **options)  # type: ignore[misc]


@lru_cache
def _gated(pool_class: type[Any]) -> type[Any]:
    """Return a pool class of the library whose connections ask before they send."""
    connection_class = type("GatedConnection", (_Gate, pool_class.ConnectionCls), {})
    return type("GatedPool", (pool_class,), {"ConnectionCls": connection_class})


class _GatedAdapter(HTTPAdapter):
    """Makes connections that ask before they send; for one request."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        _gate(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if is_new:
            _gate(manager)
        return manager


def _gate(manager: Any) -> None:
    classes = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _gated(pool_class) for scheme, pool_class in classes.items()}


class _NoAuth(AuthBase):
    """Adds nothing, and keeps ``requests`` from looking for a password in the user's files."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _KeyAuth(AuthBase):
    """Puts the API key on requests to one scheme, host and port, and takes it off all others."""

    def __init__(self, settings: ClientSettings) -> None:
        self._api_key = settings.api_key
        # As the library writes it: another case, or a name in another alphabet.
        self._origin = _origin(requests.Request("GET", settings.base_url).prepare().url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop(API_KEY_HEADER, None)
        if _origin(request.url) == self._origin:
            request.headers[API_KEY_HEADER] = self._api_key
        return request


def _origin(url: str | None) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


class BoundSession(requests.Session):
    """
    A session for one service. A path is one below the service's base URL.

    Each request takes at most the settings' ``timeout``, whatever ``timeout`` it is given. Responses are read to their
    end before they are returned.

    :param settings: Where the service is, and how to speak to it.
    """

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__()
        self._settings = settings
        self._key_auth = _KeyAuth(settings)
        self.auth = _NoAuth()
        self.headers.clear()
        self.headers.update(_HEADERS)
        self.proxies = dict(settings.proxies)
        self.verify = settings.verify
        # A proxy of the environment sees only ciphertext of https; of http it would see the key.
        self.trust_env = settings.is_encrypted

    def __reduce__(self) -> NoReturn:
        raise TypeError("A VoiceGenie session holds the API key and cannot be pickled; pass the connection id.")

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """
        Complete a request; its URL may be a path.

        :raises requests.exceptions.InvalidURL: The path has a ``.`` or ``..`` in it.
        """
        request = copy.copy(request)
        if not urlsplit(request.url).scheme:
            if leads_out(request.url):
                raise requests.exceptions.InvalidURL("a path below the base URL has no . or .. in it")
            request.url = f"{self._settings.base_url}/{request.url.lstrip('/')}"
        return super().prepare_request(request)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> dict[str, Any]:  # type: ignore[override]
        """Add what the environment says, after what the connection says."""
        verify = self.verify if verify is None else verify
        merged = super().merge_environment_settings(url, proxies or {}, stream, verify, cert)
        if select_proxy(url, self.proxies):
            merged["proxies"] = dict(self.proxies)
        return dict(merged)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a prepared request once, follow no redirect, and read the response."""
        return self.exchange(request, **options).run()

    def exchange(
        self, request: requests.PreparedRequest, *, callbacks: Callbacks = _NO_CALLBACKS, **options: Any
    ) -> Exchange:
        """
        Return what sends a prepared request.

        :param request: The request.
        :param callbacks: What the caller does meanwhile.
        :param options: As :meth:`requests.Session.send` takes them.
        """
        merged = self.merge_environment_settings(request.url, None, None, None, None) | options
        request = request.copy()
        return Exchange(lambda: self._send(request, merged), self._settings.timeout, callbacks)

    def _send(self, request: requests.PreparedRequest, options: Mapping[str, Any]) -> requests.Response:
        if urlsplit(str(request.url)).scheme not in _DEFAULT_PORTS:
            raise requests.exceptions.InvalidSchema("only http:// and https:// are spoken")
        proxies = options["proxies"]
        if (proxy := select_proxy(str(request.url), proxies)) and not is_proxy_url(proxy):
            raise requests.exceptions.InvalidProxyURL("not the URL of a proxy")
        try:
            response = _GatedAdapter().send(
                self._key_auth(request),
                stream=True,
                timeout=self._settings.timeout,
                verify=options["verify"],
                cert=options["cert"],
                proxies=proxies,
            )
        except (requests.RequestException, OSError) as error:
            if (proxy or "").startswith("socks") and not _current.get().is_sent:
                # For other proxies, the library says so by itself.
                raise requests.exceptions.ProxyError("the proxy failed", request=request) from error
            raise
        except Exception as error:
            # What the library below raises, and `requests` does not translate.
            raise requests.ConnectionError("the request failed") from error
        finally:
            # Whoever prints a response's request does not print the key.
            request.headers.pop(API_KEY_HEADER, None)
        response.raw = BytesIO(_read_body(response))
        return response


def _read_body(response: requests.Response) -> bytes:
    """
    Return a response's body as it came over the wire.

    :raises requests.RequestException: It is too large, or broke off.
    """
    body = bytearray()
    try:
        with response:
            for part in response.raw.stream(_PART_BYTES, decode_content=False):
                body += part
                if len(body) > MAX_RESPONSE_BYTES:
                    raise ResponseTooLargeError("the response is too large", response=response)
    except requests.RequestException:
        raise
    except Exception as error:
        # What the library below raises, and `requests` itself would translate.
        raise requests.ConnectionError("the response broke off", response=response) from error
    return bytes(body)
