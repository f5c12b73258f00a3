# SPDX-License-Identifier: Apache-2.0
"""
A ``requests.Session`` that is bound to one service, and bounded in time and size.

- The API key is put on a request right before it is sent, if it goes to the service's own scheme, host and port.
- A request has a time limit as a whole, from resolving the host to the last byte. It runs in a thread of its own, which
  asks its caller for leave before it sends. A caller whose time is over, or who was interrupted, no longer gives leave.
- No redirect is followed, no cookie kept, no connection used twice, and no response read beyond a limit.
- It sends as every session of ``requests`` does, so what stands in for that in a test stands in for this, too.
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
from dataclasses import dataclass
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from requests.hooks import default_hooks, dispatch_hook
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


@dataclass
class Caller:
    """
    What the caller of a request does while it is on its way, in its own thread, and learns of it.

    :param on_sending: Called once the connection is made, right before the first byte is sent. If it raises, nothing is
        sent.
    :param while_waiting: Called several times a second while the connection is made or the response awaited. If it
        raises, that ends, and a request that was not sent by then is never sent.
    """

    on_sending: Callable[[], None] | None = None
    while_waiting: Callable[[], None] | None = None
    #: Whether any of the request may have reached the service.
    is_sent: bool = False
    #: Whether what is raised comes from the caller's own code, and so is no trouble with the service.
    is_in_own_code: bool = False

    @contextlib.contextmanager
    def own_code(self) -> Iterator[None]:
        """Run code of the caller's."""
        self.is_in_own_code = True
        yield
        self.is_in_own_code = False

    def before_sending(self) -> None:
        """Call :attr:`on_sending`."""
        if self.on_sending is not None:
            with self.own_code():
                self.on_sending()

    def wait(self) -> None:
        """Call :attr:`while_waiting`."""
        if self.while_waiting is not None:
            with self.own_code():
                self.while_waiting()


#: Who waits for the request that this thread is about to make.
_caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("voicegenie_caller", default=None)


