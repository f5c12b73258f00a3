# SPDX-License-Identifier: Apache-2.0
"""
The sandbox's page: campaigns, requests, and faults to switch on.

It is whole without its script, which only fetches it again and again and puts the new numbers in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_voicegenie.sandbox.faults import OPERATIONS, Fault, FaultKind
from airflow_provider_voicegenie.sandbox.origin import comes_from_elsewhere
from airflow_provider_voicegenie.sandbox.service import LoggedRequest, Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxCampaign

_STATIC = Path(__file__).parent / "static"
_REQUESTS_SHOWN = 50

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}

_KINDS: Mapping[FaultKind, str] = {
    FaultKind.CLOSE: "the connection is closed without an answer",
    FaultKind.HOLD: "no answer at all",
    FaultKind.DELAY: "the answer comes late",
    FaultKind.STATUS: "another HTTP status",
    FaultKind.TRUNCATED: "half an answer",
    FaultKind.NOT_JSON: "a page of HTML",
    FaultKind.OVERSIZED: "far too long an answer",
    FaultKind.GZIP_BOMB: "an answer that is huge when decompressed",
    FaultKind.DRIP: "byte by byte, slowly",
    FaultKind.REDIRECT: "a redirect",
}

#: What the page says of a fault besides its kind.
_DETAILS: Mapping[FaultKind, str] = {
    FaultKind.DELAY: " ({0.seconds:g} s)",
    FaultKind.DRIP: " ({0.seconds:g} s)",
    FaultKind.STATUS: " ({0.status})",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>VoiceGenie sandbox</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/_sandbox/page.css">
<script src="/_sandbox/page.js" defer></script>
</head>
<body>
<header>
<h1>VoiceGenie sandbox</h1>
<p>A stand-in for the service. It phones nobody. {speed} simulated seconds pass in a real one.</p>
</header>
<main>
<section aria-labelledby="campaigns-heading">
<h2 id="campaigns-heading">Campaigns</h2>
{campaigns_message}
<div class="scroll" role="group" aria-labelledby="campaigns-heading" tabindex="0">
<table>
<thead><tr><th scope="col">Campaign</th><th scope="col">Name</th><th scope="col">Status</th>
<th scope="col">Progress</th><th scope="col">Completed</th><th scope="col">Failed</th>
<th scope="col">Going on</th><th scope="col">Starts</th></tr></thead>
<tbody id="campaigns" data-live>{campaigns}</tbody>
</table>
</div>
<form method="post" action="/_sandbox/page/reset"><button>Put the campaigns back</button></form>
</section>
<section aria-labelledby="faults-heading">
<h2 id="faults-heading">Faults</h2>
{faults_message}
<form method="post" action="/_sandbox/page/faults">
<label>What goes wrong <select name="kind">{kinds}</select></label>
<label>in which call <select name="operation">{operations}</select></label>
<label>about which campaign <select name="campaign_id">{choices}</select></label>
<div><label>how often <input name="times" type="number" min="1" value="1" aria-describedby="times-help"></label>
<small id="times-help">Empty: until it is switched off.</small></div>
<label>HTTP status, for another status <input name="status" type="number" min="200" max="599" value="500"></label>
<label>seconds, for what is late or slow <input name="seconds" type="number" min="0" step="any" value="1"></label>
<label class="check"><input name="after_acting" type="checkbox" value="yes"> after the call was carried out</label>
<button>Switch on</button>
</form>
<h3 id="active-heading">Switched on</h3>
<ul id="faults" data-live aria-labelledby="active-heading">{faults}</ul>
<form method="post" action="/_sandbox/page/faults/clear"><button>Switch all off</button></form>
</section>
<section aria-labelledby="requests-heading">
<h2 id="requests-heading">Requests, the newest first</h2>
<div class="scroll" role="group" aria-labelledby="requests-heading" tabindex="0">
<table>
<thead><tr><th scope="col">Time (UTC)</th><th scope="col">Call</th><th scope="col">Campaign</th>
<th scope="col">Answer</th><th scope="col">Carried out</th></tr></thead>
<tbody id="requests" data-live>{requests}</tbody>
</table>
</div>
</section>
</main>
</body>
</html>
"""

