# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api.endpoints import campaign, campaign_page, other, pause, start, statistics
from airflow_provider_voicegenie.api.errors import InvalidCampaignIdError


@pytest.mark.parametrize(
    ("campaign_id", "path"),
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
def test_ids_are_escaped(campaign_id, path):
    assert start(campaign_id).path == path


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
        campaign(campaign_id)
    assert problem in str(caught.value)
    assert "campaign_id" in str(caught.value)
    assert len(str(caught.value)) < 350


@given(st.text(max_size=300))
def test_an_id_stays_one_segment_of_the_path(campaign_id):
    for make in (start, pause, campaign, statistics):
        try:
            path = make(campaign_id).path
        except InvalidCampaignIdError:
            continue
        parts = urlsplit(f"https://host{path}")
        assert parts.netloc == "host"
        assert not parts.query
        assert not parts.fragment
        *folder, last = parts.path.split("/")
        assert "/".join(folder) == make("c").path.rpartition("/")[0]
        assert unquote(last) == campaign_id
        assert last not in (".", "..")


def test_only_what_changes_something_is_sent_once():
    assert [make("c").is_repeatable for make in (start, pause, campaign, statistics)] == [False, False, True, True]
    assert campaign_page(limit=1, offset=0).is_repeatable
    assert [other("GET", "/x", repeatable=repeatable).is_repeatable for repeatable in (False, True)] == [False, True]


def test_the_list_writes_its_flag_in_lower_case():
    request = campaign_page(limit=5, offset=10, call_count=False)
    assert (request.path, request.params) == (
        "/fetchCampaignData",
        (("call_count", "false"), ("limit", 5), ("offset", 10)),
    )


@pytest.mark.parametrize("path", ["getHistory", "", "//elsewhere.example.com/x", "https://elsewhere.example.com/x"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match=r"path must be a path below the base URL, such as .*; got"):
        other("GET", path)
