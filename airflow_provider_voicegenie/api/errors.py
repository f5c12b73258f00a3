# SPDX-License-Identifier: Apache-2.0
"""
One family of errors for everything that can go wrong with a request, and the tables that choose among them.

None of them is Airflow's. What an error does to a task is decided where the task ends, by
:mod:`airflow_provider_voicegenie.rules.outcomes`, which knows each error by its ``kind``.

No error holds a request, a header or the exception of an HTTP library: those carry the API key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar


@contextmanager
def unchained() -> Iterator[None]:
    """
    Let ``raise ... from None`` in this block, or in the function that it decorates, drop the exception that it hides.

    Python itself keeps that in ``__context__``, and that of a library may hold the API key, or what is in a file.
    """
    try:
        yield
    except Exception as error:
        if error.__suppress_context__ and error.__cause__ is None:
            error.__context__ = None
        raise


class VoiceGenieError(Exception):
    """
    A request to the service did not do what it should.

    :param message: What happened and what to do, in one line without the API key.
    :param status: HTTP status of the response; ``None`` if none came.
    :param code: The service's own error code (``error``, or ``error.code``); ``None`` if it gave none.
    :param may_have_taken_effect: Whether the service may have acted on the request although no valid response came.
        Only ever true of a request that changes something, such as a start or a pause.
    :param retry_after: Seconds the service asked to wait; ``None`` if it did not.
    """

    #: Name of the condition this is, one of :class:`~airflow_provider_voicegenie.rules.outcomes.Condition`.
    kind: ClassVar[str]
    #: Whether the same request may succeed a little later.
    temporary: ClassVar[bool] = False
    #: What to look at; ``{connection}`` and ``{address}`` are the connection and its host and port, in words.
    remedy: str = ""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        may_have_taken_effect: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.details = dict(details or {})
        self.may_have_taken_effect = may_have_taken_effect
        self.retry_after = retry_after

    def add_remedy(self, connection: str, address: str) -> None:
        """
        Add the remedy to the message.

        :param connection: The Airflow connection, in words.
        :param address: The host and the port that the request was for, in words.
        """
        if self.remedy:
            self.message = f"{self.message} {self.remedy.format(connection=connection, address=address)}"
            self.args = (self.message,)


#: For a response that another server than the service may have given.
NOT_THE_SERVICE = "Check that {address}, the host of {connection}, is a VoiceGenie API."

#: The same, for a request that this package does not name.
NOT_THIS_ENDPOINT = (
    "Check the path of the request, and that {address}, the host of {connection}, is a VoiceGenie API. If the response "
    "has another form, use get_conn() of the hook."
)


class InvalidConnectionError(VoiceGenieError):
    """The Airflow connection lacks a value or has a wrong one; nothing was sent."""

    kind = "INVALID_CONNECTION"


class InvalidCampaignIdError(VoiceGenieError):
    """The campaign id cannot be one; nothing was sent."""

    kind = "INVALID_CAMPAIGN_ID"


class ConnectionFailedError(VoiceGenieError):
    """The service could not be reached, or the connection broke before the whole response came."""

    kind = "CONNECTION_FAILED"
    temporary = True


class RequestTimeoutError(ConnectionFailedError):
    """The request took longer than the connection's ``timeout``."""


class TlsFailedError(VoiceGenieError):
    """No trusted TLS connection could be made; nothing was sent."""

    kind = "TLS_FAILED"


class InvalidResponseError(VoiceGenieError):
    """A response came, but not one this service documents: not JSON, too large, or of another shape."""

    kind = "INVALID_RESPONSE"
    temporary = True
    remedy = NOT_THE_SERVICE


class RedirectedError(VoiceGenieError):
    """The response was a redirect; none is ever followed, as the API key would go along."""

    kind = "REDIRECTED"
    remedy = "Check the scheme, the host and the path of {connection}, which leads to {address}."


class RefusedError(VoiceGenieError):
    """The service refused the request with a 4xx that has no class of its own."""

    kind = "REFUSED"


