# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: their tables are whole, and their footnotes too."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from airflow_provider_voicegenie.api import endpoints

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page):
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        widths = {row.replace(r"\|", "").count("|") for row in table.splitlines()}
        assert len(widths) == 1, table[:200]
        assert all(row.rstrip().endswith("|") for row in table.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_footnote_is_referred_to_and_explained(page):
    text = page.read_text()
    for mark in "¹²³⁴⁵":
        explained = len(re.findall(rf"^\({mark}\) ", text, re.MULTILINE))
        referred = text.count(f"({mark})") - explained
        assert (explained, referred > 0) in ((0, False), (1, True)), mark


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_comma_stands_twice(page):
    assert not re.findall(r".{,40},\s*,.{,40}", page.read_text())


def test_names_that_the_reference_shows_or_leaves_out_exist():
    named = 0
    for page in PAGES:
        for directive in re.finditer(r"\.\. auto(\w+):: (\S+)\n((?:   :.*\n)*)", page.read_text()):
            kind, path, options = directive.groups()
            module, _, name = (path, "", "") if kind == "module" else path.rpartition(".")
            documented = importlib.import_module(module)
            documented = getattr(documented, name) if name else documented
            for names in re.findall(r":(?:exclude-)?members: (.+)", options):
                for member in names.split(", "):
                    named += 1
                    is_there = hasattr(documented, member) or member in getattr(documented, "__annotations__", ())
                    assert is_there, f"{page.name}: {path} has no {member}"
    assert named > 10


def test_the_page_of_metrics_has_each_request():
    module = inspect.getsource(endpoints)
    requests = set(re.findall(r"\b(?:Request|_about)\(\s*\"(\w+)\"", module))
    text = (ROOT / "docs" / "metrics.md").read_text()
    listed = re.search(r"`<request>` is ([^;]*);", text)[1]
    assert set(re.findall(r"`(\w+)`", listed)) == requests
