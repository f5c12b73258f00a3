# SPDX-License-Identifier: Apache-2.0
"""
What the service says about campaigns, as frozen objects.

The service's pages disagree about words and types, so reading is lenient: only what a decision rests on is
required (an id and a status); everything else is ``None`` if it is missing or unreadable.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from airflow_provider_voicegenie.api.times import read_moment

Json = Mapping[str, Any]


#: A number written as a text; Python itself would take more for one, such as "nan" and "1_000".
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


class ShapeError(ValueError):
    """The response lacks something that is required, or has it in another shape."""


class CampaignStatus(StrEnum):
    """
    The status of a campaign: the words of the service's pages, and of its dashboard, read as one vocabulary.

    A word we do not know becomes ``UNKNOWN``: neither startable, nor running, nor ended.
    """

    RUNNING = "running"
    PAUSED = "paused"
    SCHEDULED = "scheduled"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    DRAFT = "draft"
    NOT_YET_STARTED = "not-yet-started"
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, text: str) -> CampaignStatus:
        """Read the service's word, without regard to case, spaces, hyphens and underscores."""
        return _read_status(text)

    @property
    def is_running(self) -> bool:
        """Whether calls are being placed."""
        return self is CampaignStatus.RUNNING

    @property
    def is_startable(self) -> bool:
        """Whether a start may be tried from this status; for a campaign that never ran, the service decides."""
        return self in (CampaignStatus.PAUSED, CampaignStatus.SCHEDULED, CampaignStatus.NOT_YET_STARTED)

    @property
    def has_ended(self) -> bool:
        """Whether the campaign is over, well (``completed``) or not (``stopped``, ``failed``)."""
        return self in (CampaignStatus.COMPLETED, CampaignStatus.STOPPED, CampaignStatus.FAILED)

    @property
    def may_have_been_started(self) -> bool:
        """Whether the status, seen alone, is one that a campaign can have after it was started: it may be pending."""
        return self not in (CampaignStatus.SCHEDULED, CampaignStatus.DRAFT)


#: The words for each status, without white space, hyphens and underscores, in lower case.
_STATUS_WORDS: Mapping[str, CampaignStatus] = {
    "running": CampaignStatus.RUNNING,
    "inprogress": CampaignStatus.RUNNING,
    "active": CampaignStatus.RUNNING,
    "paused": CampaignStatus.PAUSED,
    "scheduled": CampaignStatus.SCHEDULED,
    "completed": CampaignStatus.COMPLETED,
    "stopped": CampaignStatus.STOPPED,
    "failed": CampaignStatus.FAILED,
    "draft": CampaignStatus.DRAFT,
    "notyetstarted": CampaignStatus.NOT_YET_STARTED,
    "notstartedyet": CampaignStatus.NOT_YET_STARTED,
    "pending": CampaignStatus.NOT_YET_STARTED,
}


@lru_cache(maxsize=100)
def _read_status(text: str) -> CampaignStatus:
    return _STATUS_WORDS.get(re.sub(r"[\s_-]", "", text).casefold(), CampaignStatus.UNKNOWN)


