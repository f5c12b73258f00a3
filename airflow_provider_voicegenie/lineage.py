# SPDX-License-Identifier: Apache-2.0
"""
A task's lineage for OpenLineage: the campaign and the file that it reads or writes, and the campaign's state.

Airflow's OpenLineage provider asks for it, so this module is loaded only where that is installed. It asks in a fork of
the task's process, so nothing may be asked of Airflow or of the service here: only what the task knows by then counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attr
from airflow.providers.common.compat.openlineage.facet import (
    DatasetFacet,
    InputDataset,
    OutputDataset,
    OutputStatisticsOutputDatasetFacet,
    RunFacet,
)
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.providers.openlineage.extractors import OperatorLineage

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.endpoints import check_campaign_id
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.files import storage_path
from airflow_provider_voicegenie.rules.file_formats import file_format
from airflow_provider_voicegenie.rules.outcomes import TaskKind

_PRODUCER = f"pkg:pypi/airflow-provider-voicegenie@{__version__}"

#: The names that OpenLineage has for what goes by several.
_SCHEMES = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}

_READ_THE_CAMPAIGN = frozenset(TaskKind) - {TaskKind.PAUSE, TaskKind.UPLOAD}
_CHANGE_THE_CAMPAIGN = frozenset({TaskKind.PAUSE, TaskKind.START, TaskKind.UPLOAD})


@attr.define
class VoicegenieTaskRunFacet(RunFacet):
    """
    What a run of a task is about.

    :param campaign_id: Id of the campaign; ``None`` if the task was given what cannot be one.
    :param condition: The condition that came up last, by which a task that failed or was skipped has ended.
    """

    campaign_id: str | None
    voicegenie_conn_id: str
    condition: str | None = None


@attr.define
class VoicegenieCampaignDatasetFacet(DatasetFacet):
    """
    The campaign as a start left it, by the names that the task's XCom has.

    :param completed_at: When it was completed.
    :param statistics: Its final statistics: numbers only.
    """

    status: str
    started_at: str | None
    started_by_task: bool
    completed_at: str | None = None
    statistics: Mapping[str, Any] | None = None


def lineage_of(task: Any) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a task, as far as its attributes show it by now.

    :param task: A :class:`~airflow_provider_voicegenie.campaign_task.CampaignTask`, before or after its work.
    """
    kind = task.outcome_rules.kind
    returned = task.returned or {}
    lineage: OperatorLineage[Any, Any] = OperatorLineage()
    campaign_id = _campaign_id(task)
    lineage.run_facets["voicegenie_task"] = VoicegenieTaskRunFacet(
        campaign_id, task.voicegenie_conn_id, task.outcome_rules.applied, producer=_PRODUCER
    )
    if file := _file(getattr(task, "rows_or_path", None)):
        lineage.inputs.append(InputDataset(*file))
    if file := _file(getattr(task, "path", None)):
        lineage.outputs.append(OutputDataset(*file, _written(returned.get("rows"), returned.get("bytes"))))
    namespace = _namespace(task)
    if campaign_id is None or namespace is None:
        return lineage
    if kind in _READ_THE_CAMPAIGN:
        lineage.inputs.append(InputDataset(namespace, campaign_id))
    if kind in _CHANGE_THE_CAMPAIGN:
        facets: dict[str, DatasetFacet] = {}
        if kind is TaskKind.START and returned:
            names = ("status", "started_at", "started_by_task", "completed_at", "statistics")
            fields: Any = {name: returned.get(name) for name in names}
            facets["voicegenie_campaign"] = VoicegenieCampaignDatasetFacet(**fields, producer=_PRODUCER)
        lineage.outputs.append(OutputDataset(namespace, campaign_id, _written(returned.get("uploaded")), facets=facets))
    return lineage


def _campaign_id(task: Any) -> str | None:
    campaign_id = task.campaign_id
    try:
        check_campaign_id(campaign_id)
    except VoiceGenieError:
        # A template may have given something else that is not fit to be shown.
        return None
    return str(campaign_id)


def _namespace(task: Any) -> str | None:
    """Return the namespace of the service's campaigns; ``None`` while the task has not read its connection."""
    hook = vars(task).get("_hook")
    address = None if hook is None else hook.known_address
    if address is None:
        return None
    # It is in words if the host could be an API key in the wrong field.
    return f"voicegenie://{task.voicegenie_conn_id if ' ' in address else address}"


def _file(path: object) -> tuple[str, str] | None:
    """Return namespace and name of a file; ``None`` for what is no path, such as rows that are a text."""
    try:
        if isinstance(path, str) and path.isprintable():
            file_format(path)
            path = storage_path(path)
    except ValueError:
        return None
    if not isinstance(path, ObjectStoragePath):
        return None
    scheme = path.protocol
    if scheme in ("", "file", "local"):
        return "file", str(Path(path.path).absolute())
    # Without the id of a connection, and with the scheme once more if that is HTTP.
    place = path.path.removeprefix(f"{scheme}://")
    if scheme in ("http", "https"):
        # The query may be a signature.
        place = place.partition("?")[0]
    bucket, _, name = place.partition("/")
    return f"{_SCHEMES.get(scheme, scheme)}://{bucket}", name


def _written(rows: int | None, size: int | None = None) -> dict[str, Any]:
    return {} if rows is None else {"outputStatistics": OutputStatisticsOutputDatasetFacet(rows, size)}
