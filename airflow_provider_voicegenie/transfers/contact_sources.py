# SPDX-License-Identifier: Apache-2.0
"""What an upload reads and writes: rows and files, and the message if a file cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_voicegenie.files import FileUnreadableError, given_path, read_rows, storage_path, target_path
from airflow_provider_voicegenie.rules.file_formats import is_path, wrong_end


def rows_in(source: Any, column: str | None = None) -> Iterable[Any]:
    """Return the rows of a source; a column that a file must have is for its error."""
    return read_rows(source, column) if isinstance(source, ObjectStoragePath) else source


def name_of(source: Any) -> str:
    """Return what a message calls a source."""
    return repr(str(source))[:300] if isinstance(source, ObjectStoragePath) else "what was given"


def describe_os_error(source: Any, error: OSError) -> str:
    """Say why a source cannot be read."""
    name = name_of(source)
    if not isinstance(error, FileNotFoundError):
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return f"{name} cannot be read ({reason})"
    if source.protocol in ("", "file", "local"):
        return f"there is no file {name} on the machine that runs this task. With several workers, use object storage"
    return f"there is no file {name}"


def read_target(name: str, path: Any, sources: Iterable[Any]) -> ObjectStoragePath | None:
    """
    Return where a file goes; ``None`` if none is wanted.

    :param sources: What is read, or written besides, and must not be replaced.
    """
    if path is None:
        return None
    try:
        target = target_path(name, path)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None
    if any(_place(target) == _place(source) for source in sources if _is_path(source)):
        raise AirflowFailException(
            f"{name}: {str(target)!r:.300} is a file that this task reads, or writes besides. Give another path."
        )
    return target


def _is_path(source: object) -> bool:
    return isinstance(source, str | ObjectStoragePath)


def _place(path: str | ObjectStoragePath) -> tuple[str, str]:
    """Return what two notations of one path have in common, whatever connection they name."""
    with suppress(ValueError):
        found = storage_path(path)
        if found.protocol in ("", "file", "local"):
            return "file", os.path.realpath(found.path)
        return found.protocol, found.path
    return "", str(path)


def read_source(name: str, rows_or_path: object) -> Sequence[Any] | ObjectStoragePath:
    """
    Return rows, or the file that they are in.

    :param name: The parameter's name, for the message.
    :param rows_or_path: What the task was given.
    :raises AirflowFailException: It is neither.
    :raises FileUnreadableError: It is a path that Airflow cannot open on this machine.
    """
    if isinstance(rows_or_path, str):
        if not rows_or_path.strip() or rows_or_path.lstrip()[:1] in "[{":
            raise AirflowFailException(
                f"{name} must be rows or the path of a file, and the template gave "
                f"{'rows as a text' if rows_or_path.strip() else 'an empty text'}. To pass what an upstream task "
                f"returns, give its output: {name}=extract.output."
            )
        if not is_path(rows_or_path):
            raise AirflowFailException(f"{name} must be rows, or {wrong_end(rows_or_path).removeprefix('must be ')}")
    if isinstance(rows_or_path, str | ObjectStoragePath):
        try:
            return given_path(name, rows_or_path)
        except ValueError as error:
            raise FileUnreadableError(str(error)) from None
    if isinstance(rows_or_path, Sequence):
        return rows_or_path
    raise AirflowFailException(
        f"{name} must be rows (a list of dicts) or the path of a file, not {type(rows_or_path).__name__}."
    )
