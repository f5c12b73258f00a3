# SPDX-License-Identifier: Apache-2.0
"""Formats of files, by the ends of their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

#: In words.
KNOWN_ENDS = ".csv, .jsonl or .ndjson, each also with .gz behind it, or in .parquet"


class FileFormat(StrEnum):
    """A format, by the end of a file's name."""

    CSV = ".csv"
    JSON_LINES = ".jsonl"
    PARQUET = ".parquet"


_FORMATS: Mapping[str, FileFormat] = {**{each.value: each for each in FileFormat}, ".ndjson": FileFormat.JSON_LINES}


def file_format(path: str) -> tuple[FileFormat, bool]:
    """
    Return a file's format, and whether it is compressed with gzip.

    :raises ValueError: The name ends in none that is known, or Parquet, which compresses by itself, in ``.gz``.
    """
    name = path.casefold()
    is_compressed = name.endswith(".gz")
    for suffix, found in _FORMATS.items():
        if name.removesuffix(".gz").endswith(suffix) and not (is_compressed and found is FileFormat.PARQUET):
            return found, is_compressed
    raise ValueError(f"{path!r:.200} must end in {KNOWN_ENDS}: the end says in which format the file is.")


def is_path(text: str) -> bool:
    """Say whether a text is the path of a file of a known format, and so may be shown."""
    try:
        file_format(text)
    except ValueError:
        return False
    return text.isprintable() and len(text) <= 1024


#: What Airflow replaces in a template.
_BLOCKS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


def is_path_template(text: str) -> bool:
    """Say whether a text may become a path if Airflow renders it; what begins like JSON or has lines may be rows."""
    rest = _BLOCKS.sub("", text)
    return rest != text and rest.isprintable() and not rest.lstrip().startswith(("[", "{"))


def are_paths(value: object) -> bool:
    """
    Say whether a value is a list of paths, and not of rows.

    :param value: A list of texts and path objects, or anything else.
    :raises ValueError: It has both.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        return False
    kinds = {isinstance(each, str | os.PathLike) or hasattr(each, "protocol") for each in value}
    if len(kinds) > 1:
        raise ValueError("it must be a list of paths or a list of rows, and has both.")
    return kinds == {True}


def check_literal_path(name: str, value: object) -> None:
    """
    Refuse a path that no run can use, when the DAG is parsed.

    :param name: The parameter's name, for the message.
    :param value: A path, or what becomes one later, which is not checked.
    :raises ValueError: It ends in no known format, or is nothing.
    """
    if value is None or (isinstance(value, str) and "{" not in value and not is_path(value)):
        raise ValueError(f"{name} {wrong_end(value)}")


def wrong_end(value: object) -> str:
    """Say that a value is no path of a known format. It is not shown itself: it may be rows."""
    end = re.search(r"\.[A-Za-z0-9]{1,8}(\.gz)?$", value) if isinstance(value, str) else None
    found = f"the text that was given ends in {end[0]}" if end else "what was given has no such end"
    return f"must be a path that ends in {KNOWN_ENDS}, which says in which format the file is; {found}."
