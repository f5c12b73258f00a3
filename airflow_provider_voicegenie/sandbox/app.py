# SPDX-License-Identifier: Apache-2.0
"""
The sandbox over HTTP: the service's endpoints, a page at ``/``, and control endpoints below ``/_sandbox``.

No path of the service has a segment that begins with an underscore, so the two cannot clash.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from airflow_provider_voicegenie.api.models import write_time
from airflow_provider_voicegenie.sandbox.campaign import SandboxCampaign
from airflow_provider_voicegenie.sandbox.faults import Fault, FaultKind
from airflow_provider_voicegenie.sandbox.page import comes_from_elsewhere, page_routes
from airflow_provider_voicegenie.sandbox.service import LoggedRequest, Sandbox, ServiceRequest
from airflow_provider_voicegenie.sandbox.store import RequestRefusedError

#: The open connections by the client's address; the protocol in ``server`` keeps this up to date.
open_connections: dict[tuple[str, int], asyncio.Transport] = {}

Handler = Callable[[ServiceRequest], Any]


def create_app(sandbox: Sandbox) -> Starlette:
    """Return the ASGI application of a sandbox."""
    service = [
        Route(path, _service_endpoint(sandbox, operation, act), methods=[method])
        for operation, method, path, act in (
            ("start", "GET", "/startCampaign/{campaign_id:path}", sandbox.start),
            ("pause", "GET", "/pauseTheCampaign/{campaign_id:path}", sandbox.pause),
            ("get", "GET", "/campaign/{campaign_id:path}", sandbox.get),
            ("stats", "GET", "/getCampaignStats/{campaign_id:path}", sandbox.stats),
            ("list", "GET", "/fetchCampaignData", sandbox.list),
            ("names", "GET", "/fetchCampaignDataOnlyNamesAndAll", sandbox.names),
            ("upload", "POST", "/uploadCampaignData", sandbox.upload),
            ("history", "POST", "/getHistory", sandbox.history),
            ("quota", "GET", "/fetchQuota", sandbox.fetch_quota),
        )
    ]
    app = Starlette(
        routes=service + page_routes(sandbox) + _control_routes(sandbox),
        exception_handlers={HTTPException: _no_such_endpoint, ClientDisconnect: _nobody_waits},
    )
    # The service is not known to redirect; an unknown path gets a 404.
    app.router.redirect_slashes = False
    return app


def _service_endpoint(sandbox: Sandbox, operation: str, act: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        asked = await _service_request(request, sandbox.max_upload_bytes)
        fault = sandbox.faults.take(operation, asked.campaign_id)
        logged = LoggedRequest(operation, asked.campaign_id, datetime.now(UTC))
        sandbox.requests.append(logged)
        response: Response | None = None
        if fault is None or fault.after_acting or fault.kind is FaultKind.DELAY:
            if fault is not None and fault.kind is FaultKind.DELAY and not fault.after_acting:
                await asyncio.sleep(fault.seconds)
            key = request.headers.get("x-api-key")
            response = await run_in_threadpool(_respond, sandbox, logged, act, asked, key)
        if fault is not None:
            response = await _spoil(fault, response, request)
        if response is None:
            if (connection := open_connections.get(request.scope["client"])) is not None:
                connection.abort()
            return Response()
        logged.status = response.status_code
        return response

    return endpoint


async def _service_request(request: Request, most_bytes: int) -> ServiceRequest:
    kept, size = bytearray(), 0
    # All is read, even if it is too much: a client that cannot send its request to the end sees no response.
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most_bytes:
            kept += chunk
    body = await run_in_threadpool(_read_json, kept) if 0 < size <= most_bytes else None
    campaign_id = _campaign_id(request)
    if campaign_id is None and isinstance(body, dict) and isinstance(body.get("campaign_id"), str):
        campaign_id = body["campaign_id"]
    return ServiceRequest(campaign_id, request.query_params, body, size)


def _read_json(text: bytes | bytearray) -> object:
    try:
        body = json.loads(text)
        # Responses quote from it: no response can carry NaN, or one half of a surrogate pair.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return body


def _campaign_id(request: Request) -> str | None:
    if "campaign_id" not in request.path_params:
        return None
    # The router works on the unescaped path; the raw path distinguishes the id "a/b" from a path with one more segment.
    _, _, *segments = request.scope["raw_path"].decode("ascii").split("/")
    if len(segments) != 1:
        raise HTTPException(404)
    return unquote(segments[0])


def _respond(sandbox: Sandbox, logged: LoggedRequest, act: Handler, asked: ServiceRequest, key: str | None) -> Response:
    if key != sandbox.api_key:
        return _error(401, "UNAUTHORIZED", "Invalid or missing API key")
    headers, exceeded = sandbox.rate_limit(logged.operation, asked.campaign_id)
    if exceeded:
        return _error(429, "RATE_LIMIT_EXCEEDED", "Too many requests", headers=headers)
    try:
        data = act(asked)
    except RequestRefusedError as refusal:
        return _error(refusal.status, refusal.code, refusal.message, refusal.details, headers)
    # An upload without a campaign makes one; any other may bring only numbers that are known or wrong.
    logged.acted = not logged.is_read and (asked.campaign_id is None or data.get("uploaded_count") != 0)
    return JSONResponse({"success": True, "data": data, "message": "OK"}, headers=headers)


async def _spoil(fault: Fault, response: Response | None, request: Request) -> Response | None:
    """Return the response that a fault leaves; ``None`` for no response at all."""
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
    # A code of its own: an unknown path must not look like an unknown campaign.
    return _error(status, "NO_SUCH_ENDPOINT", "The sandbox has no such endpoint", headers=headers)


async def _nobody_waits(request: Request, error: Exception) -> Response:
    return Response()


# The control endpoints.


def _state(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "campaigns": [_campaign_json(sandbox, campaign) for campaign in sandbox.store.all()],
        "quota": sandbox.quota.to_json(),
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


def _control_routes(sandbox: Sandbox) -> list[Route]:
    async def read_state(request: Request) -> Any:
        return _state(sandbox)

    async def put_campaign(request: Request) -> Any:
        return _campaign_json(sandbox, sandbox.store.put(SandboxCampaign(**_campaign_fields(await _body(request)))))

    async def change_campaign(request: Request) -> Any:
        changes = _campaign_fields(await _body(request))
        return _campaign_json(sandbox, sandbox.store.change(request.path_params["campaign_id"], **changes))

    async def remove_campaign(request: Request) -> Any:
        sandbox.store.remove(request.path_params["campaign_id"])
        return {}

    async def change_quota(request: Request) -> Any:
        sandbox.quota.change(await _body(request))
        return sandbox.quota.to_json()

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
            ("PATCH", "/quota", change_quota),
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
        except RequestRefusedError as refusal:
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
    "registered_count": (int, type(None)),
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
    plain = {
        each.name: getattr(campaign, each.name) for each in fields(campaign) if each.name not in ("running", "contacts")
    }
    plain |= {name: write_time(value) for name, value in plain.items() if isinstance(value, datetime)}
    return plain | {
        "uploaded_count": len(campaign.contacts),
        "calls_completed": progress.completed,
        "calls_failed": progress.failed,
        "calls_in_progress": progress.in_progress,
        "calls_pending": progress.pending,
    }
