# SPDX-License-Identifier: Apache-2.0
"""The pages of the operators and sensors say what their docstrings say."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

from airflow_provider_voicegenie.campaign_task import CampaignTask

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "operator_pages.py"))
PAGES = {page.task: page for page in SCRIPT["PAGES"]}


def tasks_of(task):
    below = task.__subclasses__()
    public = [task] if not task.__name__.startswith("_") and not inspect.isabstract(task) and task.__doc__ else []
    return [*(public if not below else []), *(each for one in below for each in tasks_of(one))]


def test_each_task_has_a_page():
    # By name: Airflow may have imported a class anew in another test.
    tasks = [each for each in tasks_of(CampaignTask) if each.__module__.startswith("airflow_provider_")]
    assert {each.__name__ for each in PAGES} == {each.__name__ for each in tasks}
    assert {page.path for page in PAGES.values()} == set(next(iter(PAGES.values())).path.parent.glob("*.md"))


@pytest.mark.parametrize("task", PAGES, ids=lambda task: task.__name__)
def test_a_page_is_as_it_is_written(task):
    page = PAGES[task]
    assert page.path.read_text() == page.text(), "write the pages anew: python scripts/operator_pages.py"
    rows = [line for line in page.text().splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    assert all(line.replace(r"\|", "").count("|") == 4 for line in rows)