class UnauthorizedError(RefusedError):
    """The API key is missing, wrong or revoked (401)."""

    kind = "UNAUTHORIZED"
    remedy = (
        "The service does not accept the API key of {connection}: enter it again, or make a new one in the VoiceGenie "
        "dashboard, under Settings > API Keys."
    )


class PayloadTooLargeError(RefusedError):
    """The body of the request is too large (413); nothing was done."""

    kind = "REFUSED"


class ForbiddenError(RefusedError):
    """The API key is valid but not allowed to do this (403)."""

    kind = "FORBIDDEN"
    remedy = "The API key of {connection} is valid, but not allowed to do this: use a key that is."


class NotFoundError(RefusedError):
    """There is no campaign with this id, or it is not the key's (404)."""

    kind = "NOT_FOUND"
    remedy = (
        "Check the campaign's id, which is neither its name nor its address, and that the campaign belongs to the "
        "account of the API key of {connection}."
    )


class CampaignAlreadyRunningError(RefusedError):
    """The campaign is already running."""

    kind = "CAMPAIGN_ALREADY_RUNNING"


class CampaignNotRunningError(RefusedError):
    """The campaign does not run, so it cannot be paused."""

    kind = "CAMPAIGN_NOT_RUNNING"


class InvalidCampaignStateError(RefusedError):
    """The campaign cannot be started as it is; ``details["missing"]`` may list what it lacks."""

    kind = "INVALID_CAMPAIGN_STATE"


class RateLimitError(RefusedError):
    """Too many requests (429)."""

    kind = "RATE_LIMIT_EXCEEDED"
    temporary = True
    remedy = (
        "The API key of {connection} has used up its requests: send fewer, or lower `requests_per_minute` in Extra."
    )


class ServerError(VoiceGenieError):
    """The service, or a gateway before it, failed (5xx, and the 4xx that mean "not now")."""

    kind = "INTERNAL_SERVER_ERROR"
    temporary = True
    remedy = "The failure is on the side of {address}, the host of {connection}."


#: A status that says enough by itself, whatever code comes with it.
_BY_STATUS: Mapping[int, type[VoiceGenieError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    408: ServerError,
    413: PayloadTooLargeError,
    425: ServerError,
    429: RateLimitError,
}

#: The service's codes, for the other 4xx. The pages put the same clash under different statuses.
KNOWN_CODES: Mapping[str, type[VoiceGenieError]] = {
    "CAMPAIGN_ALREADY_RUNNING": CampaignAlreadyRunningError,
    "CAMPAIGN_NOT_RUNNING": CampaignNotRunningError,
    "INVALID_CAMPAIGN_STATE": InvalidCampaignStateError,
    "NOT_FOUND": NotFoundError,
    "CAMPAIGN_NOT_FOUND": NotFoundError,
    "UNAUTHORIZED": UnauthorizedError,
    "FORBIDDEN": ForbiddenError,
    "RATE_LIMIT_EXCEEDED": RateLimitError,
    "INTERNAL_SERVER_ERROR": ServerError,
}

#: For a response in the service's own envelope that has no code.
_BY_STATUS_WITHOUT_CODE: Mapping[int, type[VoiceGenieError]] = {
    404: NotFoundError,
    422: InvalidCampaignStateError,
}


def error_class(status: int, code: str | None, *, in_envelope: bool) -> type[VoiceGenieError]:
    """
    Choose the error for a response that is not a success.

    :param status: HTTP status, 400 or above.
    :param in_envelope: Whether the body was the service's own error object. A 404 page of a proxy is not, and
        does not prove that a campaign is unknown.
    """
    if status >= 500:
        return ServerError
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code is not None:
        return KNOWN_CODES.get(code, RefusedError)
    if in_envelope:
        return _BY_STATUS_WITHOUT_CODE.get(status, RefusedError)
    return RefusedError


def refusal_class(success: object, code: str | None, message: str | None) -> type[VoiceGenieError] | None:
    """
    Choose the error for a refusal that came with a success status; ``None`` if the response is no refusal.

    :param success: The field ``success``; the service writes ``false``.
    """
    if code is not None and code in KNOWN_CODES:
        return KNOWN_CODES[code]
    return RefusedError if success is False and (code or message) else None
