# SPDX-License-Identifier: Apache-2.0
"""Watchers of ended campaigns, run as Airflow's triggerer runs them, against the sandbox, over real HTTP."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import itertools
import json
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

pytest.importorskip("airflow.sdk", reason="Airflow has watchers since 3.0")

from airflow.triggers.base import BaseEventTrigger
from helpers.clock import now
from helpers.leaks import leak_in
from helpers.sandboxes import second_sandbox
from helpers.tasks import stored, wait_trigger

from airflow_provider_voicegenie.api.endpoints import campaign as read_campaign
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, CampaignStatus
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.feed import feed as feeds
from airflow_provider_voicegenie.feed import plan as plans
from airflow_provider_voicegenie.feed.plan import LIST, Interest, ListedPage, PollingPlan, is_page, offset_of
from airflow_provider_voicegenie.sandbox.store import seed_campaigns
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.triggers import endings
from airflow_provider_voicegenie.triggers.endings import KnownCampaigns, add_others
from airflow_provider_voicegenie.triggers.events import CampaignEndedTrigger
from airflow_provider_voicegenie.triggers.watchers import ReadingBatch, Watcher

try:
    from airflow.triggers.shared_stream import SharedStreamManager
except ImportError:
    SharedStreamManager = None

keeps_state = pytest.mark.skipif(SharedStreamManager is None, reason="Airflow keeps state for watchers since 3.3")

SEEDED = len(seed_campaigns())


@pytest.fixture(autouse=True)
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    connection = voicegenie_sandbox.connection(timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    monkeypatch.setattr(timing, "connection_interval_after_error", 0.0)
    monkeypatch.setattr(timing, "state_read_delay", 0.05)
    monkeypatch.setattr(timing, "between_events", 0.05)
    return voicegenie_sandbox


def running(sandbox, **fields):
    return sandbox.add_campaign(**{"status": "running", "total_count": 10_000, **fields}).id


def end(sandbox, campaign_id, status="completed", **fields):
    store = sandbox.sandbox.store
    with store._lock:
        store.change(campaign_id, status=status)
        store.change(campaign_id, **{"ended_at": now(), **fields})


# A triggerer.


class Store:
    """Airflow's state store of one asset."""

    def __init__(self):
        self.kept = {}
        self.writes = 0
        self.fails = False

    async def aget(self, key, default=None):
        self._check()
        return json.loads(self.kept[key]) if key in self.kept else default

    async def aset(self, key, value):
        self._check()
        assert len(key) <= 512
        self.kept[key] = json.dumps(value)
        assert leak_in(self.kept[key]) is None
        self.writes += 1

    def _check(self):
        if self.fails:
            raise RuntimeError("the database is away")


class Stores(Store):
    """Airflow's access to the stores of the assets that a watcher is for."""

    def __init__(self, **by_name):
        super().__init__()
        self._by_name = by_name


class Triggerer:
    """
    Runs watchers as Airflow's ``TriggerRunner`` does.

    :param confirms: Whether Airflow gets to storing the events.
    :param shares: Whether it has shared streams, as Airflow 3.3 has.
    """

    def __init__(self, *, confirms=True, shares=True):
        self.confirms = confirms
        self.tasks = []
        self._ids = itertools.count(1)
        self._streams = SharedStreamManager() if SharedStreamManager and shares else None

    def watch(self, watcher=None, stores=None):
        """Begin with a watcher; return the list that its events' payloads go to."""
        watcher = stored(watcher or CampaignEndedTrigger(poll_interval=0.2))
        if self._streams:
            watcher.asset_state_store = stores
        told = []
        self.tasks.append(asyncio.create_task(self._run(next(self._ids), watcher, told)))
        return told

    async def _run(self, number, watcher, told):
        key = watcher.shared_stream_key() if self._streams else None
        if key is None:
            stream = watcher.run()
        else:
            stream = watcher.filter_shared_stream(self._streams.subscribe(trigger_id=number, trigger=watcher, key=key))
        try:
            async for event in stream:
                assert leak_in(json.dumps(event.payload)) is None
                told.append(json.loads(json.dumps(event.payload)))
                if key is not None:
                    confirmation = self._streams.bind_pending_event(trigger_id=number, key=key)
                    if self.confirms:
                        asyncio.get_running_loop().call_later(0.05, self._streams.confirm_persisted, [confirmation])
        finally:
            if key is not None:
                await self._streams.unsubscribe(number, key)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._streams:
            await self._streams.stop_all()
        # A watcher never ends by itself.
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
        assert not any(feeds._feeds.get(asyncio.get_running_loop(), {}).values())


def run(work, patience=100):
    async def bounded():
        async with asyncio.timeout(patience):
            return await work()

    return asyncio.run(bounded())


async def eventually(condition, patience=60):
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.02)


async def rounds(sandbox, number=3):
    """Wait until so many more requests were answered."""
    wanted = len(sandbox.sandbox.requests) + number
    await eventually(lambda: len(sandbox.sandbox.requests) >= wanted)
    await asyncio.sleep(0.1)


def ids(told):
    return [payload["campaign_id"] for payload in told]


# What is told.


@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
@pytest.mark.parametrize("only_some", [False, True])
def test_the_end_of_a_campaign_is_told_once(sandbox, status, only_some):
    ending = running(sandbox, name="Spring reminder", completed_count=7, failed_count=2)
    other = running(sandbox)
    watched = [ending, "completed"] if only_some else None

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(watched, poll_interval=0.2))
            await eventually(lambda: sandbox.request_count("list") + sandbox.request_count("get") >= 3)
            assert told == []
            end(sandbox, other, status)
            end(sandbox, ending, status, ended_at=datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC))
            await eventually(lambda: ending in ids(told))
            await asyncio.sleep(0.8)
            assert sorted(ids(told)) == sorted([ending] if only_some else [ending, other])
            return told

    told = next(payload for payload in run(work) if payload["campaign_id"] == ending)
    assert set(told) == {
        "campaign_id",
        "name",
        "status",
        "ended_at",
        "total_count",
        "completed_count",
        "failed_count",
    }
    assert (told["name"], told["status"], told["total_count"]) == ("Spring reminder", status, 10_000)
    assert told["completed_count"] >= 7
    assert told["ended_at"] in ({"2031-05-06T07:08:09Z", None} if only_some else {"2031-05-06T07:08:09Z"})
    assert told["failed_count"] is None or told["failed_count"] >= 2


def test_what_ended_before_the_watcher_looked_is_not_told(sandbox):
    end(sandbox, running(sandbox))
    lately = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            end(sandbox, lately)
            told = triggerer.watch()
            await rounds(sandbox, 4)
            assert told == []

    run(work)


@pytest.mark.parametrize("only_some", [False, True])
def test_a_campaign_that_goes_on_and_ends_again_is_told_again(sandbox, only_some):
    campaign = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger([campaign] if only_some else None, poll_interval=0.2))
            for number in (1, 2, 3):
                sandbox.sandbox.store.change(campaign, status="running")
                await rounds(sandbox, 2)
                assert len(told) == number - 1
                end(sandbox, campaign, "stopped" if number == 2 else "completed")
                await eventually(lambda number=number: len(told) == number)
            assert [payload["status"] for payload in told] == ["completed", "stopped", "completed"]

    run(work)


