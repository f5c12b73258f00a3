# SPDX-License-Identifier: Apache-2.0
"""
One poll for all waits of an event loop on one connection.

Triggers of one triggerer share its event loop. Each subscribes to the feed of its connection, which lives while it has
subscribers. The feed's own tasks run in an empty context: what they log is not one trigger's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow_provider_voicegenie.api.endpoints import MAX_PAGE_SIZE, campaign, campaign_page
from airflow_provider_voicegenie.api.errors import (
    ConnectionFailedError,
    ForbiddenError,
    InvalidConnectionError,
    RateLimitError,
    RedirectedError,
    TlsFailedError,
    UnauthorizedError,
    VoiceGenieError,
)
from airflow_provider_voicegenie.api.models import Campaign
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.triggers.polling import Entry, PageRead, PollingPlan
from airflow_provider_voicegenie.triggers.threads import in_thread, open_client, read_settings

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient

log = logging.getLogger(__name__)

#: Exchanges under way at a time, so that one that hangs holds up no other.
_MAX_CONCURRENT = 8

#: The part of the connection's rate limit that a feed uses; the rest is for tasks in workers.
_SHARE_OF_LIMIT = 0.8

#: Failures in a row after which it is the service that fails, and all requests slow down.
_FAILING = 3

#: Campaigns told about before other tasks of the event loop get a turn.
_AT_A_TIME = 50

#: Errors that a change of the Airflow connection could mend, and seconds between two looks at it.
_MENDED_BY_CONNECTION = (
    ConnectionFailedError,
    ForbiddenError,
    InvalidConnectionError,
    RedirectedError,
    TlsFailedError,
    UnauthorizedError,
)
_LOOK_AGAIN = 5.0

#: What a subscriber is shown: the campaign or why it could not be read, whether it was read by itself, Unix seconds.
Notice = Callable[[Campaign | VoiceGenieError, bool, float], object]


class Subscription:
    """
    One wait's part in a feed.

    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param alone: Whether what the list tells is not enough.
    :param notice: Called with each sighting; whatever it returns, but ``None``, wakes up the subscriber.
    """

    __slots__ = ("_entry", "_failure", "_feed", "_news", "_waiter", "alone", "interval", "joined_at", "notice")

    def __init__(self, feed: CampaignFeed, campaign_id: str, interval: float, notice: Notice, *, alone: bool) -> None:
        now = asyncio.get_running_loop().time()
        self.interval = interval
        self.alone = alone
        self.notice = notice
        self.joined_at = now
        self._feed = feed
        self._news: object = None
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._entry: Entry[Subscription] = feed._join(campaign_id, self, now)

    async def news(self) -> Any:
        """
        Wait until ``notice`` returned something, and return that.

        :raises Exception: What ``notice`` raised, or what broke the feed.
        """
        while self._news is None and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure
        news, self._news = self._news, None
        return news

    def read_alone(self) -> None:
        """Have the campaign read by itself at once; ``notice`` is shown what comes of it."""
        self._feed._hurry(self._entry)

    def close(self) -> None:
        """Leave the feed."""
        self._feed._leave(self._entry, self)

    def _show(self, sighting: Campaign | VoiceGenieError, in_full: bool, now: float) -> None:
        if self._news is not None:
            return  # it has not taken in the last news yet; the next sighting is not far
        try:
            self._news = self.notice(sighting, in_full, now)
        except Exception as error:  # noqa: BLE001  one subscriber's error is its own
            self._failure = error
        self._wake()

    def _break(self, error: BaseException) -> None:
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        if (self._news is not None or self._failure is not None) and self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class CampaignFeed:
    """
    Polls for all subscribers of one connection in one event loop. Get it with :func:`subscribe`.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    def __init__(self, voicegenie_conn_id: str) -> None:
        self._voicegenie_conn_id = voicegenie_conn_id
        self._client: VoiceGenieClient | None = None
        self._loop = asyncio.get_running_loop()
        self._plan: PollingPlan[Subscription] = PollingPlan()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spacing = 0.0
        self._next_request = 0.0
        self._failures = 0
        self._under_way = 0
        self._looked_at = 0.0
        self._poller = self._start(self._run())
        self._poller.add_done_callback(self._report)

    # What subscribers do.

    def _join(self, campaign_id: str, subscription: Subscription, now: float) -> Entry[Subscription]:
        entry = self._plan.add(campaign_id, subscription, now)
        self._wake.set()
        return entry

    def _leave(self, entry: Entry[Subscription], subscription: Subscription) -> None:
        self._plan.remove(entry, subscription, self._loop.time())
        if not self._plan.entries:
            _forget(self)
            for task in (self._poller, *self._tasks):
                task.cancel()
        self._wake.set()

    def _hurry(self, entry: Entry[Subscription]) -> None:
        self._plan.hurry(entry, self._loop.time())
        self._wake.set()

    # What the feed does.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._loop.create_task(work, context=Context())

    async def _run(self) -> None:
        """Send each request when it is due, one after another, but for no longer than it takes to send it."""
        while True:
            now = self._loop.time()
            at = max(self._next_request, self._plan.due_at())
            if at > now or self._under_way >= self._allowed():
                self._wake.clear()
                # Not `wait_for`, which before Python 3.12 can swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(at - now, 60.0) if at > now else None):
                        await self._wake.wait()
                continue
            self._next_request = now + self._spacing
            self._under_way += 1
            task = self._start(self._poll(self._plan.take()))
            self._tasks.add(task)
            task.add_done_callback(self._was_polled)

    def _allowed(self) -> int:
        # One at a time, too, until the connection and its rate limit are known.
        return 1 if self._failures >= _FAILING or self._spacing == 0 else _MAX_CONCURRENT

    def _was_polled(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._under_way -= 1
        self._wake.set()
        self._report(task)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not one of the service's: whoever waits must hear of it rather than wait for ever.
            for entry in list(self._plan.entries.values()):
                for subscription in entry.members:
                    subscription._break(error)

    async def _poll(self, request: PageRead | Entry[Subscription]) -> None:
        sent_at = self._loop.time()
        client: VoiceGenieClient | None = None
        try:
            if self._client is None:
                self._client = await open_client(await read_settings(self._voicegenie_conn_id))
            client = self._client
            self._spacing = 60.0 / (_SHARE_OF_LIMIT * client.settings.requests_per_minute)
            self._wake.set()
            if isinstance(request, PageRead):
                page_request = campaign_page(limit=MAX_PAGE_SIZE, offset=request.offset)
                page = await in_thread(client.send, page_request, max_attempts=1)
                self._failures = 0
                ids = [campaign.campaign_id for campaign in page.campaigns]
                self._plan.page_was_read(ids, page.size, page.total, self._loop.time(), sent_at)
                await self._show_all(((each.campaign_id, each) for each in page.campaigns), sent_at)
            else:
                found = await in_thread(client.send, campaign(request.campaign_id), max_attempts=1)
                self._failures = 0
                self._plan.campaign_was_read(request, self._loop.time())
                self._show(request, found, sent_at, in_full=True)
        except VoiceGenieError as error:
            await self._failed(request, error, sent_at, client)

    async def _failed(
        self,
        request: PageRead | Entry[Subscription],
        error: VoiceGenieError,
        sent_at: float,
        client: VoiceGenieClient | None,
    ) -> None:
        self._note_failure(error)
        mended = isinstance(error, _MENDED_BY_CONNECTION) and await self._connection_has_changed(client)
        now = self._loop.time()
        if isinstance(request, Entry):
            self._plan.campaign_failed(request, now, retry_after=error.retry_after)
            if mended:
                self._plan.hurry(request, now)
            else:
                self._show(request, error, sent_at, in_full=True)
            return
        is_about_all = isinstance(error, UnauthorizedError | InvalidConnectionError)
        if mended or error.temporary or is_about_all:
            self._plan.page_failed(now, retry_after=error.retry_after)
        else:
            self._plan.block_list(now)
        if not mended and (error.temporary or is_about_all):
            await self._show_all([(campaign_id, error) for campaign_id in self._plan.entries], sent_at)

    def _note_failure(self, error: VoiceGenieError) -> None:
        if not error.temporary:
            return
        self._failures += 1
        if isinstance(error, RateLimitError) or self._failures >= _FAILING:
            pause = poll_delay(1.0, max(1, self._failures - _FAILING + 1), error.retry_after)
            self._next_request = max(self._next_request, self._loop.time() + pause)

    async def _connection_has_changed(self, client: VoiceGenieClient | None) -> bool:
        """Look whether someone has mended the Airflow connection since a client was made."""
        now = self._loop.time()
        try:
            if now - self._looked_at >= _LOOK_AGAIN:
                self._looked_at = now
                settings = await read_settings(self._voicegenie_conn_id)
                if self._client is not None and settings != self._client.settings:
                    self._client = await open_client(settings)
            return client is not None and self._client is not client
        except VoiceGenieError:
            return False

    async def _show_all(self, sightings: Iterable[tuple[str, Campaign | VoiceGenieError]], sent_at: float) -> None:
        shown = 0
        for campaign_id, sighting in sightings:
            entry = self._plan.entries.get(campaign_id)
            if entry is None:
                continue
            self._show(entry, sighting, sent_at, in_full=False)
            shown += 1
            if shown % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _show(
        self, entry: Entry[Subscription], sighting: Campaign | VoiceGenieError, sent_at: float, *, in_full: bool
    ) -> None:
        now = time.time()
        for subscription in entry.members:
            # One that joined after the request was sent is owed a fresher answer.
            if subscription.joined_at <= sent_at and (in_full or not subscription.alone):
                subscription._show(sighting, in_full, now)


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CampaignFeed]] = WeakKeyDictionary()


def subscribe(
    voicegenie_conn_id: str, campaign_id: str, interval: float, notice: Notice, *, alone: bool = False
) -> Subscription:
    """
    Join the feed of a connection in the running event loop, which begins with its first subscriber.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param notice: Called with each sighting; whatever it returns, but ``None``, wakes up the subscriber.
    :param alone: Whether what the list tells is not enough.
    """
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = feeds.get(voicegenie_conn_id)
    if feed is None:
        feed = feeds[voicegenie_conn_id] = CampaignFeed(voicegenie_conn_id)
    return Subscription(feed, campaign_id, interval, notice, alone=alone)


def _forget(feed: CampaignFeed) -> None:
    feeds = _feeds.get(feed._loop, {})
    for voicegenie_conn_id in [each for each, known in feeds.items() if known is feed]:
        del feeds[voicegenie_conn_id]
