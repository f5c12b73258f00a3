# SPDX-License-Identifier: Apache-2.0
"""What does not fit into memory, and is on disk while a task runs."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from airflow_provider_voicegenie.rules.phone_numbers import digits_of, notation_of

#: Kilobytes of a database that are kept in memory.
_CACHE = 16 * 1024


class ScratchSpaceError(OSError):
    """
    The folder for temporary files has no space for what a task keeps there.

    :param content: What it is, and how much space it takes; sentences.
    """

    def __init__(self, content: str, error: Exception) -> None:
        # Not by `gettempdir`, which fails too if no folder can be written to.
        folder = tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  only for the message
        super().__init__(
            f"The scratch database cannot be written to the folder for temporary files, {folder!r:.200} ({error}). "
            f"{content} Free some, or let the worker's TMPDIR name a folder with more."
        )


def open_scratch(schema: str) -> sqlite3.Connection:
    """
    Make a database that no other user can read. It is gone once it is closed, even by a kill.

    :param schema: Its tables.
    :raises OSError: There is no folder for it.
    :raises sqlite3.Error: There is no space for it.
    """
    # At the end of the block, the file loses its name, and takes its space until it is closed.
    with tempfile.TemporaryDirectory(prefix="voicegenie-") as folder:
        database = sqlite3.connect(Path(folder, "scratch"), isolation_level=None)
        # Neither a journal nor a file for sorting may come beside it.
        database.executescript(
            f"""
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA temp_store = MEMORY;
            PRAGMA cache_size = -{_CACHE};
            {schema}
            """
        )
        return database


class NumberStore:
    """
    Holds which phone numbers were in which row, and which must not be called.

    It holds none that can be read: each is hashed with a key that only this process knows.

    :raises ScratchSpaceError: There is no space for it; each of its methods may raise this.
    """

    def __enter__(self) -> Self:
        self._key = secrets.token_bytes(32)
        try:
            self._database = open_scratch(
                """
                CREATE TABLE seen (number BLOB PRIMARY KEY, first_row INTEGER) WITHOUT ROWID;
                CREATE TABLE excluded (number BLOB PRIMARY KEY) WITHOUT ROWID;
                CREATE TABLE ends (number BLOB, digits INTEGER, is_complete INTEGER, way INTEGER,
                                   PRIMARY KEY (number, digits, is_complete)) WITHOUT ROWID;
                BEGIN;
                """
            )
        except (OSError, sqlite3.Error) as error:
            raise _no_space(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def first_row(self, number: str, row: int) -> int:
        """
        Return the first row in which a number was.

        :param row: The row in which it is now.
        """
        hashed = self._hash(digits_of(number))
        if self._execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", hashed, row).rowcount:
            return row
        return int(self._execute("SELECT first_row FROM seen WHERE number = ?", hashed).fetchone()[0])

    def exclude(self, number: str, *, with_notations: bool) -> None:
        """
        Keep that a number must not be called.

        :param with_notations: Whether :meth:`may_be_excluded` has to find it.
        """
        self._execute("INSERT OR IGNORE INTO excluded VALUES (?)", self._hash(digits_of(number)))
        if with_notations:
            written = notation_of(number)
            for way, end in enumerate(written.ends):
                self._execute(
                    "INSERT OR IGNORE INTO ends VALUES (?, ?, ?, ?)",
                    self._hash(end),
                    written.digits,
                    written.is_complete,
                    way,
                )

    def is_excluded(self, number: str) -> bool:
        """Say whether a number must not be called."""
        found = self._execute("SELECT 1 FROM excluded WHERE number = ?", self._hash(digits_of(number)))
        return found.fetchone() is not None

    def may_be_excluded(self, number: str) -> bool:
        """Say whether a number that is not excluded may be one that is, in another notation."""
        written = notation_of(number)
        # Of seven digits only if one of both has no more; of equal length only if just the first digit differs.
        found = self._execute(
            """
            SELECT 1 FROM ends WHERE NOT (is_complete AND ?) AND (
                number = ? AND digits != ?
                OR number = ? AND digits != ? AND 7 IN (digits, ?)
                OR number = ? AND way = 2
            )
            """,
            written.is_complete,
            self._hash(written.ends[0]),
            written.digits,
            self._hash(written.ends[1]),
            written.digits,
            written.digits,
            self._hash(written.ends[2]),
        )
        return found.fetchone() is not None

    def _hash(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=16).digest()

    def _execute(self, query: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._database.execute(query, values)
        except sqlite3.Error as error:
            raise _no_space(error) from None


def _no_space(error: Exception) -> ScratchSpaceError:
    return ScratchSpaceError(
        "Until the contacts are sent, hashes of their numbers are there, about 30 bytes for each; without region, "
        "about 110 for each number of exclude.",
        error,
    )
