# SPDX-License-Identifier: Apache-2.0
"""
The sandbox's campaigns.

No timer runs. The progress of a campaign is computed from the times at which it was running: calls begin at an even
rate, and each takes the same time. A campaign of ten thousand contacts costs no more than one of ten; only contacts
that are uploaded are stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_voicegenie.api.models import CampaignStatus
from airflow_provider_voicegenie.sandbox.campaign import (
    CALL_SECONDS,
    CALLS_PER_SECOND,
    EndedCalls,
    SandboxCampaign,
    good_ones,
    results_of,
)


class RequestRefusedError(Exception):
    """The service refuses a request, with its own code and message."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True)
class Progress:
    """The progress of a campaign."""

    completed: int
    failed: int
    in_progress: int
    pending: int
    breakdown: Mapping[str, int]


def seed_campaigns() -> list[SandboxCampaign]:
    """Return one campaign of every status, and of every reason not to be ready."""
    now = datetime.now(UTC)
    earlier = now - timedelta(hours=2)
    return [
        SandboxCampaign(id="ready", name="Spring reminder", total_count=20),
        SandboxCampaign(id="paused", name="Paused half-way", status="paused", completed_count=4, failed_count=1),
        SandboxCampaign(id="running", name="In progress", status="running", total_count=5000),
        SandboxCampaign(
            id="always-running", name="Never ends in practice", status="running", total_count=1_000_000_000
        ),
        SandboxCampaign(id="in-progress", name="In progress too", status="in_progress", total_count=5000),
        SandboxCampaign(id="draft", name="Nothing set", status="draft", script_id=None, total_count=0),
        SandboxCampaign(id="no-script", name="No script yet", script_id=None),
        SandboxCampaign(id="no-contacts", name="No contacts yet", total_count=0),
        SandboxCampaign(id="not-yet-started", name="Just made", status="not-yet-started"),
        SandboxCampaign(
            id="completed",
            name="All done",
            status="completed",
            completed_count=8,
            failed_count=2,
            started_at=earlier,
            ended_at=now,
        ),
        SandboxCampaign(id="stopped", name="Called off", status="stopped", started_at=earlier, ended_at=now),
        SandboxCampaign(id="failed", name="Broke down", status="failed", started_at=earlier, ended_at=now),
    ]


