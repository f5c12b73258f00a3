# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api.endpoints import GET, PAUSE, START, STATS, campaign_call, list_call
from airflow_provider_voicegenie.api.errors import InvalidCampaignIdError


@pytest.mark.parametrize(
    ("campaign_id", "target"),
    [
        ("550e8400-e29b-41d4-a716-446655440000", "/startCampaign/550e8400-e29b-41d4-a716-446655440000"),
        ("x?y=z", "/startCampaign/x%3Fy%3Dz"),
        ("x#y", "/startCampaign/x%23y"),
        ("a/b", "/startCampaign/a%2Fb"),
        ("a b", "/startCampaign/a%20b"),
        ("ünï", "/startCampaign/%C3%BCn%C3%AF"),
        ("50%", "/startCampaign/50%25"),
    ],
)
def test_ids_are_escaped(campaign_id, target):
    assert campaign_call(START, campaign_id).target == target


@pytest.mark.parametrize(
    ("campaign_id", "problem"),
    [
        ("../pauseTheCampaign/x", "another path"),
        ("..", "another path"),
        (".", "another path"),
        ("%2e%2e", "another path"),
        ("%252e%252e", "another path"),
        ("..\\x", "another path"),
        ("", "is empty"),
        ("   ", "is empty"),
        ("a\r\nX: y", "control"),
        ("a\x00", "control"),
        ("a\u202eb", "control"),
        ("\ud800", "control"),
        (" a", "white space"),
        ("a\n", "white space"),
        ("x" * 10_240, "10240 characters"),
        (42, "must be a string; got 42 (int). If it comes from a template, the DAG's render_template_as_native_obj"),
        (1e9, "render_template_as_native_obj"),
        (["a"], "must be a string"),
        (None, "the template gave None"),
        ("None", "'None' is missing: the template gave None"),
        ("null", "the template gave None"),
        (" NULL ", "the template gave None"),
        ("undefined", "the template gave None"),
        ("nan", "the template gave None"),
    ],
)
def test_what_cannot_be_an_id_is_refused(campaign_id, problem):
    with pytest.raises(InvalidCampaignIdError) as caught:
        campaign_call(GET, campaign_id)
    assert problem in str(caught.value)
    assert "campaign_id" in str(caught.value)
    assert len(str(caught.value)) < 350


@given(st.text(max_size=300))
def test_an_id_stays_one_segment_of_the_path(campaign_id):
    for endpoint in (START, PAUSE, GET, STATS):
        try:
            target = campaign_call(endpoint, campaign_id).target
        except InvalidCampaignIdError:
            continue
        parts = urlsplit(f"https://host{target}")
        assert parts.netloc == "host"
        assert not parts.query
        assert not parts.fragment
        *folder, last = parts.path.split("/")
        assert "/".join(folder) == endpoint.path.rpartition("/")[0]
        assert unquote(last) == campaign_id
        assert last not in (".", "..")


def test_only_start_and_pause_have_an_effect():
    assert [endpoint.has_effect for endpoint in (START, PAUSE, GET, STATS)] == [True, True, False, False]


def test_the_list_writes_its_flag_in_lower_case():
    assert (
        list_call(limit=5, offset=10, call_count=False).target
        == "/fetchCampaignData?call_count=false&limit=5&offset=10"
    )
