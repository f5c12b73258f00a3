# SPDX-License-Identifier: Apache-2.0
"""
Reads a response: bytes in, one of the :mod:`~airflow_provider_voicegenie.api.models` out, or one typed error.

Whatever text of a response can reach an error message goes through :class:`Redactor` first: a server, or a proxy before
it, may echo the request's headers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from airflow_provider_voicegenie.api.endpoints import Request
from airflow_provider_voicegenie.api.errors import (
    KNOWN_CODES,
    NOT_THE_SERVICE,
    NOT_THIS_ENDPOINT,
    InvalidResponseError,
    NotFoundError,
    RedirectedError,
    VoiceGenieError,
    error_class,
    refusal_class,
    unchained,
)
from airflow_provider_voicegenie.api.models import ShapeError
from airflow_provider_voicegenie.api.rate_limit import seconds_to_wait

Result = TypeVar("Result")

#: The service's responses stay far below this. The session reads no larger one to its end.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024

_EXCERPT_CHARACTERS = 160
_MAXIMUM_CHARACTERS = 8 * _EXCERPT_CHARACTERS
_REDACTED = "***"
_NOT_SHOWN = "what the service says is not shown, as it may name people"


class Redactor:
    """Replaces the API key, as it is and percent-encoded, and quotes the service's texts in error messages."""

    def __init__(self, api_key: str) -> None:
        forms = {api_key, quote(api_key, safe="")} - {""}
        # The longest first, so that no remainder of one stays behind another.
        self._forms = sorted(forms, key=len, reverse=True)
        self._is_for_people = False

    def for_people(self) -> Redactor:
        """Return one for a response that may name people."""
        redactor = copy.copy(self)
        redactor._is_for_people = True
        return redactor

    def quote(self, text: str) -> str:
        """Make a text of the service fit one line of a log; one about people is not quoted."""
        return _NOT_SHOWN if self._is_for_people and text.strip() else _shorten(text)

    def code(self, code: str | None) -> str | None:
        """Return a code of the service; of a response about people, only one that the service documents."""
        return None if code is None or (self._is_for_people and code not in KNOWN_CODES) else _shorten(code)

    def excerpt(self, text: str) -> str:
        """Return the beginning of a body that is not the documented one; nothing of one about people."""
        return self.quote(text) or "the response is empty"

    def details(self, details: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what an error may keep of the service's ``details``; nothing of those about people."""
        return {} if self._is_for_people else details

    def redact(self, text: str) -> str:
        """Replace the key in a text."""
        for form in self._forms:
            text = text.replace(form, _REDACTED)
        return text

    def redact_json(self, value: Any) -> Any:
        """Replace the key in a JSON value, names of fields included."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.redact_json(item) for item in value]
        if isinstance(value, dict):
            return {self.redact(key): self.redact_json(item) for key, item in value.items()}
        return value


@dataclass(frozen=True)
class Response:
    """
    What came back. Its ``repr``, which a traceback may show, holds only the status.

    :param headers: Header fields, names in lower case.
    :param body: The body as it came over the wire, at most :data:`MAX_RESPONSE_BYTES`.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@unchained()
def decode(request: Request[Result], response: Response, *, redactor: Redactor, now: float) -> Result:
    """
    Read the response to a request.

    :param redactor: Keeps the key out of messages.
    :param now: The time, in Unix seconds, to read ``Retry-After`` dates against.
    :raises VoiceGenieError: The response is a refusal, a redirect, or nothing this service documents.
    """
    try:
        return _decode(request, response, redactor.for_people() if request.is_about_people else redactor, now)
    except VoiceGenieError as error:
        if isinstance(error, NotFoundError) and request.campaign_id is None:
            error.remedy = NOT_THE_SERVICE
        if error.remedy == NOT_THE_SERVICE and request.decode is None:
            error.remedy = NOT_THIS_ENDPOINT
        raise
    except Exception as error:  # noqa: BLE001  whatever it is made of, it is one bad response
        raise _invalid(request, response, f"cannot be read ({type(error).__name__})") from None


def _decode(request: Request[Result], response: Response, redactor: Redactor, now: float) -> Result:
    if 300 <= response.status < 400:
        raise RedirectedError(
            f"{request}: the response was a redirect ({response.status}). It was not followed, because the API key "
            "would have gone along.",
            status=response.status,
            may_have_taken_effect=request.has_effect,
        )
    text, document = _read_document(response, redactor)
    if not 200 <= response.status < 300:
        raise _refusal(request, response, document or {}, text, redactor, now)
    if document is None:
        raise _invalid(request, response, f"is not a JSON object ({redactor.excerpt(text)})")
    if document.get("success") is not True:
        raise _refusal_with_success(request, response, document, text, redactor, now)
    if "data" not in document:
        raise _invalid(request, response, "has no `data`", redactor.code(_error_code(document)))
    data: Any = document["data"]
    if request.decode is None:
        return data  # type: ignore[no-any-return]
    is_right = isinstance(data, list if request.is_list else Mapping)
    if not is_right:
        problem = f"`data` is not {'a list' if request.is_list else 'an object'}"
    elif request.id_field and str(data.get(request.id_field)).strip().casefold() != str(request.campaign_id).casefold():
        problem = "it is about another campaign"
    else:
        try:
            return request.decode(data)
        except ShapeError as error:
            problem = str(error)
    raise _invalid(request, response, f"is not the documented one: {problem}")


def _invalid(request: Request[Any], response: Response, problem: str, code: str | None = None) -> InvalidResponseError:
    return InvalidResponseError(
        f"{request}: the response ({response.status}) {problem}.",
        status=response.status,
        code=code,
        may_have_taken_effect=request.has_effect,
    )


def _read_document(response: Response, redactor: Redactor) -> tuple[str, dict[str, Any] | None]:
    """
    Return the body as text, and as a JSON object if it is one.

    Both are redacted: a traceback may show the local variables of whoever raises about them.
    """
    if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        return "a content encoding that was not asked for", None
    # Says UTF-8, but for a byte order mark of another encoding.
    text = response.body.decode(json.detect_encoding(response.body), errors="replace")
    shown = redactor.redact(text)
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            return shown, None
        # The key may be in it in plain, or behind escapes.
        return shown, redactor.redact_json(document) if shown != text or "\\" in text else document
    except (ValueError, RecursionError):
        return shown, None


def _refusal(
    request: Request[Any],
    response: Response,
    document: Mapping[str, Any],
    text: str,
    redactor: Redactor,
    now: float,
) -> VoiceGenieError:
    code, message, details = _error_code(document), _message(document, redactor), _details(document)
    in_envelope = bool(code or message)
    chosen = error_class(response.status, code, in_envelope=in_envelope)
    excerpt = message or (redactor.quote(code) if code else redactor.excerpt(text))
    if missing := details.get("missing"):
        missing = ", ".join(map(str, missing)) if isinstance(missing, list) else str(missing)
        excerpt = f"{excerpt} Missing: {redactor.quote(missing)}"
    # A refusal that says success contradicts itself; a failing server may have acted before it failed.
    contradictory = document.get("success") is True
    error = chosen(
        f"{request}: {_shorten(excerpt).rstrip('.')} ({_numbers(response.status, redactor.code(code))}).",
        status=response.status,
        code=redactor.code(code),
        details=redactor.details(details),
        may_have_taken_effect=request.has_effect
        and (contradictory or not 400 <= response.status < 500 or response.status == 408),
        retry_after=seconds_to_wait(response.headers, now),
    )
    if not error.remedy and (not in_envelope or response.status == 404):
        error.remedy = NOT_THE_SERVICE
    return error


def _refusal_with_success(
    request: Request[Any],
    response: Response,
    document: Mapping[str, Any],
    text: str,
    redactor: Redactor,
    now: float,
) -> VoiceGenieError:
    """Return the error for a document without ``"success": true`` that came with a status of success."""
    code, message = _error_code(document), _message(document, redactor)
    chosen = refusal_class(document.get("success"), code, message)
    if chosen is None:
        return _invalid(request, response, f"does not say success ({redactor.excerpt(text)})", redactor.code(code))
    return chosen(
        f"{request}: {(message or redactor.quote(str(code))).rstrip('.')} "
        f"({_numbers(response.status, redactor.code(code))}).",
        status=response.status,
        code=redactor.code(code),
        details=redactor.details(_details(document)),
        # Only a code that the service documents for a refusal says that nothing was done.
        may_have_taken_effect=request.has_effect and (chosen.temporary or code not in KNOWN_CODES),
        retry_after=seconds_to_wait(response.headers, now),
    )


def _numbers(status: int, code: str | None) -> str:
    return f"{status} {code}" if code else str(status)


def _error_code(document: Mapping[str, Any]) -> str | None:
    """The service's code: ``error`` is a text, an object with ``code``, or missing."""
    error = document.get("error")
    if isinstance(error, dict):
        error = error.get("code")
    return error if isinstance(error, str) and error else None


def _message(document: Mapping[str, Any], redactor: Redactor) -> str | None:
    message = document.get("message")
    return redactor.quote(message) if isinstance(message, str) and message.strip() else None


def _details(document: Mapping[str, Any]) -> Mapping[str, Any]:
    details = document.get("details")
    return details if isinstance(details, dict) else {}


def _shorten(text: str) -> str:
    """Make a text of the service fit one line of a log."""
    words = "".join(c if c.isprintable() else " " for c in text[:_MAXIMUM_CHARACTERS]).split()
    line = " ".join(words)
    return line if len(line) <= _EXCERPT_CHARACTERS else f"{line[:_EXCERPT_CHARACTERS]}..."
