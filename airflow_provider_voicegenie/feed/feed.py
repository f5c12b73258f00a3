# SPDX-License-Identifier: Apache-2.0
"""
One poll for all waits of an event loop and a connection.

Triggers of one triggerer share its event loop. Each subscribes to requests of its connection with :func:`subscribe`;
the feed of the connection lives while it has subscribers. Its own tasks run in an empty context, and call each
subscriber in that subscriber's own: what it logs lands in the log of its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_voicegenie.api.errors import (
    ConnectionFailedError,
    ForbiddenError,
    InvalidConnectionError,
    InvalidResponseError,
    RateLimitError,
    RedirectedError,
    TlsFailedError,
    UnauthorizedError,
    VoiceGenieError,
)
from airflow_provider_voicegenie.api.retries import poll_delay
from airflow_provider_voicegenie.feed.plan import Interest, ListedPage, PollingPlan, is_of_campaign, is_page, offset_of
from airflow_provider_voicegenie.feed.share import FairShare
from airflow_provider_voicegenie.feed.threads import in_thread, open_client, read_settings
from airflow_provider_voicegenie.hooks.connection import make_client
from airflow_provider_voicegenie.metrics import show_waits
from airflow_provider_voicegenie.timing import timing

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.models import CampaignPage
    from airflow_provider_voicegenie.api.settings import Account

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Requests under way at a time, so that a request that hangs delays no other.
_MAX_CONCURRENT = 8

#: Reads of something that is read once that may wait: polls come first.
_MAXIMUM_WAITING = 50

#: Failures in a row after which it is the service that fails, and all requests slow down.
_FAILING = 3

#: Campaigns published before other tasks of the event loop get a turn.
_AT_A_TIME = 50

#: Errors that a change of the Airflow connection could mend.
_MENDED_BY_CONNECTION = (
    ConnectionFailedError,
    ForbiddenError,
    InvalidConnectionError,
    RedirectedError,
    TlsFailedError,
    UnauthorizedError,
)

#: If two reads of the Airflow connection in a row do not find it, it is gone: a user may delete it to replace it.
_GONE = 2


#: Called with the response or the error, whether that came of the request itself (and not of the list), and Unix
#: seconds. What it returns, unless it is ``None``, is an update.
OnResponse = Callable[[Any, bool, float], object]


class Feed:
    """Polls for all subscribers of one connection in one event loop. Get it with :func:`feed_of`."""

    def __init__(self, voicegenie_conn_id: str) -> None:
        self._voicegenie_conn_id = voicegenie_conn_id
        self._client: VoiceGenieClient | None = None
        #: This feed's part of the client's rate limit.
        self._share: FairShare | None = None
        self._loop = asyncio.get_running_loop()
        self._plan = PollingPlan()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause_until = -math.inf
        self._failures = 0
        self._restarts = 0
        self._connection_read_at = 0.0
        self._not_found = 0
        self._shown_at = -math.inf
        self._logged_at = -math.inf
        self._poller = self._begin()
        self._keeper = self._start(self._keep_reading_connection())

    @property
    def account(self) -> Account | None:
        """The account whose campaigns are read; ``None`` until the connection has been read."""
        return None if self._client is None else self._client.settings.account

    # For subscriptions.

    def add(self, subscription: Subscription) -> None:
        """Send a request on behalf of one more subscription."""
        self._plan.add(subscription.request, subscription, subscription.joined_at)
        self._wake.set()

    def remove(self, subscription: Subscription) -> None:
        """Stop sending a request for a subscription."""
        self._plan.remove(subscription.request, subscription, self._loop.time())
        if self._plan.is_idle:
            feeds = _feeds.get(self._loop, {})
            if feeds.get(self._voicegenie_conn_id) is self:
                del feeds[self._voicegenie_conn_id]
            show_waits(self._voicegenie_conn_id, 0)
            for task in (self._keeper, self._poller, *self._tasks):
                task.cancel()
        self._wake.set()

    def poll_now(self, request: Request[Any]) -> None:
        """Send a request at once."""
        self._plan.poll_now(request, self._loop.time())
        self._wake.set()

    @property
    def is_free(self) -> bool:
        """Whether something that is read once would be read at once."""
        now, before = self._loop.time(), self._plan.waiting_once
        if self._share is None or self._pause_until > now or before >= _MAXIMUM_WAITING:
            return False
        return self._share.turn(before, now) <= now

    def service(self) -> dict[str, Any] | None:
        """Return the service's ``address``, and its ``clock_offset`` in seconds, as plain JSON."""
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
        """Drop all responses and requests under way, and send every subscribed request again."""
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
            share = self._share
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
        if now - self._shown_at >= timing.count_interval:
            self._shown_at = now
            counts = (each.is_counted for poll in self._plan.polls() for each in poll.subscribers)
            show_waits(self._voicegenie_conn_id, sum(counts))

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
        """Start over after an unexpected error, which is no fault of the subscribers."""
        self._log_unexpected(error)
        self._restarts += 1
        pause = poll_delay(1.0, self._restarts)
        try:
            self._begin_anew(pause)
        except Exception as again:  # noqa: BLE001  as nobody expected it
            self._loop.call_later(pause, self._restart, again)

    def _log_unexpected(self, error: Exception) -> None:
        if self._loop.time() - self._logged_at >= timing.error_log_interval:
            self._logged_at = self._loop.time()
            log.error(
                "Connection %r: an error that the provider did not expect (%s). The polls go on; please report it.",
                self._voicegenie_conn_id,
                place_of(error),
            )

    async def _poll(self, request: Request[Any]) -> None:
        sent_at = self._loop.time()
        client = self._client
        try:
            if client is None:
                client = await open_client(self._voicegenie_conn_id)
                self._use(client)
                self._wake.set()
            response = await self._send(client, request, sent_at)
            self._failures = 0
            await self._succeeded(request, response, sent_at)
            self._restarts = 0
        except VoiceGenieError as error:
            await self._failed(request, error, sent_at, client)
        except Exception as error:  # noqa: BLE001  whatever it is made of, it is one bad response
            self._log_unexpected(error)
            unreadable = InvalidResponseError(f"The response cannot be used ({place_of(error)}).")
            await self._failed(request, unreadable, sent_at, client)

    async def _send(self, client: VoiceGenieClient, request: Request[Result], sent_at: float) -> Result:
        """Send a request once, and adapt the share to its response."""
        share = self._share
        assert share is not None  # noqa: S101  there is one if there is a client
        try:
            response = await in_thread(client.send, request, max_attempts=1)
        except RateLimitError as error:
            share.was_refused(error.retry_after, self._loop.time(), sent_at)
            raise
        except VoiceGenieError as error:
            if error.status is not None:
                share.succeeded(client.limiter.used, self._loop.time(), sent_at)
            raise
        share.succeeded(client.limiter.used, self._loop.time(), sent_at)
        return response

    async def _succeeded(self, request: Request[Any], response: Any, sent_at: float) -> None:
        now = self._loop.time()
        if not is_page(request):
            self._plan.was_read(request, now, sent_at)
            await self._publish(self._to_all_of(request, response), sent_at)
            return
        page: CampaignPage = response
        self._plan.page_was_read((each.campaign_id for each in page.campaigns), page.size, page.total, now, sent_at)
        listed = ListedPage(offset_of(request), page, time.time() - (now - sent_at))
        await self._publish(self._to_all_of(request, listed), sent_at)
        await self._publish(self._to_campaigns(page), sent_at)

    async def _failed(
        self, request: Request[Any], error: VoiceGenieError, sent_at: float, client: VoiceGenieClient | None
    ) -> None:
        plan = self._plan
        poll = plan.poll(request)
        # A failed single read slows no poll.
        if is_page(request) or (poll is not None and not poll.is_once):
            self._count_failure(error)
        mended = isinstance(error, _MENDED_BY_CONNECTION) and await self._connection_has_changed(client)
        if plan is not self._plan:
            return
        now = self._loop.time()
        is_about_all = error.temporary or isinstance(error, UnauthorizedError | InvalidConnectionError)
        if not is_page(request):
            plan.failed(request, now, sent_at, retry_after=error.retry_after)
            if mended:
                plan.poll_now(request, now)
        elif mended or is_about_all:
            plan.page_failed(now, retry_after=error.retry_after)
        else:
            plan.block_list(now)
        if mended:
            return
        await self._publish(self._to_all_of(request, error), sent_at)
        if is_page(request) and is_about_all:
            campaigns = [each for each in plan.polls() if is_of_campaign(each.request)]
            await self._publish(((each, error, False) for poll in campaigns for each in poll.subscribers), sent_at)

    def _count_failure(self, error: VoiceGenieError) -> None:
        if not error.temporary:
            return
        self._failures += 1
        if self._failures >= _FAILING:
            pause = poll_delay(1.0, self._failures - _FAILING + 1, error.retry_after)
            self._pause_until = max(self._pause_until, self._loop.time() + pause)

    # The connection.

    async def _keep_reading_connection(self) -> None:
        """Look now and then, as a connection that works may be changed or deleted all the same."""
        while True:
            await asyncio.sleep(timing.connection_interval)
            try:
                await self._read_connection()
            except Exception as error:  # noqa: BLE001  it is read again
                self._log_unexpected(error)

    async def _connection_has_changed(self, client: VoiceGenieClient | None) -> bool:
        """Look whether someone has mended the Airflow connection since a client was made."""
        if self._loop.time() - self._connection_read_at >= timing.connection_interval_after_error:
            await self._read_connection()
        return client is not None and self._client is not client

    async def _read_connection(self) -> None:
        """Use the new settings if the Airflow connection has changed, and none if it is gone."""
        self._connection_read_at = self._loop.time()
        before = self._client
        if before is None:
            # Each request reads it.
            return
        after: VoiceGenieClient | None = before
        try:
            settings = await read_settings(self._voicegenie_conn_id)
            self._not_found = 0
            if settings != before.settings:
                after = await in_thread(make_client, settings)
        except InvalidConnectionError:
            self._not_found += 1
            if self._not_found >= _GONE:
                after = None
        except VoiceGenieError:
            # Airflow cannot be asked now.
            return
        if after is not before and self._client is before:
            self._change_client(after)

    def _use(self, client: VoiceGenieClient | None) -> None:
        self._client = client
        self._share = None if client is None else FairShare(client.settings.requests_per_minute)

    def _change_client(self, client: VoiceGenieClient | None) -> None:
        account = self.account
        self._use(client)
        self._not_found = 0
        if client is not None:
            log.info("Connection %r has changed; the polls go on with what is in it now.", self._voicegenie_conn_id)
        if self.account != account:
            # All responses so far, and those still to come, are of another account.
            self._begin_anew()
        self._wake.set()

    def _to_all_of(self, request: Request[Any], response: Any) -> Iterable[tuple[Any, Any, bool]]:
        poll = self._plan.poll(request)
        return ((each, response, True) for each in (poll.subscribers if poll is not None else ()))

    def _to_campaigns(self, page: CampaignPage) -> Iterable[tuple[Any, Any, bool]]:
        for campaign in page.campaigns:
            if (poll := self._plan.poll_of(campaign.campaign_id)) is not None:
                for each in poll.subscribers:
                    yield each, campaign, False

    async def _publish(self, responses: Iterable[tuple[Any, Any, bool]], sent_at: float) -> None:
        """Show each subscription what came for it, and whether that is in full."""
        for published, (subscription, response, in_full) in enumerate(responses, start=1):
            # One that joined after the request was sent is owed a later response.
            if subscription.joined_at <= sent_at and (in_full or subscription.is_list_enough):
                subscription.publish(response, in_full, time.time())
            if published % _AT_A_TIME == 0:
                await asyncio.sleep(0)


