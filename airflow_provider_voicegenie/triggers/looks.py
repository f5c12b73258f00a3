# SPDX-License-Identifier: Apache-2.0
"""How watchers look at campaigns, what they log, and what Airflow keeps for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.errors import InvalidConnectionError, UnauthorizedError, VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign
from airflow_provider_voicegenie.triggers.endings import KnownCampaigns, add_others, kept_at
from airflow_provider_voicegenie.triggers.polling import ListedPage
from airflow_provider_voicegenie.triggers.subscriptions import CampaignReading, Readings
from airflow_provider_voicegenie.waiting.progress import describe

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, AssetStateStoreAccessors
    from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer
else:
    try:
        from airflow.triggers.shared_stream import SharedStreamProducer
    except ImportError:  # Airflow before 3.3
        SharedStreamProducer = object

log = logging.getLogger(__name__)

#: Seconds between two tries to read what Airflow keeps.
_TRY_AGAIN = 10.0


@dataclass(eq=False)
class Look:
    """
    What was read since the look before.

    :param readings: Pages of the list, readings of campaigns, and errors.
    :param to_keep: What is to be kept once Airflow has stored the events of this look, by whose memory it is.
    """

    readings: Sequence[ListedPage | CampaignReading | VoiceGenieError]
    to_keep: dict[Memory, tuple[int, dict[str, Any]]] = field(default_factory=dict)


class Looks(SharedStreamProducer):
    """
    Looks at the campaigns for all watchers with the same arguments.

    :param campaign_ids: The campaigns; ``None`` for all of the account.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param poll_interval: Seconds between two looks at a campaign, at most.
    """

    def __init__(self, campaign_ids: Collection[str] | None, voicegenie_conn_id: str, poll_interval: float) -> None:
        self._campaign_ids = campaign_ids
        self._voicegenie_conn_id = voicegenie_conn_id
        self._poll_interval = poll_interval

    async def open_stream(self) -> AsyncGenerator[tuple[Look, Look], None]:
        """Yield each look: for the watchers, and for :meth:`advance`."""
        readings = Readings(self._voicegenie_conn_id, self._poll_interval, self._campaign_ids)
        try:
            while True:
                look = Look(await readings.next())
                yield look, look
        finally:
            readings.close()

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Keep what was told; the events of these looks are stored."""
        to_keep: dict[Memory, tuple[int, dict[str, Any]]] = {}
        for look, outcome in batch:
            # If one watcher's events were not stored, all keep it after a later look.
            if not outcome.failed:
                to_keep |= look.to_keep
        for memory, (version, state) in to_keep.items():
            await memory.keep(version, state)


class Memory:
    """
    What Airflow keeps of a watcher, in the state store of each asset that it is for.

    :param stores: Airflow's access to the stores; ``None`` before Airflow 3.3, which has none.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param campaign_ids: The campaigns that are watched; ``None`` for all of the account.
    :param known: What the watcher knows.
    """

    def __init__(
        self,
        stores: AssetStateStoreAccessors | None,
        voicegenie_conn_id: str,
        campaign_ids: Collection[str] | None,
        known: KnownCampaigns,
    ) -> None:
        self._stores = [] if stores is None else _each_store(stores)
        self._campaign_ids = campaign_ids
        self._key = f"voicegenie_{'all' if campaign_ids is None else 'some'}_campaigns.{voicegenie_conn_id}"
        self._known = known
        self._kept_version = known.version
        self._is_in_trouble = False

    async def recall(self) -> None:
        """Let the watcher know what was kept, however long that takes: it could not tell old ends from new ones."""
        while True:
            try:
                kept = [await store.aget(self._key) for store in self._stores]
                break
            except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
                self._log_trouble("What was seen of the campaigns before cannot be read. Trying again.", error)
                await asyncio.sleep(_TRY_AGAIN)
        self._is_in_trouble = False
        readable = []
        for each in kept:
            try:
                if each is not None:
                    readable.append((kept_at(each), each))
            except ValueError as error:
                log.warning("What was seen of the campaigns before is not readable, and left aside: %s.", error)
        if readable:
            # An asset that has come later has an older state, or none.
            at, latest = max(readable, key=itemgetter(0))
            self._known.restore(latest)
            log.info(
                "Going on from what was last kept, %s UTC.", f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
            )

    def keep_after(self, look: Look) -> None:
        """
        Keep what the watcher knows now, if there is anything new, once the events of a look are stored.

        :param look: The look.
        """
        if self._stores and self._known.version != self._kept_version and self._known.is_ready:
            look.to_keep[self] = (self._known.version, self._known.to_json(time.time()))

    async def keep(self, version: int, state: dict[str, Any]) -> None:
        """
        Keep what a watcher knew.

        :param version: Which state of its knowledge that is.
        :param state: What is kept.
        """
        try:
            for store in self._stores:
                others = None if self._campaign_ids is None else await store.aget(self._key)
                await store.aset(self._key, add_others(state, others, self._campaign_ids or ()))
        except Exception as error:  # noqa: BLE001  it is tried again after the next look
            self._log_trouble("What was told cannot be kept. If the triggerer restarts now, it is told again.", error)
            return
        self._kept_version = version
        if self._is_in_trouble:
            self._is_in_trouble = False
            log.info("What was told is kept again.")

    def _log_trouble(self, words: str, error: Exception) -> None:
        if not self._is_in_trouble:
            self._is_in_trouble = True
            log.warning("%s Airflow says: %r", words, error)