class Exchange:
    """
    One request and its response, in a thread of its own.

    The thread sends nothing without leave, and only a caller that still waits gives leave. So whatever interrupts the
    caller, and wherever, an interrupted request that was not sent by then is never sent.

    :param send: Sends the request and returns the response, within the thread.
    :param timeout: Seconds that it may take.
    :param caller: Who waits for it.
    """

    def __init__(self, send: Callable[[], requests.Response], timeout: float, caller: Caller | None = None) -> None:
        self._send = send
        self._timeout = timeout
        self._caller = caller or Caller()
        self._deadline = 0.0
        self._said: SimpleQueue[object] = SimpleQueue()
        self._leave: SimpleQueue[bool] = SimpleQueue()
        self._connection: Any = None
        self._response: requests.Response | None = None
        self._error: Exception | None = None
        self._has_asked = False

    @property
    def is_sent(self) -> bool:
        """Whether any of the request may have reached the service."""
        return self._caller.is_sent

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
                self._caller.before_sending()
                if self._seconds_left() == 0:
                    raise requests.Timeout("its time was over before it was sent")
                self._caller.is_sent = True
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
        Ask, in the thread, whether the request may be sent.

        :param connection: The connection, which is made; ``None`` if it is not known.
        :raises requests.Timeout: Nobody waits for the request any more.
        """
        self._has_asked = True
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
                return self._said.get(timeout=left if self._caller.while_waiting is None else _CHECK_INTERVAL)
            self._caller.wait()
        raise requests.Timeout(f"no whole response within {self._timeout:g} s")

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _work(self) -> None:
        _current.set(self)
        try:
            self._response = self._send()
            if not self._has_asked:
                # Whoever stands in for the transport has responded, and sent nothing.
                self.ask_for_leave(None)
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
    """What a pool class of the library becomes with it: it asks whether it may still send."""

    def _new_conn(self) -> Any:
        # Whichever class connections have by now: some test doubles replace it.
        connection = super()._new_conn()  # type: ignore[misc]
        connection.response_class = _StrictResponse
        return connection

    def _validate_conn(self, connection: Any) -> None:
        super()._validate_conn(connection)  # type: ignore[misc]
        if connection.sock is None:
            connection.connect()
        _current.get().ask_for_leave(connection)


@lru_cache
def _gated(pool_class: type[Any]) -> type[Any]:
    """Return a pool class of the library that asks before it sends."""
    return type("GatedPool", (_Gate, pool_class), {})


class _GatedAdapter(HTTPAdapter):
    """Asks before it sends; for one request."""

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


class _OnceAdapter(BaseAdapter):
    """Sends each request over a connection of its own, and reads the whole response."""

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """
        Send a request.

        :param request: The request.
        :param options: As :meth:`requests.adapters.HTTPAdapter.send` takes them.
        :raises requests.RequestException: There is no response.
        :raises OSError: The CA bundle cannot be read.
        """
        proxy = select_proxy(str(request.url), options["proxies"])
        if proxy and not is_proxy_url(proxy):
            raise requests.exceptions.InvalidProxyURL("not the URL of a proxy")
        try:
            response = _GatedAdapter().send(request, **options)
        except (requests.RequestException, OSError) as error:
            if (proxy or "").startswith("socks") and not _current.get().is_sent:
                # For other proxies, the library says so by itself.
                raise requests.exceptions.ProxyError("the proxy failed", request=request) from error
            raise
        except Exception as error:
            # What the library below raises, and `requests` does not translate.
            raise requests.ConnectionError("the request failed") from error
        response.raw = BytesIO(_read_body(response))
        return response

    def close(self) -> None:
        """Nothing is open between requests."""


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
    end before they are returned, and before response hooks are called. An adapter that is mounted on it replaces its
    own, with what that guarantees: a connection of its own for each request, and that none is sent late or twice.

    :param settings: Where the service is, and how to speak to it.
    """

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__()
        self._settings = settings
        self._key_auth = _KeyAuth(settings)
        self.auth = _NoAuth()
        self.headers.clear()
        self.headers.update(_HEADERS)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in _DEFAULT_PORTS:
            self.mount(f"{scheme}://", _OnceAdapter())
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
        :raises requests.exceptions.InvalidJSONError: The body cannot be written as JSON.
        """
        request = copy.copy(request)
        if not urlsplit(request.url).scheme:
            if leads_out(request.url):
                raise requests.exceptions.InvalidURL("a path below the base URL has no . or .. in it")
            request.url = f"{self._settings.base_url}/{request.url.lstrip('/')}"
        try:
            return super().prepare_request(request)
        except (TypeError, RecursionError) as error:
            if request.json is None:
                raise
            # As `requests` itself says of a number that is none.
            raise requests.exceptions.InvalidJSONError(error) from None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> dict[str, Any]:  # type: ignore[override]
        """Add what the environment says, after what the connection says."""
        verify = self.verify if verify is None else verify
        merged = super().merge_environment_settings(url, proxies or {}, stream, verify, cert)
        if select_proxy(url, self.proxies):
            merged["proxies"] = dict(self.proxies)
        return dict(merged)

    def get_redirect_target(self, response: requests.Response) -> None:
        """Follow no redirect."""

    @contextlib.contextmanager
    def used_by(self, caller: Caller) -> Iterator[None]:
        """
        Let a caller hear of the request that it makes.

        :param caller: The caller.
        """
        token = _caller.set(caller)
        try:
            yield
        finally:
            _caller.reset(token)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a prepared request once, follow no redirect, read the response, and call the response hooks."""
        caller = _caller.get() or Caller()
        merged = self.merge_environment_settings(request.url, None, None, None, None) | options
        merged |= {"stream": True, "timeout": self._settings.timeout}
        merged.pop("allow_redirects", None)
        request = request.copy()
        hooks, request.hooks = request.hooks, default_hooks()
        response = Exchange(lambda: self._send(request, merged), self._settings.timeout, caller).run()
        request.hooks = hooks
        # A hook may make a request of its own.
        with caller.own_code(), self.used_by(Caller()):
            handled: requests.Response = dispatch_hook("response", hooks, response, **merged)  # type: ignore[no-untyped-call]
        return handled

    def _send(self, request: requests.PreparedRequest, options: Mapping[str, Any]) -> requests.Response:
        if urlsplit(str(request.url)).scheme not in _DEFAULT_PORTS:
            raise requests.exceptions.InvalidSchema("only http:// and https:// are spoken")
        if not isinstance(self.get_adapter(str(request.url)), _OnceAdapter):
            # It asks nobody before it sends.
            _current.get().ask_for_leave(None)
        try:
            response = super().send(self._key_auth(request), allow_redirects=False, **options)
        finally:
            # Whoever prints a response's request does not print the key.
            request.headers.pop(API_KEY_HEADER, None)
        response.content  # noqa: B018  another adapter may not have read it
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
