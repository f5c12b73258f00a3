# SPDX-License-Identifier: Apache-2.0
"""The sandbox answers as the OpenAPI document says, to good requests and to bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

# The key that schemathesis makes up is not the one that is sent. And a well-formed request for a campaign in the wrong
# state is refused with 400 or 422, as documented.
NOT_APPLICABLE = [ignored_auth, positive_data_acceptance]

DOCUMENT = Path(__file__).parent / "voicegenie-openapi.yaml"
SERVED = ["startCampaign", "pauseCampaign", "getCampaign", "listCampaigns", "getCampaignStats"]

schema = schemathesis.openapi.from_path(DOCUMENT).include(operation_id=SERVED)


def test_all_calls_of_the_sandbox_are_in_the_document():
    assert sorted(operation.ok().definition.raw["operationId"] for operation in schema.get_all_operations()) == sorted(
        SERVED
    )


@pytest.mark.parametrize("campaign_id", ["ready", "paused", "running", "draft", "completed", "nobody"])
@pytest.mark.parametrize(
    "path",
    [
        "/startCampaign/{campaignId}",
        "/pauseTheCampaign/{campaignId}",
        "/campaign/{id}",
        "/getCampaignStats/{campaignId}",
    ],
)
def test_known_campaigns(voicegenie_sandbox, path, campaign_id):
    """Every seed, so that every documented status of an answer is reached."""
    name = "id" if path == "/campaign/{id}" else "campaignId"
    headers = {"x-api-key": voicegenie_sandbox.api_key}
    case = schema[path]["GET"].Case(path_parameters={name: campaign_id}, headers=headers)
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code != 401
    case.validate_response(response, excluded_checks=NOT_APPLICABLE)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request(voicegenie_sandbox, case):
    case.headers = {**(case.headers or {}), "x-api-key": voicegenie_sandbox.api_key}
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code < 500
    case.validate_response(response, excluded_checks=NOT_APPLICABLE)


@schema.parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request_without_the_key(voicegenie_sandbox, case):
    case.headers = {}
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code in (401, 404, 405)
    assert all(campaign.start_count == 0 for campaign in voicegenie_sandbox.sandbox.store.all())
