# SPDX-License-Identifier: Apache-2.0
"""The sandbox's endpoints without HTTP, and its log of requests."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request

from airflow_provider_voicegenie.api.models import write_time
from airflow_provider_voicegenie.sandbox.faults import FaultList
from airflow_provider_voicegenie.sandbox.store import RequestRefusedError, SandboxCampaign, SandboxStore

#: The API key that the sandbox accepts by default.
DEFAULT_API_KEY = "sandbox-key"

_PLAN_PER_MINUTE = 60
_LIST_PER_MINUTE = 100
_STATS_PER_MINUTE = 200
_STATS_CACHE_SECONDS = 30.0


@dataclass
class LoggedRequest:
    """
    One request to the sandbox: logged when it comes, completed with the response.

    :param operation: ``start``, ``pause``, ``get``, ``list`` or ``stats``.
    :param campaign_id: The campaign it was about.
    :param at: When it came.
    :param status: The status of the response; ``None`` if there is none, yet or at all.
    :param acted: Whether it changed the campaign.
    """

    operation: str
    campaign_id: str | None
    at: datetime
    status: int | None = None
    acted: bool = False

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.operation not in ("start", "pause")


class Sandbox:
    """
    The sandbox's state, and its options.

    :param store: The campaigns.
    :param api_key: The key that is accepted.
    :param enforce_rate_limits: Whether requests above the documented rates get 429.
    :param cache_stats: Whether statistics are up to 30 seconds old, as documented.
    """

    def __init__(
        self,
        store: SandboxStore | None = None,
        *,
        api_key: str = DEFAULT_API_KEY,
        enforce_rate_limits: bool = False,
        cache_stats: bool = False,
    ) -> None:
        self.store = store or SandboxStore()
        self.api_key = api_key
        self.enforce_rate_limits = enforce_rate_limits
        self.cache_stats = cache_stats
        self.faults = FaultList()
        self.requests: deque[LoggedRequest] = deque(maxlen=100_000)
        self._lock = threading.Lock()
        self._windows: dict[str, deque[float]] = defaultdict(deque)
        self._stats: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def count_requests(self, operation: str, campaign_id: str | None = None) -> int:
        """Return how many requests of a kind came, about one campaign or about any."""
        return sum(
            request.operation == operation and campaign_id in (None, request.campaign_id)
            for request in list(self.requests)
        )

    def reset(self) -> None:
        """Restore the initial campaigns; faults and the log of requests stay."""
        self.store.reset()
        self._stats.clear()

    # The service's endpoints.

    def start(self, request: Request, campaign_id: str | None) -> Mapping[str, Any]:
        campaign = self.store.start(str(campaign_id))
        return {"campaign_id": campaign.id, "status": "running", "started_at": write_time(campaign.started_at)}

    def pause(self, request: Request, campaign_id: str | None) -> Mapping[str, Any]:
        campaign, paused_at, active_calls = self.store.pause(str(campaign_id))
        return {
            "campaign_id": campaign.id,
            "status": "paused",
            "paused_at": write_time(paused_at),
            "active_calls": active_calls,
        }

    def get(self, request: Request, campaign_id: str | None) -> Mapping[str, Any]:
        campaign = self.store.find(str(campaign_id))
        progress = self.store.progress(campaign)
        return {
            "id": campaign.id,
            "name": campaign.name,
            "campaign_status": campaign.status,
            "script_id": campaign.script_id,
            # Like the service's own example, fewer ids than contacts.
            "contact_ids": [f"contact-{number}" for number in range(min(campaign.total_count, 3))],
            "total_count": campaign.total_count,
            "completed_count": progress.completed,
            "failed_count": progress.failed,
            "created_at": write_time(campaign.created_at),
            "updated_at": write_time(campaign.updated_at),
        }

    def list(self, request: Request, campaign_id: str | None) -> Mapping[str, Any]:
        query = request.query_params
        if query.get("call_count", "true") not in ("true", "false"):
            raise RequestRefusedError(400, "BAD_REQUEST", "call_count must be true or false")
        limit = _query_number(query.get("limit", "10"), "limit", 1, 1000)
        offset = _query_number(query.get("offset", "0"), "offset", 0, 10**9)
        campaigns = self.store.all()
        return {
            "campaigns": [self._list_item(campaign) for campaign in campaigns[offset : offset + limit]],
            "pagination": {"total": len(campaigns), "limit": limit, "offset": offset},
        }

    def stats(self, request: Request, campaign_id: str | None) -> Mapping[str, Any]:
        campaign = self.store.find(str(campaign_id))
        age, cached = self._stats.get(campaign.id, (-math.inf, {}))
        now = time.monotonic()
        if self.cache_stats and now - age < _STATS_CACHE_SECONDS:
            return cached
        progress = self.store.progress(campaign)
        ended = progress.completed + progress.failed
        data = {
            "campaign_id": campaign.id,
            "campaign_name": campaign.name,
            "total_contacts": campaign.total_count,
            "calls_completed": progress.completed,
            "calls_failed": progress.failed,
            "calls_in_progress": progress.in_progress,
            "calls_pending": progress.pending,
            "success_rate": round(100 * progress.completed / ended, 2) if ended else None,
            "average_call_duration": 30 if progress.completed else None,
            "total_call_duration": 30 * progress.completed,
            "call_status_breakdown": progress.breakdown,
            "started_at": write_time(campaign.started_at),
            "completed_at": write_time(campaign.ended_at) if campaign.status == "completed" else None,
        }
        self._stats[campaign.id] = (now, data)
        return data

    def _list_item(self, campaign: SandboxCampaign) -> Mapping[str, Any]:
        return {
            "id": campaign.id,
            "name": campaign.name,
            "campaign_status": campaign.status,
            "created_at": write_time(campaign.created_at),
            "updated_at": write_time(campaign.updated_at),
            "campaign_start_time": write_time(campaign.started_at),
            "campaign_end_time": write_time(campaign.ended_at),
            "total_count": campaign.total_count,
            "registered_count": campaign.total_count,
            "completed_count": self.store.progress(campaign).completed,
        }

    # The service's rate limits.

    def rate_limit(self, operation: str, campaign_id: str | None) -> tuple[dict[str, str], bool]:
        """Count a request; return the headers about it, and whether it exceeds the documented rates."""
        if not self.enforce_rate_limits:
            return {}, False
        limits = [("plan", _PLAN_PER_MINUTE)]
        if operation == "list":
            limits.append(("list", _LIST_PER_MINUTE))
        if operation == "stats":
            limits.append((f"stats {campaign_id}", _STATS_PER_MINUTE))
        now = time.time()
        remaining, reset, most = math.inf, now, 0
        with self._lock:
            for name, limit in limits:
                window = self._windows[name]
                while window and window[0] <= now - 60:
                    window.popleft()
                left = limit - len(window)
                if left < remaining:
                    remaining, most, reset = left, limit, (window[0] if window else now) + 60
            exceeded = remaining <= 0
            if not exceeded:
                for name, _ in limits:
                    self._windows[name].append(now)
        headers = {
            "X-RateLimit-Limit": str(most),
            "X-RateLimit-Remaining": str(max(0, int(remaining) - 1)),
            "X-RateLimit-Reset": str(math.ceil(reset)),
        }
        return headers, exceeded


def _query_number(text: str, name: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise RequestRefusedError(400, "BAD_REQUEST", f"{name} must be a number from {least} to {most}")
