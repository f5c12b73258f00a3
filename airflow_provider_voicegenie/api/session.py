# SPDX-License-Identifier: Apache-2.0
"""
A ``requests.Session`` that is bound to one service, and bounded in time and size.

- The API key goes to the service's own scheme, host and port, and nowhere else.
- A request has a time limit as a whole, from resolving the host to the last byte. It runs in a thread of its own, which
  is left behind when the time is over, or when its caller is interrupted, and then never sends.
- No redirect is followed, no cookie kept, no connection used twice, and no response read beyond a limit.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar
from requests.utils import select_proxy

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.responses import MAX_RESPONSE_BYTES
from airflow_provider_voicegenie.api.settings import ClientSettings

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


class ResponseTooLargeError(requests.RequestException):
    """The response is larger than :data:`MAX_RESPONSE_BYTES`."""


class Exchange:
    """
    One request and its response, in a thread of its own.

    :param send: Sends the request and returns the response, within the thread.
    :param timeout: Seconds that it may take.
    """

    def __init__(self, send: Callable[[], requests.Response], timeout: float) -> None:
        self._send = send
        self._timeout = timeout
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._socket: socket.socket | None = None
        self._is_over = threading.Event()
        self._response: requests.Response | None = None
        self._error: BaseException | None = None
        #: Whether any of the request may have reached the service. Final once :meth:`run` has returned or raised.
        self.is_sent = False

    def run(self) -> requests.Response:
        """
        Send the request and return the response.

        :raises requests.RequestException: There is no response.
        :raises OSError: The CA bundle cannot be read.
        """
        self._deadline = time.monotonic() + self._timeout
        thread = threading.Thread(target=self._work, name="voicegenie-request", daemon=True)
        try:
            thread.start()
            is_in_time = self._is_over.wait(self._timeout)
        finally:
            # Out of time, or interrupted by a signal: what was not sent by now never will be.
            self._abandon()
        if not is_in_time:
            raise requests.Timeout(f"no whole response within {self._timeout:g} s")
        if self._error is not None:
            # Its traceback would show the frames of the thread.
            raise self._error.with_traceback(None)
        assert self._response is not None  # noqa: S101
        return self._response

    def before_sending(self, connection: Any) -> None:
        """
        Take note, in the thread, that a connected connection is about to send the request.

        :param connection: The connection.
        :raises requests.Timeout: Nobody waits for the request any more.
        """
        with self._lock:
            if self._is_abandoned or time.monotonic() >= self._deadline:
                raise requests.Timeout("its time was over before it was sent")
            self.is_sent = True
            self._socket = connection.sock

    def _work(self) -> None:
        _current.set(self)
        try:
            self._response = self._send()
        except BaseException as error:  # noqa: BLE001  it is raised again, where it is waited for
            self._error = error
        self._is_over.set()

    def _abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
        if self._socket is not None and not self._is_over.is_set():
            with contextlib.suppress(OSError):  # it may be closed already
                # Wakes up the thread. Not the method of an SSL socket, which is not for two threads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Gate:
    """What a connection class of the library becomes with it: it asks whether it may still send."""

    sock: Any

    def request(self, *arguments: Any, **options: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        _current.get().before_sending(self)
        super().request(*arguments, **options)  # type: ignore[misc]


@lru_cache
def _gated(pool_class: type[Any]) -> type[Any]:
    """Return a pool class of the library whose connections ask before they send."""
    connection_class = type("GatedConnection", (_Gate, pool_class.ConnectionCls), {})
    return type("GatedPool", (pool_class,), {"ConnectionCls": connection_class})


class _GatedAdapter(HTTPAdapter):
    """Makes connections that ask before they send."""

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


class _KeyAuth(AuthBase):
    """Puts the API key on requests to one scheme, host and port; the only place that does."""

    def __init__(self, settings: ClientSettings) -> None:
        self._api_key = settings.api_key
        # As the library writes it: another case, or a name in another alphabet.
        self._origin = _origin(requests.Request("GET", settings.base_url).prepare().url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if _origin(request.url) == self._origin:
            request.headers[API_KEY_HEADER] = self._api_key
        return request


def _origin(url: str | None) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


class _NoCookies(RequestsCookieJar):
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


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
        self.auth = _KeyAuth(settings)
        self.headers.clear()
        self.headers.update(_HEADERS)
        self.cookies = _NoCookies()
        self.proxies = dict(settings.proxies)
        self.verify = settings.verify
        # A proxy of the environment sees only ciphertext of https; of http it would see the key.
        self.trust_env = settings.is_encrypted

    def __reduce__(self) -> NoReturn:
        raise TypeError("A VoiceGenie session holds the API key and cannot be pickled; pass the connection id.")

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Complete a request; its URL may be a path."""
        request = copy.copy(request)
        if not urlsplit(request.url).scheme:
            request.url = f"{self._settings.base_url}/{request.url.lstrip('/')}"
        return super().prepare_request(request)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> dict[str, Any]:  # type: ignore[override]
        """Add what the environment says, after what the connection says."""
        verify = self.verify if verify is None else verify
        merged = super().merge_environment_settings(url, proxies or {}, stream, verify, cert)
        if select_proxy(url, self.proxies):
            merged["proxies"] = dict(self.proxies)
        return dict(merged)

    def exchange(self, request: requests.PreparedRequest, **options: Any) -> Exchange:
        """
        Return what sends a prepared request.

        :param request: The request.
        :param options: As :meth:`requests.Session.send` takes them.
        """
        merged = self.merge_environment_settings(request.url, None, None, None, None) | options
        timeout = self._settings.timeout
        merged |= {"stream": True, "allow_redirects": False, "timeout": timeout}
        return Exchange(lambda: self._send(request, merged), timeout)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a prepared request, and read the response."""
        return self.exchange(request, **options).run()

    def _send(self, request: requests.PreparedRequest, options: Mapping[str, Any]) -> requests.Response:
        self.auth(request)  # type: ignore[operator, misc]
        try:
            response = super().send(request, **options)
        finally:
            # Whoever prints a response's request does not print the key.
            request.headers.pop(API_KEY_HEADER, None)
        response.raw = BytesIO(_read_body(response))
        return response

    def get_adapter(self, url: Any) -> HTTPAdapter:
        """Return an adapter for one request, so that no connection is used twice."""
        if urlsplit(url).scheme not in _DEFAULT_PORTS:
            raise requests.exceptions.InvalidSchema("only http:// and https:// are spoken")
        return _GatedAdapter()

    def get_redirect_target(self, response: Any) -> None:
        """Find no redirect: none is followed, and none is looked at."""


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
