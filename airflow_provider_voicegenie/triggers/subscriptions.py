# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a feed: a wait for one campaign, and a watcher of some or all."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow_provider_voicegenie.api.errors import (
    InvalidConnectionError,
    InvalidResponseError,
    UnauthorizedError,
    VoiceGenieError,
)
from airflow_provider_voicegenie.api.models import Campaign, Quota
from airflow_provider_voicegenie.rules.prerequisites import Source
from airflow_provider_voicegenie.triggers.feed import CampaignFeed, Reading, feed_of, place_of
from airflow_provider_voicegenie.triggers.polling import AnyReading, CampaignReading, ListedPage
from airflow_provider_voicegenie.triggers.troubles import troubles_of

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.settings import Account

Result = TypeVar("Result")

#: Called with a reading, whether the campaign was read by itself, and Unix seconds; what it returns is an update.
OnReading = Callable[[Reading, bool, float], object]


class Subscription:
    """
    One wait's part in a feed.

    :param feed: The feed.
    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param needs_single_reads: Whether what the list has is not enough.
    :param needs: What is read besides.
    :param on_reading: Called with each reading; what it returns, unless it is ``None``, is an update.
    """

    __slots__ = (
        "_context",
        "_failure",
        "_feed",
        "_listed",
        "_on_reading",
        "_quota",
        "_refusal",
        "_update",
        "_waiter",
        "campaign_id",
        "held_back",
        "interval",
        "is_over",
        "joined_at",
        "needs_single_reads",
    )

    def __init__(
        self,
        feed: CampaignFeed,
        campaign_id: str,
        interval: float,
        on_reading: OnReading,
        *,
        needs_single_reads: bool,
        needs: Collection[Source],
    ) -> None:
        now = asyncio.get_running_loop().time()
        self.campaign_id = campaign_id
        self.interval = interval
        self.needs_single_reads = needs_single_reads
        self.joined_at = now
        #: Whether it wants no more updates.
        self.is_over = False
        self._on_reading = on_reading
        self._context = contextvars.copy_context()
        self._feed = feed
        #: What was read before the quota was known.
        self.held_back: Campaign | None = None
        self._update: object = None
        # That the list is refused, until it was shown.
        self._refusal: VoiceGenieError | None = None
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._listed = _ListedCampaigns.of(feed) if Source.LIST in needs else None
        if self._listed is not None:
            self._listed.add(self)
        self._quota = _SharedQuota.of(feed) if Source.QUOTA in needs else None
        if self._quota is not None:
            self._quota.add(self)
        feed._join(campaign_id, self, now)

    async def update(self) -> Any:
        """
        Wait for the next update, and return it.

        :raises Exception: What ``on_reading`` raised, even when it was shown that the campaign cannot be read.
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
        self._feed._poll_now(self.campaign_id)

    async def read(self, request: Request[Result], patience: float) -> Result | None:
        """
        Read something else, within the feed's share; return ``None`` if that would take long.

        :param request: What to read.
        :param patience: Seconds.
        :raises VoiceGenieError: The service refused, or could not be asked.
        """
        return await self._feed._read(request, patience)

    def service(self) -> dict[str, Any] | None:
        """Return what is known of the service, as plain JSON: ``address`` and ``clock_offset``, in seconds."""
        return self._feed._service()

    def forget(self) -> None:
        """Leave out what was asked for until now: it is older than what was done since."""
        self._update = None
        self.joined_at = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Leave the feed."""
        if self._listed is not None:
            self._listed.remove(self)
        if self._quota is not None:
            self._quota.remove(self)
        self._feed._leave(self.campaign_id, self)

    def publish(self, reading: Reading, in_full: bool, now: float) -> None:
        """
        Show the subscriber a reading. One that has not taken its last update yet is left out.

        A reading with which ``on_reading`` cannot deal counts as one that is not readable: it ends no wait.
        """
        if self._update is not None or self.is_over:
            return
        try:
            self._show(reading, in_full, now)
        except Exception as error:  # noqa: BLE001  nobody knows what comes
            unreadable = InvalidResponseError(f"What was read of it cannot be used ({place_of(error)}).")
            try:
                self._update = self._context.run(self._on_reading, unreadable, in_full, now)
            except Exception as second:  # noqa: BLE001  one subscriber's error is its own
                self._failure = second
        self._wake()

    def _show(self, reading: Reading, in_full: bool, now: float) -> None:
        if self._refusal is not None:
            reading, self._refusal = self._refusal, None
        if self._listed is not None and isinstance(reading, Campaign):
            reading = reading.with_listed(self._listed.found.get(reading.campaign_id))
        if self._quota is not None and isinstance(reading, Campaign):
            if self._quota.left is None:
                self.held_back = reading
                return
            reading = replace(reading, quota=self._quota.left)
        self._update = self._context.run(self._on_reading, reading, in_full, now)

    def refuse(self, error: VoiceGenieError) -> None:
        """Show the subscriber that the list is refused, once it takes an update: the list is not read again soon."""
        self._refusal = error
        self.publish(error, True, time.time())

    def _wake(self) -> None:
        if (self._update is not None or self._failure is not None) and self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class _ListedCampaigns:
    """
    What the list has of some campaigns: one reader of the list for all waits that need it.

    :param feed: The feed.
    """

    _by_feed: ClassVar[dict[CampaignFeed, _ListedCampaigns]] = {}

    def __init__(self, feed: CampaignFeed) -> None:
        self.joined_at = asyncio.get_running_loop().time()
        self.interval = math.inf
        self._feed = feed
        self._waits: dict[str, set[Subscription]] = {}
        #: The campaigns that the list has shown.
        self.found: dict[str, Campaign] = {}

    @classmethod
    def of(cls, feed: CampaignFeed) -> _ListedCampaigns:
        """Return that of a feed; a new one if there is none."""
        if feed not in cls._by_feed:
            cls._by_feed[feed] = cls(feed)
        return cls._by_feed[feed]

    def add(self, wait: Subscription) -> None:
        """Read the list for one more wait."""
        is_first = not self._waits
        self._waits.setdefault(wait.campaign_id, set()).add(wait)
        self.interval = min(self.interval, wait.interval)
        if is_first:
            self._feed._join_list(self, self.joined_at)

    def remove(self, wait: Subscription) -> None:
        """Stop reading the list for a wait."""
        waits = self._waits[wait.campaign_id]
        waits.discard(wait)
        if not waits:
            del self._waits[wait.campaign_id]
            self.found.pop(wait.campaign_id, None)
        if not self._waits:
            del self._by_feed[self._feed]
            self._feed._leave_list(self)

    def publish(self, reading: ListedPage | VoiceGenieError) -> None:
        """Take note of a page; what has changed is looked at by itself, too. What does not pass is an error."""
        if isinstance(reading, VoiceGenieError):
            if not reading.temporary:
                for wait in [wait for waits in self._waits.values() for wait in waits]:
                    wait.refuse(reading)
            return
        for listed in reading.page.campaigns:
            if (waits := self._waits.get(listed.campaign_id)) is None:
                continue
            before, self.found[listed.campaign_id] = self.found.get(listed.campaign_id), listed
            if before is None or before.registered_count != listed.registered_count:
                next(iter(waits)).poll_now()


