# SPDX-License-Identifier: Apache-2.0
"""What all watchers of a connection meet together, and log once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Hashable
from weakref import WeakKeyDictionary, WeakValueDictionary

log = logging.getLogger(__name__)


class Troubles:
    """
    Logs each trouble when it begins, and one line when all of them are over. Get it with :func:`troubles_of`.

    :param over: The line at the end; ``None`` for none.
    """

    def __init__(self, over: str | None) -> None:
        self._over = over
        self._troubles: dict[Hashable, str] = {}
        self._users: Counter[Hashable] = Counter()

    def join(self, *about: Hashable) -> None:
        """Count one more watcher that something is read for."""
        self._users.update(about)

    def leave(self, *about: Hashable) -> None:
        """Forget the trouble with what is read for nobody any more."""
        self._users.subtract(about)
        for each in about:
            if self._users[each] <= 0:
                del self._users[each]
                self._troubles.pop(each, None)

    def begin(self, about: Hashable, trouble: str, message: str) -> None:
        """
        Log a trouble, unless something else met it before and it goes on.

        :param about: What is in trouble.
        """
        if trouble not in self._troubles.values():
            log.warning("%s", message)
        self._troubles[about] = trouble

    def end(self, *about: Hashable) -> None:
        """Take note that something is in no trouble."""
        ended = [self._troubles.pop(each, None) for each in about]
        if any(ended) and not self._troubles and self._over is not None:
            log.info("%s", self._over)


_troubles: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, str], Troubles]] = (
    WeakKeyDictionary()
)


def troubles_of(voicegenie_conn_id: str, what: str, over: str | None = None) -> Troubles:
    """
    Return the troubles of a connection in the running event loop: the same for all who hold it.

    :param what: With what.
    :param over: The line when all are over; ``None`` for none.
    """
    troubles = _troubles.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    found = troubles.get((voicegenie_conn_id, what))
    if found is None:
        found = troubles[voicegenie_conn_id, what] = Troubles(over)
    return found
