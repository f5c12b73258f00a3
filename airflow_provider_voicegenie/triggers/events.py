# SPDX-License-Identifier: Apache-2.0
"""
Event triggers, for Airflow's ``AssetWatcher``. Airflow has them since 3.0.

A watcher takes part in the poll that all triggers of a triggerer share, see
:mod:`airflow_provider_voicegenie.feed`; that saves the requests. From Airflow 3.3 on, what the feed reads goes
through Airflow's shared stream besides. Only that one says when an event is stored, so that what was told can be kept.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Collection, Hashable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_voicegenie.rules.parameters import read_interval

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow_provider_voicegenie.triggers.watchers import ReadingBatch, ReadingStream


class CampaignEndedTrigger(BaseEventTrigger):
    """
    Fires an event each time a campaign of the account ends, also if no task started it. For an ``AssetWatcher``.

    A campaign has ended when its status is ``completed``, ``stopped`` or ``failed``. If it goes on after that and ends
    again, that is an event too. A campaign that had ended before the watcher first read it is none.

    Airflow 3.3 keeps what a watcher knows, in the state store of its asset, for each account by itself. So each end is
    reported once, also one that comes while no triggerer is running. The watcher notes its events after Airflow has
    stored them: if the triggerer is stopped or dies in the seconds between, it reports the end again. Delivery is at
    least once: a lost event would lose an export, a repeated one only repeats it. Before 3.3, a watcher reports the
    ends since its triggerer began.

    Of several events at once, Airflow before 3.4 makes a run for the first one only. So the last of several ends is
    reported five seconds after the one before.

    The payload of an event is plain JSON: ``campaign_id``, ``name``, ``status``, ``ended_at`` (ISO 8601, UTC),
    ``total_count``, ``completed_count`` and ``failed_count``. What the service did not say is ``None``: its list has no
    failed calls, and a campaign that is read by itself has no time of its end.

    Trouble with the service or with the connection never ends a watcher. It is logged when it begins and when it ends.

    :param campaign_ids: The campaigns to watch. Leave it out to watch all campaigns of the account.
    :param voicegenie_conn_id: Id of the Airflow connection.
    :param poll_interval: Longest time between two looks at a campaign, in seconds or as a ``timedelta``.
    :param queue: Airflow's, from 3.4 on: only triggerers that were started with ``--queues`` and this name watch.
    :raises ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        campaign_ids: Collection[str] | None = None,
        voicegenie_conn_id: str = "voicegenie_default",
        poll_interval: timedelta | float = 60,
        *,
        queue: str | None = None,
    ) -> None:
        if queue is not None and "queue" not in inspect.signature(BaseEventTrigger.__init__).parameters:
            raise ValueError(
                f"queue={queue!r:.80}: only Airflow 3.4 and later give event triggers a queue. Leave it out, or use "
                "Airflow 3.4."
            )
        super().__init__(**({} if queue is None else {"queue": queue}))  # type: ignore[no-untyped-call]
        self.campaign_ids = _read_campaign_ids(campaign_ids)
        if not isinstance(voicegenie_conn_id, str) or not voicegenie_conn_id.strip():
            raise ValueError(
                f"voicegenie_conn_id must be the id of an Airflow connection; got {voicegenie_conn_id!r:.80}."
            )
        self.voicegenie_conn_id = voicegenie_conn_id
        self.poll_interval = read_interval("poll_interval", poll_interval)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and keyword arguments. Two watchers for which they are the same are one to Airflow."""
        arguments = {
            "campaign_ids": self.campaign_ids,
            "voicegenie_conn_id": self.voicegenie_conn_id,
            "poll_interval": self.poll_interval,
        }
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    def shared_stream_key(self) -> Hashable:
        """Return what watchers have in common that Airflow shows the same batches. Called by Airflow 3.3 and later."""
        return __name__, self.voicegenie_conn_id, self.poll_interval, tuple(self.campaign_ids or ())

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> ReadingStream:
        """Return what reads for all watchers with these arguments. Called by Airflow 3.3 and later."""
        from airflow_provider_voicegenie.triggers.watchers import ReadingStream

        return ReadingStream(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[ReadingBatch]) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each end that the batches show. Called by Airflow 3.3 and later."""
        from airflow_provider_voicegenie.triggers.watchers import Watcher, event_payload

        watcher = Watcher(getattr(self, "asset_state_store", None), self.voicegenie_conn_id, self.campaign_ids)
        async for batch in shared_stream:
            async with contextlib.aclosing(watcher.events(batch)) as ended:
                async for campaign in ended:
                    yield TriggerEvent(event_payload(campaign))  # type: ignore[no-untyped-call]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each end. Called by Airflow before 3.3, which keeps nothing for a watcher."""
        stream = self.create_shared_stream_producer(self.serialize()[1]).open_stream()
        async with contextlib.aclosing(stream) as batches:
            async for event in self.filter_shared_stream(batch async for batch, _ in batches):
                yield event


def _read_campaign_ids(campaign_ids: object) -> list[str] | None:
    if campaign_ids is None:
        return None
    if not isinstance(campaign_ids, list | tuple | set | frozenset):
        raise ValueError(
            f"campaign_ids must be a list of campaign ids; got {campaign_ids!r:.80}. "
            "For one campaign, write a list with its id; leave it out to watch all campaigns."
        )
    if not campaign_ids:
        raise ValueError("campaign_ids must not be an empty list. Leave it out to watch all campaigns.")
    from airflow_provider_voicegenie.api.endpoints import check_campaign_id
    from airflow_provider_voicegenie.api.errors import InvalidCampaignIdError

    for campaign_id in campaign_ids:
        try:
            check_campaign_id(campaign_id)
        except InvalidCampaignIdError as error:
            raise ValueError(f"campaign_ids has an item that is no campaign id: {error}") from None
        if "{{" in campaign_id or "{%" in campaign_id:
            raise ValueError(
                f"campaign_ids has the template {campaign_id!r:.80}, which Airflow does not render for a watcher. "
                "Write the ids, or leave it out and look at the event's campaign_id in the DAG."
            )
    return sorted(set(campaign_ids))
