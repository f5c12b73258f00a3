# SPDX-License-Identifier: Apache-2.0
"""Tries of one task, faults, crashes, and others at the dashboard, in random order: one start at most."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.leaks import MARKED_KEY, check_exception
from helpers.tasks import Store, context, shorten_times
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sandbox.faults import Fault
from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxCampaign, SandboxStore
from airflow_provider_voicegenie.start.record import OwnStart

CRASHES = ["before_add", "after_add", "before_set_phase", "after_set_phase"]


class CrashError(BaseException):
    """The process of the task is gone."""


@contextlib.contextmanager
def crashing(patch, at):
    """Let the process die at a step."""

    def crash(step):
        if step == at:
            raise CrashError

    originals = OwnStart.add_record, OwnStart.set_phase

    def add(records, *arguments):
        crash("before_add")
        originals[0](records, *arguments)
        crash("after_add")

    def set_phase(records, *arguments, **more):
        crash("before_set_phase")
        originals[1](records, *arguments, **more)
        crash("after_set_phase")

    with patch.context() as inner:
        inner.setattr(OwnStart, "add_record", add)
        inner.setattr(OwnStart, "set_phase", set_phase)
        yield


class Tries:
    """One task instance and its campaign."""

    def __init__(self, status, *, keeps_state):
        self.stack = contextlib.ExitStack()
        self.patch = pytest.MonkeyPatch()
        self.stack.callback(self.patch.undo)
        shorten_times(self.patch)
        self.sandbox = Sandbox(SandboxStore(seeds=list), api_key=MARKED_KEY)
        url = self.stack.enter_context(running(self.sandbox))
        extra = {"max_attempts": 1, "timeout": 60, "requests_per_minute": 1_000_000}
        connection = {"conn_type": "voicegenie", "host": url, "password": self.sandbox.api_key, "extra": extra}
        self.patch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))
        self.began = datetime.now(UTC)
        self.try_number, self.max_tries = 0, 100
        self.counted_from = 0
        self.may_try = True
        self.was_started_by_others = False
        self.store = Store() if keeps_state else None
        self.sandbox.store.put(SandboxCampaign(id="c", status=status, total_count=10**6))

    def close(self):
        self.stack.close()

    @property
    def starts(self):
        """The starts that took effect since the task was created, or cleared by a user."""
        return sum(request.acted for request in list(self.sandbox.requests)[self.counted_from :])

    def status(self):
        return self.sandbox.store.find("c").status

    def try_again(self, fault, crash, then):
        """Run one try, in which one thing goes wrong and one person meddles."""
        if not self.may_try:
            return
        if fault is not None:
            kind, operation, after_acting, times = fault
            self.sandbox.faults.add(Fault(kind, operation, after_acting=after_acting, times=times))
        self.try_number += 1
        run = context(self.store, try_number=self.try_number, max_tries=self.max_tries)
        run["ti"].task.retries = 100
        run["dag_run"].start_date = self.began
        original = self.sandbox.store.start

        def start_and_meddle(campaign_id):
            campaign = original(campaign_id)
            if then is not None:
                self.sandbox.store.change(campaign_id, status=then)
            return campaign

        self.sandbox.store.start = start_and_meddle
        operator = StartCampaignOperator(task_id="task", campaign_id="c")
        try:
            with crashing(self.patch, crash):
                result = operator.execute(run)
        except CrashError:
            ending = "crash"
        except VoiceGenieRetryException as error:
            check_exception(error)
            ending = "retry"
        except (AirflowFailException, AirflowSkipException) as error:
            check_exception(error)
            (ending,) = re.findall(r"\[([A-Z_]+): ", str(error))
        else:
            ending = "ours" if result["started_by_task"] else "others"
        finally:
            self.sandbox.store.start = original
            self.sandbox.faults.clear()
        self.may_try = ending in ("crash", "retry")
        if self.starts:
            # A start that took effect is the task's own, unless nobody can tell, or not yet.
            assert ending in ("ours", "crash", "retry", "START_UNCONFIRMED")
        if ending == "ours":
            assert self.starts == 1 or self.was_started_by_others

    def someone_pauses_it(self):
        """Someone at the dashboard pauses the campaign, if it runs."""
        if self.status() == "running":
            self.sandbox.store.change("c", status="paused")

    def someone_starts_it(self):
        """Someone at the dashboard starts the campaign, if it can be."""
        if self.status() in ("paused", "scheduled"):
            self.sandbox.store.start("c")
            self.was_started_by_others = True

    def someone_clears_the_task(self):
        """A user clears the task on purpose: a new life begins, and with it another start is allowed."""
        if self.try_number == 0:
            return
        self.max_tries = self.try_number + 100
        self.counted_from = len(self.sandbox.requests)
        self.may_try = True
        self.was_started_by_others = True


FAULT = st.tuples(
    st.sampled_from(["close", "truncated", "not_json", "status"]),
    st.sampled_from(["start", "start", "start", "get", "stats", "*"]),
    st.booleans(),
    st.sampled_from([1, 1, 2, None]),
)
TRY = st.tuples(
    st.just(Tries.try_again),
    FAULT | st.none(),
    st.sampled_from([None, *CRASHES]),
    st.sampled_from([None, "paused", "paused", "completed", "failed"]),
)
STEPS = st.lists(
    TRY
    | TRY
    | TRY
    | st.tuples(st.sampled_from([Tries.someone_pauses_it, Tries.someone_starts_it, Tries.someone_clears_the_task])),
    min_size=3,
    max_size=8,
)


@given(status=st.sampled_from(["scheduled", "paused"]), keeps_state=st.booleans(), steps=STEPS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(600)
def test_one_start_at_most_and_never_a_lost_one(status, keeps_state, steps):
    tries = Tries(status, keeps_state=keeps_state)
    try:
        for act, *arguments in steps:
            act(tries, *arguments)
            assert tries.starts <= 1
    finally:
        tries.close()