class Model:
    """What the service returns, as frozen objects that can be pickled, copied, and written as plain JSON."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """
        Return all fields as plain JSON, with times as ISO 8601 in UTC.

        A task returns this rather than the object: Airflow refuses to read objects of classes that it does not know.
        """
        return {field.name: _json_of(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def _json_of(value: Any) -> Any:
    if isinstance(value, Model):
        return value.to_json()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, datetime):
        return write_time(value)
    if isinstance(value, tuple):
        return [_json_of(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Quota(Model):
    """
    What an account may use until its quota is reset, from ``GET /fetchQuota``.

    :param calls_remaining: Calls that are left; ``None`` if the service does not say.
    :param minutes_remaining: Minutes that are left, likewise.
    """

    calls_remaining: float | None
    minutes_remaining: float | None

    @classmethod
    def from_json(cls, data: Json) -> Quota:
        """
        Read a quota.

        :raises ShapeError: ``quota`` is missing.
        """
        parts = data.get("quota")
        if not isinstance(parts, dict):
            raise ShapeError("`quota` is not an object")
        return cls(_remaining(parts.get("calls")), _remaining(parts.get("minutes")))


def _remaining(part: object) -> float | None:
    if not isinstance(part, dict):
        return None
    remaining, limit, used = (_number(part.get(name)) for name in ("remaining", "limit", "used"))
    if remaining is None and limit is not None and used is not None:
        remaining = limit - used
    return None if remaining is None else max(0.0, remaining)


@dataclass(frozen=True, slots=True)
class Campaign(Model):
    """
    One campaign, from ``GET /campaign/{id}`` or an item of ``GET /fetchCampaignData``.

    Contact ids are counted and dropped: nothing here needs them, and they must not travel on.

    :param campaign_id: The service's id.
    :param status: How we read the status.
    :param status_text: The service's own word for it.
    :param name: The name users gave the campaign.
    :param script_id: Id of the script; ``None`` if none is set, or in a list, which does not have it.
    :param total_count: Contacts in the campaign; if the service gives no total, the number of contact ids.
    :param registered_count: Contacts loaded so far (list only).
    :param completed_count: Calls completed.
    :param failed_count: Calls failed (single reads only).
    :param created_at: When the campaign was created.
    :param updated_at: When it last changed; the service does not keep this reliably.
    :param started_at: When it was started (list only).
    :param ended_at: When it ended (list only).
    :param quota: What its account may still use; ``None`` unless a prerequisite asks for it.
    """

    campaign_id: str
    status: CampaignStatus
    status_text: str
    name: str | None = None
    script_id: str | None = None
    total_count: int | None = None
    registered_count: int | None = None
    completed_count: int | None = None
    failed_count: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    quota: Quota | None = None

    def with_listed(self, listed: Campaign | None) -> Campaign:
        """
        Return the campaign with what only the list has.

        :param listed: The campaign as the list has it; ``None`` if it does not.
        """
        if listed is None:
            return self
        return replace(
            self,
            registered_count=listed.registered_count,
            started_at=listed.started_at,
            ended_at=listed.ended_at,
        )

    @classmethod
    def from_json(cls, data: Json) -> Campaign:
        """
        Read a campaign.

        :raises ShapeError: ``id`` or ``campaign_status`` is missing or not a text.
        """
        status_text = _required_text(data, "campaign_status")
        contact_ids = data.get("contact_ids")
        total_count = _count(data.get("total_count"))
        if total_count is None and isinstance(contact_ids, list):
            total_count = len(contact_ids)
        return cls(
            campaign_id=_required_text(data, "id"),
            status=CampaignStatus.read(status_text),
            # Ten thousand campaigns have few different ones.
            status_text=sys.intern(status_text),
            name=_text(data.get("name")),
            script_id=_text(data.get("script_id")),
            total_count=total_count,
            registered_count=_count(data.get("registered_count")),
            completed_count=_count(data.get("completed_count")),
            failed_count=_count(data.get("failed_count")),
            created_at=read_time(data.get("created_at")),
            updated_at=read_time(data.get("updated_at")),
            started_at=read_time(data.get("campaign_start_time")),
            ended_at=read_time(data.get("campaign_end_time")),
        )


@dataclass(frozen=True)
class CampaignPage(Model):
    """
    One page of ``GET /fetchCampaignData``.

    :param campaigns: The campaigns of the page that could be read.
    :param size: Items on the page, unreadable ones included: what the next page's offset grows by.
    :param total: Campaigns in the account, as this page counts them.
    """

    campaigns: tuple[Campaign, ...]
    size: int
    total: int

    @classmethod
    def from_json(cls, data: Json) -> CampaignPage:
        """
        Read a page; one campaign that cannot be read does not hide the others.

        :raises ShapeError: ``campaigns`` or ``pagination.total`` is missing.
        """
        items, total = _page(data, "campaigns")
        campaigns = []
        for item in items:
            if isinstance(item, dict):
                with contextlib.suppress(ShapeError):
                    campaigns.append(Campaign.from_json(item))
        return cls(tuple(campaigns), len(items), total)


@dataclass(frozen=True)
class CampaignStats(Model):
    """
    The counters of one campaign, from ``GET /getCampaignStats/{id}``; up to 30 seconds old.

    :param campaign_id: The service's id.
    :param total_contacts: Contacts in the campaign.
    :param calls_completed: Calls that were successful.
    :param calls_failed: Calls that finished otherwise.
    :param calls_in_progress: Calls going on.
    :param calls_pending: Calls to come.
    :param success_rate: Percentage of successful calls among the finished ones; ``None`` before any finished.
    :param average_call_duration: Seconds.
    :param total_call_duration: Seconds.
    :param call_status_breakdown: Calls by outcome; need not add up to the finished calls.
    :param started_at: When the campaign was started; ``None`` if it never was.
    :param completed_at: When it was completed; ``None`` while it is not, or if that time cannot be read.
    :param is_final: Whether the service names a time of completion, readable or not: the counters change no more.
    """

    campaign_id: str
    total_contacts: int
    calls_completed: int
    calls_failed: int
    calls_in_progress: int
    calls_pending: int
    success_rate: float | None
    average_call_duration: float | None
    total_call_duration: int | None
    call_status_breakdown: Mapping[str, int]
    started_at: datetime | None
    completed_at: datetime | None
    is_final: bool

    @classmethod
    def from_json(cls, data: Json) -> CampaignStats:
        """
        Read statistics.

        :raises ShapeError: the id or one of the five counters is missing or not a count.
        """
        breakdown = data.get("call_status_breakdown")
        counts = {} if not isinstance(breakdown, dict) else {k: _count(v) for k, v in breakdown.items()}
        return cls(
            campaign_id=_required_text(data, "campaign_id"),
            total_contacts=_required_count(data, "total_contacts"),
            calls_completed=_required_count(data, "calls_completed"),
            calls_failed=_required_count(data, "calls_failed"),
            calls_in_progress=_required_count(data, "calls_in_progress"),
            calls_pending=_required_count(data, "calls_pending"),
            success_rate=_number(data.get("success_rate")),
            average_call_duration=_number(data.get("average_call_duration")),
            total_call_duration=_count(data.get("total_call_duration")),
            call_status_breakdown={k: v for k, v in counts.items() if v is not None},
            started_at=read_time(data.get("started_at")),
            completed_at=read_time(data.get("completed_at")),
            is_final=bool(data.get("completed_at")),
        )


#: What a response to a start may say: a campaign that was taken in may be pending for a while, or be over at once.
_AFTER_START = (
    CampaignStatus.RUNNING,
    CampaignStatus.COMPLETED,
    CampaignStatus.NOT_YET_STARTED,
    CampaignStatus.UNKNOWN,
)


@dataclass(frozen=True)
class StartedCampaign(Model):
    """
    The response to ``GET /startCampaign/{id}``.

    :param campaign_id: The service's id.
    :param status: How we read the new status; the page says it should be ``running`` and promises nothing.
    :param status_text: The service's own word for it.
    :param started_at: When the service says it was started.
    """

    campaign_id: str
    status: CampaignStatus
    status_text: str
    started_at: datetime | None

    @classmethod
    def from_json(cls, data: Json) -> StartedCampaign:
        """
        Read the response.

        :raises ShapeError: the id or the status is missing, or the status is one that no start can lead to.
        """
        status_text = _required_text(data, "status")
        status = CampaignStatus.read(status_text)
        if status not in _AFTER_START:
            raise ShapeError(f"the status after the start is said to be {status.value}")
        return cls(
            campaign_id=_required_text(data, "campaign_id"),
            status=status,
            status_text=status_text,
            started_at=read_time(data.get("started_at")),
        )


@dataclass(frozen=True)
class PausedCampaign(Model):
    """
    The response to ``GET /pauseTheCampaign/{id}``.

    :param campaign_id: The service's id.
    :param status: How we read the new status.
    :param status_text: The service's own word for it.
    :param paused_at: When the service says it was paused.
    :param active_calls: Calls that were still going on; they run to their end.
    """

    campaign_id: str
    status: CampaignStatus
    status_text: str
    paused_at: datetime | None
    active_calls: int | None

    @classmethod
    def from_json(cls, data: Json) -> PausedCampaign:
        """
        Read the response.

        :raises ShapeError: the id or the status is missing, or the status says that calls go on.
        """
        status_text = _required_text(data, "status")
        status = CampaignStatus.read(status_text)
        if status.is_running:
            raise ShapeError("the status after the pause is said to be running")
        return cls(
            campaign_id=_required_text(data, "campaign_id"),
            status=status,
            status_text=status_text,
            paused_at=read_time(data.get("paused_at")),
            active_calls=_count(data.get("active_calls")),
        )


@dataclass(frozen=True)
class UploadedContacts(Model):
    """
    The response to ``POST /uploadCampaignData``.

    :param campaign_id: The service's id.
    :param uploaded_count: Contacts that were added. Numbers that the campaign had already count nowhere.
    :param failed_count: Contacts that were rejected.
    """

    campaign_id: str
    uploaded_count: int
    failed_count: int

    @classmethod
    def from_json(cls, data: Json) -> UploadedContacts:
        """
        Read the response.

        :raises ShapeError: The id or a count is missing.
        """
        return cls(
            campaign_id=_required_text(data, "campaign_id"),
            uploaded_count=_required_count(data, "uploaded_count"),
            failed_count=_required_count(data, "failed_count"),
        )


@dataclass(frozen=True, slots=True)
class Call(Model):
    """
    One phone call, an item of ``POST /getHistory``. Its ``repr`` does not show whom it was with.

    :param call_id: The service's id of the call; ``None`` if it gave none.
    :param contact_name: Who was called.
    :param phone_number: The number.
    :param status: How it ended: ``answered``, ``busy``, ``no_answer``, ``failed``, ``voicemail``, ...
    :param duration: Seconds, as far as the page's example shows.
    :param call_time: When it was, as the service writes it: ISO 8601.
    :param recording_url: Where its recording is.
    """

    call_id: str | None
    contact_name: str | None = field(repr=False)
    phone_number: str | None = field(repr=False)
    status: str | None
    duration: float | None
    call_time: str | None
    recording_url: str | None = field(repr=False)

    @property
    def key(self) -> str:
        """
        What distinguishes it from other calls on other pages.

        The id alone does not: services exist that give several calls one. What may still change after a call, such as
        its recording, is no part of it; without an id, all is.
        """
        if self.call_id is None:
            return json.dumps(self.to_json())
        return "\0".join((self.call_id, self.contact_name or "", self.phone_number or "", self.call_time or ""))

    @classmethod
    def from_json(cls, data: Json) -> Call:
        """Read a call; whatever is missing or unreadable is ``None``."""
        return cls(
            call_id=_text_or_number(data.get("call_id")),
            contact_name=_text_or_number(data.get("contact_name")),
            phone_number=_text_or_number(data.get("phone_number")),
            status=_text_or_number(data.get("status")),
            duration=_number(data.get("duration")),
            call_time=_text_or_number(data.get("call_time")),
            recording_url=_text_or_number(data.get("recording_url")),
        )

    def unreadable(self, data: Json) -> tuple[str, ...]:
        """
        Return the fields that are ``None`` although the service said something.

        :param data: What the call was read from.
        """
        empty = (name for name in _CALL_FIELDS if getattr(self, name) is None)
        return tuple(name for name in empty if (value := data.get(name)) is not None and str(value).strip())


_CALL_FIELDS = tuple(each.name for each in fields(Call))


@dataclass(frozen=True)
class CallPage(Model):
    """
    One page of ``POST /getHistory``.

    :param calls: The calls of the page that could be read.
    :param size: Items on the page, unreadable ones included: what the next page's offset grows by.
    :param total: Calls in all, as this page counts them.
    :param unreadable: By a call's place on the page: its fields that are ``None`` although the service said something.
    """

    calls: tuple[Call, ...]
    size: int
    total: int
    unreadable: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def distinct(self) -> Iterator[tuple[str, int, Call]]:
        """
        Yield each call with a key, and its place on the page. A call that the page lists twice is given once.

        Two calls that differ on one page are two, even if their own keys are equal: no page shifts within itself.
        """
        seen: dict[str, list[tuple[str | None, float | None]]] = {}
        for place, call in enumerate(self.calls):
            results = seen.setdefault(call.key, [])
            result = call.status, call.duration
            if result not in results:
                results.append(result)
                yield f"{call.key}\0{len(results)}", place, call

    @classmethod
    def from_json(cls, data: Json) -> CallPage:
        """
        Read a page.

        :raises ShapeError: ``history`` or ``pagination.total`` is missing.
        """
        items, total = _page(data, "history")
        readable = [item for item in items if isinstance(item, dict)]
        calls = tuple(map(Call.from_json, readable))
        problems = enumerate(call.unreadable(item) for call, item in zip(calls, readable, strict=True))
        return cls(calls, len(items), total, {place: names for place, names in problems if names})


def _page(data: Json, name: str) -> tuple[list[Any], int]:
    items = data.get(name)
    pagination = data.get("pagination")
    total = _count(pagination.get("total")) if isinstance(pagination, dict) else None
    if not isinstance(items, list) or total is None:
        raise ShapeError(f"no list `{name}` with a `pagination.total`")
    return items, total


def read_time(value: object) -> datetime | None:
    """Read an ISO 8601 time; UTC if it names no zone, ``None`` if it cannot be read."""
    if not isinstance(value, str):
        return None
    try:
        moment = read_moment(value.strip())
        # The usual case first: a page has thousands of them.
        if moment is None or moment.tzinfo is UTC:
            return moment
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        return None


def write_time(moment: datetime | None) -> str | None:
    """Write a time the way the service does: ISO 8601, UTC, ending in ``Z``. One that names no zone is in UTC."""
    if moment is None:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _required_text(data: Json, name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ShapeError(f"`{name}` is not a text")
    if not value.isascii() and _text(value) != value:
        raise ShapeError(f"`{name}` has half a character")
    return value


def _required_count(data: Json, name: str) -> int:
    value = _count(data.get(name))
    if value is None:
        raise ShapeError(f"`{name}` is not a count")
    return value


def _text(value: object) -> str | None:
    # Half a character, as JSON may have it, can be written nowhere.
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.isascii() else value.encode(errors="replace").decode()


def _text_or_number(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(value)
    return str(value) if math.isfinite(value) else None


def _number(value: object) -> float | None:
    """Read a number; the service may write one as a text."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    # The usual case first: a page has thousands of them.
    if type(value) is int and 0 <= value < 2**53:
        return value
    number = _number(value)
    # What is above is not exact, and no number of calls: the largest would fail in a division.
    return int(number) if number is not None and 0 <= number < 2**53 and number.is_integer() else None