class _SharedQuota:
    """
    What the account may still use: one read for all waits that need it.

    :param feed: The feed.
    """

    _by_feed: ClassVar[dict[CampaignFeed, _SharedQuota]] = {}

    def __init__(self, feed: CampaignFeed) -> None:
        self.interval = math.inf
        self._feed = feed
        self._waits: set[Subscription] = set()
        #: As it was last read.
        self.left: Quota | None = None

    @classmethod
    def of(cls, feed: CampaignFeed) -> _SharedQuota:
        """Return that of a feed; a new one if there is none."""
        if feed not in cls._by_feed:
            cls._by_feed[feed] = cls(feed)
        return cls._by_feed[feed]

    def add(self, wait: Subscription) -> None:
        """Read the quota for one more wait."""
        self._waits.add(wait)
        if wait.interval < self.interval:
            self.interval = wait.interval
            self._feed._set_quota_reader(self)

    def remove(self, wait: Subscription) -> None:
        """Stop reading the quota for a wait."""
        self._waits.discard(wait)
        if not self._waits:
            del self._by_feed[self._feed]
            self._feed._set_quota_reader(None)

    def publish(self, reading: Quota | VoiceGenieError) -> None:
        """Take note of the quota, with which each campaign is shown when it is read."""
        if isinstance(reading, Quota):
            self.left = reading
            for wait in list(self._waits):
                held_back, wait.held_back = wait.held_back, None
                if held_back is not None:
                    wait.publish(held_back, True, time.time())
            return
        self.left = None
        for wait in list(self._waits):
            wait.publish(reading, True, time.time())


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
        self._read: list[tuple[Account | None, AnyReading]] = []
        self._came = asyncio.Event()
        self._feed = feed_of(voicegenie_conn_id)
        self._parts: list[_PartOfReadings] = []
        self._troubles = troubles_of(
            voicegenie_conn_id,
            "campaigns",
            f"The campaigns of the connection {voicegenie_conn_id!r} can be read again.",
        )
        self._about = [""] if campaign_ids is None else list(campaign_ids)
        for about in self._about:
            self._troubles.join(about, (about, "with the service"))
        if campaign_ids is None:
            self._feed._join_list(self, self.joined_at)
        else:
            self._parts = [_PartOfReadings(self, campaign_id) for campaign_id in campaign_ids]

    async def come(self) -> None:
        """Wait until something was read that was not taken."""
        while not self._read:
            self._came.clear()
            await self._came.wait()

    def take(self) -> tuple[Account | None, list[AnyReading]]:
        """Return what was read and not taken, as far as it is of one account, and of which."""
        account = self._read[0][0]
        readings = [reading for _, reading in takewhile(lambda each: each[0] == account, self._read)]
        del self._read[: len(readings)]
        return account, readings

    def close(self) -> None:
        """Leave the feed."""
        for about in self._about:
            self._troubles.leave(about, (about, "with the service"))
        for part in self._parts:
            part.close()
        if not self._parts:
            self._feed._leave_list(self)

    def publish(self, reading: AnyReading) -> None:
        """Take what was read. Trouble is logged here, once for all watchers of the connection."""
        about, read = (reading.campaign_id, reading.reading) if isinstance(reading, CampaignReading) else ("", reading)
        if isinstance(read, VoiceGenieError):
            # What is not about one campaign is said once, although each of them meets it.
            is_about_all = read.temporary or isinstance(read, UnauthorizedError | InvalidConnectionError)
            message = f"{read.message.rstrip('.')} [{read.kind}: watching goes on]."
            if is_about_all:
                self._troubles.begin((about, "with the service"), read.kind, message)
            else:
                self._troubles.begin(about, f"{read.kind} {about}", message)
                self._troubles.end((about, "with the service"))
        else:
            self._troubles.end(about, (about, "with the service"))
        self._read.append((self._feed.account, reading))
        self._came.set()


