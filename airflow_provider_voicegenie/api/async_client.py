# SPDX-License-Identifier: Apache-2.0
"""
The transport on ``httpx``, for event loops: moves bytes, within a time and a size, and decides nothing else.

It uses the transport of ``httpx`` and not its client: that has no redirects, no cookies and no log of its own.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
import httpx
from requests import Session
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy
from tenacity import AsyncRetrying

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES, Answer
from airflow_provider_voicegenie.api.endpoints import Call, campaign_call, list_call
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, CampaignStats, PausedCampaign
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.api.transport import (
    API_KEY_HEADER,
    REQUEST_HEADERS,
    Breakage,
    BreakageTable,
    Broken,
    Dialogue,
    breakage_of,
)

Result = TypeVar("Result")

#: Answers above this many bytes are read in a thread, so that reading them does not hold up the event loop.
_LARGE_ANSWER = 32 * 1024


class AsyncVoiceGenieClient:
    """
    Speaks to the service from an event loop; any number of exchanges at a time.

    Reads are repeated while trouble looks temporary, at most ``max_attempts`` times in all: the settings' number,
    unless a call gives its own. Pauses go out once, and starts are left to workers. All methods raise
    :class:`~airflow_provider_voicegenie.api.errors.VoiceGenieError`. Make it with :meth:`open`; it needs no closing, as
    no connection outlives its exchange.
    """

    def __init__(self, settings: ClientSettings, transport: httpx.AsyncBaseTransport) -> None:
        self.settings = settings
        self._dialogue = Dialogue(settings)
        self._transport = transport

    @classmethod
    async def open(cls, settings: ClientSettings) -> AsyncVoiceGenieClient:
        """
        Make a client.

        :param settings: Where the service is, and how to speak to it.
        """
        return cls(settings, await asyncio.to_thread(_prepared_transport, settings))

    def __reduce__(self) -> NoReturn:
        raise TypeError("A VoiceGenie client holds the API key and cannot be pickled; pass the connection id.")

    async def pause_campaign(self, campaign_id: str) -> PausedCampaign:
        """Pause a campaign: calls in progress run to their end, none begins. See the Pause Campaign page."""
        return await self._attempt(campaign_call(endpoints.PAUSE, campaign_id))

    async def get_campaign(self, campaign_id: str, *, max_attempts: int | None = None) -> Campaign:
        """Read one campaign. See the Get Campaign page."""
        return await self._read(campaign_call(endpoints.GET, campaign_id), max_attempts)

    async def get_campaign_stats(self, campaign_id: str, *, max_attempts: int | None = None) -> CampaignStats:
        """Read one campaign's counters, which may be 30 seconds old. See the Campaign Stats page."""
        return await self._read(campaign_call(endpoints.STATS, campaign_id), max_attempts)

    async def list_page(self, *, limit: int, offset: int, max_attempts: int | None = None) -> CampaignPage:
        """Read one page of all campaigns. See the List Campaigns page."""
        return await self._read(list_call(limit=limit, offset=offset), max_attempts)

    async def _read(self, call: Call[Result], max_attempts: int | None) -> Result:
        retrying = AsyncRetrying(sleep=asyncio.sleep, **self._dialogue.retry_arguments(max_attempts))
        result: Result = await retrying(self._paced_attempt, call)
        return result

    async def _paced_attempt(self, call: Call[Result]) -> Result:
        # Another exchange may have taken what was left while this one slept.
        while (delay := self._dialogue.delay(call)) > 0:
            await asyncio.sleep(delay)
        return await self._attempt(call)

    async def _attempt(self, call: Call[Result]) -> Result:
        self._dialogue.note_request()
        outcome = await self._exchange(call)
        if isinstance(outcome, Answer) and len(outcome.body) > _LARGE_ANSWER:
            return await asyncio.to_thread(self._dialogue.read, call, outcome)
        return self._dialogue.read(call, outcome)

    async def _exchange(self, call: Call[Any]) -> Answer | Broken:
        sent = False

        async def trace(event: str, details: object) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await self._transport.handle_async_request(_request(self.settings, call, trace))
                try:
                    body = bytearray()
                    # As it came over the wire: decompressing is not the transport's business.
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            return Broken(Breakage.TOO_LARGE, sent=True)
                finally:
                    await response.aclose()
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, headers, bytes(body))
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            return Broken(breakage_of(error, _BREAKAGES, sent=sent), sent)


def _request(settings: ClientSettings, call: Call[Any], trace: object) -> httpx.Request:
    """Build a request; the only place that the key is put on one."""
    return httpx.Request(
        "GET",
        settings.base_url + call.target,
        headers={**REQUEST_HEADERS, API_KEY_HEADER: settings.api_key},
        extensions={"timeout": httpx.Timeout(settings.timeout).as_dict(), "trace": trace},
    )


def _prepared_transport(settings: ClientSettings) -> httpx.AsyncHTTPTransport:
    """Make a transport and do in this thread what would hold up an event loop: certificates and modules to load."""
    anyio.run(anyio.sleep, 0)
    return _transport(settings)


def _transport(settings: ClientSettings) -> httpx.AsyncHTTPTransport:
    """Make a transport that goes through the same proxy, and trusts the same certificates, as ``requests`` would."""
    with Session() as session:
        # A proxy of the environment sees only ciphertext of https; of http it would see the key.
        session.trust_env = settings.is_encrypted
        found = session.merge_environment_settings(
            settings.base_url, dict(settings.proxies), stream=None, verify=settings.verify, cert=None
        )
    proxy = select_proxy(settings.base_url, found["proxies"])
    return httpx.AsyncHTTPTransport(
        verify=_ssl_context(found["verify"]),
        trust_env=False,
        proxy=proxy or None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )


def _ssl_context(verify: bool | str | None) -> ssl.SSLContext:
    if verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    bundle = Path(DEFAULT_CA_BUNDLE_PATH if verify is True or verify is None else verify)
    if bundle.is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


_BREAKAGES: BreakageTable = (
    ((httpx.InvalidURL,), Breakage.UNKNOWN_HOST),
    ((httpx.ProxyError, httpx.UnsupportedProtocol), Breakage.PROXY),
    ((httpx.TimeoutException,), Breakage.TIMEOUT),
)
