# SPDX-License-Identifier: Apache-2.0
"""
The sandbox's page: campaigns, requests, and faults to switch on.

The page works without JavaScript; the script only refreshes the numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_voicegenie.sandbox.faults import OPERATIONS, Fault, FaultKind
from airflow_provider_voicegenie.sandbox.service import Sandbox

_STATIC = Path(__file__).parent / "static"
_REQUESTS_SHOWN = 50

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}

#: The kinds of faults in words.
_KINDS: Mapping[FaultKind, str] = {
    FaultKind.CLOSE: "the connection is closed without a response",
    FaultKind.HOLD: "no response at all",
    FaultKind.DELAY: "the response comes late",
    FaultKind.STATUS: "another HTTP status",
    FaultKind.TRUNCATED: "half a response",
    FaultKind.NOT_JSON: "a page of HTML",
    FaultKind.OVERSIZED: "a response that is far too long",
    FaultKind.GZIP_BOMB: "a response that is huge when decompressed",
    FaultKind.DRIP: "byte by byte, slowly",
    FaultKind.REDIRECT: "a redirect",
}

_TEMPLATES = Environment(
    loader=PackageLoader("airflow_provider_voicegenie.sandbox"), autoescape=True, undefined=StrictUndefined
)

Handler = Callable[[Request], Awaitable[Response]]


def page_routes(sandbox: Sandbox) -> list[Route]:
    """Return the routes of a sandbox's page."""

    async def page(request: Request) -> Response:
        return HTMLResponse(_render(sandbox, request.query_params.get("did")), headers=_HEADERS)

    async def add_fault(request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        try:
            sandbox.faults.add(_fault(form))
        except (KeyError, ValueError) as error:
            return PlainTextResponse(f"This is not a fault: {error}", 400)
        return RedirectResponse("/?did=on#faults-heading", 303)

    async def clear_faults(request: Request) -> Response:
        sandbox.faults.clear()
        return RedirectResponse("/?did=off#faults-heading", 303)

    async def reset(request: Request) -> Response:
        sandbox.reset()
        return RedirectResponse("/?did=reset#campaigns-heading", 303)

    async def style(request: Request) -> Response:
        return Response((_STATIC / "page.css").read_bytes(), media_type="text/css")

    async def script(request: Request) -> Response:
        return Response((_STATIC / "page.js").read_bytes(), media_type="text/javascript")

    return [
        Route(path, _own(handler), methods=[method])
        for method, path, handler in (
            ("GET", "/", page),
            ("GET", "/_sandbox/page.css", style),
            ("GET", "/_sandbox/page.js", script),
            ("POST", "/_sandbox/page/faults", add_fault),
            ("POST", "/_sandbox/page/faults/clear", clear_faults),
            ("POST", "/_sandbox/page/reset", reset),
        )
    ]


def _own(handler: Handler) -> Handler:
    async def endpoint(request: Request) -> Response:
        if comes_from_elsewhere(request):
            return PlainTextResponse("The sandbox does not serve pages of another origin", 403)
        return await handler(request)

    return endpoint


def _fault(form: Mapping[str, str]) -> Fault:
    return Fault(
        FaultKind(form["kind"]),
        form["operation"],
        campaign_id=form.get("campaign_id") or None,
        after_acting="after_acting" in form,
        times=int(form["times"]) if form.get("times") else None,
        status=int(form.get("status") or 500),
        seconds=float(form.get("seconds") or 1),
    )


def _render(sandbox: Sandbox, did: str | None) -> str:
    """
    Return the page.

    :param sandbox: What it shows.
    :param did: What the user just did: ``on``, ``off`` or ``reset``. A notice about faults is shown while it is true.
    """
    return _TEMPLATES.get_template("page.html").render(
        speed=sandbox.store.speed,
        did=did,
        campaigns=[(campaign, sandbox.store.progress(campaign)) for campaign in sandbox.store.all()],
        kinds=_KINDS,
        operations=OPERATIONS,
        faults=sandbox.faults.waiting(),
        requests=list(sandbox.requests)[: -_REQUESTS_SHOWN - 1 : -1],
    )


def comes_from_elsewhere(request: Request) -> bool:
    """Whether a browser sends this request for a page of another origin."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    # DNS rebinding: a foreign name that points here. The sandbox's own names are addresses and localhost.
    name = urlsplit(f"//{host}").hostname or ""
    return not (name == "localhost" or name.replace(".", "").isdigit() or ":" in name)