class Subscription(Interest):
    """
    One part in a feed; make it with :func:`subscribe`.

    :param interval: Seconds between responses, at most; infinity for one response.
    :param is_list_enough: Whether the list's entry of a campaign is as good as the response to ``campaign(id)``.
    :param is_counted: Whether Airflow's metrics count it as a wait.
    """

    __slots__ = (
        "_context",
        "_failure",
        "_on_response",
        "_update",
        "_waiter",
        "feed",
        "is_over",
        "request",
    )

    def __init__(
        self,
        feed: Feed,
        request: Request[Any],
        interval: float,
        on_response: OnResponse,
        *,
        is_list_enough: bool = True,
        is_counted: bool = True,
    ) -> None:
        super().__init__(interval, is_list_enough, asyncio.get_running_loop().time(), is_counted)
        self.request = request
        #: Whether it wants no more updates.
        self.is_over = False
        self._on_response = on_response
        self._context = contextvars.copy_context()
        #: The feed that it is a part of.
        self.feed = feed
        self._update: object = None
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[Any] | None = None
        feed.add(self)

    def update(self) -> asyncio.Future[Any]:
        """
        Return the next update, to be awaited. A future, as a coroutine for each of ten thousand waits takes megabytes.

        It raises what ``on_response`` raised, even when that was shown that nothing can be read.
        """
        if self._waiter is not None and self._waiter.done() and not self._waiter.cancelled():
            # It was delivered, and is dealt with.
            self._update = None
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._deliver()
        if waiter.done():
            self._update = self._waiter = None
        return waiter

    def _deliver(self) -> None:
        """Give an update, if there is one, to the wait."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._failure is not None:
            waiter.set_exception(self._failure)
        elif self._update is not None:
            waiter.set_result(self._update)

    def poll_now(self) -> None:
        """Have the request sent at once, although the list may cover it."""
        self.feed.poll_now(self.request)

    async def read_once(self, request: Request[Result], patience: float) -> Result | None:
        """
        Read something else once, within the feed's share; return ``None`` if that would take long.

        :param request: Any read.
        :param patience: Seconds.
        :raises VoiceGenieError: The service refused, or could not be asked.
        """
        if patience <= 0 or not self.feed.is_free:
            return None
        subscription = Subscription(self.feed, request, math.inf, lambda response, *_: response)
        try:
            async with asyncio.timeout(patience):
                response = await subscription.update()
        except TimeoutError:
            return None
        finally:
            subscription.close()
        if isinstance(response, VoiceGenieError):
            raise response
        return response  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Ignore responses to requests sent before now; they predate the pause."""
        self._update = None
        self.joined_at = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Leave the feed."""
        self.is_over = True
        self.feed.remove(self)

    def publish(self, response: Any, in_full: bool, now: float) -> None:
        """
        Show it a response or an error, unless it has not taken its last update yet.

        If ``on_response`` fails, the response counts as unreadable, and ends no wait.
        """
        if self._update is not None or self.is_over:
            return
        try:
            self._update = self._context.run(self._on_response, response, in_full, now)
        except Exception as error:  # noqa: BLE001  a subscriber may raise anything
            unreadable = InvalidResponseError(f"The response cannot be used ({place_of(error)}).")
            try:
                self._update = self._context.run(self._on_response, unreadable, in_full, now)
            except Exception as second:  # noqa: BLE001  one subscriber's error is its own
                self._failure = second
        self._deliver()

    def show(self, update: object) -> None:
        """
        Make an update of the subscriber's own, unless it has not taken its last one yet.

        :param update: Anything but ``None``.
        """
        if self._update is None and not self.is_over:
            self._update = update
            self._deliver()


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Feed]] = WeakKeyDictionary()


def feed_of(voicegenie_conn_id: str) -> Feed:
    """Return the feed of a connection in the running event loop; a new one if there is none."""
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = feeds.get(voicegenie_conn_id)
    if feed is None:
        feed = feeds[voicegenie_conn_id] = Feed(voicegenie_conn_id)
    return feed


def subscribe(
    voicegenie_conn_id: str,
    request: Request[Any],
    interval: float,
    on_response: OnResponse,
    *,
    is_list_enough: bool = True,
) -> Subscription:
    """
    Have a request sent again and again, with those of all others in the running event loop.

    :param request: Any read. For :data:`~airflow_provider_voicegenie.feed.plan.LIST`, the responses are its pages.
    :param interval: Seconds between responses, at most; infinity for one response, at once.
    :param on_response: Called with each response or error, in the caller's context; what it returns, unless it is
        ``None``, is an update.
    :param is_list_enough: Whether the list's entry of a campaign is as good as the response to ``campaign(id)``.
    """
    return Subscription(feed_of(voicegenie_conn_id), request, interval, on_response, is_list_enough=is_list_enough)


def place_of(error: Exception) -> str:
    """
    Say in a few words what an error is and where it was raised. Its message may hold what outsiders wrote.

    :param error: An error that nobody expected.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