def test_a_campaign_that_begins_and_ends_between_two_looks_is_told(sandbox):
    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await rounds(sandbox)
            short = sandbox.add_campaign(status="completed", ended_at=None).id
            shorter = sandbox.add_campaign(status="stopped", ended_at=now()).id
            old = now() - timedelta(days=9)
            sandbox.add_campaign(status="completed", created_at=old, ended_at=old)
            await eventually(lambda: len(told) >= 2)
            await rounds(sandbox)
            assert sorted(ids(told)) == sorted([short, shorter])

    run(work)


def test_one_that_ended_and_ends_again_between_two_looks_is_told(sandbox):
    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await rounds(sandbox)
            for hours in (1, 2):
                end(sandbox, "completed", ended_at=now() + timedelta(hours=hours))
                await eventually(lambda hours=hours: len(told) == hours)
            await rounds(sandbox)
            assert ids(told) == ["completed", "completed"]

    run(work)


def test_a_response_that_is_late_takes_no_end_back(sandbox, held):
    """The list shows the end while a single read, which was asked for before, is still under way."""
    campaign, *others = (running(sandbox) for _ in range(3))
    sandbox.inject("delay", "get", campaign_id=campaign, seconds=1.2, after_acting=True)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger([campaign], poll_interval=0.2))
            await eventually(lambda: sandbox.request_count("get", campaign) == 1)
            await asyncio.sleep(0.1)
            for other in others:
                triggerer.watch(CampaignEndedTrigger([other], poll_interval=0.2))
            triggerer.watch()
            await rounds(sandbox, 2)
            end(sandbox, campaign)
            await eventually(lambda: len(told) == 1)
            await asyncio.sleep(1.8)
            assert ids(told) == [campaign]

    run(work)


# The shared poll.


def test_watchers_and_waits_share_one_poll(sandbox):
    names = [running(sandbox) for _ in range(20)]

    async def work():
        async with Triggerer() as triggerer:
            of_all = [triggerer.watch() for _ in range(3)]
            slow = triggerer.watch(CampaignEndedTrigger(poll_interval=1.5))
            of_some = triggerer.watch(CampaignEndedTrigger(names[:5], poll_interval=0.2))
            waits = []
            for name in names[:10]:
                waiting = wait_trigger(
                    campaign_id=name,
                    voicegenie_conn_id="voicegenie_default",
                    outcomes={},
                    poll_interval=0.2,
                )
                waits.append(asyncio.create_task(anext(waiting.run())))
            await eventually(lambda: sandbox.request_count("list") >= 1)
            before = sandbox.request_count("list")
            await asyncio.sleep(2)
            polled = sandbox.request_count("list") - before
            for name in names:
                end(sandbox, name)
            await asyncio.gather(*waits)
            for told in (*of_all, slow):
                await eventually(lambda told=told: sorted(ids(told)) == sorted(names))
            await eventually(lambda: sorted(ids(of_some)) == sorted(names[:5]))
            return polled

    assert 7 <= run(work) <= 13
    # The first ones do not wait for company.
    assert sandbox.request_count("get") <= 5


def test_a_watcher_of_one_campaign_does_not_read_the_list(sandbox):
    campaign = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            triggerer.watch(CampaignEndedTrigger([campaign], poll_interval=0.2))
            await rounds(sandbox)

    run(work)
    assert sandbox.request_count("list") == 0


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(plans, "MAX_PAGE_SIZE", 5)


@pytest.mark.usefixtures("small_pages")
def test_pages_that_shift_hide_no_end_and_make_none_up(sandbox, monkeypatch):
    """Each page comes of another order, and more campaigns are added all the time."""
    names = [running(sandbox) for _ in range(25)]
    old = now() - timedelta(days=3)
    for _ in range(10):
        sandbox.add_campaign(status="completed", created_at=old, ended_at=old)
    in_order = sandbox.sandbox.store.all
    chance = random.Random(7)

    def shuffled():
        found = in_order()
        chance.shuffle(found)
        return found

    monkeypatch.setattr(sandbox.sandbox.store, "all", shuffled)
    ended = names[:12]

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await rounds(sandbox, 4 * (35 + SEEDED) // 5)
            for name in ended:
                end(sandbox, name)
                await asyncio.sleep(0.05)
                running(sandbox)
            await eventually(lambda: set(ids(told)) >= set(ended), patience=15)
            await rounds(sandbox, 30)
            return told

    # The seeded campaigns that have ended may be first seen late; they were made just now.
    told = [name for name in ids(run(work)) if name not in ("completed", "stopped", "failed")]
    assert sorted(told) == sorted(ended)


@pytest.mark.usefixtures("small_pages")
def test_a_watcher_that_joins_while_a_pass_is_under_way(sandbox):
    names = [running(sandbox) for _ in range(20)]

    async def work():
        async with Triggerer() as triggerer:
            triggerer.watch(CampaignEndedTrigger(poll_interval=1))
            await eventually(lambda: sandbox.request_count("list") >= 3)
            told = triggerer.watch(CampaignEndedTrigger(poll_interval=1.1))
            await rounds(sandbox, 14)
            assert told == []
            end(sandbox, names[0])
            end(sandbox, names[-1])
            await eventually(lambda: len(told) == 2)

    run(work)


def test_many_campaigns_do_not_hold_up_the_event_loop(sandbox, monkeypatch):
    """No task of it takes many steps before others have a turn, however long a step takes."""
    for number in range(3000):
        sandbox.add_campaign(id=f"many-{number}", status="draft")
    original, turns, steps = asyncio.Handle._run, [], 0

    def count(frame, event, argument):
        nonlocal steps
        steps += 1

    def run_handle(handle):
        nonlocal steps
        steps = 0
        sys.setprofile(count)
        try:
            original(handle)
        finally:
            sys.setprofile(None)
            turns.append(steps)

    monkeypatch.setattr(asyncio.Handle, "_run", run_handle)

    async def work():
        async with Triggerer() as triggerer:
            for interval in (0.5, 0.6, 0.7):
                triggerer.watch(CampaignEndedTrigger(poll_interval=interval))
            await rounds(sandbox, 12)

    run(work)
    # Some for each campaign of a page. To read one, too, would be many more.
    assert 1000 < max(turns) < 40 * 1000


# Across restarts.


def watching(sandbox, stores, watched=None, *, confirms=True, shares=True, meanwhile=None, looks=3):
    """Run a watcher for some looks; return what it told."""

    async def work():
        async with Triggerer(confirms=confirms, shares=shares) as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(watched, poll_interval=0.2), stores)
            await asyncio.sleep(0.1)
            await rounds(sandbox, looks)
            if meanwhile is not None:
                meanwhile()
                await rounds(sandbox, looks)
            return ids(told)

    return run(work)


