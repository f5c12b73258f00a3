# SPDX-License-Identifier: Apache-2.0
"""The transport for workers: moves bytes, within a time and a size, and decides nothing else."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpcore
from tenacity import Retrying

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES, Answer
from airflow_provider_voicegenie.api.endpoints import Call, campaign_call, list_call
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, PausedCampaign, StartedCampaign
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


class VoiceGenieClient:
    """
    Speaks to the service, one exchange at a time.

    Reads are repeated while trouble looks temporary, at most ``max_attempts`` times in all: the settings' number,
    unless a call gives its own. Starts and pauses go out once. All methods raise
    :class:`~airflow_provider_voicegenie.api.errors.VoiceGenieError`.

    :param settings: Where the service is, and how to speak to it.
    :param sleep: Waits so many seconds; for tests.
    """

    def __init__(self, settings: ClientSettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._dialogue = Dialogue(settings)
        self._sleep = sleep
        self._route = Route.of(settings)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A VoiceGenie client holds the API key and cannot be pickled; pass the connection id.")

    def start_campaign(self, campaign_id: str) -> StartedCampaign:
        """Start a campaign: phones people at once. See the service's Start Campaign page."""
        return self._call(campaign_call(endpoints.START, campaign_id))

    def pause_campaign(self, campaign_id: str) -> PausedCampaign:
        """Pause a campaign: calls in progress run to their end, none begins. See the Pause Campaign page."""
        return self._call(campaign_call(endpoints.PAUSE, campaign_id))

    def get_campaign(self, campaign_id: str, *, max_attempts: int | None = None) -> Campaign:
        """Read one campaign. See the Get Campaign page."""
        return self._call(campaign_call(endpoints.GET, campaign_id), max_attempts)

    def get_campaign_stats(self, campaign_id: str, *, max_attempts: int | None = None) -> CampaignStats:
        """Read one campaign's counters, which may be 30 seconds old. See the Campaign Stats page."""
        return self._call(campaign_call(endpoints.STATS, campaign_id), max_attempts)

    def list_campaigns(
        self, page_size: int = endpoints.MAX_PAGE_SIZE, *, max_attempts: int | None = None
    ) -> Iterator[Campaign]:
        """
        Read all campaigns, page after page, each page when it is needed. See the List Campaigns page.

        The service promises no order, so pages may shift while they are read: a campaign that shows up twice is
        given once, and one may be missed.

        :param page_size: Campaigns asked for at a time, 1 to 1000.
        :param max_attempts: Attempts for each page; the settings' number by default.
        """
        if (
            isinstance(page_size, bool)
            or not isinstance(page_size, int)
            or not 1 <= page_size <= endpoints.MAX_PAGE_SIZE
        ):
            raise ValueError(
                f"page_size must be a whole number from 1 to {endpoints.MAX_PAGE_SIZE}, not {page_size!r}."
            )
        return self._all_pages(page_size, max_attempts)

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last answer showed it; ours before any answer."""
        return self._dialogue.server_time()

    def campaign_url(self, campaign_id: str) -> str | None:
        """Return where people see a campaign; ``None`` where nobody said, and the last answer was not the sandbox's."""
        template = self._settings.campaign_url
        if template is None and self._dialogue.is_with_sandbox:
            template = f"{self._settings.base_url}/#campaign-{{campaign_id}}"
        return template and template.replace("{campaign_id}", quote(campaign_id, safe=""))

    def _all_pages(self, page_size: int, max_attempts: int | None) -> Iterator[Campaign]:
        seen: set[str] = set()
        offset = 0
        while True:
            page = self._call(list_call(limit=page_size, offset=offset), max_attempts)
            for campaign in page.campaigns:
                if campaign.campaign_id not in seen:
                    seen.add(campaign.campaign_id)
                    yield campaign
            offset += page.size
            if page.size == 0 or offset >= page.total:
                return

    def _call(self, call: Call[Result], max_attempts: int | None = None) -> Result:
        if call.endpoint.has_effect:
            return self._attempt(call)
        retrying = Retrying(sleep=self._sleep, **self._dialogue.retry_arguments(max_attempts))
        result: Result = retrying(self._paced_attempt, call)
        return result

    def _paced_attempt(self, call: Call[Result]) -> Result:
        # Only reads wait for the budget: a start must not slip past its calling hours, nor a pause come late.
        if (delay := self._dialogue.delay(call)) > 0:
            self._sleep(delay)
        return self._attempt(call)

    def _attempt(self, call: Call[Result]) -> Result:
        self._dialogue.note_request()
        # What broke is raised there and not where it was caught: exceptions of the library must not hang on to ours.
        return self._dialogue.read(call, self._exchange(call))

    def _exchange(self, call: Call[Any]) -> Answer | Broken:
        sent = False

        def trace(event: str, details: dict[str, Any]) -> None:
            nonlocal sent
            sent = sent or goes_out(event, details)

        try:
            network = _BoundedNetwork(_Deadline(self._settings.timeout))
            with quiet_library(), self._route.pool(httpcore.ConnectionPool, httpcore.HTTPProxy, network) as pool:
                response = pool.handle_request(request_for(self._settings, call, trace))
                body = bytearray()
                # As it came over the wire: decompressing is not the transport's business.
                for chunk in response.iter_stream():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        return Broken(Breakage.TOO_LARGE, sent=True)
                return answer_of(response, body)
        except EXCHANGE_ERRORS as error:
            return Broken(breakage_of(error, BREAKAGES, sent=sent), sent)


class _Deadline:
    """When an exchange has to be over."""

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + timeout

    def remaining(self) -> float:
        """
        Return the seconds left.

        :raises TimeoutError: None are left.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the exchange took too long")
        return seconds


class _BoundedNetwork(httpcore.NetworkBackend):
    """The library bounds each step of an exchange; this bounds the whole, however slowly the bytes drip."""

    def __init__(self, deadline: _Deadline) -> None:
        self._network = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        remaining = self._deadline.remaining()
        stream = self._network.connect_tcp(host, port, remaining, local_address, socket_options)
        return _BoundedStream(stream, self._deadline)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.remaining())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.remaining())
        return _BoundedStream(stream, self._deadline)

    def close(self) -> None:
        self._stream.close()
