# SPDX-License-Identifier: Apache-2.0
"""
What every transport decides alike: the headers of a request, and which error a broken exchange is.

A transport reports *what* broke (:class:`Breakage`) and *whether the request had gone out*; the rest is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES
from airflow_provider_voicegenie.api.endpoints import Call
from airflow_provider_voicegenie.api.errors import (
    ConnectionFailedError,
    ExchangeTimeoutError,
    InvalidAnswerError,
    TlsFailedError,
    VoiceGenieError,
)

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


def breakage_error(call: Call[Any], breakage: Breakage, *, sent: bool) -> VoiceGenieError:
    """
    Build the error for an exchange that broke.

    :param call: What was called.
    :param breakage: How it broke.
    :param sent: Whether any of the request may have reached the service.
    """
    error_class: type[VoiceGenieError]
    error_class, words = breakage.value
    return error_class(f"{call}: {words}.", may_have_taken_effect=sent and call.endpoint.has_effect)
