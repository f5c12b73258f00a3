# SPDX-License-Identifier: Apache-2.0
"""The client: sends requests, repeats those that may be repeated, and makes one typed error of whatever goes wrong."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote

import requests
from requests import exceptions
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from airflow_provider_voicegenie.api.endpoints import Request
from airflow_provider_voicegenie.api.errors import (
    ConnectionFailedError,
    InvalidConnectionError,
    InvalidResponseError,
    RequestTimeoutError,
    TlsFailedError,
    VoiceGenieError,
    unchained,
)
from airflow_provider_voicegenie.api.rate_limit import MAX_CLOCK_DIFFERENCE, RateLimiter, clock_offset
from airflow_provider_voicegenie.api.responses import MAX_RESPONSE_BYTES, Redactor, Response, decode
from airflow_provider_voicegenie.api.retries import retry_delay
from airflow_provider_voicegenie.api.session import BoundSession, Exchange, ResponseTooLargeError, causes_of
from airflow_provider_voicegenie.api.settings import ClientSettings

log = logging.getLogger(__name__)

#: Seconds of a wait for the rate limit after which its caller is asked whether it may go on.
_LONGEST_SLEEP = 0.25

Result = TypeVar("Result")


class VoiceGenieClient:
    """
    Speaks to the service. May be used by several threads at a time.

    It needs no closing: no connection outlives its request.

    :param sleep: Waits so many seconds; for tests.
    :param on_result: Called after each exchange with the name of its request, and with ``ok``, the ``kind`` of its
        error, or ``interrupted``.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        on_result: Callable[[str, str], None] = lambda name, result: None,
    ) -> None:
        self.settings = settings
        self.session = BoundSession(settings)
        #: What remains of the limit for all requests.
        self.limiter = RateLimiter(settings.requests_per_minute)
        self._limiters: dict[str, RateLimiter] = {}
        self._sleep = sleep
        self._on_result = on_result
        self._redactor = Redactor(settings.api_key)
        #: How many seconds the service's clock is ahead; ``None`` if its last response had a `Date` beyond belief.
        self._clock_offset: float | None = 0.0

    def __reduce__(self) -> NoReturn:
        raise TypeError("A VoiceGenie client holds the API key and cannot be pickled; pass the connection id.")

    def send(
        self,
        request: Request[Result],
        *,
        max_attempts: int | None = None,
        before_attempt: Callable[[VoiceGenieError | None], None] | None = None,
        on_sending: Callable[[], None] | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Result:
        """
        Send a request, and read the response.

        One that may be repeated waits for the rate limit, and is repeated while trouble looks temporary. Any other is
        sent once, and at once: a start must not slip past its calling hours, nor a pause come late.

        :param max_attempts: Attempts in all; the settings' number by default.
        :param before_attempt: Called before each attempt of a repeatable request, after any wait for the rate limit,
            with the previous error.
        :param on_sending: Called once the connection is made, right before any of the request is sent: from then on,
            the service may act on it. If it raises, nothing is sent, and that is raised here.
        :param while_waiting: Called several times a second while the rate limit is waited for, the connection is made,
            or the response awaited. If it raises, that ends; a request that was not sent by then is never sent.
        :raises VoiceGenieError: There is no good response.
        :raises ValueError: The body of the request cannot be written as JSON.
        """
        if not request.is_repeatable:
            self.limiter.reserve(time.monotonic(), may_wait=False)
            return self.perform(request, Exchange(on_sending, while_waiting))
        previous: VoiceGenieError | None = None
        for attempt in self._attempts(max_attempts or self.settings.max_attempts):
            with attempt:
                self._wait_for_limit(request, while_waiting)
                if before_attempt is not None:
                    before_attempt(previous)
                try:
                    return self.perform(request, Exchange(on_sending, while_waiting))
                except VoiceGenieError as error:
                    previous = error
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _attempts(self, maximum: int) -> Retrying:
        def before_sleep(state: RetryCallState) -> None:
            error = state.outcome and state.outcome.exception()
            seconds = state.next_action.sleep if state.next_action else 0.0
            number = state.attempt_number
            log.warning("%s Trying again in %.1f s (attempt %d of %d failed).", error, seconds, number, maximum)

        return Retrying(
            sleep=self._sleep,
            stop=stop_after_attempt(maximum),
            wait=_delay,
            retry=retry_if_exception(lambda error: isinstance(error, VoiceGenieError) and error.temporary),
            before_sleep=before_sleep,
            reraise=True,
        )

    def perform(self, request: Request[Result], exchange: Exchange) -> Result:
        """
        Send a request once and at once, read its response, and report how it went.

        :raises VoiceGenieError: There is no good response.
        :raises ValueError: The body of the request cannot be written as JSON.
        """
        kind = "interrupted"
        try:
            response = self._exchange(request, exchange)
            now = time.time()
            self._heed(response, now)
            try:
                result = decode(request, response, redactor=self._redactor, now=now)
            except VoiceGenieError as error:
                error.add_remedy(self.settings.connection, self.settings.address)
                raise
            kind = "ok"
            return result
        except VoiceGenieError as error:
            kind = error.kind
            raise
        finally:
            self._on_result(request.name, kind)

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last response showed it; ours if none did."""
        return time.time() + (self._clock_offset or 0.0)

    @property
    def is_clock_known(self) -> bool:
        """Whether :meth:`server_time` is the service's: its last response had no ``Date`` that cannot be believed."""
        return self._clock_offset is not None

    def campaign_url(self, campaign_id: str) -> str | None:
        """Return the address at which people see a campaign; ``None`` if the settings have none."""
        template = self.settings.campaign_url
        return template and template.replace("{campaign_id}", quote(campaign_id, safe=""))

    def _wait_for_limit(self, request: Request[Any], while_waiting: Callable[[], None] | None) -> None:
        delay = self.limiter.reserve(time.monotonic())
        if request.per_minute is not None:
            own = self._limiters.setdefault(request.name, RateLimiter(request.per_minute))
            delay = max(delay, own.reserve(time.monotonic()))
        if delay > 0:
            log.info("%s: waiting %.1f s to stay within the rate limit.", request, delay)
            while while_waiting is not None and delay > _LONGEST_SLEEP:
                while_waiting()
                self._sleep(_LONGEST_SLEEP)
                delay -= _LONGEST_SLEEP
            self._sleep(delay)

    def _heed(self, response: Response, now: float) -> None:
        """Take note of the service's clock, and of its limit."""
        self.limiter.heed(response.headers, time.monotonic(), now)
        offset, previous = clock_offset(response.headers, now), self._clock_offset
        self._clock_offset = offset if abs(offset) <= MAX_CLOCK_DIFFERENCE else None
        if previous is not None and self._clock_offset is None:
            log.warning(
                "The clock of the service is %.0f s %s that of this machine, which is too much to be believed: its "
                "times prove less. Check the clock of this machine.",
                abs(offset),
                "ahead of" if offset > 0 else "behind",
            )

    @unchained()
    def _exchange(self, request: Request[Result], exchange: Exchange) -> Response:
        try:
            with exchange.current():
                response = self.session.request(request.method, request.path, params=request.params, json=request.json)
        except exceptions.InvalidJSONError as error:
            raise ValueError(f"{request}: json cannot be written as JSON: {error}") from None
        except (OSError, ValueError) as error:
            if exchange.failed_in_callback:
                raise
            raise _failure(request, error, self.settings, is_sent=exchange.is_sent) from None
        return Response(
            response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content
        )


def _delay(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    return retry_delay(state.attempt_number, error.retry_after if isinstance(error, VoiceGenieError) else None)


class _Failure(NamedTuple):
    """
    Why there is no response.

    :param message: The error's message; ``{connection}`` and ``{address}`` are the connection and its host and port.
    """

    error_class: type[VoiceGenieError]
    message: str


_TOO_LARGE = _Failure(
    InvalidResponseError, f"the response is larger than {MAX_RESPONSE_BYTES} bytes and was not read to its end"
)
_UNKNOWN_HOST = _Failure(
    ConnectionFailedError,
    "the name of the host ({address}) cannot be resolved. Check the host of {connection} for a typing error, and the "
    "network",
)
_UNREACHABLE = _Failure(
    ConnectionFailedError,
    "no connection to {address} could be made. Check host and port of {connection}, whether a server listens there, "
    "and the network",
)
_PROXY = _Failure(
    ConnectionFailedError,
    "the proxy did not let the connection to {address} through. Check `proxies` in the Extra of {connection}, or "
    "HTTPS_PROXY",
)
_WRONG_PROXY = _Failure(
    InvalidConnectionError,
    "the proxy cannot be used: its URL is wrong, or it is a SOCKS proxy and the package requests[socks] is not "
    "installed. Correct `proxies` in the Extra of {connection}, or HTTPS_PROXY",
)
_WRONG_BUNDLE = _Failure(
    InvalidConnectionError,
    "the CA bundle cannot be read. Correct `verify` in the Extra of {connection}, or REQUESTS_CA_BUNDLE",
)
_UNTRUSTED = _Failure(
    TlsFailedError,
    "the certificate of {address} is not trusted (unknown authority, expired, or of another host). Check the host of "
    "{connection}, or give the CA bundle as `verify` in its Extra",
)
_NOT_TLS = _Failure(
    TlsFailedError,
    "{address} does not speak TLS. A server of plain HTTP, such as the sandbox, needs http:// before the host of "
    "{connection}",
)
_NO_TLS_AGREED = _Failure(
    TlsFailedError,
    "{address} and this machine could not agree on a TLS connection. Check host and port of {connection}",
)
_TIMEOUT = _Failure(
    RequestTimeoutError,
    "there was no whole response from {address} in time. Raise `timeout` in the Extra of {connection} if this is usual",
)
_BROKEN = _Failure(
    ConnectionFailedError,
    "the connection to {address} broke before the whole response came. Check host and port of {connection} if this is "
    "usual",
)

#: What an exception means: the first row with its class counts, or with the class of an exception that caused it.
_FAILURES: tuple[tuple[tuple[type[BaseException], ...], _Failure], ...] = (
    ((ResponseTooLargeError,), _TOO_LARGE),
    ((exceptions.InvalidProxyURL, exceptions.InvalidSchema), _WRONG_PROXY),
    ((exceptions.ProxyError,), _PROXY),
    ((socket.gaierror, UnicodeError, exceptions.InvalidURL), _UNKNOWN_HOST),
    ((exceptions.Timeout, TimeoutError), _TIMEOUT),
    ((ssl.SSLCertVerificationError,), _UNTRUSTED),
)

#: What OpenSSL calls a response that is no TLS: which of them depends on its version and on the response.
_NOT_TLS_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)


def _failure(request: Request[Any], error: Exception, settings: ClientSettings, *, is_sent: bool) -> VoiceGenieError:
    """Return the error for a request that has no response, from the exception that was raised."""
    failure = _reason(error, is_sent=is_sent)
    message = failure.message.format(connection=settings.connection, address=settings.address)
    return failure.error_class(f"{request}: {message}.", may_have_taken_effect=is_sent and request.has_effect)


def _reason(error: Exception, *, is_sent: bool) -> _Failure:
    """
    Say why there is no response.

    :param error: The exception that the session raised.
    :param is_sent: Whether any of the request had been sent.
    """
    if not isinstance(error, requests.RequestException):
        # The session itself says so, before it connects.
        return _WRONG_BUNDLE if isinstance(error, OSError) else _UNKNOWN_HOST
    causes = list(causes_of(error))
    for classes, failure in _FAILURES:
        if any(isinstance(cause, classes) for cause in causes):
            return failure
    if is_sent:
        return _BROKEN
    is_closed = any(isinstance(cause, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError) for cause in causes)
    tls_errors = [cause for cause in causes if isinstance(cause, ssl.SSLError)]
    if any(str(error).startswith(("[PEM", "[X509")) for error in tls_errors):
        return _WRONG_BUNDLE
    reasons = [error.reason for error in tls_errors]
    if is_closed or not reasons:
        return _UNREACHABLE
    return _NOT_TLS if _NOT_TLS_REASONS.intersection(reasons) else _NO_TLS_AGREED
