# SPDX-License-Identifier: Apache-2.0
"""Keeps other pages in the user's browser away from what is the sandbox's own."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request


def comes_from_elsewhere(request: Request) -> bool:
    """Whether a browser sends this for a page that is not the sandbox's own."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    # A name that was made to point here; the sandbox's own are addresses and localhost.
    name = urlsplit(f"//{host}").hostname or ""
    return not (name == "localhost" or name.replace(".", "").isdigit() or ":" in name)
