# SPDX-License-Identifier: Apache-2.0
"""After a task is killed: when a pause is tried again, and what the user is told."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.models import CampaignStatus, PausedCampaign
from airflow_provider_voicegenie.decisions.killing import after_pause


@pytest.mark.parametrize(
    ("outcome", "level", "again"),
    [
        (PausedCampaign("c", CampaignStatus.PAUSED, "paused", None, 0), logging.WARNING, False),
        (errors.CampaignNotRunningError("no"), logging.INFO, False),
        (errors.ConnectionFailedError("no"), logging.WARNING, True),
        (errors.RedirectedError("no", may_have_taken_effect=True), logging.WARNING, True),
        (errors.RedirectedError("no"), logging.ERROR, False),
        (errors.UnauthorizedError("no"), logging.ERROR, False),
    ],
)
def test_after_a_pause(outcome, level, again):
    note = after_pause("c", outcome)
    assert (note.level, note.again) == (level, again)
    assert ("IT MAY GO ON CALLING" in note.text) == (level == logging.ERROR)
