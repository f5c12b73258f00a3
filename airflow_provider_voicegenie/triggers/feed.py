# SPDX-License-Identifier: Apache-2.0
"""
One poll for all waits of an event loop on one connection.

Triggers of one triggerer share its event loop. Each subscribes to the feed of its connection, which lives while it has
subscribers. The feed's own tasks run in an empty context, and call each subscriber in that subscriber's own: what it
logs lands in the log of its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
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
from airflow_provider_voicegenie.triggers.polling import (
    ListedPage,
    ListReader,
    PageRead,
    PolledCampaign,
    PollingPlan,
    Subscriber,
)
from airflow_provider_voicegenie.triggers.threads import in_thread, open_client, read_settings

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient

#: Requests under way at a time, so that one that hangs delays no other.
_MAX_CONCURRENT = 8

#: The part of the connection's rate limit that a feed uses; the rest is for tasks in workers.
_SHARE_OF_LIMIT = 0.8

#: Failures in a row after which it is the service that fails, and all requests slow down.
_FAILING = 3

#: Campaigns published before other tasks of the event loop get a turn.
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

#: What the feed reads: the campaign, or why it could not be read.
Reading = Campaign | VoiceGenieError

#: Called with a reading, whether the campaign was read by itself, and Unix seconds; what it returns is an update.
OnReading = Callable[[Reading, bool, float], object]


class Subscription:
    """
    One wait's part in a feed.

    :param feed: The feed.
    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param needs_single_reads: Whether what the list has is not enough.
    :param on_reading: Called with each reading; what it returns, unless it is ``None``, is an update.
    """

    __slots__ = (
        "_campaign",
        "_context",
        "_failure",
        "_feed",
        "_on_reading",
        "_update",
        "_waiter",
        "interval",
        "joined_at",
        "needs_single_reads",
    )

    def __init__(
        self, feed: CampaignFeed, campaign_id: str, interval: float, on_reading: OnReading, *, needs_single_reads: bool
    ) -> None:
        now = asyncio.get_running_loop().time()
        self.interval = interval
        self.needs_single_reads = needs_single_reads
        self.joined_at = now
        self._on_reading = on_reading
        self._context = contextvars.copy_context()
        self._feed = feed
        self._update: object = None
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._campaign: PolledCampaign = feed._join(campaign_id, self, now)

    async def update(self) -> Any:
        """
        Wait for the next update, and return it.

        :raises Exception: What ``on_reading`` raised, or what broke the feed.
        """
        while self._update is None and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure
        update, self._update = self._update, None
        return update

    def poll_now(self) -> None:
        """Have the campaign read by itself at once."""
        self._feed._poll_now(self._campaign)

    def close(self) -> None:
        """Leave the feed."""
        self._feed._leave(self._campaign, self)

    def publish(self, reading: Reading, in_full: bool, now: float) -> None:
        """Show the subscriber a reading. One that has not taken its last update yet is left out."""
        if self._update is not None:
            return
        try:
            self._update = self._context.run(self._on_reading, reading, in_full, now)
        except Exception as error:  # noqa: BLE001  one subscriber's error is its own
            self._failure = error
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End the wait with an error that is not the service's."""
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        if (self._update is not None or self._failure is not None) and self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class CampaignReading(NamedTuple):
    """
    What was read of one campaign.

    :param campaign_id: The campaign.
    :param reading: The campaign, or why it could not be read.
    :param now: Unix seconds.
    """

    campaign_id: str
    reading: Reading
    now: float


