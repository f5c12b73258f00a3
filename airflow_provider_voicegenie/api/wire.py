# SPDX-License-Identifier: Apache-2.0
"""
What both transports do alike with ``httpx`` and ``httpcore``: the way to the host, the request, what failures mean.

They use ``httpcore`` under ``httpx``, as it follows no redirect, keeps no cookie and lets the network be bounded.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore
import httpx

from airflow_provider_voicegenie.api.answers import Answer
from airflow_provider_voicegenie.api.endpoints import Call
from airflow_provider_voicegenie.api.errors import InvalidConnectionError
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.api.transport import API_KEY_HEADER, REQUEST_HEADERS, Breakage, BreakageTable

Pool = TypeVar("Pool")

#: What can be raised while an exchange goes on, and says that it broke.
EXCHANGE_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
    OSError,
    ValueError,
)

#: What the exceptions of the libraries mean.
BREAKAGES: BreakageTable = (
    ((httpx.InvalidURL,), Breakage.UNKNOWN_HOST),
    ((httpcore.ProxyError, httpcore.UnsupportedProtocol), Breakage.PROXY),
    ((httpcore.TimeoutException,), Breakage.TIMEOUT),
)

_is_quiet: ContextVar[bool] = ContextVar("voicegenie_exchange_is_quiet", default=False)


def _is_loud(record: logging.LogRecord) -> bool:
    return not _is_quiet.get()


for _name in ("connection", "http11", "proxy"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_is_loud)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library from logging, at level DEBUG, the headers of answers: a server may put the key into one."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


@dataclass(frozen=True)
class Route:
    """
    The way to the host: trusted certificates, and the proxy if there is one.

    :param ssl_context: Which certificates are trusted; none where there is no TLS.
    :param proxy: The proxy to go through.
    """

    ssl_context: ssl.SSLContext
    proxy: httpx.Proxy | None

    @classmethod
    def of(cls, settings: ClientSettings) -> Route:
        """
        Find the way. Takes a while, as it loads certificates.

        :raises InvalidConnectionError: The CA bundle or the proxy is not usable.
        """
        try:
            proxy = _proxy(settings)
            if settings.is_encrypted or (proxy is not None and proxy.url.scheme == "https"):
                return cls(_ssl_context(settings), proxy)
            # Trusts nobody, and is asked by nobody.
            return cls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), proxy)
        except OSError:
            problem = "the CA bundle cannot be read. Correct `verify` in its Extra, or REQUESTS_CA_BUNDLE"
        except (ValueError, httpx.InvalidURL):
            problem = "the proxy has no http:// or https:// URL. Correct `proxies` in its Extra, or HTTPS_PROXY"
        connection = settings.connection
        raise InvalidConnectionError(f"{connection[:1].upper()}{connection[1:]}: {problem}.")

    def pool(self, direct: Callable[..., Pool], through_proxy: Callable[..., Pool], network: object) -> Pool:
        """
        Make what connects: one for each exchange, as no connection outlives one.

        :param direct: The class of pools that connect to the host.
        :param through_proxy: The class of pools that connect to a proxy.
        :param network: The library's network backend.
        """
        arguments: dict[str, Any] = {"ssl_context": self.ssl_context, "network_backend": network}
        if self.proxy is None:
            return direct(**arguments)
        if self.proxy.url.scheme == "https":
            arguments["proxy_ssl_context"] = self.ssl_context
        return through_proxy(
            proxy_url=httpcore.URL(
                scheme=self.proxy.url.raw_scheme, host=self.proxy.url.raw_host, port=self.proxy.url.port, target=b"/"
            ),
            proxy_auth=self.proxy.raw_auth,
            **arguments,
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("A route may hold a proxy's password and cannot be pickled.")


def request_for(settings: ClientSettings, call: Call[Any], trace: object) -> httpcore.Request:
    """
    Build a request; the only place that the key is put on one.

    :param settings: Where it goes.
    :param call: What it asks for.
    :param trace: Called by the library with each thing that it does; :func:`goes_out` reads it.
    """
    request = httpx.Request(
        "GET", settings.base_url + call.target, headers={**REQUEST_HEADERS, API_KEY_HEADER: settings.api_key}
    )
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        extensions={"timeout": httpx.Timeout(settings.timeout).as_dict(), "trace": trace},
    )


def goes_out(event: str, details: Mapping[str, Any]) -> bool:
    """Tell whether the library is about to send the request itself, and not one to the proxy for a tunnel."""
    return event.endswith("send_request_headers.started") and details["request"].method != b"CONNECT"


def answer_of(response: httpcore.Response, body: bytearray) -> Answer:
    """Return what came, with the names of its headers in lower case."""
    return Answer(response.status, dict(httpx.Headers(response.headers)), bytes(body))


def _proxy(settings: ClientSettings) -> httpx.Proxy | None:
    parts = urlsplit(settings.base_url)
    host = parts.hostname or ""
    url = _chosen(settings.proxies, parts.scheme, host)
    # A proxy of the environment sees only ciphertext of https; of http it would see the key.
    if url is None and settings.is_encrypted and not proxy_bypass(host):
        url = _chosen(getproxies(), parts.scheme, host)
    if not url:
        return None
    proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
    if proxy.url.scheme not in ("http", "https"):
        raise ValueError
    return proxy


def _chosen(proxies: Mapping[str, str], scheme: str, host: str) -> str | None:
    keys = (f"{scheme}://{host}", scheme, f"all://{host}", "all")
    return next((proxies[key] for key in keys if key in proxies), None)


def _ssl_context(settings: ClientSettings) -> ssl.SSLContext:
    if settings.verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    bundle = Path(_bundle_of_environment() or certifi.where() if settings.verify is True else settings.verify)
    if bundle.is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def _bundle_of_environment() -> str | None:
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    return next((path for name in names if (path := os.environ.get(name))), None)
