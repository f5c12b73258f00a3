# SPDX-License-Identifier: Apache-2.0
"""
An Airflow on several machines: Celery with two workers and two triggerers, on PostgreSQL and Redis.

Its processes are killed and restarted while many campaigns are started and waited for: each is started once, and each
wait goes on.

``VOICEGENIE_DISTRIBUTED`` is the number of campaigns. Where it is set, nothing that the test needs may lack.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from textwrap import dedent
from typing import NamedTuple

import pytest
from helpers.leaks import leak_in
from services import AIRFLOW_VERSION, PATIENCE, Services, descendants, wait_for
from throwaway import LAST_TRIES, Airflow

if AIRFLOW_VERSION < (3, 3):
    pytest.skip("only in the environment of the newest Airflow", allow_module_level=True)
pytest.importorskip("airflow.providers.celery")

from servers import Redis, connect, dump, postgres, what_lacks

FEW = 50
CAMPAIGNS = int(os.environ.get("VOICEGENIE_DISTRIBUTED", FEW))
#: Whether there is time to restart everything that can be.
IS_LARGE = CAMPAIGNS > FEW
POLL_INTERVAL = 20 if IS_LARGE else 5
WORKERS = TRIGGERERS = ("a", "b")

pytestmark = [pytest.mark.airflow, *([pytest.mark.timeout(7200)] if IS_LARGE else [])]

log = logging.getLogger(__name__)

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = {"success", "failed", "skipped", "upstream_failed"}

#: Whose response does not come: the worker that starts it is killed meanwhile.
HELD = "campaign-7"

DAG = """
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    "distributed",
    schedule="@once",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    max_active_tasks={campaigns},
):
    StartCampaignOperator.partial(
        task_id="start",
        wait_for_completion=True,
        deferrable=True,
        poll_interval={poll_interval},
        retries={retries},
        retry_delay=timedelta(seconds=1),
    ).expand(campaign_id=[f"campaign-{{number}}" for number in range({campaigns})])
"""


class AirflowOnPostgres(Airflow):
    """A throw-away Airflow whose database is a PostgreSQL."""

    port = None

    def query(self, sql, *arguments):
        with connect(self.port) as database:
            for view in LAST_TRIES:
                database.execute(view.format(schema="public"))
            return database.execute(sql.replace("?", "%s"), arguments).fetchall()

    def process_of(self, campaign_id):
        """Return the number of the try in which a campaign's task is, and the id of its process."""
        index = int(campaign_id.removeprefix("campaign-"))
        ((tries, pid),) = self.query("SELECT try_number, pid FROM task_instance WHERE map_index = ?", index)
        return tries, pid

    def triggerers(self, alive_since=LONG_AGO):
        """Return how many waits each triggerer has, of those that were alive lately."""
        return dict(
            self.query(
                "SELECT job.id, count(*) FROM trigger JOIN job ON job.id = triggerer_id "
                "WHERE latest_heartbeat > ? GROUP BY job.id",
                alive_since,
            )
        )

    def states_of_tasks(self):
        return Counter(dict(self.query("SELECT coalesce(state, 'none'), count(*) FROM task_instance GROUP BY state")))

    def check_for_the_key(self):
        super().check_for_the_key()
        kept = dump(self.port)
        assert b"campaign-7" in kept
        leak = leak_in(kept)
        assert leak is None, leak


