# SPDX-License-Identifier: Apache-2.0
"""What watchers read of campaigns, what they log, and what Airflow keeps for them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.errors import InvalidConnectionError, UnauthorizedError, VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, write_time
from airflow_provider_voicegenie.feed.feed import Subscription, place_of, subscribe
from airflow_provider_voicegenie.feed.plan import LIST, ListedPage
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.triggers.endings import (
    AnyReading,
    CampaignReading,
    KnownCampaigns,
    add_others,
    stored_at,
)
from airflow_provider_voicegenie.waiting.progress import describe

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, AssetStateStoreAccessors
    from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

    from airflow_provider_voicegenie.api.settings import Account
else:
    try:
        from airflow.triggers.shared_stream import SharedStreamProducer
    except ImportError:  # Airflow before 3.3
        SharedStreamProducer = object

log = logging.getLogger(__name__)


#: What stands for all campaigns of an account, in place of an id.
_ALL = ""


class Troubles:
    """
    What all watchers of a connection meet together, and log once. Get it with :meth:`of`.

    Each trouble is logged when it begins, and one line when all of them are over.

    :param over: The line at the end; ``None`` for none.
    """

    #: Those that a watcher holds, by event loop, connection and what they are about.
    _held: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, str], Troubles]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, over: str | None) -> None:
        self._over = over
        self._troubles: dict[Hashable, str] = {}
        self._users: Counter[Hashable] = Counter()

    @classmethod
    def of(cls, voicegenie_conn_id: str, what: str, over: str | None = None) -> Troubles:
        """
        Return the troubles of a connection in the running event loop: the same for all who hold it.

        :param what: With what.
        :param over: The line when all are over; ``None`` for none.
        """
        held = cls._held.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        found = held.get((voicegenie_conn_id, what))
        if found is None:
            found = held[voicegenie_conn_id, what] = cls(over)
        return found

    def join(self, *about: Hashable) -> None:
        """Count one more watcher that something is read for."""
        self._users.update(about)

    def leave(self, *about: Hashable) -> None:
        """Forget the trouble with what is read for nobody any more."""
        self._users.subtract(about)
        for each in about:
            if self._users[each] <= 0:
                del self._users[each]
                self._troubles.pop(each, None)

    def begin(self, about: Hashable, trouble: str, message: str) -> None:
        """
        Log a trouble, unless something else met it before and it goes on.

        :param about: What is in trouble.
        """
        if trouble not in self._troubles.values():
            log.warning("%s", message)
        self._troubles[about] = trouble

    def end(self, *about: Hashable) -> None:
        """Take note that something is in no trouble."""
        ended = [self._troubles.pop(each, None) for each in about]
        if any(ended) and not self._troubles and self._over is not None:
            log.info("%s", self._over)


class Pace:
    """
    Keeps the batches of one stream apart after an event.

    Airflow notes once that an asset has an event for a DAG, and drops the note when it makes the run: of events in the
    same moment, only the first makes one. The last of them has to come when the run is made.
    """

    def __init__(self) -> None:
        self._event_at = -math.inf

    def event(self) -> None:
        """Take note that there is an event now."""
        self._event_at = asyncio.get_running_loop().time()

    async def wait(self) -> None:
        """Wait until the latest event is :data:`timing.between_events` old."""
        while (seconds := self._event_at + timing.between_events - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(seconds)


@dataclass(eq=False)
class ReadingBatch:
    """
    What was read since the batch before.

    :param readings: Pages of the list, readings of campaigns, and errors.
    :param to_keep: What is to be kept once Airflow has stored the events of this batch, by the watcher and the key.
    :param account: Whose campaigns they are; ``None`` if there is no connection.
    :param pace: Keeps the next batch back after an event.
    """

    readings: Sequence[AnyReading]
    to_keep: dict[tuple[Watcher, str], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    account: Account | None = None
    pace: Pace = field(default_factory=Pace)


class ReadingStream(SharedStreamProducer):
    """
    Reads the campaigns for all watchers with the same arguments.

    :param campaign_ids: The campaigns; ``None`` for all of the account.
    :param poll_interval: Seconds between two reads of a campaign, at most.
    """

    def __init__(self, campaign_ids: Collection[str] | None, voicegenie_conn_id: str, poll_interval: float) -> None:
        self._campaign_ids = campaign_ids
        self._voicegenie_conn_id = voicegenie_conn_id
        self._poll_interval = poll_interval
        #: The readings that are in no batch yet, and the ids of their campaigns.
        self._read: list[tuple[Account | None, AnyReading]] = []
        self._came = asyncio.Event()

    async def open_stream(self) -> AsyncGenerator[tuple[ReadingBatch, ReadingBatch], None]:
        """Yield each batch: for the watchers, and for :meth:`advance`."""
        over = f"The campaigns of the connection {self._voicegenie_conn_id!r} can be read again."
        troubles = Troubles.of(self._voicegenie_conn_id, "campaigns", over)
        parts = [self._subscribe(campaign_id, troubles) for campaign_id in self._campaign_ids or [_ALL]]
        pace = Pace()
        try:
            while True:
                while not self._read:
                    self._came.clear()
                    await self._came.wait()
                # After an event, what is read for some seconds makes one batch.
                await pace.wait()
                # A batch is of one account.
                account, of_account = next(groupby(self._read, key=itemgetter(0)))
                readings = [reading for _, reading in of_account]
                del self._read[: len(readings)]
                batch = ReadingBatch(readings, account=account, pace=pace)
                yield batch, batch
        finally:
            for part in parts:
                about = part.request.campaign_id or _ALL
                troubles.leave(about, (about, "with the service"))
                part.close()

    def _subscribe(self, about: str, troubles: Troubles) -> Subscription:
        """Have a campaign read, or the whole list, page by page: all that comes, in order and without gaps."""

        def on_response(response: Any, in_full: bool, now: float) -> None:
            # What was asked for before it came is older, although it may come later: it could take an end back.
            part.forget()
            _log_trouble(troubles, about, response)
            self._read.append((part.feed.account, CampaignReading(about, response, now) if about else response))
            self._came.set()

        troubles.join(about, (about, "with the service"))
        request: endpoints.Request[Any] = endpoints.campaign(about) if about else LIST
        part = subscribe(self._voicegenie_conn_id, request, self._poll_interval, on_response)
        return part

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Keep what the watchers know; the events of these batches are stored."""
        to_keep: dict[tuple[Watcher, str], tuple[int, dict[str, Any]]] = {}
        for read, outcome in batch:
            # If one watcher's events were not stored, all keep it after a later batch.
            if not outcome.failed:
                to_keep |= read.to_keep
        for (watcher, key), (version, state) in to_keep.items():
            await watcher.keep(key, version, state)


