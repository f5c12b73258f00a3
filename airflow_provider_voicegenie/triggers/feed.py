# SPDX-License-Identifier: Apache-2.0
"""
One poll for all waits of an event loop on one connection.

Triggers of one triggerer share its event loop. Each subscribes to the feed of its connection, which lives while it has
subscribers (see :mod:`airflow_provider_voicegenie.triggers.subscriptions`). The feed's own tasks run in an empty
context, and call each subscriber in that subscriber's own: what it logs lands in the log of its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
import traceback
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_voicegenie.api.endpoints import MAX_PAGE_SIZE, campaign, campaign_page, quota
from airflow_provider_voicegenie.api.errors import (
    ConnectionFailedError,
    ForbiddenError,
    InvalidConnectionError,
    InvalidResponseError,
    RedirectedError,
    TlsFailedError,
    UnauthorizedError,
    VoiceGenieError,
)
from airflow_provider_voicegenie.api.models import Campaign
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.metrics import show_waits
from airflow_provider_voicegenie.triggers.polling import (
    ListedPage,
    ListReader,
    OneRead,
    PageRead,
    PolledCampaign,
    PollingPlan,
    QuotaRead,
    QuotaReader,
    Subscriber,
)
from airflow_provider_voicegenie.triggers.threads import in_thread, open_client, read_settings

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.settings import Account

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Requests under way at a time, so that one that hangs delays no other.
_MAX_CONCURRENT = 8

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

#: Seconds between two looks at the Airflow connection while requests succeed. If two in a row do not find it, it is
#: gone: a user who replaces a connection may delete it first.
_LOOK_REGULARLY = 30.0
_GONE = 2

#: Seconds for which no more unexpected errors are logged after one.
_LOG_AGAIN = 600.0

#: Seconds between two reports of how many wait.
_SHOW_AGAIN = 10.0

#: What the feed reads: the campaign, or why it could not be read.
Reading = Campaign | VoiceGenieError


class CampaignFeed:
    """
    Polls for all subscribers of one connection in one event loop. Get it with :func:`feed_of`.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    def __init__(self, voicegenie_conn_id: str) -> None:
        self._voicegenie_conn_id = voicegenie_conn_id
        self._client: VoiceGenieClient | None = None
        self._loop = asyncio.get_running_loop()
        self._plan = PollingPlan()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause_until = -math.inf
        self._failures = 0
        self._restarts = 0
        self._looked_at = 0.0
        self._not_found = 0
        self._shown_at = -math.inf
        self._logged_at = -math.inf
        self._poller = self._begin()
        self._keeper = self._start(self._keep_looking_at_connection())

    @property
    def account(self) -> Account | None:
        """Whose campaigns are read; ``None`` before the connection could be read."""
        return None if self._client is None else self._client.settings.account

    # For subscriptions.

    def _join(self, campaign_id: str, subscription: Subscriber, now: float) -> None:
        self._plan.add(campaign_id, subscription, now)
        self._wake.set()

    def _leave(self, campaign_id: str, subscription: Subscriber) -> None:
        self._plan.remove(self._plan.campaigns[campaign_id], subscription, self._loop.time())
        self._end_if_idle()

    def _join_list(self, reader: ListReader, now: float) -> None:
        self._plan.add_list_reader(reader, now)
        self._wake.set()

    def _leave_list(self, reader: ListReader) -> None:
        self._plan.remove_list_reader(reader, self._loop.time())
        self._end_if_idle()

    def _set_quota_reader(self, reader: QuotaReader | None) -> None:
        self._plan.set_quota_reader(reader, self._loop.time())
        self._wake.set()

    def _end_if_idle(self) -> None:
        if self._plan.is_idle:
            _forget(self)
            show_waits(self._voicegenie_conn_id, 0)
            for task in (self._keeper, self._poller, *self._tasks):
                task.cancel()
        self._wake.set()

    def _poll_now(self, campaign_id: str) -> None:
        self._plan.poll_now(self._plan.campaigns[campaign_id], self._loop.time())
        self._wake.set()

    async def _read(self, request: Request[Result], patience: float) -> Result | None:
        now = self._loop.time()
        has_room = self._client is not None and self._client.share.has_room(self._plan.waiting_reads, now)
        answer: asyncio.Future[Result] = self._loop.create_future()
        read = OneRead(request, answer)
        if patience <= 0 or self._pause_until > now or not has_room or not self._plan.add_read(read, now):
            return None
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                return await answer
        return None

    def _service(self) -> dict[str, Any] | None:
        if self._client is None:
            return None
        return {"address": self._client.settings.address, "clock_offset": self._client.server_time() - time.time()}

    # The poll.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._loop.create_task(work, context=contextvars.Context())

    def _begin(self) -> asyncio.Task[None]:
        poller = self._start(self._run())
        poller.add_done_callback(self._has_ended)
        return poller

    def _begin_anew(self, pause: float = 0.0) -> None:
        """Leave what was read and what is under way, and read all that is waited for again."""
        if self._plan.is_idle:
            return
        for task in (self._poller, *self._tasks):
            if task is not asyncio.current_task(self._loop):
                task.cancel()
        self._tasks = set()
        self._failures = 0
        self._pause_until = self._loop.time() + pause
        self._plan = self._plan.renewed(self._loop.time())
        self._poller = self._begin()

    async def _run(self) -> None:
        """Send requests as they fall due, within the fair share. Each has its own task: a slow one delays no other."""
        while True:
            now, due = self._loop.time(), self._plan.due_at()
            share = None if self._client is None else self._client.share
            at = max(self._pause_until, due, -math.inf if share is None else share.next_at)
            if at > now or len(self._tasks) >= self._allowed():
                self._wake.clear()
                # Not `wait_for`, which before Python 3.12 can swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(at - now, 60.0) if at > now else None):
                        await self._wake.wait()
                continue
            self._show_waits()
            if share is not None:
                share.take(now, due)
            task = self._start(self._poll(self._plan.take()))
            self._tasks.add(task)
            task.add_done_callback(self._has_ended)

    def _show_waits(self) -> None:
        """Show in Airflow's metrics how many take part, from time to time."""
        now = self._loop.time()
        if now - self._shown_at >= _SHOW_AGAIN:
            self._shown_at = now
            waits = sum(len(polled.subscribers) for polled in self._plan.campaigns.values())
            show_waits(self._voicegenie_conn_id, waits + len(self._plan.list_readers))

    def _allowed(self) -> int:
        # One at a time, too, until the connection and its rate limit are known.
        return 1 if self._failures >= _FAILING or self._client is None else _MAX_CONCURRENT

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._poller and task not in self._tasks:
            return
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._restart(error)

    def _restart(self, error: Exception) -> None:
        """Begin anew after an error that nobody expected: those who wait have done nothing wrong."""
        self._log_unexpected(error)
        self._restarts += 1
        pause = poll_delay(1.0, self._restarts)
        try:
            self._begin_anew(pause)
        except Exception as again:  # noqa: BLE001  as nobody expected it
            self._loop.call_later(pause, self._restart, again)

    def _log_unexpected(self, error: Exception) -> None:
        if self._loop.time() - self._logged_at >= _LOG_AGAIN:
            self._logged_at = self._loop.time()
            log.error(
                "Connection %r: an error that the provider did not expect (%s). The polls go on; please report it.",
                self._voicegenie_conn_id,
                place_of(error),
            )

    async def _poll(self, request: PageRead | QuotaRead | OneRead | PolledCampaign) -> None:
        if isinstance(request, OneRead):
            await self._answer(request)
            return
        sent_at = self._loop.time()
        client: VoiceGenieClient | None = None
        try:
            if self._client is None:
                self._client = await open_client(await read_settings(self._voicegenie_conn_id))
                self._wake.set()
            client = self._client
            if isinstance(request, PageRead):
                page_request = campaign_page(limit=MAX_PAGE_SIZE, offset=request.offset)
                page = await in_thread(client.send, page_request, max_attempts=1)
                self._failures = 0
                ids = [campaign.campaign_id for campaign in page.campaigns]
                self._plan.page_was_read(ids, page.size, page.total, self._loop.time(), sent_at)
                asked_at = time.time() - (self._loop.time() - sent_at)
                self._publish_to_list_readers(ListedPage(request.offset, page, asked_at), sent_at)
                await self._publish_all(((each.campaign_id, each) for each in page.campaigns), sent_at)
            elif isinstance(request, QuotaRead):
                left = await in_thread(client.send, quota(), max_attempts=1)
                self._failures = 0
                self._plan.quota_was_read(self._loop.time())
                if self._plan.quota_reader is not None:
                    self._plan.quota_reader.publish(left)
            else:
                found = await in_thread(client.send, campaign(request.campaign_id), max_attempts=1)
                self._failures = 0
                self._plan.campaign_was_read(request, self._loop.time())
                self._publish(request, found, sent_at, in_full=True)
            self._restarts = 0
        except VoiceGenieError as error:
            await self._failed(request, error, sent_at, client)
        except Exception as error:  # noqa: BLE001  whatever it is made of, it is one bad response
            self._log_unexpected(error)
            unreadable = InvalidResponseError(f"What was read cannot be used ({place_of(error)}).")
            await self._failed(request, unreadable, sent_at, client)

    async def _failed(
        self,
        request: PageRead | QuotaRead | PolledCampaign,
        error: VoiceGenieError,
        sent_at: float,
        client: VoiceGenieClient | None,
    ) -> None:
        self._count_failure(error)
        plan = self._plan
        mended = isinstance(error, _MENDED_BY_CONNECTION) and await self._connection_has_changed(client)
        if plan is not self._plan:
            return
        now = self._loop.time()
        if isinstance(request, PolledCampaign):
            self._plan.campaign_failed(request, now, retry_after=error.retry_after)
            if mended:
                self._plan.poll_now(request, now)
            else:
                self._publish(request, error, sent_at, in_full=True)
            return
        if isinstance(request, QuotaRead):
            self._plan.quota_failed(now, retry_after=None if mended else error.retry_after)
            if not mended and self._plan.quota_reader is not None:
                self._plan.quota_reader.publish(error)
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

    async def _answer(self, read: OneRead) -> None:
        """Read something once. Its trouble is nobody else's: the polls go on."""
        client, plan = self._client, self._plan
        assert client is not None  # noqa: S101  else it would not have been taken in
        try:
            answer = await in_thread(client.send, read.request, max_attempts=1)
            if not read.answer.done():
                read.answer.set_result(answer)
        except Exception as error:  # noqa: BLE001  whoever asked is told
            if not read.answer.done():
                read.answer.set_exception(error)
        finally:
            plan.read_is_over()

    def _count_failure(self, error: VoiceGenieError) -> None:
        if not error.temporary:
            return
        self._failures += 1
        if self._failures >= _FAILING:
            pause = poll_delay(1.0, self._failures - _FAILING + 1, error.retry_after)
            self._pause_until = max(self._pause_until, self._loop.time() + pause)

    # The connection.

    async def _keep_looking_at_connection(self) -> None:
        """Look now and then, as a connection that works may be changed or deleted all the same."""
        while True:
            await asyncio.sleep(_LOOK_REGULARLY)
            try:
                await self._look_at_connection()
            except Exception as error:  # noqa: BLE001  it is looked at again
                self._log_unexpected(error)

    async def _connection_has_changed(self, client: VoiceGenieClient | None) -> bool:
        """Look whether someone has mended the Airflow connection since a client was made."""
        if self._loop.time() - self._looked_at >= _LOOK_AGAIN:
            await self._look_at_connection()
        return client is not None and self._client is not client

    async def _look_at_connection(self) -> None:
        """Go on with what is in the Airflow connection now, if it has changed, or without it, if it is gone."""
        self._looked_at = self._loop.time()
        before = self._client
        if before is None:
            # Each request reads it.
            return
        after: VoiceGenieClient | None = before
        try:
            settings = await read_settings(self._voicegenie_conn_id)
            self._not_found = 0
            if settings != before.settings:
                after = await open_client(settings)
        except InvalidConnectionError:
            self._not_found += 1
            if self._not_found >= _GONE:
                after = None
        except VoiceGenieError:
            # Airflow cannot be asked now.
            return
        if after is not before and self._client is before:
            self._go_on_with(after)

    def _go_on_with(self, client: VoiceGenieClient | None) -> None:
        account, self._client = self.account, client
        self._not_found = 0
        if client is not None:
            log.info("Connection %r has changed; the polls go on with what is in it now.", self._voicegenie_conn_id)
        if self.account != account:
            # What was read before, or is still on its way, is of another account.
            self._begin_anew()
        self._wake.set()

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
                try:
                    reader.publish(reading)
                except Exception as error:  # noqa: BLE001  one reader's error is its own
                    self._log_unexpected(error)

    def _publish(self, polled: PolledCampaign, reading: Reading, sent_at: float, *, in_full: bool) -> None:
        now = time.time()
        for subscription in polled.subscribers:
            # One that joined after the request was sent is owed a fresher reading.
            if subscription.joined_at <= sent_at and (in_full or not subscription.needs_single_reads):
                subscription.publish(reading, in_full, now)


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CampaignFeed]] = WeakKeyDictionary()


def feed_of(voicegenie_conn_id: str) -> CampaignFeed:
    """
    Return the feed of a connection in the running event loop; a new one if there is none.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = feeds.get(voicegenie_conn_id)
    if feed is None:
        feed = feeds[voicegenie_conn_id] = CampaignFeed(voicegenie_conn_id)
    return feed


def place_of(error: Exception) -> str:
    """
    Say in a few words what an error is and where it was raised. Its message may hold what outsiders wrote.

    :param error: An error that nobody expected.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _forget(feed: CampaignFeed) -> None:
    feeds = _feeds.get(feed._loop, {})
    for voicegenie_conn_id in [each for each, known in feeds.items() if known is feed]:
        del feeds[voicegenie_conn_id]