class Machines(Services):
    """The services of an Airflow on several machines."""

    def __init__(self, airflow, broker):
        super().__init__(airflow, kills=True)
        database = f"postgresql+psycopg://airflow@127.0.0.1:{airflow.port}/postgres"
        airflow.environment |= {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": broker.url,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database,
            # So few that none is queued for long.
            "AIRFLOW__CORE__PARALLELISM": "16",
            # What a killed worker has taken from the queue but not begun. Redis would keep it for a day.
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "45",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "20",
            # All of them share two processors.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
        }

    def start_worker(self, name):
        # Redis tells the workers apart by these names, and so does the test.
        self.start(
            "celery",
            "worker",
            "--concurrency",
            "4",
            "--celery-hostname",
            f"{name}@%h",
            "--skip-serve-logs",
            known_as=f"worker-{name}",
        )

    def start_triggerer(self, name):
        self.start("triggerer", known_as=f"triggerer-{name}")

    def worker_of(self, pid):
        """Return the name of the worker in which a process runs."""
        for name in WORKERS:
            if pid in {child.pid for child in descendants(self._processes[f"worker-{name}"].pid)}:
                return name
        raise AssertionError(f"no worker has the process {pid}")


class Setting(NamedTuple):
    """What is to be done."""

    campaigns: int = CAMPAIGNS
    contacts: int = 10**6
    retries: int = 5
    #: Held by the service against all together.
    is_limited: bool = False


@pytest.fixture
def setting():
    return Setting()


@pytest.fixture
def store(voicegenie_sandbox, setting):
    """The campaigns, and no others: a page of the list has all of them."""
    voicegenie_sandbox.sandbox.enforce_rate_limits = setting.is_limited
    store = voicegenie_sandbox.sandbox.store
    for campaign in store.all():
        store.remove(campaign.id)
    for number in range(setting.campaigns):
        voicegenie_sandbox.add_campaign(id=f"campaign-{number}", total_count=setting.contacts)
    if not setting.is_limited:
        voicegenie_sandbox.inject("hold", "start", campaign_id=HELD, after_acting=True)
    return store


@pytest.fixture
def airflow(tmp_path, voicegenie_sandbox, store, setting):
    """In place of the one on SQLite."""
    if problem := what_lacks():
        (pytest.fail if "VOICEGENIE_DISTRIBUTED" in os.environ else pytest.skip)(problem)
    airflow = AirflowOnPostgres(tmp_path, dags=tmp_path / "dags")
    airflow.dags.mkdir()
    dag = DAG.format(campaigns=setting.campaigns, retries=setting.retries, poll_interval=POLL_INTERVAL)
    (airflow.dags / "dag.py").write_text(dedent(dag))
    airflow.environment["AIRFLOW_CONN_VOICEGENIE_DEFAULT"] = voicegenie_sandbox.connection(
        timeout=200, requests_per_minute=60 if setting.is_limited else 6000
    )
    with postgres() as airflow.port:
        yield airflow
        airflow.check_for_the_key()


@pytest.fixture
def broker(tmp_path):
    with Redis(tmp_path / "redis") as broker:
        yield broker


@pytest.fixture
def machines(airflow, broker):
    machines = Machines(airflow, broker)
    result = airflow.run("db", "migrate")
    assert result.returncode == 0, result.stdout + result.stderr
    with machines:
        for name in TRIGGERERS:
            machines.start_triggerer(name)
        for name in WORKERS:
            machines.start_worker(name)
        # One that is late would find all waits taken.
        triggerers = "SELECT count(*) FROM job WHERE job_type = 'TriggererJob'"
        wait_for("the triggerers", lambda: airflow.query(triggerers) == [(len(TRIGGERERS),)])
        machines.start("scheduler")
        yield machines


def note(name, value):
    log.info("%s: %s", name, value)


