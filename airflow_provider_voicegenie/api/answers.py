# SPDX-License-Identifier: Apache-2.0
"""
Reading an answer: bytes in, the service's ``data`` object out, or one typed error.

Shared by every transport, and without I/O. Whatever text of an answer can reach an error message goes through
:class:`Secrets` first: a server, or a proxy before it, may echo the request's headers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from airflow_provider_voicegenie.api.errors import (
    KNOWN_CODES,
    NOT_THE_SERVICE,
    InvalidAnswerError,
    RedirectedError,
    VoiceGenieError,
    error_class,
    refusal_class,
)
from airflow_provider_voicegenie.api.retries import seconds_to_wait

#: No answer of this service is expected to come near this; what is larger is not read to its end.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

_EXCERPT_CHARACTERS = 160
_REDACTED = "***"


class Secrets:
    """Texts that must not leave: the API key, as it is and percent-encoded."""

    def __init__(self, *secrets: str) -> None:
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        # The longest first, so that no remainder of one stays behind another.
        self._forms = sorted(forms, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """Replace every secret in a text."""
        for form in self._forms:
            text = text.replace(form, _REDACTED)
        return text

    def redact_json(self, value: Any) -> Any:
        """Replace every secret in a JSON value, keys included."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.redact_json(item) for item in value]
        if isinstance(value, dict):
            return {self.redact(key): self.redact_json(item) for key, item in value.items()}
        return value

    def may_be_in(self, text: str) -> bool:
        """Whether a JSON text could hold a secret, in plain or behind escapes."""
        return "\\" in text or any(form in text for form in self._forms)


@dataclass(frozen=True)
class Answer:
    """
    What came back from one exchange. Its ``repr``, which a traceback may show, holds only the status.

    :param status: HTTP status.
    :param headers: Header fields, names in lower case.
    :param body: The body as it came over the wire, at most :data:`MAX_ANSWER_BYTES`.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def read_data(answer: Answer, *, call: str, has_effect: bool, secrets: Secrets, now: float) -> Mapping[str, Any]:
    """
    Return the ``data`` object of a good answer.

    :param answer: What came.
    :param call: The call in words, for messages.
    :param has_effect: Whether the call changes something, so that a bad answer leaves open whether it did.
    :param secrets: What to keep out of messages.
    :param now: The time, in Unix seconds, to read ``Retry-After`` dates against.
    :raises VoiceGenieError: The answer is a refusal, a redirect, or nothing this service documents.
    """
    if 300 <= answer.status < 400:
        raise RedirectedError(
            f"{call}: the answer was a redirect ({answer.status}). It was not followed, because the API key would "
            "have gone along.",
            status=answer.status,
            may_have_taken_effect=has_effect,
        )
    text, document = _read_document(answer, secrets)
    if not 200 <= answer.status < 300:
        raise _refusal(answer, document, text, call=call, has_effect=has_effect, now=now)
    if document is None:
        problem = f"is not a JSON object ({_excerpt(text)})"
    elif document.get("success") is not True:
        code, said = _error_code(document), _message(document)
        if chosen := refusal_class(document.get("success"), code, said):
            raise chosen(
                f"{call}: {_shorten(said or str(code)).rstrip('.')} ({_numbers(answer.status, code)}).",
                status=answer.status,
                code=code,
                details=_details(document),
                # Only a code that the service documents for a refusal says that nothing was done.
                may_have_taken_effect=has_effect and (chosen.temporary or code not in KNOWN_CODES),
                retry_after=seconds_to_wait(answer.headers, now),
            )
        problem = f"does not say success ({_excerpt(text)})"
    elif not isinstance(document.get("data"), dict):
        problem = "has no object `data`"
    else:
        return document["data"]  # type: ignore[no-any-return]
    raise InvalidAnswerError(
        f"{call}: the answer ({answer.status}) {problem}.",
        status=answer.status,
        code=_error_code(document or {}),
        may_have_taken_effect=has_effect,
    )


def _read_document(answer: Answer, secrets: Secrets) -> tuple[str, dict[str, Any] | None]:
    """
    Return the body as text, and as a JSON object where it is one.

    Both are redacted: a traceback may show the local variables of whoever raises about them.
    """
    try:
        body = _decompress(answer.body, answer.headers.get("content-encoding", "").strip().lower())
    except (zlib.error, ValueError) as error:
        return f"unreadable: {error}", None
    # Says UTF-8, but for a byte order mark of another encoding.
    text = body.decode(json.detect_encoding(body), errors="replace")
    shown = secrets.redact(text)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return shown, None
    if not isinstance(document, dict):
        return shown, None
    return shown, secrets.redact_json(document) if secrets.may_be_in(text) else document


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError("a content encoding that was not asked for")
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    content = decompressor.decompress(body, MAX_ANSWER_BYTES + 1)
    if len(content) > MAX_ANSWER_BYTES:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes when decompressed")
    if not decompressor.eof:
        raise ValueError("compressed data that breaks off")
    return content


def _refusal(
    answer: Answer,
    document: dict[str, Any] | None,
    text: str,
    *,
    call: str,
    has_effect: bool,
    now: float,
) -> VoiceGenieError:
    code = _error_code(document or {})
    said = _message(document or {})
    in_envelope = document is not None and bool(code or said)
    chosen = error_class(answer.status, code, in_envelope=in_envelope)
    details = _details(document or {})
    words = said or code or _excerpt(text)
    if missing := details.get("missing"):
        words = f"{words} Missing: {', '.join(map(str, missing)) if isinstance(missing, list) else missing}"
    # A refusal that says success contradicts itself; a failing server may have acted before it failed.
    contradictory = (document or {}).get("success") is True
    error = chosen(
        f"{call}: {_shorten(words).rstrip('.')} ({_numbers(answer.status, code)}).",
        status=answer.status,
        code=code,
        details=details,
        may_have_taken_effect=has_effect and (contradictory or not 400 <= answer.status < 500 or answer.status == 408),
        retry_after=seconds_to_wait(answer.headers, now),
    )
    if not error.remedy and (not in_envelope or answer.status == 404):
        error.remedy = NOT_THE_SERVICE
    return error


def _numbers(status: int, code: str | None) -> str:
    return f"{status} {_shorten(code)}" if code else str(status)


def _error_code(document: Mapping[str, Any]) -> str | None:
    """The service's code: ``error`` is a text, an object with ``code``, or missing."""
    error = document.get("error")
    if isinstance(error, dict):
        error = error.get("code")
    return error if isinstance(error, str) and error else None


def _message(document: Mapping[str, Any]) -> str | None:
    message = document.get("message")
    return _shorten(message) if isinstance(message, str) and message.strip() else None


def _details(document: Mapping[str, Any]) -> Mapping[str, Any]:
    details = document.get("details")
    return details if isinstance(details, dict) else {}


def _excerpt(text: str) -> str:
    return _shorten(text) or "empty"


def _shorten(text: str) -> str:
    """Make a text of the service fit one line of a log."""
    words = "".join(c if c.isprintable() else " " for c in text[: 8 * _EXCERPT_CHARACTERS]).split()
    line = " ".join(words)
    return line if len(line) <= _EXCERPT_CHARACTERS else f"{line[:_EXCERPT_CHARACTERS]}..."
