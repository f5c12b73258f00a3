# SPDX-License-Identifier: Apache-2.0
"""``HasQuota``: the quota is read for those who ask for it, and once for all."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.tasks import both_ways, context, meanwhile, wait_trigger

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, Quota, ShapeError
from airflow_provider_voicegenie.feed import feed as feeds
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.sensors.campaign import (
    CampaignReadySensor,
    Check,
    ContactsRegistered,
    HasContacts,
    HasQuota,
    HasScript,
    Prerequisite,
    Source,
)


class UsesNothing(Prerequisite):
    """A user's own, which looks at the quota and at the list."""

    needs = (Source.QUOTA, Source.LIST)

    def check(self, campaign, now):
        if campaign.quota is None or campaign.registered_count is None:
            return Check.waiting("nothing was read")
        return Check.met()


def ready(*prerequisites, campaign_id="ready", **arguments):
    def make(*, deferrable):
        return CampaignReadySensor(
            **{"task_id": "ready", "poke_interval": 0.2, "timeout": 20, **arguments},
            campaign_id=campaign_id,
            prerequisites=prerequisites,
            deferrable=deferrable,
        )

    return make


@both_ways
def test_it_waits_until_enough_is_left(sandbox, way, said):
    calls = sandbox.sandbox.quota.calls
    calls.used = calls.limit - 40

    def reset():
        calls.used = 0

    with meanwhile(lambda: sandbox.request_count("quota") >= 2, reset):
        result = way(ready(HasQuota(calls=100)), context())
    assert result["campaign_id"] == "ready"
    text = "".join(said())
    assert "not ready: 40 calls left, 100 wanted" in text
    assert "ready" in text
    assert sandbox.request_count("quota") >= 2


@both_ways
def test_who_does_not_ask_for_it_reads_no_quota(sandbox, way):
    way(ready(HasContacts(minimum=5)), context())
    assert (sandbox.request_count("quota"), sandbox.request_count("get")) == (0, 1)


@both_ways
def test_a_prerequisite_of_ones_own_may_ask_for_all(sandbox, way):
    assert way(ready(UsesNothing(), HasQuota(calls=1, minutes=1), ContactsRegistered()), context())
    assert sandbox.request_count("quota") >= 1
    assert sandbox.request_count("list") >= 1


@both_ways
@pytest.mark.parametrize(
    ("status", "outcomes", "words"),
    [
        (403, {}, "FORBIDDEN: the task fails"),
        (503, {"INTERNAL_SERVER_ERROR": "fail"}, "INTERNAL_SERVER_ERROR: the task fails"),
        (503, {}, None),
    ],
)
def test_a_quota_that_cannot_be_read_is_a_condition(sandbox, way, status, outcomes, words, said):
    calls = sandbox.sandbox.quota.calls
    calls.used = calls.limit
    # The first poke of a sensor that defers is in the worker.
    sandbox.inject("delay", "quota", seconds=0)
    sandbox.inject("status", "quota", status=status, times=2)
    make = ready(HasQuota(calls=1), outcomes=outcomes)
    if words is not None:
        with pytest.raises(AirflowFailException, match=words):
            way(make, context())
        return
    with meanwhile(lambda: sandbox.request_count("quota") >= 4, partial(setattr, calls, "used", 0)):
        assert way(make, context())
    assert "INTERNAL_SERVER_ERROR: the wait goes on" in "".join(said())


def test_a_quota_of_before_it_could_not_be_read_does_not_count(sandbox, clock):
    """It was used up while its reads failed."""
    calls = sandbox.sandbox.quota.calls
    campaign_id = sandbox.add_campaign(script_id=None).id
    trigger = wait_trigger(
        kind="ready",
        campaign_id=campaign_id,
        voicegenie_conn_id="voicegenie_default",
        outcomes={},
        poll_interval=0.3,
        deadline=clock.time() + 6,
        prerequisites=[HasQuota(calls=1), HasScript()],
    )

    async def work():
        wait = asyncio.create_task(anext(trigger.run()))
        while not sandbox.request_count("quota"):
            await asyncio.sleep(0.05)
        sandbox.inject("status", "quota", status=503, times=None)
        calls.used = calls.limit
        await asyncio.sleep(1)
        sandbox.sandbox.store.change(campaign_id, script_id="script")
        return (await wait).payload["reason"]

    assert asyncio.run(work()) == "timeout"


