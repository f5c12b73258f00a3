# SPDX-License-Identifier: Apache-2.0
"""The calls of one export, each once, on disk: a million of them do not fit into memory."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Call

#: Kilobytes of the database that are kept in memory.
_CACHE = 16 * 1024


class CallStore:
    """
    Holds calls in a scratch database that nobody else can read, and that is gone with this object.

    :param columns: What is kept of a call.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def __enter__(self) -> CallStore:
        with tempfile.TemporaryDirectory(prefix="voicegenie-") as folder:
            self._database = sqlite3.connect(Path(folder, "calls"), isolation_level=None)
            # Neither a journal nor a file for sorting may come beside it.
            self._database.executescript(
                f"""
                PRAGMA journal_mode = OFF;
                PRAGMA synchronous = OFF;
                PRAGMA temp_store = MEMORY;
                PRAGMA cache_size = -{_CACHE};
                CREATE TABLE calls (key BLOB PRIMARY KEY, status TEXT, data TEXT);
                CREATE TABLE filtered (filter TEXT, key BLOB, PRIMARY KEY (filter, key)) WITHOUT ROWID;
                """
            )
        # The file has lost its name by now, and takes its space until it is closed, even by a kill.
        self._filter: str | None = None
        #: How many different calls were added of the pass's filter, in this pass or an earlier one.
        self.known = 0
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
        self.known = len(self)
        if status is not None:
            self.known = int(self._one("SELECT count(*) FROM filtered WHERE filter = ?", status))

    def add(self, calls: Iterable[Call]) -> None:
        """
        Add calls that are not there yet.

        :param calls: The calls.
        """
        self._database.execute("BEGIN")
        for call in calls:
            key = hashlib.sha256(call.key.encode()).digest()[:16]
            is_new = self._insert("calls VALUES (?, ?, ?)", key, call.status, self._data(call))
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
        return json.dumps([getattr(call, name) for name in self._columns])

    def _one(self, query: str, *values: object) -> Any:
        return self._database.execute(query, values).fetchone()[0]
