# SPDX-License-Identifier: Apache-2.0
"""The calls of one export, each once, on disk: a million of them do not fit into memory."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.rules.contact_keys import contact_key
from airflow_provider_voicegenie.transfers.scratch import ScratchSpaceError, open_scratch

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Call, CallPage

_SCHEMA = """
    CREATE TABLE calls (key BLOB PRIMARY KEY, status TEXT, data TEXT);
    CREATE TABLE filtered (filter TEXT, key BLOB, PRIMARY KEY (filter, key)) WITHOUT ROWID;
"""


class CallStore:
    """
    Holds calls in a scratch database. No other user can read it, and it is deleted with this object.

    :param columns: The fields of a call to store.
    :param secret: The secret of the column ``contact_key``, if that is one of them.
    :raises ScratchSpaceError: There is no space for the database.
    """

    def __init__(self, columns: Sequence[str], secret: str | None = None) -> None:
        self._columns = columns
        self._secret = secret

    def __enter__(self) -> CallStore:
        try:
            self._database = open_scratch(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise _no_space(error) from None
        self._filter: str | None = None
        #: How many different calls were added of the pass's filter, in this pass or an earlier one.
        self.known = 0
        #: How many entries of this pass, on one page each, list a call that the page has already.
        self.repeated = 0
        #: How many values of the calls could not be read, by column.
        self.unreadable: Counter[str] = Counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM calls"))

    def begin_pass(self, status: str | None) -> None:
        """
        Begin to add the calls of one filter.

        :param status: What the calls are filtered by.
        """
        self._filter = status
        self.repeated = 0
        self.known = len(self)
        if status is not None:
            self.known = int(self._one("SELECT count(*) FROM filtered WHERE filter = ?", status))

    def add(self, page: CallPage) -> None:
        """
        Add the calls of a page that are not there yet.

        :raises ScratchSpaceError: There is no space for them.
        """
        try:
            self._add(page)
        except sqlite3.Error as error:
            raise _no_space(error) from None

    def _add(self, page: CallPage) -> None:
        self._database.execute("BEGIN")
        self.repeated += len(page.calls)
        for text, place, call in page.distinct():
            self.repeated -= 1
            key = hashlib.sha256(text.encode()).digest()[:16]
            is_new = self._insert("calls VALUES (?, ?, ?)", key, call.status, self._data(call))
            if is_new:
                self.unreadable.update(set(page.unreadable.get(place, ())).intersection(self._columns))
            if self._filter is not None:
                # Of two filters, both may show it.
                is_new = self._insert("filtered VALUES (?, ?)", self._filter, key)
            self.known += is_new
        self._database.execute("COMMIT")

    def _insert(self, what: str, *values: object) -> int:
        return self._database.execute(f"INSERT OR IGNORE INTO {what}", values).rowcount

    def rows(self) -> Iterator[list[Any]]:
        """Yield the values of each call, in the order in which they were added."""
        for (data,) in self._database.execute("SELECT data FROM calls ORDER BY rowid"):
            yield json.loads(data)

    def by_status(self) -> dict[str, int]:
        """Return the number of calls by how they ended."""
        # The database would sort them, in memory.
        found = Counter(status or "unknown" for (status,) in self._database.execute("SELECT status FROM calls"))
        return dict(sorted(found.items()))

    def _data(self, call: Call) -> str:
        if self._secret is not None:
            call = replace(call, contact_key=contact_key(self._secret, call.phone_number))
        return json.dumps([getattr(call, name) for name in self._columns])

    def _one(self, query: str, *values: object) -> Any:
        return self._database.execute(query, values).fetchone()[0]


def _no_space(error: Exception) -> ScratchSpaceError:
    return ScratchSpaceError(
        "Until the file is written, the calls are there, and take about as much space as a CSV file of them.", error
    )
