# SPDX-License-Identifier: Apache-2.0
"""
Responses of the service, as frozen objects.

The service's pages disagree about words and types, so reading is lenient: only what a decision rests on is required
(an id and a status); everything else is ``None`` if it is missing or unreadable. A field declares how it is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self, TypeVar

from airflow_provider_voicegenie.api.times import read_moment

Json = Mapping[str, Any]
ModelT = TypeVar("ModelT")

#: A number written as a text; Python itself would take more for one, such as "nan" and "1_000".
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


#: How far the service's own times of one event may differ from one another: its ``Date`` has whole seconds.
TIME_TOLERANCE = timedelta(seconds=2)


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


def _text(value: object) -> str | None:
    # Half a character, as JSON may have it, can be written nowhere.
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.isascii() else value.encode(errors="replace").decode()


def _whole_text(value: object) -> str | None:
    """Read a text that means something else if half a character is missing in it."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.isascii() or _text(value) == value else None


def _status(value: object) -> CampaignStatus | None:
    return _read_status(value) if isinstance(value, str) else None


def _status_text(value: object) -> str | None:
    text = _whole_text(value)
    # Ten thousand campaigns have few different ones.
    return text and sys.intern(text)


def _status_after_start(value: object) -> CampaignStatus | None:
    status = _status(value)
    if status is not None and status not in _AFTER_START:
        raise ShapeError(f"the status after the start is said to be {status.value}")
    return status


def _status_after_pause(value: object) -> CampaignStatus | None:
    status = _status(value)
    if status is not None and status.is_running:
        raise ShapeError("the status after the pause is said to be running")
    return status


#: What a response to a start may say: a campaign that was taken in may be pending for a while, or be over at once.
_AFTER_START = (
    CampaignStatus.RUNNING,
    CampaignStatus.COMPLETED,
    CampaignStatus.NOT_YET_STARTED,
    CampaignStatus.UNKNOWN,
)


_NO_COUNTS: Mapping[str, int] = {}


def _counts(value: object) -> Mapping[str, int]:
    counts = {name: _count(count) for name, count in value.items()} if isinstance(value, dict) else {}
    return {name: count for name, count in counts.items() if count is not None}


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


def _from(
    read: Callable[[object], Any], key: str | None = None, *, missing: Any = None, is_required: bool = False
) -> Mapping[str, Any]:
    """
    Declare how a field is read.

    :param read: Reads the value; it returns ``None`` if it cannot.
    :param key: Its name in the response, if that is another than the field's own.
    :param missing: The value if the response has none.
    :param is_required: Whether an object without it cannot be read.
    """
    return {"read": read, "key": key, "missing": missing, "is_required": is_required}


@lru_cache
def _declared(model: type[Any]) -> tuple[list[tuple[Callable[[object], Any], str, Any]], list[tuple[int, str]]]:
    """Return how each field is read (reader, key, missing value), and the places and keys of the required ones."""
    readers, required = [], []
    for place, each in enumerate(each for each in fields(model) if each.metadata):
        key = each.metadata["key"] or each.name
        readers.append((each.metadata["read"], key, each.metadata["missing"]))
        if each.metadata["is_required"]:
            required.append((place, key))
    return readers, required


def _read(model: type[ModelT], data: Json) -> ModelT:
    readers, required = _declared(model)  # type: ignore[arg-type]
    get = data.get
    values = [missing if (value := get(key)) is None else read(value) for read, key, missing in readers]
    for place, key in required:
        if values[place] is None:
            raise ShapeError(f"`{key}` is missing, or is not what it should be")
    return model(*values)


