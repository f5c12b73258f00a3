# SPDX-License-Identifier: Apache-2.0
"""The sandbox's endpoints without HTTP, and its log of requests."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import md5
from typing import Any

from airflow_provider_voicegenie.api.models import read_time, write_time
from airflow_provider_voicegenie.sandbox.campaign import SandboxCampaign
from airflow_provider_voicegenie.sandbox.faults import FaultList
from airflow_provider_voicegenie.sandbox.quota import SandboxQuota
from airflow_provider_voicegenie.sandbox.store import RequestRefusedError, SandboxStore

#: The API key that the sandbox accepts by default.
DEFAULT_API_KEY = "sandbox-key"

_PLAN_PER_MINUTE = 60
_LIST_PER_MINUTE = 100
_STATS_PER_MINUTE = 200
_UPLOADS_PER_MINUTE = 50
_STATS_CACHE_SECONDS = 30.0

#: The history's page by default, and the longest; the documentation names no longest one.
_HISTORY_LIMIT = 50
_MAX_HISTORY_LIMIT = 1000
_HISTORY_STATUSES = ("answered", "busy", "no_answer", "failed")


@dataclass(frozen=True)
class ServiceRequest:
    """
    What a request asks for.

    :param campaign_id: The campaign it is about: from the path, or from the body.
    :param body: The JSON of the body; ``None`` if it is none, or too large to be read.
    :param size: Bytes of the body.
    """

    campaign_id: str | None
    query: Mapping[str, str]
    body: object = None
    size: int = 0


@dataclass
class LoggedRequest:
    """
    One request to the sandbox: logged when it comes, completed with the response.

    :param operation: One of :data:`~airflow_provider_voicegenie.sandbox.faults.OPERATIONS`.
    :param campaign_id: The campaign it was about.
    :param at: When it came.
    :param status: The status of the response; ``None`` if there is none, yet or at all.
    :param acted: Whether it changed a campaign, or made one.
    """

    operation: str
    campaign_id: str | None
    at: datetime
    status: int | None = None
    acted: bool = False

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.operation not in ("start", "pause", "upload")


class Sandbox:
    """
    The sandbox's state, and its options.

    ``quota`` is what the account may use, and ``max_upload_bytes`` the largest body that is accepted: the documented
    500 MB. A test sets them.

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
        self.quota = SandboxQuota()
        self.max_upload_bytes = 500_000_000
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

    def start(self, request: ServiceRequest) -> Mapping[str, Any]:
        campaign = self.store.start(str(request.campaign_id))
        return {"campaign_id": campaign.id, "status": "running", "started_at": write_time(campaign.started_at)}

    def pause(self, request: ServiceRequest) -> Mapping[str, Any]:
        campaign, paused_at, active_calls = self.store.pause(str(request.campaign_id))
        return {
            "campaign_id": campaign.id,
            "status": "paused",
            "paused_at": write_time(paused_at),
            "active_calls": active_calls,
        }

    def get(self, request: ServiceRequest) -> Mapping[str, Any]:
        campaign = self.store.find(str(request.campaign_id))
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

    def list(self, request: ServiceRequest) -> Mapping[str, Any]:
        query = request.query
        if query.get("call_count", "true") not in ("true", "false"):
            raise RequestRefusedError(400, "BAD_REQUEST", "call_count must be true or false")
        limit = _query_number(query.get("limit", "10"), "limit", 1, 1000)
        offset = _query_number(query.get("offset", "0"), "offset", 0, 10**9)
        campaigns = self.store.all()
        return {
            "campaigns": [self._list_item(campaign) for campaign in campaigns[offset : offset + limit]],
            "pagination": {"total": len(campaigns), "limit": limit, "offset": offset},
        }

    def stats(self, request: ServiceRequest) -> Mapping[str, Any]:
        campaign = self.store.find(str(request.campaign_id))
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
            "registered_count": (
                campaign.total_count if campaign.registered_count is None else campaign.registered_count
            ),
            "completed_count": self.store.progress(campaign).completed,
        }

    def names(self, request: ServiceRequest) -> Sequence[Mapping[str, Any]]:
        newest_first = sorted(self.store.all(), key=lambda each: each.created_at, reverse=True)
        return [
            {
                "_id": md5(each.id.encode(), usedforsecurity=False).hexdigest()[:24],
                "campaignName": each.name,
                "campaignId": each.id,
                "status": each.status,
                "createdAt": write_time(each.created_at),
                "updatedAt": write_time(each.updated_at),
            }
            for each in newest_first
        ]

    def upload(self, request: ServiceRequest) -> Mapping[str, Any]:
        if request.size > self.max_upload_bytes:
            raise RequestRefusedError(
                413, "PAYLOAD_TOO_LARGE", f"Request payload exceeds the limit of {self.max_upload_bytes} bytes"
            )
        body = _object(request)
        contacts = body.get("contacts")
        if not isinstance(contacts, list) or not contacts:
            raise _bad("contacts", "must be a list with at least one contact")
        if "campaign_id" in body:
            campaign_id = _text(body, "campaign_id")
        else:
            script_id = _text(body, "script_id") if "script_id" in body else None
            campaign_id = self.store.put(
                SandboxCampaign(name=_text(body, "campaign_name"), script_id=script_id, total_count=0)
            ).id
        uploaded, errors = self.store.upload(campaign_id, contacts)
        return {
            "campaign_id": campaign_id,
            "uploaded_count": uploaded,
            "failed_count": len(errors),
            "errors": errors,
        }

    def history(self, request: ServiceRequest) -> Mapping[str, Any]:
        body = _object(request)
        campaign_id = _text(body, "campaign_id")
        limit = _body_number(body, "limit", _HISTORY_LIMIT, 1, _MAX_HISTORY_LIMIT)
        offset = _body_number(body, "offset", 0, 0, 10**9)
        if "status_filter" in body and body["status_filter"] not in _HISTORY_STATUSES:
            raise _bad("status_filter", f"must be one of {', '.join(_HISTORY_STATUSES)}")
        calls, total = self.store.history(
            campaign_id,
            limit=limit,
            offset=offset,
            status=body.get("status_filter"),
            since=_body_time(body, "date_from"),
            until=_body_time(body, "date_to"),
        )
        return {"history": calls, "pagination": {"total": total, "limit": limit, "offset": offset}}

    def fetch_quota(self, request: ServiceRequest) -> Mapping[str, Any]:
        return self.quota.to_json()

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
        if operation == "upload":
            limits.append(("upload", _UPLOADS_PER_MINUTE))
        now = time.time()
        remaining, reset, maximum = math.inf, now, 0
        with self._lock:
            for name, limit in limits:
                window = self._windows[name]
                while window and window[0] <= now - 60:
                    window.popleft()
                left = limit - len(window)
                if left < remaining:
                    remaining, maximum, reset = left, limit, (window[0] if window else now) + 60
            exceeded = remaining <= 0
            if not exceeded:
                for name, _ in limits:
                    self._windows[name].append(now)
        headers = {
            "X-RateLimit-Limit": str(maximum),
            "X-RateLimit-Remaining": str(max(0, int(remaining) - 1)),
            "X-RateLimit-Reset": str(math.ceil(reset)),
        }
        return headers, exceeded


def _query_number(text: str, name: str, minimum: int, maximum: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and minimum <= int(text) <= maximum:
        return int(text)
    raise RequestRefusedError(400, "BAD_REQUEST", f"{name} must be a number from {minimum} to {maximum}")


def _object(request: ServiceRequest) -> Mapping[str, Any]:
    if not isinstance(request.body, dict):
        raise RequestRefusedError(400, "BAD_REQUEST", "The body must be a JSON object")
    return request.body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _bad(name, "must be a text")
    return value


def _body_number(body: Mapping[str, Any], name: str, default: int, minimum: int, maximum: int) -> int:
    value = body.get(name, default)
    if type(value) is not int or not minimum <= value <= maximum:
        raise _bad(name, f"must be a number from {minimum} to {maximum}")
    return value


def _body_time(body: Mapping[str, Any], name: str) -> datetime | None:
    moment = read_time(body.get(name))
    if name in body and moment is None:
        raise _bad(name, "must be a time in ISO 8601")
    return moment


def _bad(name: str, issue: str) -> RequestRefusedError:
    return RequestRefusedError(400, "BAD_REQUEST", f"{name} {issue}", {"field": name, "issue": issue})
