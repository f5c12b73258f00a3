# SPDX-License-Identifier: Apache-2.0
"""The sandbox answers as the OpenAPI document says, to good requests and to bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

# The key that schemathesis makes up is not the one that is sent. And a well-formed request for a campaign in the wrong
# state is refused with 400 or 422, as documented.
NOT_APPLICABLE = [ignored_auth, positive_data_acceptance]
# A wrong contact does not make the upload wrong: it is an error in a response with status 200.
NOT_APPLICABLE_TO_UPLOADS = [*NOT_APPLICABLE, negative_data_rejection]

DOCUMENT = Path(__file__).parent / "voicegenie-openapi.yaml"
SERVED = [
    "startCampaign",
    "pauseCampaign",
    "getCampaign",
    "listCampaigns",
    "getCampaignStats",
    "getCampaignHistory",
    "uploadCampaignData",
    "fetchQuota",
]

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


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/getHistory", {"campaign_id": "completed"}, 200),
        ("/getHistory", {"campaign_id": "completed", "status_filter": "failed", "limit": 1, "offset": 1}, 200),
        ("/getHistory", {"campaign_id": "ready", "date_from": "2025-03-04T08:00:00Z"}, 200),
        ("/getHistory", {"campaign_id": "nobody"}, 404),
        ("/getHistory", {}, 400),
        ("/uploadCampaignData", {"campaign_id": "ready", "contacts": [{"phone_number": "+34600111222"}]}, 200),
        ("/uploadCampaignData", {"campaign_name": "new", "contacts": [{"phone_number": "none"}]}, 200),
        ("/uploadCampaignData", {"campaign_id": "nobody", "contacts": [{"phone_number": "+34600111222"}]}, 404),
        ("/uploadCampaignData", {"campaign_id": "ready", "contacts": []}, 400),
        ("/uploadCampaignData", {"campaign_id": "ready", "contacts": [{"name": "x" * 1000}]}, 413),
    ],
)
def test_known_bodies(voicegenie_sandbox, path, body, status):
    voicegenie_sandbox.sandbox.max_upload_bytes = 1000
    headers = {"x-api-key": voicegenie_sandbox.api_key}
    case = schema[path]["POST"].Case(body=body, headers=headers, media_type="application/json")
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code == status
    case.validate_response(response, excluded_checks=NOT_APPLICABLE_TO_UPLOADS)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request(voicegenie_sandbox, case):
    case.headers = {**(case.headers or {}), "x-api-key": voicegenie_sandbox.api_key}
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code < 500
    is_upload = case.operation.path == "/uploadCampaignData"
    case.validate_response(response, excluded_checks=NOT_APPLICABLE_TO_UPLOADS if is_upload else NOT_APPLICABLE)


@schema.parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request_without_the_key(voicegenie_sandbox, case):
    case.headers = {}
    response = case.call(base_url=voicegenie_sandbox.url)
    assert response.status_code in (401, 404, 405)
    assert all(campaign.start_count == 0 for campaign in voicegenie_sandbox.sandbox.store.all())
