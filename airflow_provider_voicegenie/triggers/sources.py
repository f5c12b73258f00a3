# SPDX-License-Identifier: Apache-2.0
"""A campaign with what prerequisites need besides, each of which the feed reads once for all waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_voicegenie.api.endpoints import Request, campaign, quota
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, Quota
from airflow_provider_voicegenie.feed.feed import OnResponse, Subscription, feed_of
from airflow_provider_voicegenie.feed.plan import LIST, ListedPage
from airflow_provider_voicegenie.rules.prerequisites import Source


class CampaignWithSources(Subscription):
    """
    A subscription to a campaign that is read by itself. Each update is the campaign, or why something cannot be read.

    :param interval: Seconds between reads, at most.
    :param needs: What is read besides.
    """

    def __init__(
        self, voicegenie_conn_id: str, campaign_id: str, interval: float, needs: Collection[Source] = ()
    ) -> None:
        super().__init__(
            feed_of(voicegenie_conn_id), campaign(campaign_id), interval, self._on_campaign, is_list_enough=False
        )
        self._campaign_id = campaign_id
        self._needs_quota = Source.QUOTA in needs
        self._quota: Quota | None = None
        self._listed: Campaign | None = None
        # Whether the campaign was read before the quota was; and that the list is refused, until that was shown.
        self._is_held_back = False
        self._refusal: VoiceGenieError | None = None
        sources: Mapping[Source, tuple[Request[Any], OnResponse]] = {
            Source.LIST: (LIST, self._on_page),
            Source.QUOTA: (quota(), self._on_quota),
        }
        self._others = [
            Subscription(self.feed, request, interval, on_response, is_counted=False)
            for request, on_response in map(sources.__getitem__, needs)
        ]

    def close(self) -> None:
        """Leave the feed."""
        for other in self._others:
            other.close()
        super().close()

    def _on_campaign(
        self, response: Campaign | VoiceGenieError, in_full: bool, now: float
    ) -> Campaign | VoiceGenieError | None:
        if self._refusal is not None:
            response, self._refusal = self._refusal, None
        if isinstance(response, VoiceGenieError):
            return response
        if self._needs_quota and self._quota is None:
            self._is_held_back = True
            return None
        return replace(response.with_listed(self._listed), quota=self._quota)

    def _on_page(self, response: ListedPage | VoiceGenieError, in_full: bool, now: float) -> None:
        if isinstance(response, VoiceGenieError):
            if not response.temporary:
                # The list is not read again soon, and the last update may not be taken yet.
                self._refusal = response
                self.publish(response, in_full, now)
            return
        listed = response.by_id.get(self._campaign_id)
        if listed is None:
            return
        before, self._listed = self._listed, listed
        if before is None or before.registered_count != listed.registered_count:
            self.poll_now()

    def _on_quota(self, response: Quota | VoiceGenieError, in_full: bool, now: float) -> None:
        if isinstance(response, VoiceGenieError):
            self._quota = None
            self.publish(response, in_full, now)
            return
        self._quota = response
        if self._is_held_back:
            # What was read then may be as old as an interval by now.
            self._is_held_back = False
            self.poll_now()
