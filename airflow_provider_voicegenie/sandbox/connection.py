# SPDX-License-Identifier: Apache-2.0
"""The Airflow connection to a sandbox."""

from __future__ import annotations

import json
from typing import Any


def airflow_connection(url: str, api_key: str, **extra: Any) -> str:
    """
    Return an Airflow connection to a sandbox, as JSON for an environment variable.

    :param url: The sandbox's base URL.
    :param api_key: The key it accepts.
    :param extra: Fields of the connection's extra; ``campaign_url`` is the sandbox's page by default.
    """
    extra = {"campaign_url": f"{url}/#campaign-{{campaign_id}}", **extra}
    return json.dumps({"conn_type": "voicegenie", "host": url, "password": api_key, "extra": json.dumps(extra)})
