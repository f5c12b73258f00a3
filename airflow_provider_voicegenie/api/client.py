# SPDX-License-Identifier: Apache-2.0
"""The transport on ``requests``: moves bytes, within a time and a size, and decides nothing else."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NoReturn, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from tenacity import Retrying
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.answers import MAX_ANSWER_BYTES, Answer
from airflow_provider_voicegenie.api.endpoints import Call, campaign_call, list_call
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, PausedCampaign, StartedCampaign
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
        self._session = _session(settings)

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

    def list_campaigns(self, page_size: int = endpoints.MAX_PAGE_SIZE) -> Iterator[Campaign]:
        """
        Read all campaigns, page after page, each page when it is needed. See the List Campaigns page.

        The service promises no order, so pages may shift while they are read: a campaign that shows up twice is
        given once, and one may be missed.

        :param page_size: Campaigns asked for at a time, 1 to 1000.
        """
        if (
            isinstance(page_size, bool)
            or not isinstance(page_size, int)
            or not 1 <= page_size <= endpoints.MAX_PAGE_SIZE
        ):
            raise ValueError(
                f"page_size must be a whole number from 1 to {endpoints.MAX_PAGE_SIZE}, not {page_size!r}."
            )
        return self._all_pages(page_size)

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last answer showed it; ours before any answer."""
        return self._dialogue.server_time()

    def _all_pages(self, page_size: int) -> Iterator[Campaign]:
        seen: set[str] = set()
        offset = 0
        while True:
            page = self._call(list_call(limit=page_size, offset=offset))
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
        # What broke is raised there and not where it was caught: the exceptions of `requests` hold the request with
        # its headers, and must not hang on to ours.
        return self._dialogue.read(call, self._exchange(call))

    def _exchange(self, call: Call[Any]) -> Answer | Broken:
        exchange = _Exchange(self._settings.timeout)
        token = _current_exchange.set(exchange)
        try:
            response = self._session.get(
                self._settings.base_url + call.target,
                headers=dict(REQUEST_HEADERS),
                allow_redirects=False,
                stream=True,
                timeout=self._settings.timeout,
                verify=self._settings.verify,
            )
            with response:
                body = _read_body(response)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, headers, body)
        except _TooLargeError:
            return Broken(Breakage.TOO_LARGE, sent=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return Broken(breakage_of(error, _BREAKAGES, sent=exchange.sent), exchange.sent)
        finally:
            _current_exchange.reset(token)


class _Exchange:
    """One exchange: how long it may go on, and whether its request has gone out."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self.sent = False

    def remaining(self) -> float:
        """
        Return the seconds left.

        :raises TimeoutError: None are left.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the exchange took too long")
        return seconds


_current_exchange: ContextVar[_Exchange] = ContextVar("voicegenie_exchange")


class _BoundedReader(io.RawIOBase):
    """Reads from a socket until the exchange's time is over, however slowly the bytes drip."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._exchange = _current_exchange.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach(), sock))


class _BoundedConnection(HTTPConnection):
    """A connection that knows when its request goes out, and whose answer is read within the exchange's time."""

    response_class = _BoundedResponse

    def request(self, *args: Any, **kwargs: Any) -> None:
        # Connecting first makes it certain that what fails until here never reached the service.
        if self.sock is None:
            self.connect()
        exchange = _current_exchange.get()
        exchange.remaining()
        exchange.sent = True
        super().request(*args, **kwargs)


class _BoundedTlsConnection(_BoundedConnection, HTTPSConnection):
    pass


class _BoundedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _BoundedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedTlsConnection


class _BoundedAdapter(HTTPAdapter):
    """An adapter whose connections know the exchange they serve. It repeats nothing, which is its default."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _bound(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return _bound(super().proxy_manager_for(*args, **kwargs))


Manager = TypeVar("Manager", bound=urllib3.PoolManager)


def _bound(manager: Manager) -> Manager:
    manager.pool_classes_by_scheme = {"http": _BoundedHTTPPool, "https": _BoundedHTTPSPool}
    return manager


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> None:
        """Find no redirect in any answer: even one that is not followed would have its body read unbounded."""


class _ApiKey(AuthBase):
    """
    Puts the API key on a request.

    An ``auth`` object rather than a header of the session: the key then stands in no argument and no local
    variable that a traceback could show, and ``requests`` looks into no ``.netrc``.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers[API_KEY_HEADER] = self._settings.api_key
        return request


def _session(settings: ClientSettings) -> requests.Session:
    session = _Session()
    session.auth = _ApiKey(settings)
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.proxies.update(settings.proxies)
    # A proxy of the environment sees only ciphertext of https; of http it would see the key.
    session.trust_env = settings.is_encrypted
    adapter = _BoundedAdapter()
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class _TooLargeError(Exception):
    """The body went past the limit."""


def _read_body(response: requests.Response) -> bytes:
    body = bytearray()
    # As it came over the wire: decompressing, within a limit of its own, is not the transport's business.
    for chunk in response.raw.stream(64 * 1024, decode_content=False):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise _TooLargeError
    return bytes(body)


_BREAKAGES: BreakageTable = (
    (
        (
            urllib3.exceptions.NameResolutionError,
            urllib3.exceptions.LocationParseError,
            requests.exceptions.InvalidURL,
        ),
        Breakage.UNKNOWN_HOST,
    ),
    (
        (urllib3.exceptions.ProxyError, requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema),
        Breakage.PROXY,
    ),
    ((urllib3.exceptions.NewConnectionError,), Breakage.UNREACHABLE),
    ((urllib3.exceptions.TimeoutError,), Breakage.TIMEOUT),
)
