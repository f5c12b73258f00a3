# SPDX-License-Identifier: Apache-2.0
"""The transport for event loops: moves bytes, within a time and a size, and decides nothing else."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn, TypeVar

import anyio
import httpcore
from tenacity import AsyncRetrying

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES, Answer
from airflow_provider_voicegenie.api.endpoints import Call, campaign_call, list_call
from airflow_provider_voicegenie.api.models import Campaign, CampaignPage, CampaignStats, PausedCampaign
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.api.transport import Breakage, Broken, Dialogue, breakage_of
from airflow_provider_voicegenie.api.wire import (
    BREAKAGES,
    EXCHANGE_ERRORS,
    Route,
    answer_of,
    goes_out,
    quiet_library,
    request_for,
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

    def __init__(self, settings: ClientSettings, route: Route) -> None:
        self.settings = settings
        self._dialogue = Dialogue(settings)
        self._route = route

    @classmethod
    async def open(cls, settings: ClientSettings) -> AsyncVoiceGenieClient:
        """
        Make a client.

        :param settings: Where the service is, and how to speak to it.
        """
        return cls(settings, await asyncio.to_thread(_prepared_route, settings))

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

        async def trace(event: str, details: dict[str, Any]) -> None:
            nonlocal sent
            sent = sent or goes_out(event, details)

        pool = self._route.pool(httpcore.AsyncConnectionPool, httpcore.AsyncHTTPProxy, httpcore.AnyIOBackend())
        try:
            with quiet_library():
                async with asyncio.timeout(self.settings.timeout), pool:
                    response = await pool.handle_async_request(request_for(self.settings, call, trace))
                    body = bytearray()
                    # As it came over the wire: decompressing is not the transport's business.
                    async for chunk in response.aiter_stream():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            return Broken(Breakage.TOO_LARGE, sent=True)
                    return answer_of(response, body)
        except EXCHANGE_ERRORS as error:
            return Broken(breakage_of(error, BREAKAGES, sent=sent), sent)


def _prepared_route(settings: ClientSettings) -> Route:
    """Find the way and do in this thread what would hold up an event loop: certificates and modules to load."""
    anyio.run(anyio.sleep, 0)
    return Route.of(settings)
