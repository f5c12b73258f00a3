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
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
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

#: The exchange that is under way: in its own thread, and in that of its caller.
_current: contextvars.ContextVar[Exchange] = contextvars.ContextVar("voicegenie_exchange")

#: Messages from the thread of an exchange to its caller.
_ASKS_FOR_LEAVE, _IS_OVER = object(), object()

#: Seconds between two calls of ``while_waiting``.
_CHECK_INTERVAL = 0.2


class ResponseTooLargeError(requests.RequestException):
    """The response is larger than :data:`MAX_RESPONSE_BYTES`."""


class Exchange:
    """
    One request and its response, in a thread of its own.

    The thread sends nothing without leave, and only a caller that still waits gives leave. So whatever interrupts the
    caller, and wherever, an interrupted request that was not sent by then is never sent.

    The session uses the exchange that is current where :meth:`BoundSession.send` is called, and otherwise a new one.

    :param on_sending: Called in the caller's thread once the connection is made, right before the first byte is sent.
        If it raises, nothing is sent.
    :param while_waiting: Called in the caller's thread several times a second while the connection is made or the
        response awaited. If it raises, that ends, and a request that was not sent by then is never sent.
    """

    def __init__(
        self, on_sending: Callable[[], None] | None = None, while_waiting: Callable[[], None] | None = None
    ) -> None:
        self._on_sending = on_sending
        self._while_waiting = while_waiting
        #: Whether the session has taken it.
        self.has_begun = False
        #: Whether any of the request may have reached the service.
        self.is_sent = False
        #: Whether the exception that ended it comes from a callback or a response hook, and not from the request.
        self.failed_in_callback = False
        self._deadline = 0.0
        self._messages: SimpleQueue[object] = SimpleQueue()
        self._leave: SimpleQueue[bool] = SimpleQueue()
        self._connection: Any = None
        self._response: requests.Response | None = None
        self._error: Exception | None = None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Let the session use this exchange for the next request."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
        if not self.is_sent:
            # A test double has taken the place of the session, and sent nothing.
            self.call(self._on_sending)

    def run(self, send: Callable[[], requests.Response], timeout: float) -> requests.Response:
        """
        Send the request and return the response.

        :param send: Sends the request and returns the response, within the thread.
        :param timeout: Seconds that it may take.
        :raises requests.RequestException: There is no response.
        :raises OSError: The CA bundle cannot be read.
        """
        self.has_begun = True
        self._deadline = time.monotonic() + timeout
        interval = math.inf if self._while_waiting is None else _CHECK_INTERVAL
        try:
            start_thread(partial(self._work, send), "voicegenie-request")
            while (left := self._seconds_left()) > 0:
                try:
                    message = self._messages.get(timeout=min(left, interval))
                except Empty:
                    self.call(self._while_waiting)
                    continue
                if message is _IS_OVER:
                    break
                self.call(self._on_sending)
                if self._seconds_left() == 0:
                    raise requests.Timeout("its time was over before it was sent")
                self.is_sent = True
                self._leave.put(True)
            else:
                raise requests.Timeout(f"no whole response within {timeout:g} s")
        except NoMoreThreadsError as error:
            raise requests.ConnectionError(f"no thread for the request: {error}") from None
        finally:
            self._leave.put(False)
            self._wake_thread()
        if self._error is not None:
            raise self._error
        assert self._response is not None  # noqa: S101
        return self._response

    def call(self, function: Callable[..., Any] | None, *arguments: Any, **options: Any) -> Any:
        """Call a callback or a response hook, if there is one."""
        if function is None:
            return None
        self.failed_in_callback = True
        result = function(*arguments, **options)
        self.failed_in_callback = False
        return result

    def ask_for_leave(self, connection: Any = None) -> None:
        """
        Ask, in the thread, whether the request may be sent.

        :param connection: The connection, which is made; ``None`` if a test double has none.
        :raises requests.Timeout: The caller has stopped waiting for the request.
        """
        self._connection = connection
        self._messages.put(_ASKS_FOR_LEAVE)
        may_send = False
        with contextlib.suppress(Empty):
            may_send = self._leave.get(timeout=self._seconds_left())
        if not may_send:
            raise requests.Timeout("nobody waits for it any more, and it was not sent")

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _work(self, send: Callable[[], requests.Response]) -> None:
        _current.set(self)
        try:
            self._response = send()
            if not self.is_sent:
                # A test double has responded in place of the transport, and sent nothing.
                self.ask_for_leave()
        except Exception as error:  # noqa: BLE001  it is raised again, where it is waited for
            for each in causes_of(error):
                each.__traceback__ = None  # its frames hold the key
            self._error = error
        self._connection = None
        self._messages.put(_IS_OVER)

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


#: Defects of a multipart response: the library does not read its parts as headers.
_HARMLESS_DEFECTS = (email.errors.StartBoundaryNotFoundDefect, email.errors.MultipartInvariantViolationDefect)


class _StrictResponse(http.client.HTTPResponse):
    """Refuses malformed headers, which the library would log: a server may have put the key into them."""

    def begin(self) -> None:
        super().begin()
        defects = [defect for defect in self.msg.defects if not isinstance(defect, _HARMLESS_DEFECTS)]
        if defects or (not self.msg.is_multipart() and self.msg.get_payload()):
            raise http.client.HTTPException("malformed headers")


