# SPDX-License-Identifier: Apache-2.0
"""What the DAG author wants of a start."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from airflow_provider_voicegenie.rules.calling_hours import CallingHours
    from airflow_provider_voicegenie.rules.outcomes import OutcomeRules


class StartOptions(NamedTuple):
    """The arguments of a ``StartCampaignOperator``, which explains them; durations are in seconds."""

    outcome_rules: OutcomeRules
    calling_hours: tuple[CallingHours, ...]
    max_contacts: int | None
    check_only: bool
    start_in_backfill: bool
    max_lateness: float | None
    wait_for_completion: bool
    deferrable: bool
    poll_interval: float
    completion_timeout: float | None
    pause_on_kill: bool
    stall_timeout: float | None
    min_success_rate: float | None
    execution_timeout: timedelta | None