def test_each_campaign_is_started_once_and_followed_to_its_end(airflow, broker, machines, store, voicegenie_sandbox):
    requests = voicegenie_sandbox.sandbox.requests

    def wait_for_many(what, condition):
        wait_for(what, condition, patience=PATIENCE + 4 * CAMPAIGNS)
        note(f"{what}, after seconds", round(time.monotonic() - began))

    def started(part):
        return lambda: sum(campaign.start_count for campaign in store.all()) >= part * CAMPAIGNS

    def tasks(state, part=1):
        return lambda: airflow.states_of_tasks()[state] >= part * CAMPAIGNS

    began = time.monotonic()
    wait_for("a start without a response", lambda: store.find(HELD).start_count)
    _, pid = airflow.process_of(HELD)
    worker = machines.worker_of(pid)
    machines.kill(f"worker-{worker}")
    # The service would take a second start now.
    store.change(HELD, status="paused")
    machines.start_worker(worker)
    if IS_LARGE:
        wait_for_many("a third of the starts", started(1 / 3))
        machines.stop("scheduler")
        machines.start("scheduler")
        wait_for_many("two thirds of the starts", started(2 / 3))
        broker.stop()
        time.sleep(3)
        broker.start()
    wait_for_many("all wait", tasks("deferred"))

    wait_for("both triggerers", lambda: len(airflow.triggerers()) == len(TRIGGERERS))
    note("waits of each triggerer", airflow.triggerers())
    before = len(requests)
    time.sleep(3 * POLL_INTERVAL)
    note("requests in three rounds", len(requests) - before)
    assert 0 < len(requests) - before <= most_requests(3 * POLL_INTERVAL, feeds=2)

    before, killed_at = len(requests), datetime.now(UTC)
    machines.kill("triggerer-a")
    machines.start_triggerer("a")
    if IS_LARGE:
        machines.kill("worker-b")
        machines.start_worker("b")
    alive_since = killed_at + timedelta(seconds=3)
    wait_for_many("all waits are taken over", lambda: sum(airflow.triggerers(alive_since).values()) == CAMPAIGNS)
    seconds = (datetime.now(UTC) - killed_at).total_seconds()
    note("requests during the takeover", len(requests) - before)
    assert len(requests) - before <= most_requests(seconds, feeds=3)

    for number in range(CAMPAIGNS):
        store.change(f"campaign-{number}", status="completed")
    if IS_LARGE:
        wait_for_many("a third of the ends", tasks("success", 1 / 3))
        machines.kill("worker-a")
        machines.start_worker("a")
    wait_for_many("all have ended", lambda: not airflow.states_of_tasks().keys() - ENDED)

    note("requests", dict(Counter(request.operation for request in requests)))
    note("tries", airflow.query("SELECT try_number, count(*) FROM task_instance GROUP BY 1 ORDER BY 1"))
    assert airflow.states_of_tasks() == {"success": CAMPAIGNS}
    assert Counter(campaign.start_count for campaign in store.all()) == {1: CAMPAIGNS}
    assert voicegenie_sandbox.request_count("pause") == 0
    assert airflow.process_of(HELD)[0] >= 2
    assert airflow.query("SELECT count(*) FROM xcom WHERE key = 'return_value'") == [(CAMPAIGNS,)]


@pytest.mark.skipif(not IS_LARGE, reason="takes several minutes")
@pytest.mark.parametrize("setting", [Setting(campaigns=60, contacts=3, retries=0, is_limited=True)])
def test_a_limit_for_all_together(airflow, machines, store, setting, voicegenie_sandbox):
    """The service takes 60 requests a minute, of starts and of both triggerers; each campaign needs three."""
    began = time.monotonic()
    wait_for("all ends", lambda: airflow.states_of_tasks() == {"success": setting.campaigns}, patience=1200)
    note("a limit for all together, seconds", round(time.monotonic() - began))
    requests = voicegenie_sandbox.sandbox.requests
    note("requests", Counter(request.operation for request in requests))
    note("refused", Counter(request.operation for request in requests if request.status == 429))
    assert airflow.states_of_tasks() == {"success": setting.campaigns}
    assert Counter(campaign.start_count for campaign in store.all()) == {1: setting.campaigns}
    assert voicegenie_sandbox.request_count("pause") == 0
    assert airflow.query("SELECT max(try_number) FROM task_instance") == [(1,)]


def most_requests(seconds, *, feeds):
    """Return how many requests the waits may take: one page holds all of them, and a round is a little shorter."""
    return feeds * (1 + math.ceil(seconds / (0.74 * POLL_INTERVAL)))
