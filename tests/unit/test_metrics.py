# SPDX-License-Identifier: Apache-2.0
"""What is counted and timed, and what the events of a task's outlets get."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat import sdk
from airflow.providers.common.compat.sdk import Asset, AssetAlias
from helpers.tasks import Starting, context, deferred, in_worker

from airflow_provider_voicegenie import metrics
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator


class Receiver:
    """What Airflow's metrics report to."""

    def __init__(self):
        self.counts = Counter()
        self.times = {}
        self.gauges = {}
        self.shown = []

    def incr(self, name):
        self.counts[name] += 1

    def timing(self, name, value):
        self.times[name] = value.total_seconds()

    def gauge(self, name, value):
        self.gauges[name] = value
        self.shown.append(value)


@pytest.fixture
def receiver(monkeypatch):
    receiver = Receiver()
    monkeypatch.setattr(sdk, "Stats", receiver, raising=False)
    return receiver


def test_requests_are_counted_by_name_and_result(sandbox, receiver):
    sandbox.inject("status", "get", status=500)
    with pytest.raises(VoiceGenieRetryException):
        StartCampaignOperator(task_id="start", campaign_id="long").execute(context())
    StartCampaignOperator(task_id="start", campaign_id="long").execute(context())
    assert receiver.counts == {
        "voicegenie.requests.get.internal_server_error": 1,
        "voicegenie.requests.get.ok": 1,
        "voicegenie.requests.start.ok": 1,
        "voicegenie.starts": 1,
    }


def test_requests_that_the_provider_does_not_name(sandbox, receiver):
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

    VoiceGenieHook().request("GET", "/fetchQuota")
    assert receiver.counts == {"voicegenie.requests.other.ok": 1}


def test_a_start_whose_response_was_lost_counts_as_such(sandbox, receiver):
    sandbox.inject("close", "start", after_acting=True)
    StartCampaignOperator(task_id="start", campaign_id="long").execute(context())
    assert receiver.counts["voicegenie.starts"] == receiver.counts["voicegenie.starts_without_response"] == 1
    assert receiver.counts["voicegenie.requests.start.connection_failed"] == 1


@pytest.mark.parametrize("way", [in_worker, deferred])
def test_the_end_of_a_task_is_timed(sandbox, receiver, way):
    sandbox.speed = 1000
    campaign_id = sandbox.add_campaign(total_count=3).id
    way(Starting(campaign_id=campaign_id), context())
    assert 0 <= receiver.times["voicegenie.end_delay"] < 20


def test_metrics_never_disturb_a_task(sandbox, monkeypatch):
    def fail(*arguments):
        raise OSError("no receiver")

    monkeypatch.setattr(sdk, "Stats", SimpleNamespace(incr=fail, timing=fail, gauge=fail), raising=False)
    StartCampaignOperator(task_id="start", campaign_id="long").execute(context())
    metrics.time_end(1.0)
    metrics.show_waits("voicegenie_default", 1)


def test_waits_have_the_connection_in_their_name(receiver):
    metrics.show_waits("a.b c", 3)
    ((name, value),) = receiver.gauges.items()
    assert name.startswith("voicegenie.waits.")
    assert name.endswith(".a_b_c")
    assert value == 3


def test_deferred_waits_are_shown(sandbox, receiver):
    sandbox.speed = 1000
    deferred(Starting(campaign_id=sandbox.add_campaign(total_count=3).id), context())
    ((name, value),) = receiver.gauges.items()
    assert name.endswith(".voicegenie_default")
    # Nobody waits any more.
    assert value == 0
    assert receiver.shown == [1, 0]


# Outlets.


def outlet_events():
    return defaultdict(lambda: SimpleNamespace(extra={}))


ASSET = Asset("s3://bucket/campaign")


def test_an_upload_tells_its_outlets(sandbox):
    events = outlet_events()
    campaign_id = sandbox.add_campaign(total_count=0).id
    UploadContactsOperator(
        task_id="upload",
        campaign_id=campaign_id,
        contacts=[{"phone_number": "4915123456"}],
        outlets=[ASSET, AssetAlias("any")],
    ).execute({**context(), "outlet_events": events})
    assert {key: event.extra for key, event in events.items()} == {ASSET: {"campaign_id": campaign_id, "uploaded": 1}}


def test_a_history_tells_its_outlets(sandbox, tmp_path):
    events = outlet_events()
    path = str(tmp_path / "x.csv")
    result = CallHistoryToObjectStorageOperator(
        task_id="export", campaign_id="completed", path=path, outlets=[ASSET]
    ).execute({**context(), "outlet_events": events})
    assert events[ASSET].extra == {"campaign_id": "completed", "path": path, "rows": result["rows"]}


@pytest.mark.parametrize("way", [in_worker, deferred])
def test_a_start_tells_its_outlets(sandbox, way):
    sandbox.speed = 1000
    events = outlet_events()
    campaign_id = sandbox.add_campaign(total_count=3).id
    result = way(Starting(campaign_id=campaign_id, outlets=[ASSET]), {**context(), "outlet_events": events})
    extra = events[ASSET].extra
    assert extra == {name: result[name] for name in extra}
    assert set(extra) == {"campaign_id", "status", "started_at", "completed_at", "statistics"}