class Watcher:
    """
    What one watcher does with the batches: it finds the ends, logs them, and has what it knows kept.

    Airflow keeps that in the state store of each asset that the watcher is for, by a key of its own for each account.

    :param stores: Airflow's access to the state stores of its assets; ``None`` before Airflow 3.3, which has none.
    :param campaign_ids: The campaigns that are watched; ``None`` for all of the account.
    """

    def __init__(
        self,
        stores: AssetStateStoreAccessors | None,
        voicegenie_conn_id: str,
        campaign_ids: Collection[str] | None,
    ) -> None:
        self._stores = [] if stores is None else _each_store(stores)
        self._voicegenie_conn_id = voicegenie_conn_id
        self._campaign_ids = campaign_ids
        self._account: Account | None = None
        self._known = KnownCampaigns(campaign_ids)
        # The key of the account, and which state of the knowledge is kept by it; ``None`` if that is not known.
        self._key: str | None = None
        self._kept_version: int | None = None
        self._has_begun = False
        self._event_pace = Pace()
        self._unusable = Troubles.of(voicegenie_conn_id, "use of what was read")
        self._with_reading = Troubles.of(voicegenie_conn_id, "reading of the state")
        self._with_keeping = Troubles.of(voicegenie_conn_id, "keeping of the state", "What was told is kept again.")

    async def events(self, batch: ReadingBatch) -> AsyncGenerator[Campaign, None]:
        """Yield the campaigns that have ended since they were last read, the last of several after a while."""
        if batch.account is not None and batch.account != self._account:
            await self._turn_to(batch.account, batch.readings)
        ended = self._observe(batch.readings)
        for number, campaign in enumerate(ended, start=1):
            if number == len(ended):
                await self._event_pace.wait()
            yield campaign
            self._event_pace.event()
            batch.pace.event()
        if ended or not self._known.is_in_pass:
            # Not before the events: a watcher that is cancelled between them has not told them all.
            self._keep_after(batch)

    async def _turn_to(self, account: Account, readings: Sequence[AnyReading]) -> None:
        """Go on with what is known of an account, which is not that of before if the connection has changed."""
        before, self._account = self._account, account
        # A service gives an id once. If its campaigns are known, it is the account of before, with another API key.
        is_same = (
            before is not None and before.base_url == account.base_url and any(map(self._known.knows_any_of, readings))
        )
        kind = "all" if self._campaign_ids is None else "some"
        self._key = f"voicegenie_{kind}_campaigns.{self._voicegenie_conn_id}.{account.digest}"
        # With another key of the same account, it is kept although nothing is new.
        self._kept_version = None
        if not is_same:
            self._known = KnownCampaigns(self._campaign_ids)
            self._kept_version = self._known.version
            self._has_begun = False
            await self._recall(self._key)

    def _observe(self, readings: Iterable[AnyReading]) -> list[Campaign]:
        ended: list[Campaign] = []
        for reading in readings:
            about = reading.offset if isinstance(reading, ListedPage) else ""
            try:
                ended += self._known.ends_in(reading)
                self._unusable.end(about)
            except Exception as error:  # noqa: BLE001  whatever it is made of, it is one bad response
                self._unusable.begin(
                    about, "unusable", f"What was read cannot be used ({place_of(error)}): watching goes on."
                )
        self._log_begin()
        for campaign in ended:
            progress = describe(
                campaign.status_text, campaign.completed_count, campaign.failed_count, campaign.total_count
            )
            log.info("Campaign %r has ended: %s.", campaign.campaign_id, progress)
        return ended

    def _log_begin(self) -> None:
        if self._has_begun:
            return
        if self._campaign_ids is not None:
            self._has_begun = True
            log.info("Watching %s of the connection %r.", _count(len(self._campaign_ids)), self._voicegenie_conn_id)
        elif self._known.knows_all and not self._known.is_in_pass:
            self._has_begun = True
            number = _count(self._known.listed_count)
            message = "Watching %s of the connection %r, of which %s have not ended."
            log.info(message, number, self._voicegenie_conn_id, f"{self._known.open_count:,}")

    async def _recall(self, key: str) -> None:
        """Let the watcher know what was kept, however long that takes: it could not tell old ends from new ones."""
        while True:
            try:
                stored = [await store.aget(key) for store in self._stores]
                break
            except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
                message = "What was seen of the campaigns before cannot be read. Trying again."
                self._with_reading.begin(key, "unreadable", f"{message} Airflow says: {error!r}")
                await asyncio.sleep(timing.state_read_delay)
        self._with_reading.end(key)
        readable = []
        for each in stored:
            try:
                if each is not None:
                    readable.append((stored_at(each), each))
            except ValueError as error:
                log.warning("What was seen of the campaigns before is not readable, and left aside: %s.", error)
        if readable:
            # An asset that has come later has an older state, or none.
            at, latest = max(readable, key=itemgetter(0))
            self._known.restore(latest)
            log.info(
                "Going on from what was last kept, %s UTC.", f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
            )

    def _keep_after(self, batch: ReadingBatch) -> None:
        """Keep what the watcher knows now, if there is anything new, once the events of a batch are stored."""
        if self._key and self._stores and self._known.version != self._kept_version and self._known.is_ready:
            batch.to_keep[self, self._key] = (self._known.version, self._known.to_json(time.time()))

    async def keep(self, key: str, version: int, state: dict[str, Any]) -> None:
        """
        Keep what the watcher knew.

        :param key: The key of the account.
        :param version: Which state of its knowledge that is.
        """
        try:
            for store in self._stores:
                others = None if self._campaign_ids is None else await store.aget(key)
                await store.aset(key, add_others(state, others, self._campaign_ids or ()))
        except Exception as error:  # noqa: BLE001  it is tried again after the next batch
            message = "What was told cannot be kept. If the triggerer restarts now, it is told again."
            self._with_keeping.begin(key, "not kept", f"{message} Airflow says: {error!r}")
            return
        if key == self._key:
            self._kept_version = version
        self._with_keeping.end(key)


