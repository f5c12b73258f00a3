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
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_voicegenie.api.rate_limit import Turns


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
_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Line]] = WeakKeyDictionary()


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
        line = lines.setdefault(self.voicegenie_conn_id, _Line(self.requests_per_minute))
        is_turn = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.deadline - time.time())):
                await line.turn(self.not_before)
            is_turn = True
        yield TriggerEvent({"is_turn": is_turn})  # type: ignore[no-untyped-call]