def _each_store(stores: AssetStateStoreAccessors) -> Iterable[AssetStateStoreAccessor]:
    # Airflow has one watcher for several assets if its arguments are the same, and no public way to each one's store.
    return list(getattr(stores, "_by_name", {}).values()) or [stores]


class Journal:
    """
    Logs what a watcher sees: its begin, ends of campaigns, and trouble.

    :param voicegenie_conn_id: Id of the Airflow connection.
    :param campaign_ids: The campaigns that are watched; ``None`` for all of the account.
    """

    def __init__(self, voicegenie_conn_id: str, campaign_ids: Collection[str] | None) -> None:
        self._voicegenie_conn_id = voicegenie_conn_id
        self._troubles: dict[str, str] = {}
        self._has_begun = campaign_ids is not None
        if campaign_ids is not None:
            log.info("Watching %s of the connection %r.", _count(len(campaign_ids)), voicegenie_conn_id)

    def observe(
        self, readings: Iterable[ListedPage | CampaignReading | VoiceGenieError], known: KnownCampaigns
    ) -> list[Campaign]:
        """
        Take note of readings, and return the campaigns that have ended since they were last looked at.

        :param readings: The readings.
        :param known: What the watcher knows.
        """
        ended: list[Campaign] = []
        for reading in readings:
            if isinstance(reading, VoiceGenieError):
                self._begin_trouble("", reading)
            elif isinstance(reading, ListedPage):
                self._end_trouble("")
                ended += known.observe_page(reading)
                self._begin(known)
            elif isinstance(reading.reading, VoiceGenieError):
                self._begin_trouble(reading.campaign_id, reading.reading)
            else:
                self._end_trouble(reading.campaign_id)
                if known.observe(reading.reading, reading.now):
                    ended.append(reading.reading)
        for campaign in ended:
            words = describe(
                campaign.status_text, campaign.completed_count, campaign.failed_count, campaign.total_count
            )
            log.info("Campaign %r has ended: %s.", campaign.campaign_id, words)
        return ended

    def _begin(self, known: KnownCampaigns) -> None:
        if not self._has_begun and known.knows_all and not known.is_in_pass:
            self._has_begun = True
            number = _count(known.listed_count)
            words = "Watching %s of the connection %r, of which %s have not ended."
            log.info(words, number, self._voicegenie_conn_id, f"{known.open_count:,}")

    def _begin_trouble(self, about: str, error: VoiceGenieError) -> None:
        # What is not about one campaign is said once, although each of them meets it.
        is_about_all = error.temporary or isinstance(error, UnauthorizedError | InvalidConnectionError)
        trouble = error.kind if is_about_all else f"{error.kind} {about}"
        if trouble not in self._troubles.values():
            log.warning("%s [%s: watching goes on].", error.message.rstrip("."), error.kind)
        self._troubles[about] = trouble

    def _end_trouble(self, about: str) -> None:
        if self._troubles.pop(about, None) is not None and not self._troubles:
            log.info("The campaigns of the connection %r can be read again.", self._voicegenie_conn_id)


def _count(number: int) -> str:
    return f"{number:,} campaign{'' if number == 1 else 's'}"