@keeps_state
@pytest.mark.parametrize("only_some", [False, True])
def test_an_end_while_the_triggerer_is_away_is_told_once(sandbox, only_some):
    away, before, later = (running(sandbox) for _ in range(3))
    watched = [away, before, later] if only_some else None
    # All three are read by themselves, which has no times.
    if only_some:
        sandbox.inject("status", "list", status=403, times=None)
    stores = Stores()
    assert watching(sandbox, stores, watched, meanwhile=lambda: end(sandbox, before), looks=6) == [before]
    end(sandbox, away)
    assert watching(sandbox, stores, watched, looks=6) == [away]
    assert watching(sandbox, stores, watched, looks=6) == []
    assert watching(sandbox, stores, watched, meanwhile=lambda: end(sandbox, later), looks=6) == [later]


@keeps_state
def test_what_is_new_or_went_on_while_the_triggerer_is_away_is_told(sandbox):
    again, twice = running(sandbox), running(sandbox)
    stores = Stores()

    def both():
        end(sandbox, again)
        end(sandbox, twice)

    assert sorted(watching(sandbox, stores, meanwhile=both)) == sorted([again, twice])
    # Both go on. One of them ends again meanwhile, and so does a campaign that nobody has seen.
    sandbox.sandbox.store.change(twice, status="running")
    sandbox.sandbox.store.change(again, status="running")
    end(sandbox, again, ended_at=now() + timedelta(minutes=5))
    short = sandbox.add_campaign(status="completed", ended_at=now()).id
    meanwhile = lambda: end(sandbox, twice, ended_at=now() + timedelta(minutes=5))  # noqa: E731
    assert sorted(watching(sandbox, stores, meanwhile=meanwhile)) == sorted([again, short, twice])
    assert watching(sandbox, stores) == []


@keeps_state
@pytest.mark.parametrize("only_some", [False, True])
def test_an_event_that_airflow_did_not_store_is_told_again(sandbox, only_some):
    campaign = running(sandbox)
    watched = [campaign] if only_some else None
    stores = Stores()
    assert watching(sandbox, stores, watched) == []
    ending = lambda: end(sandbox, campaign)  # noqa: E731
    assert watching(sandbox, stores, watched, confirms=False, meanwhile=ending) == [campaign]
    assert watching(sandbox, stores, watched) == [campaign]
    assert watching(sandbox, stores, watched) == []


@keeps_state
def test_a_look_of_which_some_events_were_not_stored_keeps_nothing():
    """Airflow ends the watcher then, and starts it again with what was kept."""
    kept = []

    class Watcher:
        async def keep(self, *state):
            kept.append(state)

    key = (Watcher(), "key")
    batch = [(ReadingBatch([], {key: (number, {})}), SimpleNamespace(failed=int(number == 3))) for number in range(4)]
    stream = CampaignEndedTrigger.create_shared_stream_producer(CampaignEndedTrigger().serialize()[1])
    run(lambda: stream.advance(batch))
    # Of several, the last is enough.
    assert kept == [("key", 2, {})]


@keeps_state
def test_nothing_is_written_while_nothing_changes(sandbox):
    stores = Stores()
    assert watching(sandbox, stores, looks=6) == []
    assert stores.writes == 1
    assert watching(sandbox, stores, looks=6) == []
    assert stores.writes == 1


@keeps_state
def test_a_watcher_of_several_assets_keeps_its_state_in_each(sandbox):
    one, two = running(sandbox), running(sandbox)
    first, second = Store(), Store()
    assert watching(sandbox, Stores(a=first)) == []
    end(sandbox, one)
    # An asset that has come later begins with what the other one knows.
    assert watching(sandbox, Stores(b=second, a=first)) == [one]
    end(sandbox, two)
    assert watching(sandbox, Stores(b=second)) == [two]


@keeps_state
def test_a_list_of_ids_that_has_changed_goes_on_for_those_that_stay(sandbox):
    stays, goes = running(sandbox), running(sandbox)
    stores = Stores()
    assert watching(sandbox, stores, [stays]) == []
    assert watching(sandbox, stores, [goes]) == []
    end(sandbox, stays)
    assert watching(sandbox, stores, [stays, "completed"]) == [stays]


@keeps_state
def test_one_watcher_of_two_with_the_same_arguments_that_ends_disturbs_the_other_not(sandbox):
    campaign = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            first, second = triggerer.watch(stores=Stores()), triggerer.watch(stores=(kept := Stores()))
            await rounds(sandbox)
            gone = triggerer.tasks.pop(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            end(sandbox, campaign)
            await eventually(lambda: ids(second) == [campaign])
            assert first == []
            await eventually(lambda: kept.writes == 2)

    run(work)


@keeps_state
def test_a_store_that_fails_ends_no_watcher(sandbox, said):
    campaign, later = running(sandbox), running(sandbox)
    stores = Stores()
    assert watching(sandbox, stores) == []

    async def work():
        async with Triggerer() as triggerer:
            stores.fails = True
            told = triggerer.watch(stores=stores)
            end(sandbox, campaign)
            await rounds(sandbox, 4)
            # Without what was kept, it cannot tell an old end from a new one.
            assert told == []
            stores.fails = False
            await eventually(lambda: ids(told) == [campaign])
            await eventually(lambda: stores.writes == 2)
            stores.fails = True
            end(sandbox, later)
            await eventually(lambda: ids(told) == [campaign, later])
            await rounds(sandbox, 4)
            stores.fails = False
            await eventually(lambda: stores.writes == 3)

    run(work)
    lines = said()
    assert len([line for line in lines if "cannot be read. Trying again" in line]) == 1
    assert len([line for line in lines if "cannot be kept" in line]) == 1
    assert len([line for line in lines if "is kept again" in line]) == 1
    assert watching(sandbox, stores) == []


@keeps_state
@pytest.mark.parametrize(
    "kept", ["old", {}, {"format": 99}, {"format": 1, "stored_at": 1, "read_at": 1, "open": 7}, []]
)
def test_state_that_is_not_readable_is_left_aside(sandbox, kept, said):
    stores = Stores()
    assert watching(sandbox, stores) == []
    (key,) = stores.kept
    stores.kept[key] = json.dumps(kept)
    campaign = running(sandbox)
    assert watching(sandbox, stores, meanwhile=lambda: end(sandbox, campaign)) == [campaign]
    assert any("not readable" in line for line in said())
    assert json.loads(stores.kept[key])["format"] == 1


@pytest.mark.parametrize("only_some", [False, True])
def test_before_3_3_a_watcher_tells_what_ends_since_it_began(sandbox, only_some):
    campaign, away = running(sandbox), running(sandbox)
    watched = [campaign, away] if only_some else None
    ending = lambda: end(sandbox, campaign)  # noqa: E731
    assert watching(sandbox, None, watched, shares=False, meanwhile=ending, looks=6) == [campaign]
    end(sandbox, away)
    assert watching(sandbox, None, watched, shares=False) == []


# Trouble.


TROUBLE = [
    ("status", {"status": 503}, "INTERNAL_SERVER_ERROR"),
    ("status", {"status": 429}, "RATE_LIMIT_EXCEEDED"),
    ("close", {}, "CONNECTION_FAILED"),
    ("not_json", {}, "INVALID_RESPONSE"),
    ("status", {"status": 401}, "UNAUTHORIZED"),
]


@pytest.mark.parametrize(("kind", "fields", "condition"), TROUBLE)
@pytest.mark.parametrize("only_some", [False, True])
def test_trouble_is_waited_out_and_said_once(sandbox, said, monkeypatch, kind, fields, condition, only_some):
    for module in (feeds, plans):
        monkeypatch.setattr(module, "poll_delay", lambda *arguments: min(poll_delay(*arguments), 0.5))
    monkeypatch.setattr(timing, "longest_pause", 0.5)
    campaign, other = running(sandbox), running(sandbox)
    watched = [campaign, other, "running"] if only_some else None

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(watched, poll_interval=0.2))
            await eventually(lambda: len(sandbox.sandbox.requests) >= 4)
            said()
            sandbox.inject(kind, times=None, **fields)
            # What was under way, and what was not.
            await rounds(sandbox, 2)
            end(sandbox, campaign)
            await rounds(sandbox, 2)
            assert told == []
            sandbox.sandbox.faults.clear()
            await eventually(lambda: ids(told) == [campaign], patience=20)
            await asyncio.sleep(0.3)

    run(work, patience=45)
    lines = said()
    assert len([line for line in lines if f"[{condition}: watching goes on]" in line]) == 1
    assert len([line for line in lines if "can be read again" in line]) == 1
    assert len(lines) <= 4


