# SPDX-License-Identifier: Apache-2.0
"""What all watches have in common: what they want next, and what they take, without I/O."""

from __future__ import annotations

import pytest

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.rules.outcomes import OutcomeRules, TaskKind
from airflow_provider_voicegenie.rules.prerequisites import Check, HasContacts, Prerequisite
from airflow_provider_voicegenie.waiting.completion import CompletionWatch
from airflow_provider_voicegenie.waiting.pausing import PauseWatch
from airflow_provider_voicegenie.waiting.readiness import ReadinessWatch
from airflow_provider_voicegenie.waiting.watch import EndReason

T = 1_000_000.0

WATCHES = {
    CompletionWatch: (TaskKind.COMPLETED, {}),
    PauseWatch: (TaskKind.PAUSE, {}),
    ReadinessWatch: (TaskKind.READY, {"prerequisites": [HasContacts()]}),
}


def make(cls, **arguments):
    kind, own = WATCHES[cls]
    return cls("c", OutcomeRules(kind).while_waiting(), T, **{**own, **arguments})


def campaign(status):
    return Campaign("c", CampaignStatus.read(status), status)


@pytest.mark.parametrize("cls", WATCHES)
def test_each_wants_the_campaign_first_and_after_an_error(cls):
    watch = make(cls)
    for _ in range(2):
        assert (watch.wants.name, watch.wants.campaign_id, watch.is_urgent, watch.has_read) == (
            "get",
            "c",
            False,
            False,
        )
        assert watch.take(errors.ServerError("Later."), T) is None
    assert watch.delay(10, 1, 17, T) == 17
    end = watch.take(errors.NotFoundError("None."), T)
    assert (end.reason, end.finding.condition) == (EndReason.CONDITION, "NOT_FOUND")
    assert watch.time_is_up(T, EndReason.TIMEOUT) == end


def test_a_pause_watch_knows_what_an_error_is_of():
    """A pause without a response may have taken effect; a read has none."""
    lost = errors.ConnectionFailedError("Lost.", may_have_taken_effect=True)
    watch = make(PauseWatch)
    assert watch.take(campaign("running"), T) is None
    assert (watch.wants.name, watch.is_urgent, watch.delay(60, 0, None, T)) == ("pause", True, 0)
    assert watch.take(lost, T) is None
    assert (watch.wants.name, watch.is_urgent) == ("get", False)
    # It took effect, which is the one pause.
    assert watch.take(campaign("paused"), T) is None
    assert watch.time_is_up(T, EndReason.TIMEOUT).result == {"status": "paused", "paused_again": 1}


def test_a_pause_watch_goes_on_where_another_process_ended():
    first = make(PauseWatch)
    first.take(campaign("running"), T)
    first.take(PausedCampaign("c", CampaignStatus.PAUSED, "paused", None, None), T)
    end = first.time_is_up(T, EndReason.TIMEOUT)
    assert end.is_done
    watch = make(PauseWatch)
    assert watch.resume(end)
    watch.take(campaign("running"), T)
    assert watch.wants.name == "pause"
    assert watch.time_is_up(T, EndReason.TIMEOUT).result["paused_again"] == 1


def test_a_check_that_ends_after_the_time_of_the_wait_changes_nothing(said):
    """The triggerer checks in a thread, which nothing can cut short."""
    ends = []

    class IsSlow(Prerequisite):
        def check(self, campaign, now):
            ends.append(watch.time_is_up(T, EndReason.TIMEOUT))
            return Check.met()

    watch = make(ReadinessWatch, prerequisites=[IsSlow()])
    assert watch.take(campaign("paused"), T) == ends[0]
    assert ends[0].reason is EndReason.TIMEOUT
    assert said() == []