class Model:
    """
    A response, or an item of one, as a frozen object.

    It can be pickled, copied, and written as plain JSON.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """
        Read it from JSON.

        :raises ShapeError: A required field is missing or unreadable.
        """
        return _read(cls, data)

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
    """What an account may use until its quota is reset, from ``GET /fetchQuota``."""

    #: Calls that are left; ``None`` if the service does not say.
    calls_remaining: float | None
    #: Minutes that are left; ``None`` if the service does not say.
    minutes_remaining: float | None

    @classmethod
    def from_json(cls, data: Json) -> Self:
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
    """

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, "id", is_required=True))
    #: How we read the status.
    status: CampaignStatus = field(metadata=_from(_status, "campaign_status", is_required=True))
    #: The service's own word for it.
    status_text: str = field(metadata=_from(_status_text, "campaign_status", is_required=True))
    #: The name users gave the campaign.
    name: str | None = field(default=None, metadata=_from(_text))
    #: Id of the script; ``None`` if none is set, or in a list, which does not have it.
    script_id: str | None = field(default=None, metadata=_from(_text))
    #: Contacts in the campaign; if the service gives no total, the number of contact ids.
    total_count: int | None = field(default=None, metadata=_from(_count))
    #: Contacts loaded so far (list only).
    registered_count: int | None = field(default=None, metadata=_from(_count))
    #: Calls completed.
    completed_count: int | None = field(default=None, metadata=_from(_count))
    #: Calls failed (single reads only).
    failed_count: int | None = field(default=None, metadata=_from(_count))
    #: When the campaign was created.
    created_at: datetime | None = field(default=None, metadata=_from(read_time))
    #: When it last changed; the service does not keep this reliably.
    updated_at: datetime | None = field(default=None, metadata=_from(read_time))
    #: When it was started (list only).
    started_at: datetime | None = field(default=None, metadata=_from(read_time, "campaign_start_time"))
    #: When it ended (list only).
    ended_at: datetime | None = field(default=None, metadata=_from(read_time, "campaign_end_time"))
    #: What its account may still use; ``None`` unless a prerequisite asks for it.
    quota: Quota | None = None

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """
        Read a campaign.

        :raises ShapeError: ``id`` or ``campaign_status`` is missing or not a text.
        """
        contact_ids = data.get("contact_ids")
        if isinstance(contact_ids, list) and _count(data.get("total_count")) is None:
            data = {**data, "total_count": len(contact_ids)}
        return _read(cls, data)

    def with_listed(self, listed: Campaign | None) -> Campaign:
        """
        Return the campaign with the fields that only the list has.

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


@dataclass(frozen=True)
class CampaignPage(Model):
    """One page of ``GET /fetchCampaignData``."""

    #: The campaigns of the page that could be read.
    campaigns: tuple[Campaign, ...]
    #: Items on the page, unreadable ones included: what the next page's offset grows by.
    size: int
    #: Campaigns in the account, as this page counts them.
    total: int

    @classmethod
    def from_json(cls, data: Json) -> Self:
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
    """The counters of one campaign, from ``GET /getCampaignStats/{id}``; up to 30 seconds old."""

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, is_required=True))
    #: Contacts in the campaign.
    total_contacts: int = field(metadata=_from(_count, is_required=True))
    #: Calls that were successful.
    calls_completed: int = field(metadata=_from(_count, is_required=True))
    #: Calls that finished otherwise.
    calls_failed: int = field(metadata=_from(_count, is_required=True))
    #: Calls going on.
    calls_in_progress: int = field(metadata=_from(_count, is_required=True))
    #: Calls to come.
    calls_pending: int = field(metadata=_from(_count, is_required=True))
    #: Percentage of successful calls among the finished ones; ``None`` before any finished.
    success_rate: float | None = field(metadata=_from(_number))
    #: Seconds.
    average_call_duration: float | None = field(metadata=_from(_number))
    #: Seconds.
    total_call_duration: int | None = field(metadata=_from(_count))
    #: Calls by outcome; need not add up to the finished calls.
    call_status_breakdown: Mapping[str, int] = field(metadata=_from(_counts, missing=_NO_COUNTS))
    #: When the campaign was started; ``None`` if it never was.
    started_at: datetime | None = field(metadata=_from(read_time))
    #: When it was completed; ``None`` while it is not, or if that time cannot be read.
    completed_at: datetime | None = field(metadata=_from(read_time))
    #: Whether the service names a time of completion, readable or not: the counters change no more.
    is_final: bool = field(metadata=_from(bool, "completed_at", missing=False))


@dataclass(frozen=True)
class StartedCampaign(Model):
    """The response to ``GET /startCampaign/{id}``."""

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, is_required=True))
    #: How we read the new status; the page says it should be ``running`` and promises nothing.
    status: CampaignStatus = field(metadata=_from(_status_after_start, is_required=True))
    #: The service's own word for it.
    status_text: str = field(metadata=_from(_whole_text, "status", is_required=True))
    #: When the service says it was started.
    started_at: datetime | None = field(metadata=_from(read_time))


@dataclass(frozen=True)
class PausedCampaign(Model):
    """The response to ``GET /pauseTheCampaign/{id}``."""

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, is_required=True))
    #: How we read the new status.
    status: CampaignStatus = field(metadata=_from(_status_after_pause, is_required=True))
    #: The service's own word for it.
    status_text: str = field(metadata=_from(_whole_text, "status", is_required=True))
    #: When the service says it was paused.
    paused_at: datetime | None = field(metadata=_from(read_time))
    #: Calls that were still going on; they run to their end.
    active_calls: int | None = field(metadata=_from(_count))


@dataclass(frozen=True)
class UploadedContacts(Model):
    """The response to ``POST /uploadCampaignData``."""

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, is_required=True))
    #: Contacts that were added. Numbers that the campaign had already count nowhere.
    uploaded_count: int = field(metadata=_from(_count, is_required=True))
    #: Contacts that were rejected.
    failed_count: int = field(metadata=_from(_count, is_required=True))


@dataclass(frozen=True)
class NamedCampaign(Model):
    """A campaign in the list of all names, ``GET /fetchCampaignDataOnlyNamesAndAll``."""

    #: The service's id.
    campaign_id: str = field(metadata=_from(_whole_text, "campaignId", is_required=True))
    #: Its name.
    name: str = field(metadata=_from(_whole_text, "campaignName", is_required=True))
    #: When it was made.
    created_at: datetime | None = field(metadata=_from(read_time, "createdAt"))

    @classmethod
    def of_name(cls, name: str, listed: Sequence[Any]) -> tuple[NamedCampaign, ...]:
        """
        Read the campaigns of one name among all; what the others are like does not matter.

        :param name: The name, exactly.
        :param listed: The response's list.
        :raises ShapeError: It is no list of campaigns with names.
        """
        names = [each.get("campaignName") for each in listed if isinstance(each, Mapping)]
        if len(names) < len(listed) or (listed and not any(isinstance(each, str) for each in names)):
            # Not the same as a list without this name, of which one would be made.
            raise ShapeError("`data` is not a list of campaigns with a `campaignName`")
        return tuple(cls.from_json(each) for each in listed if each.get("campaignName") == name)


@dataclass(frozen=True, slots=True)
class Call(Model):
    """One phone call, an item of ``POST /getHistory``. Its ``repr`` does not show whom it was with."""

    #: The service's id of the call; ``None`` if it gave none.
    call_id: str | None = field(metadata=_from(_text_or_number))
    #: The person who was called.
    contact_name: str | None = field(repr=False, metadata=_from(_text_or_number))
    #: The number.
    phone_number: str | None = field(repr=False, metadata=_from(_text_or_number))
    #: How it ended: ``answered``, ``busy``, ``no_answer``, ``failed``, ``voicemail``, ...
    status: str | None = field(metadata=_from(_text_or_number))
    #: Seconds, as far as the page's example shows.
    duration: float | None = field(metadata=_from(_number))
    #: When it was, as the service writes it: ISO 8601.
    call_time: str | None = field(metadata=_from(_text_or_number))
    #: Where its recording is.
    recording_url: str | None = field(repr=False, metadata=_from(_text_or_number))
    #: A keyed hash of the number, if it was asked for; the service knows none.
    contact_key: str | None = None

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
    """One page of ``POST /getHistory``."""

    #: The calls of the page that could be read.
    calls: tuple[Call, ...]
    #: Items on the page, unreadable ones included: what the next page's offset grows by.
    size: int
    #: Calls in all, as this page counts them.
    total: int
    #: By a call's place on the page: its fields that are ``None`` although the service said something.
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
    def from_json(cls, data: Json) -> Self:
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