def test_a_connection_that_is_not_there_and_comes(sandbox, said, monkeypatch):
    campaign = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(voicegenie_conn_id="later", poll_interval=0.2))
            await asyncio.sleep(1.5)
            connection = sandbox.connection(timeout=60, requests_per_minute=60_000)
            monkeypatch.setenv("AIRFLOW_CONN_LATER", connection)
            await rounds(sandbox)
            end(sandbox, campaign)
            await eventually(lambda: ids(told) == [campaign])

    run(work)
    lines = said()
    (warning,) = [line for line in lines if "INVALID_CONNECTION" in line]
    assert "'later'" in warning
    assert any("can be read again" in line for line in lines)


def test_a_list_that_is_refused_is_tried_again_later(sandbox, said, monkeypatch):
    monkeypatch.setattr(plans, "_LIST_REST", 1.0)
    sandbox.inject("status", "list", status=403, times=2)
    campaign = running(sandbox)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await rounds(sandbox, 4)
            end(sandbox, campaign)
            await eventually(lambda: ids(told) == [campaign])

    run(work)
    lines = said()
    assert len([line for line in lines if "[FORBIDDEN: watching goes on]" in line]) == 1
    assert any("can be read again" in line for line in lines)


def test_a_watched_campaign_that_is_gone(sandbox, said):
    """The list does not show it, so it is asked for by itself; the others go on."""
    gone, *others = (running(sandbox) for _ in range(4))

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger([gone, *others], poll_interval=0.2))
            await rounds(sandbox)
            campaign = sandbox.sandbox.store.find(gone)
            sandbox.sandbox.store.remove(gone)
            before = sandbox.request_count("get", gone)
            await eventually(lambda: sandbox.request_count("get", gone) > before)
            end(sandbox, others[0])
            await eventually(lambda: ids(told) == [others[0]])
            sandbox.sandbox.store.put(campaign)
            end(sandbox, gone)
            await eventually(lambda: ids(told) == [others[0], gone])

    run(work)
    (warning,) = [line for line in said() if "watching goes on" in line]
    assert "NOT_FOUND" in warning
    assert gone in warning


@pytest.mark.parametrize("broken", ["_publish", "_to_campaigns", "_show_waits", "_poll", "_failed"])
def test_an_error_of_the_feed_itself_ends_no_watcher(sandbox, monkeypatch, said, broken):
    campaign = running(sandbox)
    original, breaks = getattr(feeds.Feed, broken), []
    monkeypatch.setattr(feeds, "poll_delay", lambda *_: 0.1)
    if broken == "_failed":
        sandbox.inject("status", "list", status=503, times=2)

    def breaking(*arguments, **options):
        if len(breaks) < 2:
            breaks.append(arguments)
            return 1 / 0
        return original(*arguments, **options)

    monkeypatch.setattr(feeds.Feed, broken, breaking)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await eventually(lambda: len(breaks) == 2)
            await rounds(sandbox)
            end(sandbox, campaign)
            await eventually(lambda: ids(told) == [campaign])

    run(work)
    assert len([line for line in said() if "did not expect (ZeroDivisionError in test_events.py" in line]) == 1


def test_a_reading_that_a_watcher_cannot_use_ends_no_watcher(sandbox, monkeypatch, said):
    campaign = running(sandbox)
    original, broken = KnownCampaigns.observe_page, []

    def observe_page(known, page):
        if len(broken) < 2:
            broken.append(page)
            return 1 / 0
        return original(known, page)

    monkeypatch.setattr(KnownCampaigns, "observe_page", observe_page)

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            await eventually(lambda: len(broken) == 2)
            await rounds(sandbox)
            end(sandbox, campaign)
            await eventually(lambda: ids(told) == [campaign])

    run(work)
    assert len([line for line in said() if "cannot be used (ZeroDivisionError" in line]) == 1


@keeps_state
def test_of_several_watchers_each_warning_comes_once(sandbox, said):
    campaign = running(sandbox)
    stores = [Stores() for _ in range(4)]

    async def work():
        async with Triggerer() as triggerer:
            told = [triggerer.watch(CampaignEndedTrigger(poll_interval=0.2 + n / 10), stores[n]) for n in range(2)]
            some = [CampaignEndedTrigger([campaign, f"nowhere-{n}"], poll_interval=0.2) for n in (2, 3)]
            told += map(triggerer.watch, some)
            await eventually(lambda: all(store.writes for store in stores[:2]))
            sandbox.inject("status", status=503, times=4)
            for store in stores:
                store.fails = True
            await rounds(sandbox, 6)
            end(sandbox, campaign)
            await eventually(lambda: [ids(each) for each in told] == [[campaign]] * 4)
            await rounds(sandbox)

    run(work, patience=60)
    lines = [line for line in said() if "Watching" not in line]
    assert len([line for line in lines if "[INTERNAL_SERVER_ERROR: watching goes on]" in line]) == 1
    assert len([line for line in lines if "NOT_FOUND: watching goes on" in line]) == 2
    assert len([line for line in lines if "cannot be kept" in line]) == 1


# Accounts.


def connect(sandbox, monkeypatch):
    connection = sandbox.connection(timeout=20, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)