def test_waits_share_one_reading(sandbox):
    calls = sandbox.sandbox.quota.calls
    calls.used = calls.limit
    names = [sandbox.add_campaign(total_count=10).id for _ in range(30)]

    async def first(name):
        trigger = wait_trigger(
            kind="ready",
            campaign_id=name,
            voicegenie_conn_id="voicegenie_default",
            outcomes={},
            poll_interval=0.5,
            prerequisites=[HasQuota(calls=1)],
        )
        (reason,) = [event.payload["reason"] async for event in trigger.run()]
        return reason

    async def work():
        waits = [asyncio.create_task(first(name)) for name in names]
        await asyncio.sleep(2.5)
        reads = sandbox.request_count("quota")
        calls.used = 0
        async with asyncio.timeout(100):
            reasons = await asyncio.gather(*waits)
        assert not feeds._feeds[asyncio.get_running_loop()]
        return reads, set(reasons)

    reads, reasons = asyncio.run(work())
    assert 2 <= reads <= 12
    assert reasons == {"done"}


@pytest.mark.parametrize(
    ("quota", "wanted", "missing"),
    [
        (Quota(100, 50), {"calls": 100}, None),
        (Quota(99.5, 50), {"calls": 100}, "99.5 calls left, 100 wanted"),
        (
            Quota(1200, 50),
            {"calls": 1500, "minutes": 50.5},
            "1,200 calls left, 1,500 wanted, 50 minutes left, 50.5 wanted",
        ),
        (Quota(None, 50), {"calls": 1}, "an unknown quota of calls"),
        (Quota(None, 50), {"minutes": 50}, None),
        (None, {"minutes": 50}, "an unknown quota of minutes"),
    ],
)
def test_what_is_enough(quota, wanted, missing):
    campaign = Campaign("c", CampaignStatus.PAUSED, "paused", quota=quota)
    check = HasQuota(**wanted).check(campaign, None)
    assert check == (Check.met() if missing is None else Check.waiting(missing))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "HasQuota: say how much must be left, such as"),
        ({"calls": 0}, "HasQuota: calls must be a number above 0; got 0"),
        ({"minutes": "many"}, "HasQuota: minutes must be a number above 0; got 'many'"),
        ({"calls": True}, "HasQuota: calls must be a number above 0; got True"),
        ({"calls": float("nan")}, "HasQuota: calls must be a number above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        HasQuota(**arguments)


@pytest.mark.parametrize(
    ("part", "remaining"),
    [
        ({"used": 10, "limit": 100, "remaining": 90}, 90),
        ({"used": "10", "limit": "100"}, 90),
        ({"used": 110, "limit": 100}, 0),
        ({"remaining": "12.5"}, 12.5),
        ({"limit": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_what_the_service_may_say(part, remaining):
    quota = Quota.from_json({"quota": {"calls": part}})
    assert (quota.calls_remaining, quota.minutes_remaining) == (remaining, None)


def test_a_response_without_a_quota_is_none():
    with pytest.raises(ShapeError, match="quota"):
        Quota.from_json({"plan": "basic"})


def test_the_hook_reads_it(sandbox):
    quota = VoiceGenieHook().get_quota()
    calls = sandbox.sandbox.quota.calls
    assert quota.calls_remaining == calls.limit - calls.used
    assert quota.to_json() == {
        "calls_remaining": quota.calls_remaining,
        "minutes_remaining": quota.minutes_remaining,
    }


@pytest.mark.parametrize(
    ("count", "arguments", "why"),
    [
        (5, {"maximum": 5}, None),
        (6, {"maximum": 5}, "6 contacts, at most 5 wanted"),
        (6, {"minimum": 7, "maximum": 9}, "6 of 7 contacts"),
    ],
)
def test_a_number_of_contacts_that_is_bounded(count, arguments, why):
    campaign = Campaign("c", CampaignStatus.PAUSED, "paused", total_count=count)
    assert HasContacts(**arguments).check(campaign, None).missing == why


@pytest.mark.parametrize("arguments", [{"maximum": 0}, {"minimum": 5, "maximum": 4}, {"maximum": "many"}])
def test_a_wrong_number_of_contacts_is_refused(arguments):
    with pytest.raises(ValueError, match="HasContacts: maximum must"):
        HasContacts(**arguments)


class Careless(Prerequisite):
    needs = "quota"

    def check(self, campaign, now):
        return Check.met()


def test_what_it_needs_is_a_tuple_of_sources():
    for needs in ("quota", Source.QUOTA, ("quotas",)):
        Careless.needs = needs
        with pytest.raises(ValueError, match="needs of Careless must be a tuple such as"):
            ready(Careless())(deferrable=False)
