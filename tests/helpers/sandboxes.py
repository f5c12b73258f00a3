# SPDX-License-Identifier: Apache-2.0
"""A second sandbox: the service of another account."""

from __future__ import annotations

import contextlib

from airflow_provider_voicegenie.sandbox.pytest_plugin import SandboxForTests
from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox


@contextlib.contextmanager
def second_sandbox():
    """Run one, whose campaigns have the same ids as those of the first."""
    sandbox = Sandbox()
    with running(sandbox) as url:
        yield SandboxForTests(sandbox, url)
