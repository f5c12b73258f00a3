# SPDX-License-Identifier: Apache-2.0
"""
What is counted and timed, by Airflow's own metrics: StatsD or OpenTelemetry, if Airflow's configuration has one.

The documentation has a table of them. What varies is a part of a metric's name, as not all receivers know tags. No
failure to report a metric disturbs a task.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from datetime import timedelta
from typing import Any

_PREFIX = "voicegenie"


def count_start(*, was_ambiguous: bool) -> None:
    """
    Count a start that took effect.

    :param was_ambiguous: Whether its response was lost, so that the task had to find out.
    """
    _report("incr", "starts")
    if was_ambiguous:
        _report("incr", "starts_without_response")


def count_request(name: str, result: str) -> None:
    """
    Count a request.

    :param name: Its name, such as ``start``.
    :param result: ``ok``, or the condition that its error is.
    """
    _report("incr", f"requests.{name if name.isidentifier() else 'other'}.{result.lower()}")


def show_waits(voicegenie_conn_id: str, waits: int) -> None:
    """Show how many deferred tasks of this triggerer wait for campaigns of one connection."""
    _report("gauge", f"waits.{_part(socket.gethostname())}.{_part(voicegenie_conn_id)}", waits)


def time_end(seconds: float) -> None:
    """
    Time how long after its campaign a task ended.

    :param seconds: From the campaign's end, by the service's clock, to now.
    """
    _report("timing", "end_delay", timedelta(seconds=max(0.0, seconds)))


def _report(method: str, name: str, *values: Any) -> None:
    # From here, as it loads much of Airflow, and a DAG file with a watcher imports this module.
    from airflow.providers.common.compat.sdk import Stats

    with suppress(Exception):
        getattr(Stats, method)(f"{_PREFIX}.{name}", *values)


def _part(text: str) -> str:
    """Return a text as a part of a metric's name, in which dots separate the parts."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)
