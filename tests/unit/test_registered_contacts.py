# SPDX-License-Identifier: Apache-2.0
"""``ContactsRegistered``: what only the list of campaigns has is read for those who ask for it, and once for all."""

from __future__ import annotations

import asyncio

import pytest
from helpers.tasks import WAYS, change, context, meanwhile, wait_trigger

from airflow_provider_voicegenie.feed import feed as feeds
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, ContactsRegistered, HasContacts

both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def ready(campaign_id, *prerequisites):
    def make(*, deferrable):
        return CampaignReadySensor(
            task_id="ready",
            campaign_id=campaign_id,
            prerequisites=prerequisites,
            poke_interval=0.2,
            timeout=20,
            deferrable=deferrable,
        )

    return make


@both_ways
def test_it_waits_until_all_contacts_are_registered(sandbox, way, said):
    campaign_id = sandbox.add_campaign(total_count=10, registered_count=4).id
    register = change(sandbox, campaign_id, registered_count=10)
    with meanwhile(lambda: sandbox.request_count("list") >= 2, register):
        result = way(ready(campaign_id, ContactsRegistered()), context())
    assert result["total_count"] == 10
    assert "not ready: 4 of 10 contacts registered" in "".join(said())
    assert sandbox.request_count("list") >= 2


@both_ways
def test_who_does_not_ask_for_it_needs_no_list(sandbox, way):
    way(ready(sandbox.add_campaign(total_count=10).id, HasContacts(minimum=5)), context())
    assert sandbox.request_count("list") == 0
    assert sandbox.request_count("get") == 1


@both_ways
def test_what_the_service_does_not_say_is_waited_for(sandbox, way, monkeypatch, said):
    campaign_id = sandbox.add_campaign(total_count=10).id
    items = sandbox.sandbox._list_item
    looks = []

    def without_count(campaign):
        looks.append(campaign)
        item = dict(items(campaign))
        if len(looks) <= 2 * len(sandbox.sandbox.store.all()):
            del item["registered_count"]
        return item

    monkeypatch.setattr(sandbox.sandbox, "_list_item", without_count)
    way(ready(campaign_id, ContactsRegistered()), context())
    assert "the service does not say how many contacts are registered" in "".join(said())


def test_waits_share_the_reading_of_the_list(sandbox):
    names = [sandbox.add_campaign(total_count=10, registered_count=1).id for _ in range(20)]

    async def first(name):
        trigger = wait_trigger(
            kind="ready",
            campaign_id=name,
            voicegenie_conn_id="voicegenie_default",
            outcomes={},
            poll_interval=0.5,
            prerequisites=[ContactsRegistered()],
        )
        (reason,) = [event.payload["reason"] async for event in trigger.run()]
        return reason

    async def work():
        waits = [asyncio.create_task(first(name)) for name in names]
        await asyncio.sleep(2.5)
        pages = sandbox.request_count("list")
        for name in names:
            sandbox.sandbox.store.change(name, registered_count=10)
        async with asyncio.timeout(100):
            reasons = await asyncio.gather(*waits)
        assert not feeds._feeds[asyncio.get_running_loop()]
        return pages, set(reasons)

    pages, reasons = asyncio.run(work())
    assert 2 <= pages <= 8
    assert reasons == {"done"}
