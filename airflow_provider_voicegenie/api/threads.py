# SPDX-License-Identifier: Apache-2.0
"""Threads, and what may come up while one is started."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Python's words if the system gives no more threads.
_NO_MORE_THREADS = "can't start new thread"


class NoMoreThreadsError(Exception):
    """The process can have no more threads."""


def start_thread(work: Callable[[], None], name: str) -> None:
    """
    Start a daemon thread, which does not delay the exit of the process.

    :raises NoMoreThreadsError: The process can have no more threads.
    """
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        if str(error) == _NO_MORE_THREADS:
            raise NoMoreThreadsError(str(error)) from None
        # Two signals at once leave Python with a lock that it cannot release. What the handler of the first one raised,
        # a kill or the end of the task's time, is what happened.
        cause = error.__context__
        while isinstance(cause, Exception):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        raise