@keeps_state
@pytest.mark.parametrize("only_some", [False, True])
@pytest.mark.parametrize("while_it_runs", [False, True])
def test_of_another_account_only_what_ends_there_is_told(sandbox, monkeypatch, only_some, while_it_runs):
    """And when the connection leads back, what ended in the first one meanwhile."""
    monkeypatch.setattr(timing, "connection_interval", 0.2)
    stores = Stores()
    with second_sandbox() as other:
        names = [running(sandbox) for _ in range(3)]
        for name in names:
            other.add_campaign(id=name, status="running", total_count=10_000)
        sandbox.sandbox.store.change(names[1], status="paused")
        # It ended in the other one before the watcher first looked there.
        end(other, names[1])
        watched = names if only_some else None

        told = []

        async def work(*stages):
            async with Triggerer() as triggerer:
                each = triggerer.watch(CampaignEndedTrigger(watched, poll_interval=0.2), stores)
                for where, campaign in stages:
                    connect(where, monkeypatch)
                    seen = len(where.sandbox.requests)
                    await eventually(lambda: len(where.sandbox.requests) >= seen + 6)  # noqa: B023
                    before = len(each)
                    if campaign is not None:
                        end(where, campaign)
                        await eventually(lambda: len(each) > before)  # noqa: B023
                    await rounds(where, 4)
                told.append(ids(each))

        first, second = (sandbox, names[0]), (other, names[2])

        async def back():
            end(sandbox, names[2])
            await work((sandbox, None))

        if while_it_runs:
            run(lambda: work(first, second))
        else:
            run(lambda: work(first))
            run(lambda: work(second))
        run(back)
    assert [name for each in told for name in each] == [names[0], names[2], names[2]]
    assert len(stores.kept) == 2


@keeps_state
def test_a_new_key_of_the_same_account_loses_no_end(sandbox, monkeypatch):
    """Its campaigns are known. A service gives an id once."""
    monkeypatch.setattr(timing, "connection_interval", 0.2)
    campaign = running(sandbox)
    stores = Stores()

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(stores=stores)
            await rounds(sandbox)
            sandbox.sandbox.api_key = "another-key-of-the-account"
            end(sandbox, campaign)
            await rounds(sandbox, 2)
            connect(sandbox, monkeypatch)
            await eventually(lambda: ids(told) == [campaign])
            await eventually(lambda: len(stores.kept) == 2)

    run(work)
    assert watching(sandbox, stores) == []


def test_an_account_is_a_digest_that_is_keyed_with_the_key():
    def account(base_url, api_key):
        return ClientSettings(base_url, api_key).account

    first = account("https://a.example", "key-1")
    assert first == account("https://a.example", "key-1")
    assert len({first, account("https://b.example", "key-1"), account("https://a.example", "key-2")}) == 3
    expected = hmac.new(b"key-1", b"https://a.example", "sha256").hexdigest()
    assert first.digest == expected[:16]


# Several ends.


async def told_at(told, count):
    """Return when each of some ends is told."""
    moments = []
    async with asyncio.timeout(20):
        while len(moments) < count:
            moments += [asyncio.get_running_loop().time()] * (len(told) - len(moments))
            await asyncio.sleep(0.01)
    return moments


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("only_some", [False, True])
def test_the_last_of_several_ends_comes_after_a_while(sandbox, monkeypatch, shares, only_some):
    """Of events in the same moment, Airflow makes a run for the first; the last comes when that run was made."""
    monkeypatch.setattr(timing, "between_events", 2.0)
    names = [running(sandbox) for _ in range(5)]
    if only_some:
        sandbox.inject("status", "list", status=403, times=None)

    async def work():
        async with Triggerer(shares=shares) as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(names if only_some else None, poll_interval=0.2))
            await rounds(sandbox, 8)
            end(sandbox, names[0])
            begun = asyncio.get_running_loop().time()
            (single,) = await told_at(told, 1)
            for name in names[1:]:
                end(sandbox, name)
            moments = await told_at(told, 5)
            assert sorted(ids(told)) == sorted(names)
            return single - begun, moments

    alone, moments = run(work)
    # A single one is not kept back, nor is any but the last for longer than it has to.
    assert alone < 1.9
    assert moments[4] - moments[3] >= 1.9


@keeps_state
@pytest.mark.parametrize("only_some", [False, True])
def test_the_state_is_kept_soon_after_the_last_of_several_ends(sandbox, held, monkeypatch, only_some):
    monkeypatch.setattr(timing, "between_events", 0.5)
    names = [running(sandbox) for _ in range(5)]
    stores = Stores()

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch(CampaignEndedTrigger(names if only_some else None, poll_interval=0.2), stores)
            await rounds(sandbox, 8)
            for name in names:
                end(sandbox, name)
            await eventually(lambda: len(told) == 5)
            # And not with the next end, or after the next poll.
            sandbox.inject("hold", times=None)
            (key,) = stores.kept
            ended = lambda: json.loads(stores.kept[key])["ended"]  # noqa: E731
            await eventually(lambda: {endings._digest(name) for name in names} <= {row[0] for row in ended()})

    run(work)