class SandboxStore:
    """
    All campaigns of one sandbox. Every method may be called from any thread.

    :param speed: Simulated seconds in one real second.
    :param seeds: Returns the initial campaigns; one of every status by default.
    :param clock: Returns monotonic seconds.
    :param reset_after: Real seconds after which one of the initial campaigns that was started here and has ended is as
        it was at the beginning; never by default.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        seeds: Callable[[], Iterable[SandboxCampaign]] = seed_campaigns,
        clock: Callable[[], float] = time.monotonic,
        reset_after: float | None = None,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed!r}.")
        self.speed = speed
        self._clock = clock
        self._clock_zero = datetime.now(UTC) - timedelta(seconds=clock())
        self._lock = threading.RLock()
        self._campaigns: dict[str, SandboxCampaign] = {}
        self._seeds = seeds
        self._reset_after = reset_after
        self.reset()

    def reset(self) -> None:
        """Restore the initial campaigns, and remove all others."""
        with self._lock:
            self._campaigns.clear()
            for campaign in self._seeds():
                self.put(campaign)

    def put(self, campaign: SandboxCampaign) -> SandboxCampaign:
        """Add a campaign, or replace the one with its id."""
        with self._lock:
            self._campaigns[campaign.id] = campaign
            if campaign.status == "paused" and campaign.resumes_after is not None and not campaign.running:
                campaign.running = [(self._clock(), self._clock())]
            if _is_running(campaign) and not campaign.running:
                campaign.running = [(self._clock(), None)]
                campaign.started_at = campaign.started_at or datetime.now(UTC)
        return campaign

    def change(self, campaign_id: str, **changes: Any) -> SandboxCampaign:
        """Change fields of a campaign, as a person at the dashboard could; a new status runs or stops it."""
        with self._lock:
            campaign = self.find(campaign_id)
            self._forget_idle_time(campaign)
            status = changes.pop("status", campaign.status)
            for name, value in changes.items():
                setattr(campaign, name, value)
            self._set_status(campaign, status)
            campaign.updated_at = datetime.now(UTC)
            return campaign

    def remove(self, campaign_id: str) -> None:
        """Remove a campaign."""
        with self._lock:
            self.find(campaign_id)
            del self._campaigns[campaign_id]

    def find(self, campaign_id: str) -> SandboxCampaign:
        """
        Return a campaign as it is now.

        :raises RequestRefusedError: There is none with this id.
        """
        with self._lock:
            campaign = self._campaigns.get(campaign_id)
            if campaign is None:
                raise RequestRefusedError(404, "NOT_FOUND", "Campaign not found")
            self._let_time_pass(campaign)
            return self._campaigns[campaign_id]

    def all(self) -> list[SandboxCampaign]:
        """Return all campaigns as they are now, the oldest first."""
        with self._lock:
            for campaign in list(self._campaigns.values()):
                self._let_time_pass(campaign)
            return list(self._campaigns.values())

    def start(self, campaign_id: str) -> SandboxCampaign:
        """
        Start a campaign that is paused, scheduled or not started yet, and has a script and contacts.

        :raises RequestRefusedError: It cannot be started.
        """
        with self._lock:
            campaign = self.find(campaign_id)
            if _is_running(campaign):
                raise RequestRefusedError(400, "CAMPAIGN_ALREADY_RUNNING", "Campaign is already running")
            missing = [] if campaign.script_id else ["script_id"]
            missing += [] if campaign.total_count else ["contacts"]
            if missing:
                raise RequestRefusedError(
                    422,
                    "INVALID_CAMPAIGN_STATE",
                    "Campaign cannot be started. Configuration is missing.",
                    {"missing": missing},
                )
            if not CampaignStatus.read(campaign.status).is_startable:
                raise RequestRefusedError(
                    422, "INVALID_CAMPAIGN_STATE", f"A campaign that is {campaign.status} cannot be started."
                )
            campaign.start_count += 1
            campaign.started_at = campaign.updated_at = datetime.now(UTC)
            self._set_status(campaign, "running")
            return campaign

    def pause(self, campaign_id: str) -> tuple[SandboxCampaign, datetime, int]:
        """
        Pause a running campaign; return it, the time, and the number of calls that were in progress.

        :raises RequestRefusedError: It is not running.
        """
        with self._lock:
            campaign = self.find(campaign_id)
            if not _is_running(campaign):
                raise RequestRefusedError(400, "CAMPAIGN_NOT_RUNNING", "Campaign is not running")
            self._set_status(campaign, "paused")
            campaign.updated_at = datetime.now(UTC)
            return campaign, campaign.updated_at, self.progress(campaign).in_progress

    def upload(self, campaign_id: str, contacts: Sequence[object]) -> tuple[int, list[dict[str, Any]]]:
        """
        Add contacts to a campaign; return how many were added, and the errors.

        :raises RequestRefusedError: There is no campaign with this id.
        """
        with self._lock:
            campaign = self.find(campaign_id)
            self._forget_idle_time(campaign)
            uploaded, errors = campaign.contacts.upload(contacts)
            if uploaded:
                campaign.total_count += uploaded
                campaign.updated_at = datetime.now(UTC)
            return uploaded, errors

    def history(
        self,
        campaign_id: str,
        *,
        limit: int,
        offset: int,
        status: str | None,
        since: datetime | None,
        until: datetime | None,
    ) -> tuple[list[dict[str, Any]], int]:
        """
        Return some of a campaign's calls that ended, and how many there are; see ``EndedCalls.page``.

        :raises RequestRefusedError: There is no campaign with this id.
        """
        with self._lock:
            campaign = self.find(campaign_id)
            ended = self._calls_ended(campaign, self._clock())
            calls = EndedCalls(campaign, ended, pace=self._pace, clock_zero=self._clock_zero)
            return calls.page(limit=limit, offset=offset, status=status, since=since, until=until)

    def progress(self, campaign: SandboxCampaign) -> Progress:
        """Return the progress of a campaign."""
        with self._lock:
            now = self._clock()
            begun, ended = self._calls_begun(campaign, now), self._calls_ended(campaign, now)
            results = results_of(ended)
            good = good_ones(results)
            results["answered"] += campaign.completed_count
            results["failed"] += campaign.failed_count
            return Progress(
                completed=campaign.completed_count + good,
                failed=campaign.failed_count + ended - good,
                in_progress=begun - ended,
                pending=campaign.contacts_to_call - begun,
                breakdown=results,
            )

    @property
    def _pace(self) -> float:
        return self.speed * CALLS_PER_SECOND

    def _calls_ended(self, campaign: SandboxCampaign, until: float) -> int:
        return self._calls_begun(campaign, until - CALL_SECONDS / self.speed)

    def _calls_begun(self, campaign: SandboxCampaign, until: float) -> int:
        seconds = sum(max(0.0, min(until, until if end is None else end) - begin) for begin, end in campaign.running)
        return min(campaign.contacts_to_call, int(seconds * self._pace))

    def _forget_idle_time(self, campaign: SandboxCampaign) -> None:
        """Forget how long nobody was left to call, so that calls of new contacts do not begin in the past."""
        now = self._clock()
        ran = sum((now if end is None else end) - begin for begin, end in campaign.running)
        # Half a call more than there were, so that rounding loses none.
        idle = ran - (campaign.contacts_to_call + 0.5) / self._pace
        if idle <= 0:
            return
        while idle > 0:
            begin, end = campaign.running.pop()
            length = (now if end is None else end) - begin
            if length > idle:
                campaign.running.append((begin, begin + length - idle))
            idle -= length
        if _is_running(campaign):
            campaign.running.append((now, None))

    def _let_time_pass(self, campaign: SandboxCampaign) -> None:
        if campaign.status == "paused" and campaign.resumes_after is not None and campaign.running:
            _, paused_at = campaign.running[-1]
            if paused_at is not None and self._clock() - paused_at >= campaign.resumes_after / self.speed:
                self._set_status(campaign, "running")
                campaign.started_at = campaign.updated_at = datetime.now(UTC)
        if not _is_running(campaign):
            self._reset_if_over(campaign)
            return
        progress = self.progress(campaign)
        if progress.pending == 0 and progress.in_progress == 0:
            self._set_status(campaign, "completed")
            campaign.updated_at = datetime.now(UTC)

    def _reset_if_over(self, campaign: SandboxCampaign) -> None:
        if self._reset_after is None or campaign.ended_at is None or not campaign.start_count:
            return
        if datetime.now(UTC) - campaign.ended_at >= timedelta(seconds=self._reset_after):
            for seed in self._seeds():
                if seed.id == campaign.id:
                    self.put(seed)

    def _set_status(self, campaign: SandboxCampaign, status: str) -> None:
        was_running = _is_running(campaign)
        campaign.status = status
        now = self._clock()
        if _is_running(campaign) and not was_running:
            campaign.running.append((now, None))
            campaign.ended_at = None
            campaign.started_at = campaign.started_at or datetime.now(UTC)
        elif was_running and not _is_running(campaign):
            begin, _ = campaign.running[-1]
            campaign.running[-1] = (begin, now)
            if status != "paused":
                campaign.ended_at = datetime.now(UTC)


def _is_running(campaign: SandboxCampaign) -> bool:
    return CampaignStatus.read(campaign.status).is_running
