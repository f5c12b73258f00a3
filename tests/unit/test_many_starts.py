# SPDX-License-Identifier: Apache-2.0
"""Many starts at a service that takes few requests a minute: nearly all succeed within their patience. Simulated."""

from __future__ import annotations

import pytest
from helpers.many_starts import simulate_starts
from helpers.rate_limits import LimitedService

SLIDES = pytest.mark.parametrize("slides", [True, False], ids=["slides", "begins anew"])
DEFERRABLE = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "in workers"])


@DEFERRABLE
@pytest.mark.parametrize("tasks_a_minute", [30, 60, 200])
@SLIDES
def test_a_thousand_starts_at_sixty_requests_a_minute(slides, tasks_a_minute, deferrable):
    found = simulate_starts(LimitedService(60, slides), 1000, tasks_a_minute=tasks_a_minute, deferrable=deferrable)
    assert found.failed <= 2
    assert found.done + found.failed == 1000
    # Three requests for each are the least, and take fifty minutes.
    assert found.seconds < 80 * 60
    assert found.requests < 8000


@DEFERRABLE
@SLIDES
def test_a_thousand_starts_at_a_service_that_does_not_say_what_remains(slides, deferrable):
    found = simulate_starts(LimitedService(60, slides, has_headers=False), 1000, deferrable=deferrable)
    assert found.failed <= 2
    assert found.done + found.failed == 1000


@SLIDES
def test_a_hundred_starts_at_twice_that_take_minutes(slides):
    """In a burst that the limit nearly has room for, no start waits for long."""
    found = simulate_starts(LimitedService(120, slides), 100, tasks_a_minute=200, workers=16)
    assert (found.done, found.failed) == (100, 0)
    assert found.seconds < 150
    assert found.requests < 320
