# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: their tables are whole, and their footnotes too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
