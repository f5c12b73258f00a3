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
    ConnectionFailedError,
    ExchangeTimeoutError,
    InvalidAnswerError,
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
    """How an exchange ended without a whole answer. The value is its error and what to tell the user."""

    UNKNOWN_HOST = (
        ConnectionFailedError,
        "the host's name cannot be resolved. Check the connection's host for a typing error, and the network",
    )
    UNREACHABLE = (ConnectionFailedError, "no connection to the host could be made. Check host, port and network")
    PROXY = (ConnectionFailedError, "the proxy did not let the connection through. Check the connection's proxies")
    TLS = (
        TlsFailedError,
        "no trusted TLS connection could be made (certificate unknown, expired, or of another host). "
        "Check the host's name, or give the CA bundle as `verify` in the connection's extra",
    )
    TIMEOUT = (
        ExchangeTimeoutError,
        "there was no whole answer within the connection's timeout. Raise `timeout` in its extra if this is usual",
    )
    BROKEN = (ConnectionFailedError, "the connection broke before a whole answer came")
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
    if not closed and any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Breakage.TLS
    return Breakage.UNREACHABLE


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
        self._max_attempts = settings.max_attempts
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
        if isinstance(outcome, Broken):
            breakage, sent = outcome
            error_class: type[VoiceGenieError]
            error_class, words = breakage.value
            raise error_class(f"{call}: {words}.", may_have_taken_effect=sent and call.endpoint.has_effect)
        now = time.time()
        self.is_with_sandbox = outcome.headers.get("server") == SANDBOX_SERVER
        self._clock_offset = server_time(outcome.headers, now) - now
        if (reset := rate_limit_reset(outcome.headers, now)) is not None:
            self._budget.close(min(reset, MAX_WAIT), time.monotonic())
        return call.read(outcome, secrets=self._secrets, now=now)

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last answer showed it; ours before any answer."""
        return time.time() + self._clock_offset

    def retry_arguments(self, max_attempts: int | None) -> dict[str, Any]:
        """
        Return the arguments for tenacity's ``Retrying`` or ``AsyncRetrying``.

        :param max_attempts: Attempts in all; the settings' number where it is ``None``.
        """
        attempts = max_attempts or self._max_attempts

        def announce(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            number = state.attempt_number
            log.warning("%s Trying again in %.1f s (attempt %d of %d failed).", error, wait, number, attempts)

        return retry_arguments(attempts, announce)
