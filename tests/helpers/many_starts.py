# SPDX-License-Identifier: Apache-2.0
"""A simulation of many starts at a service that limits all together. No time passes in it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass

from airflow_provider_voicegenie.start.refusals import Refusals
from helpers.rate_limits import LATENCY


@dataclass
class Starts:
    """What became of starts."""

    done: int = 0
    failed: int = 0
    requests: int = 0
    seconds: float = 0.0
    #: The most requests of one start that were refused.
    most_refused: int = 0


def simulate_starts(service, number, *, tasks_a_minute=60, workers=32, deferrable=True, max_attempts=4, seed=1):
    """
    Let mapped tasks start a campaign each: with a read, the start, and a read at the end.

    :param tasks_a_minute: How many tasks Airflow begins.
    :param workers: How many of them at the same time.
    :param deferrable: Whether they leave their worker for a wait.
    """
    random.seed(seed)
    found = Starts()
    refusals = [Refusals()] * number
    events, numbers = [], itertools.count()

    def later(when, act, *arguments):
        heapq.heappush(events, (when, next(numbers), act, arguments))

    # Tasks that begin, as long as workers are free.

    to_begin, free, begins_at = deque(range(number)), workers, 0.0

    resumed = deque()

    def begin(now):
        nonlocal free, begins_at
        while free and resumed:
            free -= 1
            later(now, read, resumed.popleft())
        while free and to_begin:
            free -= 1
            begins_at = max(begins_at + 60 / tasks_a_minute, now)
            later(begins_at, read, to_begin.popleft())

    def free_worker(now):
        nonlocal free
        free += 1
        begin(now)

    def read(now, task):
        is_accepted, headers = ask(now)
        if not is_accepted:
            refused(now, task, headers, was_start=False)
        else:
            later(now + LATENCY, start, task)

    def start(now, task):
        is_accepted, headers = ask(now)
        if is_accepted:
            found.done += 1
            found.seconds = now
            later(now + random.uniform(60, 120), read_at_end)
            free_worker(now)
        else:
            refused(now, task, headers, was_start=True)

    def read_at_end(now, attempt=1):
        is_accepted, _ = ask(now)
        if not is_accepted and attempt < max_attempts:
            later(now + random.uniform(1, 60), read_at_end, attempt + 1)

    def ask(now):
        found.requests += 1
        return service.take(now)

    def refused(now, task, headers, *, was_start):
        refusals[task] = refusals[task].one_more(now, was_start=was_start)
        found.most_refused = max(found.most_refused, refusals[task].requests)
        asked = headers.get("x-ratelimit-reset")
        until = refusals[task].earliest_attempt(asked and float(asked), now, max_attempts)
        if until is None:
            found.failed += 1
            free_worker(now)
            return
        at = next(refusals[task].spread_out(until)).timestamp()
        if deferrable:
            free_worker(now)
            # Airflow takes its time to resume it.
            later(at + random.uniform(2, 8), resume, task)
        else:
            later(at, read, task)

    def resume(now, task):
        resumed.append(task)
        begin(now)

    begin(0.0)
    while events and found.done + found.failed < number:
        now, _, act, arguments = heapq.heappop(events)
        act(now, *arguments)
    return found