def test_what_is_logged(sandbox, said):
    campaign = running(sandbox)
    for _ in range(1190):
        sandbox.add_campaign(status="draft")

    async def work():
        async with Triggerer() as triggerer:
            told = triggerer.watch()
            triggerer.watch(CampaignEndedTrigger(["running"], poll_interval=0.2))
            await rounds(sandbox, 6)
            end(sandbox, campaign)
            await eventually(lambda: told)
            await rounds(sandbox, 6)

    run(work)
    lines = said()
    not_ended = 1191 + SEEDED - 3
    watching = (
        f"Watching {1191 + SEEDED:,} campaigns of the connection 'voicegenie_default', of which {not_ended:,} have"
    )
    assert sorted(lines) == [
        next(line for line in lines if line.startswith(f"Campaign '{campaign}' has ended: status 'completed', ")),
        "Watching 1 campaign of the connection 'voicegenie_default'.",
        f"{watching} not ended.",
    ]


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"campaign_ids": "c"}, "campaign_ids must be a list of campaign ids; got 'c'. For one campaign, write a list"),
        ({"campaign_ids": 3}, "campaign_ids must be a list"),
        ({"campaign_ids": []}, "campaign_ids must not be an empty list. Leave it out"),
        ({"campaign_ids": ["c", ""]}, "campaign_ids has an item that is no campaign id: campaign_id '' is empty"),
        ({"campaign_ids": [7]}, "campaign_ids has an item that is no campaign id: .*7 .int."),
        ({"campaign_ids": [None]}, "campaign_ids has an item"),
        ({"campaign_ids": ["../x"]}, "would lead to another path"),
        ({"campaign_ids": ["{{ var.value.x }}"]}, "does not render"),
        ({"voicegenie_conn_id": ""}, "voicegenie_conn_id must be the id of an Airflow connection; got ''"),
        ({"voicegenie_conn_id": None}, "voicegenie_conn_id must be"),
        ({"poll_interval": 0}, "poll_interval must be above 0"),
        ({"poll_interval": -1}, "poll_interval must be finite and not negative; got -1"),
        ({"poll_interval": "60"}, "poll_interval must be a timedelta or a number of seconds; got '60'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CampaignEndedTrigger(**arguments)


def test_a_watcher_may_have_a_queue_if_airflow_knows_it():
    """From 3.4 on; Airflow keeps it beside the arguments."""
    if "queue" in inspect.signature(BaseEventTrigger.__init__).parameters:
        watcher = CampaignEndedTrigger(queue="calls")
        assert watcher.queue == "calls"
        assert watcher.serialize() == CampaignEndedTrigger().serialize()
    else:
        with pytest.raises(ValueError, match=r"queue='calls'.*use Airflow 3.4"):
            CampaignEndedTrigger(queue="calls")


def test_arguments_are_stored_as_plain_json():
    watcher = CampaignEndedTrigger({"b", "a"}, "other", timedelta(minutes=2))
    path, arguments = watcher.serialize()
    assert arguments == {"campaign_ids": ["a", "b"], "voicegenie_conn_id": "other", "poll_interval": 120.0}
    assert stored(watcher).serialize() == (path, arguments)
    assert stored(CampaignEndedTrigger()).serialize() == CampaignEndedTrigger(poll_interval=60.0).serialize()


@pytest.mark.parametrize("campaign_ids", [None, ["b", "a"]])
def test_a_watcher_stays_the_same_to_airflow_when_it_comes_back_from_the_database(campaign_ids):
    """Otherwise, Airflow would end it and begin anew each time that it parses the DAG."""
    from airflow.models.trigger import Trigger

    path, arguments = CampaignEndedTrigger(campaign_ids).serialize()
    row = Trigger(classpath=path, kwargs=arguments)
    assert BaseEventTrigger.hash(row.classpath, row.kwargs) == BaseEventTrigger.hash(path, arguments)


# What is known of campaigns.


NOW = 1_790_000_000
ACCOUNT = ClientSettings("https://a.example", "key-1").account
STATE_KEY = f"voicegenie_all_campaigns.voicegenie_default.{ACCOUNT.digest}"
DAY = 86_400


def seen(campaign_id="c", status="completed", ended=None, started=None, created=None):
    time = lambda seconds: None if seconds is None else datetime.fromtimestamp(seconds, UTC)  # noqa: E731
    status = CampaignStatus(status)
    return Campaign(
        campaign_id, status, str(status), ended_at=time(ended), started_at=time(started), created_at=time(created)
    )


def look(known, *campaigns, at=NOW, offset=0, total=None, unread=0):
    page = CampaignPage(campaigns, len(campaigns) + unread, len(campaigns) + unread if total is None else total)
    return [campaign.campaign_id for campaign in known.observe_page(ListedPage(offset, page, at))]


def test_whether_any_campaign_of_a_reading_is_known():
    """So an account is recognized after its key was changed."""
    known = KnownCampaigns()
    look(known, seen("open", status="running"), seen("over", ended=NOW - 9))
    page = lambda *names: ListedPage(0, CampaignPage([seen(name) for name in names], 1, 1), NOW)  # noqa: E731
    assert known.knows_any_of(page("new", "open"))
    assert known.knows_any_of(page("over"))
    assert not known.knows_any_of(page("new", "other"))


def kept(known, campaign_ids=None):
    again = KnownCampaigns(campaign_ids)
    again.restore(json.loads(json.dumps(known.to_json(NOW))))
    return again


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "is_told"),
    [
        # It was seen to go on.
        (seen(status="running"), seen(), True),
        (seen(status="draft"), seen(status="failed", ended=1, created=1), True),
        (seen(status="unknown"), seen(), True),
        # It had ended.
        (seen(), seen(), False),
        (seen(), seen(status="unknown"), False),
        (seen(ended=NOW - 5), seen(ended=NOW - 5), False),
        (seen(ended=NOW - 5), seen(status="stopped", ended=NOW - 5), False),
        (seen(ended=NOW + 9 * DAY), seen(ended=NOW + 9 * DAY), False),
        # A time that comes later is none of another end.
        (seen(created=NOW), seen(ended=NOW - 5, created=NOW), False),
        # It went on, and ended again.
        (seen(ended=NOW - 5), seen(ended=NOW + 5), True),
        (seen(started=NOW - 5), seen(started=NOW + 5), True),
        (seen(ended=NOW - 9 * DAY), seen(ended=NOW + 5), True),
        # The service's clock may be off by the width of all time zones.
        (seen(ended=NOW - 5 - 14 * 3600), seen(ended=NOW + 5 - 14 * 3600), True),
        # It is new, or was hidden in the first look.
        (None, seen(created=NOW + 5), True),
        (None, seen(ended=NOW + 5, created=NOW - 9 * DAY), True),
        (None, seen(ended=NOW - 9 * DAY), False),
        (None, seen(), False),
    ],
)
def test_what_is_told_of_a_campaign(first, second, is_told, restarts):
    known = KnownCampaigns()
    assert look(known, *([first] if first else [])) == []
    if restarts:
        known = kept(known)
    assert look(known, second, at=NOW + 60) == (["c"] if is_told else [])
    if second.status is not CampaignStatus.UNKNOWN:
        assert look(known, second, at=NOW + 120) == []
        assert look(kept(known), second, at=NOW + 180) == []
        # Much later, too.
        assert look(known, second, at=NOW + 30 * DAY) == []
        assert look(known, second, at=NOW + 30 * DAY + 60) == []


def test_the_first_look_is_over_when_all_campaigns_were_seen():
    short = seen("short", ended=NOW - 60)
    for passes, hidden in enumerate([{"total": 4}, {"unread": 1}], 1):
        known = KnownCampaigns()
        look(known, seen("a", "running"), seen("b", "running"), total=4)
        # The second page shows one of the first again, or one that cannot be read: another one may be hidden.
        look(
            known,
            seen("b" if passes == 1 else "d", "running"),
            seen("c", "running"),
            offset=2,
            **{"total": 4, **hidden},
        )
        assert not known.knows_all
        assert look(known, seen("a", "running"), seen("b", "running"), total=4) == []
        assert look(known, seen("c", "running"), short, offset=2, total=4) == []
        assert known.knows_all
        assert look(known, short, seen("a", "running")) == []


def test_a_list_whose_pages_always_shift_is_known_after_some_passes():
    known = KnownCampaigns()
    for _ in range(3):
        assert not known.knows_all
        look(known, seen("a", "running"), total=2)
        look(known, seen("a", "running"), offset=1, total=2)
    assert known.knows_all


def test_campaigns_that_are_removed_are_forgotten():
    known = KnownCampaigns()
    look(known, *(seen(f"c{number}", "draft") for number in range(9)))
    assert known.open_count == 9
    # A pass that may have hidden some forgets none.
    look(known, seen("c0", "draft"), total=2)
    look(known, seen("c0", "draft"), offset=1, total=2)
    assert known.open_count == 9
    look(known, seen("c0", "draft"))
    assert known.open_count == 1
    # One list may be wrong. A list that goes on to be so is believed after a day.
    assert len(known.to_json(NOW)["open"]) == 9 * 8
    look(known, seen("c0", "draft"), at=NOW + DAY - 1)
    assert look(kept(known), seen("c0", "draft"), seen("c1"), at=NOW + DAY - 1) == ["c1"]
    look(known, seen("c0", "draft"), at=NOW + DAY)
    assert len(known.to_json(NOW)["open"]) == 8


