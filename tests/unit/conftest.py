# SPDX-License-Identifier: Apache-2.0
"""What all unit tests may ask for."""

from __future__ import annotations

import pytest


@pytest.fixture
def said(caplog):
    """Return what returns the lines that the provider has logged since it was last asked."""
    caplog.set_level("INFO", "airflow_provider_voicegenie")

    def lines():
        found = [record for record in caplog.records if record.name.startswith("airflow_provider_voicegenie")]
        caplog.clear()
        return [record.getMessage() for record in found]

    return lines
