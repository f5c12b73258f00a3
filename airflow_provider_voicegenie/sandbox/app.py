# SPDX-License-Identifier: Apache-2.0
"""
The sandbox over HTTP: the service's five campaign calls, a page at ``/``, and control endpoints below ``/_sandbox``.

The service's paths hold no segment that begins with an underscore, so the two cannot clash.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from airflow_provider_voicegenie.api.models import write_time
from airflow_provider_voicegenie.sandbox.faults import Fault, FaultKind, FaultList
from airflow_provider_voicegenie.sandbox.origin import comes_from_elsewhere
from airflow_provider_voicegenie.sandbox.page import page_routes
from airflow_provider_voicegenie.sandbox.store import RefusedCallError, SandboxCampaign, SandboxStore

#: The key the sandbox accepts unless it is told another.
DEFAULT_API_KEY = "sandbox-key"

#: The open connections by the client's address, kept by the server's protocol, see ``server``.
open_connections: dict[tuple[str, int], asyncio.Transport] = {}

_PLAN_PER_MINUTE = 60
_LIST_PER_MINUTE = 100
_STATS_PER_MINUTE = 200
_STATS_CACHE_SECONDS = 30.0

Handler = Callable[[Request, str | None], Mapping[str, Any]]


@dataclass
class LoggedRequest:
    """
    One request the sandbox saw, noted when it came and completed when it was answered.

    :param operation: ``start``, ``pause``, ``get``, ``list`` or ``stats``.
    :param campaign_id: The campaign it was about.
    :param at: When it came.
    :param status: The status of the answer; ``None`` where there is none, yet or at all.
    :param acted: Whether it changed the campaign.
    """

    operation: str
    campaign_id: str | None
    at: datetime
    status: int | None = None
    acted: bool = False


class Sandbox:
    """
    The sandbox's state, and what can be switched on.

    :param store: The campaigns.
    :param api_key: The key that is accepted.
    :param enforce_rate_limits: Whether calls beyond the documented rates get 429.
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

    # What the service does.

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
            # The service's own example lists fewer ids than there are contacts.
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
            raise RefusedCallError(400, "BAD_REQUEST", "call_count must be true or false")
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

    # What stands around it.

    def rate_limit(self, operation: str, campaign_id: str | None) -> tuple[dict[str, str], bool]:
        """Count a request; return the headers about it, and whether it goes beyond the documented rates."""
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


def create_app(sandbox: Sandbox) -> Starlette:
    """Return the ASGI application of a sandbox."""
    service = [
        Route(path, _service_endpoint(sandbox, operation), methods=["GET"])
        for operation, path in (
            ("start", "/startCampaign/{campaign_id:path}"),
            ("pause", "/pauseTheCampaign/{campaign_id:path}"),
            ("get", "/campaign/{campaign_id:path}"),
            ("stats", "/getCampaignStats/{campaign_id:path}"),
            ("list", "/fetchCampaignData"),
        )
    ]
    app = Starlette(
        routes=service + page_routes(sandbox) + _control_routes(sandbox),
        exception_handlers={HTTPException: _no_such_endpoint},
    )
    # The service is not known to redirect; what is not a path of its is answered as such.
    app.router.redirect_slashes = False
    return app


def _service_endpoint(sandbox: Sandbox, operation: str) -> Callable[[Request], Awaitable[Response]]:
    act: Handler = getattr(sandbox, operation)

    async def endpoint(request: Request) -> Response:
        campaign_id = _campaign_id(request)
        fault = sandbox.faults.take(operation, campaign_id)
        logged = LoggedRequest(operation, campaign_id, datetime.now(UTC))
        sandbox.requests.append(logged)
        response: Response | None = None
        if fault is None or fault.after_acting or fault.kind is FaultKind.DELAY:
            if fault is not None and fault.kind is FaultKind.DELAY and not fault.after_acting:
                await asyncio.sleep(fault.seconds)
            response = await run_in_threadpool(_answer, sandbox, operation, campaign_id, act, request)
            logged.acted = operation in ("start", "pause") and response.status_code == 200
        if fault is not None:
            response = await _spoil(fault, response, request)
        if response is None:
            if (connection := open_connections.get(request.scope["client"])) is not None:
                connection.abort()
            return Response()
        logged.status = response.status_code
        return response

    return endpoint


