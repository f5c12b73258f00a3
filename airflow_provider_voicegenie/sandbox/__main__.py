# SPDX-License-Identifier: Apache-2.0
"""The command ``voicegenie-sandbox``, which is ``python -m airflow_provider_voicegenie.sandbox``, too."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import sys
from collections.abc import Sequence

_NEEDS_EXTRA = (
    "The sandbox needs jinja2, starlette and uvicorn: pip install 'airflow-provider-voicegenie[sandbox]'. Not found: {}"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sandbox until it is interrupted."""
    options = _parser().parse_args(arguments)
    try:
        # Here, so that --help and this message do without them.
        from airflow_provider_voicegenie.sandbox.server import address_of, listen, make_server
        from airflow_provider_voicegenie.sandbox.service import Sandbox
        from airflow_provider_voicegenie.sandbox.store import SandboxStore
    except ModuleNotFoundError as error:
        sys.exit(_NEEDS_EXTRA.format(error.name))
    if not (options.allow_remote or _is_loopback(options.host)):
        sys.exit(
            f"--host {options.host} lets other machines connect, and the sandbox has no protection against them. "
            "Use 127.0.0.1, or add --allow-remote."
        )
    sandbox = Sandbox(
        SandboxStore(speed=options.speed, reset_after=options.reset_after),
        api_key=options.api_key,
        enforce_rate_limits=options.enforce_rate_limits,
        cache_stats=options.cache_stats,
    )
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        sys.exit(f"Cannot listen on {options.host} port {options.port}: {error.strerror}. Choose another --port.")
    with listener:
        print(f"VoiceGenie sandbox on {address_of(listener)} (API key: {options.api_key}). It phones nobody.")
        print("Open that address in a browser to see its campaigns and requests, and to switch on faults.")
        print("Campaigns: " + ", ".join(campaign.id for campaign in sandbox.store.all()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            make_server(sandbox).run([listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voicegenie-sandbox", description="A local stand-in for the VoiceGenie campaign service."
    )
    parser.add_argument("--port", type=int, default=8642, help="port to listen on, 0 for any free one (default 8642)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a --host that other machines can reach")
    shown = "the API key to accept, which is shown: no real one (default sandbox-key)"
    parser.add_argument("--api-key", default="sandbox-key", help=shown)
    parser.add_argument("--speed", type=_speed, default=1.0, help="how many times as fast time runs (default 1)")
    parser.add_argument(
        "--reset-after",
        type=float,
        metavar="SECONDS",
        help="put a campaign back so long after it was started and has ended, so that it can be started again "
        "(default: never)",
    )
    parser.add_argument(
        "--enforce-rate-limits", action="store_true", help="respond with 429 above the documented rates"
    )
    parser.add_argument("--cache-stats", action="store_true", help="serve statistics up to 30 s old, as documented")
    return parser


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 < speed < 1e9:
        raise argparse.ArgumentTypeError("must be above 0")
    return speed


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