class Readings:
    """
    All that a feed reads for a watcher, in order and without gaps. Joins the feed of the connection when it is made.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param interval: Seconds between reads of a campaign, at most.
    :param campaign_ids: The campaigns; ``None`` for the whole list, page by page.
    """

    def __init__(self, voicegenie_conn_id: str, interval: float, campaign_ids: Collection[str] | None = None) -> None:
        self.interval = interval
        self.joined_at = asyncio.get_running_loop().time()
        self._read: list[CampaignReading | ListedPage | VoiceGenieError] = []
        self._failure: BaseException | None = None
        self._came = asyncio.Event()
        self._feed = _feed(voicegenie_conn_id)
        self._parts: list[_PartOfReadings] = []
        if campaign_ids is None:
            self._feed._join_list(self, self.joined_at)
        else:
            self._parts = [_PartOfReadings(self, campaign_id) for campaign_id in campaign_ids]

    async def next(self) -> list[CampaignReading | ListedPage | VoiceGenieError]:
        """
        Wait until something was read since the last call, and return it.

        :raises Exception: What broke the feed.
        """
        while not self._read and self._failure is None:
            self._came.clear()
            await self._came.wait()
        if self._failure is not None:
            raise self._failure
        read, self._read = self._read, []
        return read

    def close(self) -> None:
        """Leave the feed."""
        for part in self._parts:
            part.close()
        if not self._parts:
            self._feed._leave_list(self)

    def publish(self, reading: CampaignReading | ListedPage | VoiceGenieError) -> None:
        """Take what was read."""
        self._read.append(reading)
        self._came.set()

    def fail(self, error: BaseException) -> None:
        """End with an error that is not the service's."""
        self._failure = error
        self._came.set()


class _PartOfReadings:
    """What a feed reads of one campaign for a watcher."""

    __slots__ = ("_campaign", "_campaign_id", "_readings", "interval", "joined_at", "needs_single_reads")

    def __init__(self, readings: Readings, campaign_id: str) -> None:
        self.interval = readings.interval
        self.joined_at = readings.joined_at
        self.needs_single_reads = False
        self._campaign_id = campaign_id
        self._readings = readings
        self._campaign: PolledCampaign = readings._feed._join(campaign_id, self, self.joined_at)

    def publish(self, reading: Reading, in_full: bool, now: float) -> None:
        """Take a reading."""
        # What was asked for before it came is older, although it may come later: it could take an end back.
        self.joined_at = asyncio.get_running_loop().time()
        self._readings.publish(CampaignReading(self._campaign_id, reading, now))

    def fail(self, error: BaseException) -> None:
        """End with an error that is not the service's."""
        self._readings.fail(error)

    def close(self) -> None:
        """Leave the feed."""
        self._readings._feed._leave(self._campaign, self)