class _PartOfReadings:
    """What a feed reads of one campaign for a watcher."""

    __slots__ = ("_campaign_id", "_readings", "interval", "joined_at", "needs_single_reads")

    def __init__(self, readings: Readings, campaign_id: str) -> None:
        self.interval = readings.interval
        self.joined_at = readings.joined_at
        self.needs_single_reads = False
        self._campaign_id = campaign_id
        self._readings = readings
        readings._feed._join(campaign_id, self, self.joined_at)

    def publish(self, reading: Reading, in_full: bool, now: float) -> None:
        """Take a reading."""
        # What was asked for before it came is older, although it may come later: it could take an end back.
        self.joined_at = asyncio.get_running_loop().time()
        self._readings.publish(CampaignReading(self._campaign_id, reading, now))

    def close(self) -> None:
        """Leave the feed."""
        self._readings._feed._leave(self._campaign_id, self)


def subscribe(
    voicegenie_conn_id: str,
    campaign_id: str,
    interval: float,
    on_reading: OnReading,
    *,
    needs_single_reads: bool = False,
    needs: Collection[Source] = (),
) -> Subscription:
    """
    Join the feed of a connection in the running event loop, which begins with its first subscriber.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param campaign_id: The campaign.
    :param interval: Seconds between reads, at most.
    :param on_reading: Called with each reading, in the caller's context; what it returns, unless it is ``None``, is an
        update.
    :param needs_single_reads: Whether what the list has is not enough.
    :param needs: What is read besides.
    """
    feed = feed_of(voicegenie_conn_id)
    return Subscription(feed, campaign_id, interval, on_reading, needs_single_reads=needs_single_reads, needs=needs)
