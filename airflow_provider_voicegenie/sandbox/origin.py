# SPDX-License-Identifier: Apache-2.0
"""Keeps pages of other origins in the user's browser away from the sandbox."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request


def comes_from_elsewhere(request: Request) -> bool:
    """Whether a browser sends this request for a page of another origin."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    # DNS rebinding: a foreign name that points here. The sandbox's own names are addresses and localhost.
    name = urlsplit(f"//{host}").hostname or ""
    return not (name == "localhost" or name.replace(".", "").isdigit() or ":" in name)
