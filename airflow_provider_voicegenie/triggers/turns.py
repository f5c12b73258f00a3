# SPDX-License-Identifier: Apache-2.0
"""
Starts that wait for their turn, because the service takes no more requests for now.

All that wait in a triggerer for one connection stand in one line. Each gets its turn once, and its task then tries
again in a worker. How fast turns come follows from what becomes of them: whose start is refused again comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent

#: Turns a minute, as parts of the connection's requests a minute: at first, the fewest, and the most. A start takes two
#: requests or more.
_FIRST, _FEWEST, _MOST = 1 / 10, 1 / 30, 2 / 5

#: What is left of the turns a minute if someone comes who was refused, and seconds in which that counts once.
_LESS = 0.7
_ONCE_IN = 30.0

#: Minutes in which the turns a minute double while nobody comes.
_DOUBLING = 2.0


class Turns:
    """
    How fast starts that were refused are let try again, one after the other.

    What becomes of them decides: whose start is refused again comes back.

    :param requests_per_minute: The connection's limit.
    """

    def __init__(self, requests_per_minute: float) -> None:
        self._limit = requests_per_minute
        self._least = max(requests_per_minute * _FEWEST, min(requests_per_minute * _MOST, 1.0))
        self.per_minute = max(requests_per_minute * _FIRST, self._least)
        #: When the next one may be given, by a monotonic clock.
        self.next_at = -math.inf
        self._given_at: float | None = None
        self._decreased_at = -math.inf

    def someone_was_refused(self, now: float) -> None:
        """Take note that the service had no room for a start."""
        if now - self._decreased_at >= _ONCE_IN:
            self._decreased_at = now
            self.per_minute = max(self.per_minute * _LESS, self._least)

    def give(self, now: float) -> None:
        """Count a turn that is given now."""
        if self._given_at is not None and now - self._decreased_at >= _ONCE_IN:
            minutes = min((now - self._given_at) / 60.0, _DOUBLING)
            self.per_minute = min(self.per_minute * 2.0 ** (minutes / _DOUBLING), self._limit * _MOST)
        self._given_at = now
        self.next_at = now + 60.0 / self.per_minute


class _Line:
    """Those who wait for a turn, in one event loop and for one connection."""

    def __init__(self, requests_per_minute: float) -> None:
        self._turns = Turns(requests_per_minute)
        #: When each may try again, its number, and what wakes it up; a heap.
        self._waiting: list[tuple[float, int, asyncio.Event]] = []
        self._numbers = count()

    async def turn(self, not_before: float) -> None:
        """Wait for a turn. The first is who may try again first."""
        loop = asyncio.get_running_loop()
        self._turns.someone_was_refused(loop.time())
        place = (not_before, next(self._numbers), asyncio.Event())
        heapq.heappush(self._waiting, place)
        try:
            while True:
                wait = None
                if self._waiting[0] is place:
                    wait = max(self._turns.next_at - loop.time(), not_before - time.time())
                    if wait <= 0:
                        self._turns.give(loop.time())
                        return
                # Not `wait_for`, which before Python 3.12 can swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await place[-1].wait()
                        place[-1].clear()
        finally:
            self._waiting.remove(place)
            heapq.heapify(self._waiting)
            if self._waiting:
                self._waiting[0][-1].set()


#: They stay, with their pace, when nobody waits for a while.
_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, float], _Line]] = WeakKeyDictionary()


@dataclass(kw_only=True, eq=False, repr=False)
class StartTurnTrigger(BaseTrigger):
    """
    Waits until a start may be tried again.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param requests_per_minute: The connection's limit.
    :param not_before: When to try again at the earliest, Unix seconds.
    :param deadline: When to end the wait in any case, Unix seconds.
    """

    voicegenie_conn_id: str
    requests_per_minute: float
    not_before: float
    deadline: float

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and keyword arguments."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        lines = _lines.setdefault(asyncio.get_running_loop(), {})
        # A connection whose limit was changed has another line.
        key = self.voicegenie_conn_id, self.requests_per_minute
        line = lines.setdefault(key, _Line(self.requests_per_minute))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.deadline - time.time())):
                await line.turn(self.not_before)
        yield TriggerEvent({})  # type: ignore[no-untyped-call]