Handler = Callable[[Request], Awaitable[Response]]


def page_routes(sandbox: Sandbox) -> list[Route]:
    """Return the routes of a sandbox's page."""

    async def page(request: Request) -> Response:
        return HTMLResponse(_page(sandbox, request.query_params.get("did", "")), headers=_HEADERS)

    async def add_fault(request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        try:
            sandbox.faults.add(_fault(form))
        except (KeyError, ValueError) as error:
            return PlainTextResponse(f"This is no fault: {error}", 400)
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


#: What was done -> the section that says so, and the words.
_MESSAGES = {
    "on": ("faults", "The fault is switched on."),
    "off": ("faults", "All faults are switched off."),
    "reset": ("campaigns", "The campaigns are as they were in the beginning."),
}


def _page(sandbox: Sandbox, did: str) -> str:
    campaigns = sandbox.store.all()
    faults = [_fault_item(fault) for fault in sandbox.faults.waiting()]
    requests = [_request_row(request) for request in list(sandbox.requests)[: -_REQUESTS_SHOWN - 1 : -1]]
    return _PAGE.format(
        speed=f"{sandbox.store.speed:g}",
        campaigns_message=_message("campaigns", did),
        faults_message=_message("faults", did),
        campaigns="".join(_campaign_row(sandbox, campaign) for campaign in campaigns),
        kinds=_options((kind.value, words) for kind, words in _KINDS.items()),
        operations=_options((("*", "every call"), *((name, name) for name in OPERATIONS))),
        choices=_options((("", "every campaign"), *((campaign.id, campaign.id) for campaign in campaigns))),
        faults="".join(faults) or "<li>none</li>",
        requests="".join(requests) or '<tr><td colspan="5">none yet</td></tr>',
    )


def _message(section: str, did: str) -> str:
    where, words = _MESSAGES.get(did, ("", ""))
    return f'<p role="status">{words}</p>' if where == section else ""


def _options(choices: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(words)}</option>' for value, words in choices)


def _campaign_row(sandbox: Sandbox, campaign: SandboxCampaign) -> str:
    progress = sandbox.store.progress(campaign)
    done = progress.completed + progress.failed
    name = escape(campaign.id)
    bar = (
        f'<progress max="{campaign.total_count}" value="{done}" aria-label="Progress of {name}"></progress> '
        f"{done} of {campaign.total_count}"
    )
    status = f'<span class="status {escape(campaign.status)}">{escape(campaign.status)}</span>'
    numbers = (progress.completed, progress.failed, progress.in_progress, campaign.start_count)
    return (
        f'<tr id="campaign-{name}"><th scope="row">{name}</th>{_cells(escape(campaign.name), status, bar)}'
        f"{_cells(*numbers)}</tr>"
    )


def _fault_item(fault: Fault) -> str:
    often = "until it is switched off" if fault.times is None else f"{fault.times} time(s)"
    where = "every call" if fault.operation == "*" else fault.operation
    about = f" about {escape(fault.campaign_id)}" if fault.campaign_id else ""
    late = ", after it was carried out" if fault.after_acting else ""
    detail = _DETAILS.get(fault.kind, "").format(fault)
    return f"<li>{escape(_KINDS[fault.kind])}{detail} in {where}{about}{late}, {often}</li>"


def _request_row(request: LoggedRequest) -> str:
    answer = "none" if request.status is None else request.status
    acted = "yes" if request.acted else "no"
    cells = (f"{request.at:%H:%M:%S}", request.operation, escape(request.campaign_id or ""), answer, acted)
    return f"<tr>{_cells(*cells)}</tr>"


def _cells(*contents: Any) -> str:
    return "".join(f"<td>{content}</td>" for content in contents)