class _Gate:
    """Makes a pool class of the library ask before it sends."""

    def _validate_conn(self, connection: Any) -> None:
        # Whichever class connections have by now: some test doubles replace it.
        connection.response_class = _StrictResponse
        super()._validate_conn(connection)  # type: ignore[misc]
        if connection.sock is None:
            connection.connect()
        _current.get().ask_for_leave(connection)


@lru_cache
def _gated(**pool_classes: type[Any]) -> dict[str, type[Any]]:
    """Return pool classes of the library, by scheme, as classes that ask before they send."""
    return {
        scheme: each if issubclass(each, _Gate) else type("GatedPool", (_Gate, each), {})
        for scheme, each in pool_classes.items()
    }


class _Adapter(HTTPAdapter):
    """Asks before it sends, and reads the whole response. It is for one request: none goes over a used connection."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _gated(**self.poolmanager.pool_classes_by_scheme)

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _gated(**manager.pool_classes_by_scheme)
        return manager

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """
        Send a request.

        :param options: As :meth:`requests.adapters.HTTPAdapter.send` takes them.
        :raises requests.RequestException: There is no response.
        :raises OSError: The CA bundle cannot be read.
        """
        proxy = select_proxy(str(request.url), options["proxies"])
        if proxy and not is_proxy_url(proxy):
            raise requests.exceptions.InvalidProxyURL("not the URL of a proxy")
        try:
            response = super().send(request, **options)
        except (requests.RequestException, OSError) as error:
            if (proxy or "").startswith("socks") and not _current.get().is_sent:
                # For other proxies, the library says so by itself.
                raise requests.exceptions.ProxyError("the proxy failed", request=request) from error
            raise
        except Exception as error:
            # An exception of the library below that `requests` does not translate.
            raise requests.ConnectionError("the request failed") from error
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
        # An exception of the library below that `requests` itself would translate.
        raise requests.ConnectionError("the response broke off", response=response) from error
    return bytes(body)


def _origin(url: str | None) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


class BoundSession(requests.Session):
    """
    A session for one service. A path is one below the service's base URL.

    Each request takes at most the settings' ``timeout``, whatever ``timeout`` it is given. Responses are read to their
    end before they are returned, and before response hooks are called. An adapter that is mounted on it replaces its
    own, with what that guarantees: a connection of its own for each request, and that none is sent late or twice.
    """

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__()
        self._settings = settings
        # As the library writes it: another case, or a name in another alphabet.
        self._origin = _origin(requests.Request("GET", settings.base_url).prepare().url)
        # It adds nothing, and keeps `requests` from looking for a password in the user's files.
        self.auth = lambda request: request
        self.headers.clear()
        self.headers.update(_HEADERS)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in _DEFAULT_PORTS:
            self.mount(f"{scheme}://", _Adapter())
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
        """Add the settings of the environment, behind those of the connection."""
        verify = self.verify if verify is None else verify
        merged = super().merge_environment_settings(url, proxies or {}, stream, verify, cert)
        if select_proxy(url, self.proxies):
            merged["proxies"] = dict(self.proxies)
        return dict(merged)

    def get_redirect_target(self, response: requests.Response) -> None:
        """Follow no redirect."""

    def get_adapter(self, url: Any) -> Any:
        """Return the adapter for a URL: a new one, unless the user has mounted another."""
        adapter = super().get_adapter(url)
        return _Adapter() if isinstance(adapter, _Adapter) else adapter

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a prepared request once, follow no redirect, read the response, and call the response hooks."""
        exchange = _current.get(None)
        if exchange is None or exchange.has_begun:
            # It is a request of a user of the session, perhaps in a response hook or an adapter.
            exchange = Exchange()
        merged = self.merge_environment_settings(request.url, None, None, None, None) | options
        merged |= {"stream": True, "timeout": self._settings.timeout}
        merged.pop("allow_redirects", None)
        request = request.copy()
        hooks, request.hooks = request.hooks, default_hooks()
        response = exchange.run(partial(self._send, request, merged), self._settings.timeout)
        request.hooks = hooks
        handled: requests.Response = exchange.call(dispatch_hook, "response", hooks, response, **merged)
        return handled

    def _send(self, request: requests.PreparedRequest, options: Mapping[str, Any]) -> requests.Response:
        if urlsplit(str(request.url)).scheme not in _DEFAULT_PORTS:
            raise requests.exceptions.InvalidSchema("only http:// and https:// are spoken")
        if not isinstance(self.get_adapter(str(request.url)), _Adapter):
            # The user's own adapter does not ask for leave before it sends.
            _current.get().ask_for_leave()
        try:
            response = super().send(self._with_key(request), allow_redirects=False, **options)
        finally:
            # A response's request may be printed.
            request.headers.pop(API_KEY_HEADER, None)
        response.content  # noqa: B018  another adapter may not have read it
        return response

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the API key on a request to the service's scheme, host and port, and take it off any other."""
        request.headers.pop(API_KEY_HEADER, None)
        if _origin(request.url) == self._origin:
            request.headers[API_KEY_HEADER] = self._settings.api_key
        return request
