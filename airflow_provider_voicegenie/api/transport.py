# SPDX-License-Identifier: Apache-2.0
"""
What every transport decides alike: headers, pace, repetition, how an answer is read, which error a broken exchange is.

A transport moves bytes. It reports an :class:`~airflow_provider_voicegenie.api.answers.Answer`, or *how* the exchange
broke and *whether the request had gone out* (:class:`Broken`); the rest is here, without I/O.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from tenacity import RetryCallState

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES, Answer, Secrets
from airflow_provider_voicegenie.api.endpoints import Call
from airflow_provider_voicegenie.api.errors import (
    NOT_THE_SERVICE,
    ConnectionFailedError,
    ExchangeTimeoutError,
    InvalidAnswerError,
    NotFoundError,
    TlsFailedError,
    VoiceGenieError,
)
from airflow_provider_voicegenie.api.pacing import RequestBudget
from airflow_provider_voicegenie.api.retries import MAX_WAIT, rate_limit_reset, retry_arguments, server_time
from airflow_provider_voicegenie.api.settings import SANDBOX_SERVER, ClientSettings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: The header that carries the API key.
API_KEY_HEADER = "x-api-key"

#: Sent with every request. Each exchange has a connection of its own: one that was kept could turn out to be
#: closed only after a start had been sent over it.
REQUEST_HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "Cache-Control": "no-store",
    "Connection": "close",
    "User-Agent": f"airflow-provider-voicegenie/{__version__}",
}


class Breakage(Enum):
    """
    How an exchange ended without a whole answer: its error, and what to tell the user.

    ``{connection}`` and ``{address}`` stand for the connection and for its host and port.
    """

    UNKNOWN_HOST = (
        ConnectionFailedError,
        "the name of the host ({address}) cannot be resolved. Check the host of {connection} for a typing error, and "
        "the network",
    )
    UNREACHABLE = (
        ConnectionFailedError,
        "no connection to {address} could be made. Check host and port of {connection}, whether a server listens "
        "there, and the network",
    )
    PROXY = (
        ConnectionFailedError,
        "the proxy did not let the connection to {address} through. Check `proxies` in the Extra of {connection}, or "
        "HTTPS_PROXY",
    )
    TLS = (
        TlsFailedError,
        "the certificate of {address} is not trusted (unknown authority, expired, or of another host). Check the host "
        "of {connection}, or give the CA bundle as `verify` in its Extra",
    )
    NOT_TLS = (
        TlsFailedError,
        "{address} does not speak TLS. A server of plain HTTP, such as the sandbox, needs http:// before the host of "
        "{connection}",
    )
    NO_TLS_AGREED = (
        TlsFailedError,
        "{address} and this machine could not agree on a TLS connection. Check host and port of {connection}",
    )
    TIMEOUT = (
        ExchangeTimeoutError,
        "there was no whole answer from {address} in time. Raise `timeout` in the Extra of {connection} if this is "
        "usual",
    )
    BROKEN = (
        ConnectionFailedError,
        "the connection to {address} broke before a whole answer came. Check host and port of {connection} if this "
        "is usual",
    )
    TOO_LARGE = (InvalidAnswerError, f"the answer is larger than {MAX_ANSWER_BYTES} bytes and was not read further")


class Broken(NamedTuple):
    """
    An exchange that ended without a whole answer.

    :param breakage: How it broke.
    :param sent: Whether any of the request may have reached the service.
    """

    breakage: Breakage
    sent: bool


#: Rows of exception classes and what they mean; the first match over an exception and all it was made from counts.
BreakageTable = tuple[tuple[tuple[type[BaseException], ...], Breakage], ...]

_STANDARD_BREAKAGES: BreakageTable = (
    ((socket.gaierror, UnicodeError), Breakage.UNKNOWN_HOST),
    ((TimeoutError,), Breakage.TIMEOUT),
    ((ssl.SSLCertVerificationError,), Breakage.TLS),
)

#: What OpenSSL calls an answer that is no TLS: which of them depends on its version and on the answer.
_NOT_TLS_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)


def breakage_of(error: BaseException, table: BreakageTable, *, sent: bool) -> Breakage:
    """
    Tell how an exchange broke from the exception it ended with.

    :param error: The exception.
    :param table: What the classes of the transport's own library mean.
    :param sent: Whether any of the request had gone out.
    """
    causes = list(_causes(error))
    for kinds, breakage in (*table, *_STANDARD_BREAKAGES):
        if any(isinstance(cause, kinds) for cause in causes):
            return breakage
    if sent:
        return Breakage.BROKEN
    closed = any(isinstance(cause, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError) for cause in causes)
    reasons = [cause.reason for cause in causes if isinstance(cause, ssl.SSLError)]
    if closed or not reasons:
        return Breakage.UNREACHABLE
    return Breakage.NOT_TLS if _NOT_TLS_REASONS.intersection(reasons) else Breakage.NO_TLS_AGREED


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give an exception and those it was made from, in whichever way its library keeps them."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, BaseException) and id(candidate) not in seen:
            seen.add(id(candidate))
            yield candidate
            pending += [candidate.__cause__, candidate.__context__, getattr(candidate, "reason", None), *candidate.args]


class Dialogue:
    """
    What surrounds the exchanges of one client.

    :param settings: Where the service is, and how to speak to it.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._secrets = Secrets(settings.api_key)
        self._budget = RequestBudget(settings.requests_per_minute)
        self._clock_offset = 0.0
        #: Whether the last answer came from the sandbox.
        self.is_with_sandbox = False

    def delay(self, call: Call[Any]) -> float:
        """Return the seconds a call has to wait for the rate limit, and say so in the log."""
        delay = self._budget.delay(time.monotonic())
        if delay > 0:
            log.info("%s: waiting %.1f s to stay within the rate limit.", call, delay)
        return delay

    def note_request(self) -> None:
        """Count a request that goes out now."""
        self._budget.spend(time.monotonic())

    def read(self, call: Call[Result], outcome: Answer | Broken) -> Result:
        """
        Read what an exchange came to.

        :raises VoiceGenieError: It broke, was refused, or is nothing this service documents.
        """
        connection, address = self._settings.connection, self._settings.address
        if isinstance(outcome, Broken):
            breakage, sent = outcome
            error_class: type[VoiceGenieError]
            error_class, words = breakage.value
            words = words.format(connection=connection, address=address)
            raise error_class(f"{call}: {words}.", may_have_taken_effect=sent and call.endpoint.has_effect)
        now = time.time()
        self.is_with_sandbox = outcome.headers.get("server") == SANDBOX_SERVER
        self._clock_offset = server_time(outcome.headers, now) - now
        if (reset := rate_limit_reset(outcome.headers, now)) is not None:
            self._budget.close(min(reset, MAX_WAIT), time.monotonic())
        try:
            return call.read(outcome, secrets=self._secrets, now=now)
        except VoiceGenieError as error:
            if isinstance(error, NotFoundError) and call.campaign_id is None:
                error.remedy = NOT_THE_SERVICE
            error.add_remedy(connection, address)
            raise

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last answer showed it; ours before any answer."""
        return time.time() + self._clock_offset

    def retry_arguments(self, max_attempts: int | None) -> dict[str, Any]:
        """
        Return the arguments for tenacity's ``Retrying`` or ``AsyncRetrying``.

        :param max_attempts: Attempts in all; the settings' number where it is ``None``.
        """
        attempts = max_attempts or self._settings.max_attempts

        def announce(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            number = state.attempt_number
            log.warning("%s Trying again in %.1f s (attempt %d of %d failed).", error, wait, number, attempts)

        return retry_arguments(attempts, announce)
