# SPDX-License-Identifier: Apache-2.0
"""
A clock that stands still while anybody works, and jumps on when all sleep.

A test with it takes no longer than its requests do, and how fast the machine is does not show in any of its times: no
deadline passes while a request is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import queue
import selectors
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from types import SimpleNamespace

import pytest

import airflow_provider_voicegenie

#: Waits for sockets, and for what threads do, in real time.
_REAL = "airflow_provider_voicegenie.api.session"

#: Where Airflow's sensors sleep, before Airflow 3 and since.
_SENSORS = ("airflow.sensors.base", "airflow.sdk.bases.sensor")

#: Real seconds between two looks whether the sandbox holds a request.
_MOMENT = 0.02


class Clock:
    """The time of the package, of Airflow's sensors and of the sandbox, from :meth:`start` to the end of the test."""

    #: The one in force.
    current: Clock | None = None

    def __init__(self):
        # A whole number, so that its sums have no rounding errors, however long the machine has run.
        self._unix, self._monotonic = time.time(), float(math.ceil(time.monotonic()))
        self._slept = 0.0
        #: For how many seconds a test may sleep in all.
        self.limit = 120.0
        self._actions = []
        #: What was slept so far.
        self.sleeps = []
        #: When the sandbox goes on with the requests that it holds.
        self._held_until = []
        #: The tasks in the sandbox that did so.
        self._held_requests = set()

    def time(self):
        return self._unix

    def monotonic(self):
        return self._monotonic

    def sleep(self, seconds):
        """
        Let time pass at once; before that, whatever is to happen meanwhile happens.

        As it costs nothing, only :attr:`limit` ends a test that waits for something that does not come, or for longer
        than it should.
        """
        self.sleeps.append(seconds)
        for act in list(self._actions):
            act()
        self._unix += seconds
        self._monotonic += seconds
        self._slept += seconds
        if self._slept > self.limit:
            pytest.fail(f"it slept for {self._slept:g} s")

    def add_action(self, act):
        """Call something before each sleep from now on."""
        self._actions.append(act)

    def remove_action(self, act):
        self._actions.remove(act)

    def hold_requests(self, patch):
        """
        Let requests that the sandbox delays, or does not answer, do so by this clock: time passes meanwhile.

        What the client itself does about them goes by the real time, so its ``timeout`` must be long.
        """
        app = importlib.import_module("airflow_provider_voicegenie.sandbox.app")
        patch.setattr(app, "asyncio", SimpleNamespace(sleep=self._hold))

    def end_requests_that_are_held(self, patch):
        """Let a request's time be over once the sandbox delays it, or does not answer, and not before."""
        clock, ended_by_now = self, 0
        self.hold_requests(patch)

        class Messages(queue.SimpleQueue):
            def __init__(self, exchange):
                self._exchange = exchange

            def get(self, block=True, timeout=None):
                nonlocal ended_by_now
                while True:
                    with contextlib.suppress(queue.Empty):
                        return super().get(timeout=_MOMENT)
                    # Each request that is held ends one, and no other that comes after it.
                    if len(clock._held_requests) > ended_by_now:
                        ended_by_now += 1
                        self._exchange._deadline = -math.inf
                        raise queue.Empty

        exchange = importlib.import_module(_REAL).Exchange
        original = exchange.__init__

        def init(self, *arguments, **options):
            original(self, *arguments, **options)
            self._messages = Messages(self)

        patch.setattr(exchange, "__init__", init)

    async def _hold(self, seconds):
        until = self._monotonic + seconds
        self._held_until.append(until)
        self._held_requests.add(asyncio.current_task())
        try:
            while self._monotonic < until:
                await asyncio.sleep(0.005)
        finally:
            self._held_until.remove(until)

    def held(self):
        """Return for how many seconds the sandbox holds requests, for each of them."""
        return [until - self._monotonic for until in list(self._held_until) if until > self._monotonic]

    def start(self, patch):
        """Let the package, the sandbox, and event loops of this thread go by this clock until the test ends."""
        clock, main, new_event_loop = self, threading.current_thread(), asyncio.events.new_event_loop

        class Meta(type):
            def __instancecheck__(cls, value):
                return isinstance(value, datetime)

        class Datetime(datetime, metaclass=Meta):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromtimestamp(clock.time(), tz)

        times = SimpleNamespace(time=self.time, monotonic=self.monotonic, sleep=self.sleep)
        for module in _modules(len(sys.modules)):
            if getattr(module, "time", None) is time:
                patch.setattr(module, "time", times)
            if getattr(module, "datetime", None) is datetime:
                patch.setattr(module, "datetime", Datetime)
        client = sys.modules["airflow_provider_voicegenie.api.client"]
        patch.setitem(client.VoiceGenieClient.__init__.__kwdefaults__, "sleep", self.sleep)
        # The server that the sandbox runs in has the real time in its responses.
        patch.setattr(client, "clock_offset", lambda headers, now: 0.0)
        store = sys.modules["airflow_provider_voicegenie.sandbox.store"]
        patch.setitem(store.SandboxStore.__init__.__kwdefaults__, "clock", self.monotonic)

        def event_loop():
            return _JumpingLoop(self) if threading.current_thread() is main else new_event_loop()

        patch.setattr(asyncio.events, "new_event_loop", event_loop)
        patch.setattr(Clock, "current", self)


def now():
    """Return the time of the clock in force; the real one if there is none."""
    return datetime.now(UTC) if Clock.current is None else datetime.fromtimestamp(Clock.current.time(), UTC)


@lru_cache(maxsize=1)
def _modules(loaded):
    """Return all modules of the package, and of Airflow's sensors; they are the same until more are loaded."""
    for name in (
        "api.client",
        "sandbox.app",
        "sandbox.store",
        "sandbox.service",
        "start.find_out",
        "start.run",
        "start.send",
        "start.take_over",
        "feed.feed",
        "triggers.wait",
        "waiting.pausing",
        "waiting.readiness",
    ):
        importlib.import_module(f"{airflow_provider_voicegenie.__name__}.{name}")
    prefix = f"{airflow_provider_voicegenie.__name__}."
    own = [module for name, module in list(sys.modules.items()) if name.startswith(prefix) and name != _REAL]
    return own + [sys.modules[name] for name in _SENSORS if name in sys.modules]


class _JumpingLoop(asyncio.SelectorEventLoop):
    """Jumps to what is due next, unless a thread works for it."""

    def __init__(self, clock):
        self._clock = clock
        self._jobs = 0
        super().__init__(_JumpingSelector(self))

    def time(self):
        return self._clock.monotonic()

    def run_in_executor(self, executor, function, *arguments):
        self._jobs += 1
        job = super().run_in_executor(executor, function, *arguments)
        job.add_done_callback(self._job_is_done)
        return job

    def _job_is_done(self, job):
        self._jobs -= 1

    def is_working(self):
        threads = sum(thread.name == "voicegenie-trigger" for thread in threading.enumerate())
        return self._jobs + threads > len(self._clock.held())

    def jump(self, seconds):
        """Go to what is next, and no further: here, or in the sandbox. Return whether anything is."""
        seconds = min([seconds, *self._clock.held()])
        if seconds < math.inf:
            self._clock.sleep(seconds)
        return seconds < math.inf


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        # In this order: what a thread does last is that it wakes the event loop up.
        is_working = self._loop.is_working()
        if events := super().select(0):
            return events
        seconds = math.inf if timeout is None else timeout
        if is_working or not self._loop.jump(seconds):
            return super().select(_MOMENT)
        return []
