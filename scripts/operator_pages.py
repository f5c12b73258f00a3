# SPDX-License-Identifier: Apache-2.0
"""
Write a page for each operator and sensor into ``docs/operators``, from its docstring, its signature and the conditions.

A test compares the files with what this returns, so that they stay true. To write them anew::

    python scripts/operator_pages.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import TaskKind
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

DOCS = Path(__file__).resolve().parent.parent / "docs"


@dataclass(frozen=True)
class Page:
    """
    The page of a class.

    :param kind: Its column in the table of conditions.
    :param example: How it is used, in a few lines.
    """

    task: type
    kind: TaskKind
    example: str

    @property
    def path(self) -> Path:
        """The file."""
        return DOCS / "operators" / f"{self.task.__name__}.md"

    def text(self) -> str:
        """Return what is to be in the file."""
        words, parameters = parts_of(self.task)
        summary, _, rest = words.partition("\n\n")
        name = self.task.__name__
        more = "sensor, such as `poke_interval`, `timeout`" if name.endswith("Sensor") else "task, such as `retries`"
        parts = [
            f"# {name}",
            "<!-- Written by scripts/operator_pages.py: change the docstring, and run that. -->",
            summary,
            f"```python\nfrom {self.task.__module__} import {name}\n\n{textwrap.dedent(self.example).strip()}\n```",
            rest,
            "## Arguments",
            f"It has these, and those of every {more} and `execution_timeout`.",
            table("argument | default | what it means", self.arguments(parameters)),
            "## Conditions",
            "What may prevent its work, and what that does to the task, unless `outcomes` changes it. "
            "[More about conditions](../conditions.md).",
            table("condition | outcome | when", self.conditions()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def arguments(self, parameters: Mapping[str, str]) -> Iterator[str]:
        """Return a row for each argument of the class."""
        for name, argument in inspect.signature(self.task).parameters.items():
            if argument.kind is not argument.KEYWORD_ONLY or name == "multiple_outputs":
                continue
            default = argument.default
            if default is argument.empty:
                shown = "required"
            else:
                shown = "none" if default is None or default is NOT_GIVEN else f"`{default!r}`"
            yield f"`{name}` | {shown} | {parameters[name]}"

    def conditions(self) -> Iterator[str]:
        """Return a row for each condition that may come up."""
        rows = re.findall(r"^\| (`[A-Z_]+`) \| (.*) \|$", (DOCS / "conditions.md").read_text(), re.MULTILINE)
        for condition, rest in rows:
            *outcomes, when = rest.split(" | ")
            outcome = outcomes[list(TaskKind).index(self.kind)]
            if outcome != "-":
                yield f"{condition} | {outcome} | {re.sub(' *[(][¹²³⁴⁵⁶⁷⁸][)]', '', when)}"


def table(head: str, rows: Iterator[str]) -> str:
    """Return a table."""
    rule = " | ".join("---" for _ in head.split("|"))
    return "\n".join(f"| {row} |" for row in (head, rule, *rows))


def parts_of(task: type) -> tuple[str, dict[str, str]]:
    """Return the words of a docstring, and what it says of each parameter, as Markdown."""
    words, *fields = re.split(r"^:(?=param |raises )", inspect.getdoc(task) or "", flags=re.MULTILINE)
    parameters = {}
    for each in fields:
        kind, _, text = each.partition(":")
        if kind.startswith("param "):
            parameters[kind.removeprefix("param ").strip()] = " ".join(markdown(text).split())
    # An item of a list may go on in the next line, and so may a code.
    return markdown(words).strip(), parameters


def markdown(text: str) -> str:
    """Turn what our docstrings have of reStructuredText into Markdown."""
    text = re.sub(r":(?:class|meth|func):`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", lambda found: "`" + " ".join(found[1].split()) + "`", text, flags=re.DOTALL)
    return re.sub(r"(?<!\|)\|(?!\|)", r"\\|", text)


PAGES = (
    Page(
        StartCampaignOperator,
        TaskKind.START,
        """
        start = StartCampaignOperator(
            task_id="start",
            campaign_id="{{ params.campaign_id }}",
            wait_for_completion=True,
            deferrable=True,
        )
        """,
    ),
    Page(
        PauseCampaignOperator,
        TaskKind.PAUSE,
        """
        pause = PauseCampaignOperator(task_id="pause", campaign_id="{{ params.campaign_id }}")
        """,
    ),
    Page(
        UploadContactsOperator,
        TaskKind.UPLOAD,
        """
        upload = UploadContactsOperator(
            task_id="upload",
            campaign_id="{{ params.campaign_id }}",
            contacts="s3://crm/customers/{{ ds }}.csv",
            columns={"mobile": "phone_number"},
            exclude="s3://crm/do-not-call.csv",
        )
        """,
    ),
    Page(
        CallHistoryToObjectStorageOperator,
        TaskKind.HISTORY,
        """
        export = CallHistoryToObjectStorageOperator(
            task_id="export",
            campaign_id="{{ params.campaign_id }}",
            path="s3://warehouse/calls/{{ params.campaign_id }}.parquet",
        )
        """,
    ),
    Page(
        CampaignReadySensor,
        TaskKind.READY,
        """
        ready = CampaignReadySensor(task_id="ready", campaign_id="{{ params.campaign_id }}", deferrable=True)
        """,
    ),
    Page(
        CampaignCompletedSensor,
        TaskKind.COMPLETED,
        """
        ended = CampaignCompletedSensor(task_id="ended", campaign_id="{{ params.campaign_id }}", deferrable=True)
        """,
    ),
)


def main() -> None:
    """Write all pages."""
    for page in PAGES:
        page.path.parent.mkdir(exist_ok=True)
        page.path.write_text(page.text())


if __name__ == "__main__":
    main()