def _campaign_id(request: Request) -> str | None:
    if "campaign_id" not in request.path_params:
        return None
    # The router works on the unescaped path; the raw one tells the id "a/b" from a path of one segment more.
    _, _, *segments = request.scope["raw_path"].decode("ascii").split("/")
    if len(segments) != 1:
        raise HTTPException(404)
    return unquote(segments[0])


def _answer(sandbox: Sandbox, operation: str, campaign_id: str | None, act: Handler, request: Request) -> Response:
    if request.headers.get("x-api-key") != sandbox.api_key:
        return _error(401, "UNAUTHORIZED", "Invalid or missing API key")
    headers, exceeded = sandbox.rate_limit(operation, campaign_id)
    if exceeded:
        return _error(429, "RATE_LIMIT_EXCEEDED", "Too many requests", headers=headers)
    try:
        data = act(request, campaign_id)
    except RefusedCallError as refusal:
        return _error(refusal.status, refusal.code, refusal.message, refusal.details, headers)
    return JSONResponse({"success": True, "data": data, "message": "OK"}, headers=headers)


async def _spoil(fault: Fault, response: Response | None, request: Request) -> Response | None:
    """Return the answer a fault leaves; ``None`` for none at all."""
    match fault.kind:
        case FaultKind.CLOSE:
            return None
        case FaultKind.HOLD:
            while not await request.is_disconnected():
                await asyncio.sleep(0.05)
            return None
        case FaultKind.DELAY:
            if fault.after_acting:
                await asyncio.sleep(fault.seconds)
            return response
        case FaultKind.STATUS if fault.body is None:
            return _error(fault.status, _CODES.get(fault.status), "Injected fault", headers=fault.headers)
        case FaultKind.STATUS:
            return Response(fault.body, fault.status, dict(fault.headers))
        case FaultKind.TRUNCATED:
            body = bytes(response.body) if response is not None else b'{"success": true, "data": {"campaign'
            return Response(body[: len(body) // 2], headers={"content-length": str(len(body))})
        case FaultKind.NOT_JSON:
            return HTMLResponse("<html><body>Welcome to the network.</body></html>")
        case FaultKind.OVERSIZED:
            return StreamingResponse(_oversized(fault.size), media_type="application/json")
        case FaultKind.GZIP_BOMB:
            bomb = gzip.compress(b'{"success": true, "data": {"filler": "' + b"x" * fault.size + b'"}}')
            return Response(bomb, headers={"content-encoding": "gzip"}, media_type="application/json")
        case FaultKind.DRIP:
            return StreamingResponse(_drip(fault.seconds), media_type="application/json")
        case FaultKind.REDIRECT:
            status = fault.status if 300 <= fault.status < 400 else 302
            return Response(status_code=status, headers={"location": fault.location})


#: The documented code of a status, for a fault that names none.
_CODES: Mapping[int, str] = {
    401: "UNAUTHORIZED",
    404: "NOT_FOUND",
    429: "RATE_LIMIT_EXCEEDED",
    500: "INTERNAL_SERVER_ERROR",
}


async def _oversized(size: int) -> Any:
    yield b'{"success": true, "data": {"filler": "'
    for _ in range(0, size, 65536):
        yield b"x" * 65536
    yield b'"}}'


async def _drip(seconds: float) -> Any:
    for byte in b'{"success": true, "data": {' + b" " * 100_000:
        yield bytes([byte])
        await asyncio.sleep(seconds)


def _error(
    status: int,
    code: str | None,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body: dict[str, Any] = {"success": False, "message": message}
    if code is not None:
        body["error"] = code
    if details is not None:
        body["details"] = dict(details)
    return JSONResponse(body, status, dict(headers or {}))


async def _no_such_endpoint(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    # A code of its own: that a path is unknown must not look like an unknown campaign.
    return _error(status, "NO_SUCH_ENDPOINT", "The sandbox has no such endpoint", headers=headers)


def _query_number(text: str, name: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise RefusedCallError(400, "BAD_REQUEST", f"{name} must be a number from {least} to {most}")


# The control endpoints.


def _control_routes(sandbox: Sandbox) -> list[Route]:
    def state() -> dict[str, Any]:
        return {
            "campaigns": [_campaign_json(sandbox, campaign) for campaign in sandbox.store.all()],
            "requests": [
                {
                    "operation": request.operation,
                    "campaign_id": request.campaign_id,
                    "status": request.status,
                    "acted": request.acted,
                    "at": write_time(request.at),
                }
                for request in list(sandbox.requests)[-1000:]
            ],
        }

    async def read_state(request: Request) -> Any:
        return state()

    async def put_campaign(request: Request) -> Any:
        return _campaign_json(sandbox, sandbox.store.put(SandboxCampaign(**_campaign_fields(await _body(request)))))

    async def change_campaign(request: Request) -> Any:
        changes = _campaign_fields(await _body(request))
        return _campaign_json(sandbox, sandbox.store.change(request.path_params["campaign_id"], **changes))

    async def remove_campaign(request: Request) -> Any:
        sandbox.store.remove(request.path_params["campaign_id"])
        return {}

    async def add_fault(request: Request) -> Any:
        sandbox.faults.add(Fault.from_json(await _body(request)))
        return {}

    async def clear_faults(request: Request) -> Any:
        sandbox.faults.clear()
        return {}

    return [
        Route(f"/_sandbox{path}", _control_endpoint(handler), methods=[method])
        for method, path, handler in (
            ("GET", "/state", read_state),
            ("POST", "/campaigns", put_campaign),
            ("PATCH", "/campaigns/{campaign_id:path}", change_campaign),
            ("DELETE", "/campaigns/{campaign_id:path}", remove_campaign),
            ("POST", "/faults", add_fault),
            ("DELETE", "/faults", clear_faults),
        )
    ]


def _control_endpoint(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if comes_from_elsewhere(request):
            return _error(403, "FORBIDDEN", "The control endpoints do not serve pages of another origin")
        try:
            return JSONResponse(await handler(request))
        except RefusedCallError as refusal:
            return _error(refusal.status, refusal.code, refusal.message)
        except (TypeError, ValueError) as error:
            return _error(400, "BAD_REQUEST", str(error))

    return endpoint


async def _body(request: Request) -> Mapping[str, Any]:
    body = json.loads(await request.body())
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


_CAMPAIGN_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "name": str,
    "status": str,
    "script_id": (str, type(None)),
    "total_count": int,
    "completed_count": int,
    "failed_count": int,
}


def _campaign_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in body.items():
        if name not in _CAMPAIGN_TYPES:
            raise ValueError(f"{name!r} is not a field; the fields are {', '.join(_CAMPAIGN_TYPES)}")
        if not isinstance(value, _CAMPAIGN_TYPES[name]) or isinstance(value, bool):
            raise ValueError(f"{name} has the wrong type")
    return dict(body)


def _campaign_json(sandbox: Sandbox, campaign: SandboxCampaign) -> dict[str, Any]:
    progress = sandbox.store.progress(campaign)
    plain = {each.name: getattr(campaign, each.name) for each in fields(campaign) if each.name != "running"}
    plain |= {name: write_time(value) for name, value in plain.items() if isinstance(value, datetime)}
    return plain | {
        "calls_completed": progress.completed,
        "calls_failed": progress.failed,
        "calls_in_progress": progress.in_progress,
        "calls_pending": progress.pending,
    }