def times(ended):
    return None if ended is None else NOW + ended


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("lists", [1, 3])
@pytest.mark.parametrize("ended", [None, 0])
def test_an_empty_list_loses_no_end_and_makes_none_up(ended, lists, restarts):
    known = KnownCampaigns()
    look(known, seen("c", "running"), seen("old", ended=NOW - 60))
    for number in range(lists):
        assert look(known, at=NOW + number) == []
        if restarts:
            known = kept(known)
    assert look(known, seen("c", ended=times(ended)), seen("old", ended=NOW - 60), at=NOW + 9) == ["c"]


@pytest.mark.parametrize("restarts", [False, True])
def test_an_empty_first_list_makes_no_old_end_a_new_one(restarts):
    known = KnownCampaigns()
    for number in range(2):
        assert look(known, at=NOW + number) == []
        if restarts:
            known = kept(known)
    assert look(known, seen("old", ended=NOW - 60), seen("new", ended=NOW + 5), at=NOW + 9) == ["new"]
    assert look(known, seen("old", ended=NOW - 60), seen("new", ended=NOW + 5), seen("short", ended=NOW - 5)) == [
        "short"
    ]


@pytest.mark.parametrize("watched", [None, ["c"]])
@pytest.mark.parametrize("ended", [None, NOW])
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("correction", [0, 1, -1, 0.4])
def test_an_old_response_and_a_corrected_time_tell_no_end_again(ended, watched, restarts, correction):
    known = KnownCampaigns(watched)

    def observe(campaign, at):
        nonlocal known
        if restarts:
            known = kept(known, watched)
        if watched is None:
            return bool(look(known, campaign, at=at))
        return known.observe(campaign, at)

    corrected = None if ended is None else ended + correction
    assert not observe(seen("c", "running"), NOW)
    assert observe(seen("c", ended=ended), NOW + 60)
    for number in range(3):
        assert not observe(seen("c", "running"), NOW + 120 * number + 120)
        assert not observe(seen("c", ended=corrected), NOW + 120 * number + 180)
    # It does go on, and ends again.
    if not restarts:
        assert not observe(seen("c", "running"), NOW + 1000)
        assert not observe(seen("c", "running"), NOW + 1060)
        assert observe(seen("c", ended=ended and ended + 1000), NOW + 1120)


def test_an_end_that_only_old_responses_contradict_is_not_told_again():
    """However many there are: the end is that of before."""
    known = KnownCampaigns()
    look(known, seen("c", "running"))
    assert look(known, seen("c", ended=NOW + 5), at=NOW + 60) == ["c"]
    for number in range(5):
        assert look(known, seen("c", "running"), at=NOW + 61 + number) == []
    assert look(known, seen("c", ended=NOW + 5), at=NOW + 70) == []
    assert look(known, seen("c", "running"), at=NOW + 71) == []
    assert look(known, seen("c", ended=NOW + 65), at=NOW + 72) == ["c"]


def test_what_is_kept_stays_small():
    old = [
        seen(f"old-{number}", ended=NOW - 2 * DAY - number, created=NOW - 3 * DAY - number) for number in range(99_000)
    ]
    known = KnownCampaigns()
    campaigns = [*old, *(seen(f"open-{number}", "draft") for number in range(1000))]
    for offset in range(0, len(campaigns), 1000):
        look(known, *campaigns[offset : offset + 1000], offset=offset, total=len(campaigns))
    assert known.knows_all
    for number in range(200):
        assert look(known, seen(f"open-{number}", ended=NOW + number), *campaigns[99_201:], at=NOW + number) == [
            f"open-{number}"
        ]
    # Airflow warns of values above 64 KiB.
    assert len(json.dumps(known.to_json(NOW))) < 20_000
    # Those that ended are kept for a day.
    assert len(known.to_json(NOW)["ended"]) == 200
    look(known, *campaigns[99_201:], at=NOW + DAY + 300)
    assert known.to_json(NOW)["ended"] == []


def test_watched_campaigns_are_known_for_as_long_as_they_are_watched():
    known = KnownCampaigns(["c"])
    assert not known.observe(seen("c", ended=NOW - 99 * DAY), NOW)
    assert not kept(known, ["c"]).observe(seen("c"), NOW + 99 * DAY)
    assert kept(known, ["c"]).observe(seen("c", ended=NOW), NOW)
    # Read by itself, a campaign has no times; those that are known stay so.
    again = kept(known, ["c"])
    assert not again.observe(seen("c"), NOW)
    assert again.observe(seen("c", ended=NOW), NOW)
    # Another one was never looked at.
    assert not kept(known, ["d"]).observe(seen("d", ended=NOW), NOW)


def test_the_state_of_other_watchers_of_an_asset_is_left_alone():
    mine, theirs = KnownCampaigns(["a", "b"]), KnownCampaigns(["b", "c", "d"])
    for known, campaign in [(mine, "a"), (mine, "b"), (theirs, "c")]:
        known.observe(seen(campaign, "running"), NOW)
    theirs.observe(seen("b"), NOW)
    theirs.observe(seen("d"), NOW)
    both = add_others(mine.to_json(NOW), theirs.to_json(NOW), ["a", "b"])
    again = KnownCampaigns(["a", "b", "c", "d"])
    again.restore(both)
    assert [again.observe(seen(campaign), NOW) for campaign in "abcd"] == [True, True, True, False]
    assert add_others(mine.to_json(NOW), None, ["a", "b"]) == mine.to_json(NOW)


# The plan.


def subscriber(interval=60.0):
    return Interest(interval, True, 0.0)


def simulate(plan, account, begin, end_, list_fails=False):
    """Answer what a plan asks for, in no time; return when which kind of request was sent."""
    sent = []
    now = begin
    names = [f"c{number}" for number in range(account)]
    while (due := plan.due_at()) <= end_:
        now = max(now, due)
        request = plan.take()
        sent.append((now, "list" if is_page(request) else "single"))
        if not is_page(request):
            plan.was_read(request, now, now)
        elif list_fails:
            plan.page_failed(now, retry_after=None)
        else:
            page = names[offset_of(request) :][:1000]
            plan.page_was_read(page, len(page), account, now, now)
    return sent