class CampaignFeed:
    """
    Polls for all subscribers of one connection in one event loop. Get it with :func:`subscribe`.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    def __init__(self, voicegenie_conn_id: str) -> None:
        self._voicegenie_conn_id = voicegenie_conn_id
        self._client: VoiceGenieClient | None = None
        self._loop = asyncio.get_running_loop()
        self._plan = PollingPlan()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spacing = 0.0
        self._next_request = 0.0
        self._failures = 0
        self._under_way = 0
        self._looked_at = 0.0
        self._poller = self._start(self._run())
        self._poller.add_done_callback(self._report)

    # For subscriptions.

    def _join(self, campaign_id: str, subscription: Subscriber, now: float) -> PolledCampaign:
        polled = self._plan.add(campaign_id, subscription, now)
        self._wake.set()
        return polled

    def _leave(self, polled: PolledCampaign, subscription: Subscriber) -> None:
        self._plan.remove(polled, subscription, self._loop.time())
        self._end_if_idle()

    def _join_list(self, reader: ListReader, now: float) -> None:
        self._plan.add_list_reader(reader, now)
        self._wake.set()

    def _leave_list(self, reader: ListReader) -> None:
        self._plan.remove_list_reader(reader, self._loop.time())
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._plan.is_idle:
            _forget(self)
            for task in (self._poller, *self._tasks):
                task.cancel()
        self._wake.set()

    def _poll_now(self, polled: PolledCampaign) -> None:
        self._plan.poll_now(polled, self._loop.time())
        self._wake.set()

    # The poll.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._loop.create_task(work, context=contextvars.Context())

    async def _run(self) -> None:
        """Send requests as they fall due, within the rate limit. Each has its own task: a slow one delays no other."""
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
            # Not one of the service's: subscribers must hear of it rather than wait for ever, and others get a new
            # feed.
            _forget(self)
            for polled in list(self._plan.campaigns.values()):
                for subscription in polled.subscribers:
                    subscription.fail(error)
            for reader in self._plan.list_readers:
                reader.fail(error)

    async def _poll(self, request: PageRead | PolledCampaign) -> None:
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
                asked_at = time.time() - (self._loop.time() - sent_at)
                self._publish_to_list_readers(ListedPage(request.offset, page, asked_at), sent_at)
                await self._publish_all(((each.campaign_id, each) for each in page.campaigns), sent_at)
            else:
                found = await in_thread(client.send, campaign(request.campaign_id), max_attempts=1)
                self._failures = 0
                self._plan.campaign_was_read(request, self._loop.time())
                self._publish(request, found, sent_at, in_full=True)
        except VoiceGenieError as error:
            await self._failed(request, error, sent_at, client)

    async def _failed(
        self,
        request: PageRead | PolledCampaign,
        error: VoiceGenieError,
        sent_at: float,
        client: VoiceGenieClient | None,
    ) -> None:
        self._count_failure(error)
        mended = isinstance(error, _MENDED_BY_CONNECTION) and await self._connection_has_changed(client)
        now = self._loop.time()
        if isinstance(request, PolledCampaign):
            self._plan.campaign_failed(request, now, retry_after=error.retry_after)
            if mended:
                self._plan.poll_now(request, now)
            else:
                self._publish(request, error, sent_at, in_full=True)
            return
        is_about_all = isinstance(error, UnauthorizedError | InvalidConnectionError)
        if mended or error.temporary or is_about_all:
            self._plan.page_failed(now, retry_after=error.retry_after)
        else:
            self._plan.block_list(now)
        if not mended:
            self._publish_to_list_readers(error, sent_at)
        if not mended and (error.temporary or is_about_all):
            await self._publish_all([(campaign_id, error) for campaign_id in self._plan.campaigns], sent_at)

    def _count_failure(self, error: VoiceGenieError) -> None:
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

    async def _publish_all(self, readings: Iterable[tuple[str, Reading]], sent_at: float) -> None:
        published = 0
        for campaign_id, reading in readings:
            polled = self._plan.campaigns.get(campaign_id)
            if polled is None:
                continue
            self._publish(polled, reading, sent_at, in_full=False)
            published += 1
            if published % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _publish_to_list_readers(self, reading: ListedPage | VoiceGenieError, sent_at: float) -> None:
        for reader in self._plan.list_readers:
            if reader.joined_at <= sent_at:
                reader.publish(reading)

    def _publish(self, polled: PolledCampaign, reading: Reading, sent_at: float, *, in_full: bool) -> None:
        now = time.time()
        for subscription in polled.subscribers:
            # One that joined after the request was sent is owed a fresher reading.
            if subscription.joined_at <= sent_at and (in_full or not subscription.needs_single_reads):
                subscription.publish(reading, in_full, now)


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CampaignFeed]] = WeakKeyDictionary()


def subscribe(
    voicegenie_conn_id: str,
    campaign_id: str,
    interval: float,
    on_reading: OnReading,
    *,
    needs_single_reads: bool = False,
) -> Subscription:
    """
    Join the feed of a connection in the running event loop, which begins with its first subscriber.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param on_reading: Called with each reading, in the caller's context; what it returns, unless it is ``None``, is an
        update.
    :param needs_single_reads: Whether what the list has is not enough.
    """
    feed = _feed(voicegenie_conn_id)
    return Subscription(feed, campaign_id, interval, on_reading, needs_single_reads=needs_single_reads)


def _feed(voicegenie_conn_id: str) -> CampaignFeed:
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = feeds.get(voicegenie_conn_id)
    if feed is None:
        feed = feeds[voicegenie_conn_id] = CampaignFeed(voicegenie_conn_id)
    return feed


def _forget(feed: CampaignFeed) -> None:
    feeds = _feeds.get(feed._loop, {})
    for voicegenie_conn_id in [each for each, known in feeds.items() if known is feed]:
        del feeds[voicegenie_conn_id]