def event_payload(campaign: Campaign) -> dict[str, Any]:
    """Return the payload of the event that a campaign has ended, as plain JSON."""
    return {
        "campaign_id": campaign.campaign_id,
        "name": campaign.name,
        "status": campaign.status.value,
        "ended_at": write_time(campaign.ended_at),
        "total_count": campaign.total_count,
        "completed_count": campaign.completed_count,
        "failed_count": campaign.failed_count,
    }


def _log_trouble(troubles: Troubles, about: str, response: object) -> None:
    """Log trouble, once for all watchers of the connection."""
    if not isinstance(response, VoiceGenieError):
        troubles.end(about, (about, "with the service"))
        return
    message = f"{response.message.rstrip('.')} [{response.kind}: watching goes on]."
    # What is not about one campaign is said once, although each of them meets it.
    if response.temporary or isinstance(response, UnauthorizedError | InvalidConnectionError):
        troubles.begin((about, "with the service"), response.kind, message)
    else:
        troubles.begin(about, f"{response.kind} {about}", message)
        troubles.end((about, "with the service"))


def _each_store(stores: AssetStateStoreAccessors) -> Iterable[AssetStateStoreAccessor]:
    # Airflow has one watcher for several assets if its arguments are the same, and no public way to each one's store.
    return list(getattr(stores, "_by_name", {}).values()) or [stores]


def _count(number: int) -> str:
    return f"{number:,} campaign{'' if number == 1 else 's'}"
