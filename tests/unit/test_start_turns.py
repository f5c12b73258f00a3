# SPDX-License-Identifier: Apache-2.0
"""Many starts at a service that takes few requests a minute: all get their turn. Simulated."""

from __future__ import annotations

import pytest
from helpers.rate_limits import LimitedService
from helpers.start_turns import simulate_starts

SLIDES = pytest.mark.parametrize("slides", [True, False], ids=["slides", "begins anew"])


@pytest.mark.parametrize("triggerers", [0, 1, 2], ids=["workers", "a triggerer", "two triggerers"])
@pytest.mark.parametrize("tasks_a_minute", [30, 200])
@SLIDES
def test_a_thousand_starts_at_sixty_requests_a_minute(slides, tasks_a_minute, triggerers):
    found = simulate_starts(LimitedService(60, slides), 1000, tasks_a_minute=tasks_a_minute, triggerers=triggerers)
    # Those who hold their workers do not stand in a line.
    assert found.failed <= (2 if triggerers == 0 else 0)
    assert found.done + found.failed == 1000
    # Three requests for each are the least, and take fifty minutes.
    assert found.seconds < 70 * 60
    assert found.requests < 6500


@pytest.mark.parametrize("triggerers", [0, 2], ids=["workers", "two triggerers"])
@SLIDES
def test_a_thousand_starts_at_a_service_that_does_not_say_what_remains(slides, triggerers):
    found = simulate_starts(LimitedService(60, slides, has_headers=False), 1000, triggerers=triggerers)
    # A start that is sent can be refused although the read before it was not: four times in a row, for a few.
    assert found.failed <= (15 if triggerers == 0 else 1)
    assert found.done + found.failed == 1000