def count(sent, kind, after=0):
    return sum(what == kind for at, what in sent if at >= after)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("readers", "waits", "wait_interval", "account", "pages", "singles"),
    [
        # Requests in an hour: (least, most).
        ([60], 0, 60, 10, (60, 72), (0, 0)),
        ([60, 60, 600], 0, 60, 10, (60, 72), (0, 0)),
        ([60], 0, 60, 10_000, (600, 720), (0, 0)),
        # A wait goes with the passes that are made anyway.
        ([60], 1, 60, 10_000, (600, 720), (0, 2)),
        # Many make them so cheap that they are made a little more often.
        ([60], 500, 60, 10_000, (720, 816), (0, 600)),
        ([60], 1, 600, 10_000, (600, 720), (0, 2)),
        # It does not make the passes of a big account more frequent.
        ([3600], 1, 60, 10_000, (8, 25), (60, 72)),
        ([3600], 5, 60, 10_000, (8, 25), (300, 360)),
        ([3600], 100, 60, 10_000, (600, 720), (0, 200)),
        ([3600], 2, 60, 10, (60, 72), (0, 4)),
    ],
)
def test_which_requests_are_sent(readers, waits, wait_interval, account, pages, singles, seed):
    random.seed(seed)
    plan = PollingPlan()
    for interval in readers:
        plan.add(LIST, subscriber(interval), 0.0)
    for number in range(waits):
        plan.add(read_campaign(f"c{number}"), subscriber(wait_interval), 0.0)
    sent = simulate(plan, account, 0, 3700)
    assert pages[0] <= count(sent, "list", 100) <= pages[1]
    assert singles[0] <= count(sent, "single", 100) <= singles[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("account", [10, 3000])
def test_a_wait_that_joins_a_slow_reader_is_read_in_time(account, seed):
    random.seed(seed)
    plan = PollingPlan()
    plan.add(LIST, subscriber(3600), 0.0)
    simulate(plan, account, 0, 500)
    poll = plan.add(read_campaign("c5"), subscriber(), 500.0)
    for moment in range(500, 2000, 10):
        simulate(plan, account, moment, moment + 10)
        assert moment + 10 - max(poll.read_at, 500) <= 70


def test_readers_come_and_go():
    plan = PollingPlan()
    first, second = subscriber(60), subscriber(5)
    assert plan.is_idle
    plan.add(LIST, first, 0.0)
    plan.add(LIST, second, 0.0)
    assert count(simulate(plan, 10, 0, 60), "list") >= 12
    plan.remove(LIST, second, 60.0)
    assert count(simulate(plan, 10, 60, 660), "list") <= 14
    poll = plan.add(read_campaign("c1"), one := subscriber(), 660.0)
    plan.remove(LIST, first, 660.0)
    assert not plan.is_idle
    # The wait alone is cheaper by itself.
    sent = simulate(plan, 10, 660, 1260)
    assert count(sent, "list") <= 1
    assert count(sent, "single") >= 9
    plan.remove(poll.request, one, 1260.0)
    assert plan.is_idle
    assert plan.due_at() == float("inf")


def test_a_list_that_fails_is_read_with_growing_pauses_and_one_that_is_refused_after_a_rest():
    plan = PollingPlan()
    plan.add(LIST, subscriber(1), 0.0)
    assert 20 <= len(simulate(plan, 10, 0, 600, list_fails=True)) <= 40
    assert plan.due_at() <= 631
    assert is_page(plan.take())
    plan.block_list(631.0)
    poll = plan.add(read_campaign("c1"), subscriber(1), 632.0)
    sent = simulate(plan, 10, 632, 1200)
    assert count(sent, "list") == 0
    assert count(sent, "single") >= 500
    sent = simulate(plan, 10, 1200, 1300)
    assert count(sent, "list") >= 60
    assert count(sent, "single", 1240) == 0
    assert poll.read_at >= 1298


@pytest.mark.timeout(600)
def test_a_dag_file_that_makes_a_watcher_loads_nothing_heavy():
    code = """
import sys
import airflow.sdk, airflow.triggers.base
before = set(sys.modules)
from airflow_provider_voicegenie.triggers.events import CampaignEndedTrigger
CampaignEndedTrigger(["c"])
print(*sorted(set(sys.modules) - before))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = output.splitlines()[-1].split()
    assert "airflow_provider_voicegenie.triggers.events" in loaded
    heavy = ("requests", "httpx", "urllib3", "tenacity", "airflow.", "airflow_provider_voicegenie.hooks")
    assert not [name for name in loaded if name.startswith(heavy)]
    assert "airflow_provider_voicegenie.feed.feed" not in loaded


@keeps_state
def test_an_end_that_is_told_in_the_middle_of_a_pass_is_kept_with_it():
    """If the triggerer dies before the pass is over, the next one tells it no more."""
    known = KnownCampaigns()
    look(known, seen(status="running"), seen("d", status="running"))
    stores = Stores()
    stores.kept[STATE_KEY] = json.dumps(known.to_json(NOW))
    pages = [CampaignPage((each,), 1, 2) for each in (seen(ended=NOW), seen("d", status="running"))]
    shown = [ReadingBatch([ListedPage(number, page, NOW)], account=ACCOUNT) for number, page in enumerate(pages)]

    async def stream():
        for each in shown:
            yield each

    watcher = CampaignEndedTrigger()
    watcher.asset_state_store = stores

    async def work():
        return [event.payload["campaign_id"] async for event in watcher.filter_shared_stream(stream())]

    assert run(work) == ["c"]
    for each in shown[:1]:
        ((_, state),) = each.to_keep.values()
        again = KnownCampaigns()
        again.restore(json.loads(json.dumps(state)))
        assert look(again, seen(ended=NOW), seen("d", status="running")) == []


@keeps_state
def test_nothing_is_kept_before_the_first_pass_has_shown_all():
    run(check_nothing_is_kept_before_all_are_shown)


async def check_nothing_is_kept_before_all_are_shown():
    watcher = Watcher(Stores(), "voicegenie_default", None)
    pages = [CampaignPage((each,), 1, 2) for each in (seen(status="completed", ended=NOW + DAY), seen("d"))]
    shown = [ReadingBatch([ListedPage(number, page, NOW)], account=ACCOUNT) for number, page in enumerate(pages)]
    for each in shown:
        assert [campaign async for campaign in watcher.events(each)] == []
        watcher._keep_after(each)
    assert [list(each.to_keep) for each in shown] == [[], [(watcher, STATE_KEY)]]


@keeps_state
def test_what_was_kept_last_is_gone_on_from():
    """An asset that has come later has an older state, or none."""
    states = {}
    for at, status in ((NOW, "running"), (NOW + 60, "completed")):
        known = KnownCampaigns()
        look(known, seen(status=status, ended=at))
        states[at] = json.dumps({**known.to_json(at)})
    for order in itertools.permutations([*states.values(), None]):
        stores = {f"asset {number}": Store() for number in range(3)}
        for store, state in zip(stores.values(), order, strict=True):
            store.kept = {} if state is None else {STATE_KEY: state}

        async def recalled(stores=stores):
            watcher = Watcher(Stores(**stores), "voicegenie_default", None)
            async for _ in watcher.events(ReadingBatch([], account=ACCOUNT)):
                pass
            return watcher._known

        known = run(recalled)
        assert look(known, seen(ended=NOW + 60)) == []
        assert known.open_count == 0
