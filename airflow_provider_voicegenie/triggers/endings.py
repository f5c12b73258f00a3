# SPDX-License-Identifier: Apache-2.0
"""
Which campaigns have ended since they were last looked at. Without I/O.

An account may have a hundred thousand campaigns, most of which ended long ago. A watcher keeps the campaigns that have
not ended, and those that ended in the last day. All others are old by the list's own times. A campaign is kept as a
short digest of its id.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.feed.plan import ListedPage

#: Seconds by which the service's times may differ from ours; a wrong time zone makes up to fourteen hours.
_CLOCKS_DIFFER = 86_400

#: Seconds by which the service may correct the time of an end.
_CORRECTED = 5.0

#: Seconds after which a campaign that no pass shows any more is forgotten. One list may lack some, or all of them.
_REMOVED = 86_400

#: Passes over the list after which all campaigns count as known, although pages have shifted in each of them.
_ENOUGH_PASSES = 3

_DIGEST_CHARACTERS = 8

_FORMAT = 1


class CampaignReading(NamedTuple):
    """
    What was read of one campaign.

    :param reading: The campaign, or why it could not be read.
    :param now: Unix seconds.
    """

    campaign_id: str
    reading: Campaign | VoiceGenieError
    now: float


#: What a watcher is shown: a page of the list, what was read of one campaign, or why the list could not be read.
AnyReading = ListedPage | CampaignReading | VoiceGenieError


class _Ended(NamedTuple):
    """
    A campaign that is known to have ended; times are Unix seconds.

    :param ended_at: When it ended, if the list has said so.
    :param started_at: When it was started, if the list has said so.
    :param latest: The latest time that is known of it.
    """

    ended_at: float | None
    started_at: float | None
    latest: float


class _Stored(NamedTuple):
    """The stored state of the campaigns."""

    at: int
    read_at: int | None
    open: set[str]
    ended: dict[str, _Ended]
    missing: dict[str, int]
    is_empty: bool


class KnownCampaigns:
    """
    The campaigns of one watcher, as it last saw them.

    :param campaign_ids: The campaigns that are watched, each read by itself; ``None`` for the whole list, pass by pass.
    """

    def __init__(self, campaign_ids: Collection[str] | None = None) -> None:
        self._watched = None if campaign_ids is None else {_digest(campaign_id) for campaign_id in campaign_ids}
        self._open: set[str] = set()
        #: The last end of each. One that goes on since is open, too.
        self._ended: dict[str, _Ended] = {}
        #: Those that had ended, and of which the last look said that they have not: that may be an old response.
        self._doubted: set[str] = set()
        #: Since when no pass has shown an open campaign, Unix seconds.
        self._missing: dict[str, int] = {}
        #: When the last pass over the list began; ``None`` before the first one that showed all campaigns.
        self._read_at: int | None = None
        #: Whether no pass has shown anything: the list may not have been there yet.
        self._is_empty = False
        #: Grows with each change of what is worth keeping.
        self.version = 0
        #: How many campaigns the last pass has shown.
        self.listed_count = 0
        #: Whether a pass over the list is under way.
        self.is_in_pass = False
        self._passes = 0
        self._pass_began = 0
        self._next_offset = 0
        self._total = 0
        self._seen: set[str] = set()
        self._is_complete = False

    @property
    def knows_all(self) -> bool:
        """Whether it has seen the whole list: what it does not know then is either new or long over."""
        return self._read_at is not None

    @property
    def is_ready(self) -> bool:
        """Whether what it knows is enough to go on from, after a restart."""
        return self._watched is not None or self.knows_all

    @property
    def open_count(self) -> int:
        """How many of the listed campaigns have not ended."""
        return len(self._open) - len(self._missing)

    def knows_any_of(self, reading: AnyReading) -> bool:
        """Say whether something was known of one of the campaigns that were read."""
        return any(
            digest in self._open or digest in self._ended
            for digest in (_digest(campaign.campaign_id) for campaign in _campaigns_in(reading))
        )

    def ends_in(self, reading: AnyReading) -> list[Campaign]:
        """Take note of a reading, and return the campaigns that have ended since they were last looked at."""
        if isinstance(reading, ListedPage):
            return self.observe_page(reading)
        return [
            campaign
            for campaign in _campaigns_in(reading)
            if isinstance(reading, CampaignReading) and self.observe(campaign, reading.now)
        ]

    def observe(self, campaign: Campaign, now: float) -> bool:
        """
        Take note of a campaign that was read.

        :param now: Unix seconds.
        :returns: Whether it has ended since it was last looked at.
        """
        return self._observe(_digest(campaign.campaign_id), campaign, int(now))

    def observe_page(self, listed: ListedPage) -> list[Campaign]:
        """
        Take note of a page of the list.

        :param listed: The page. Who joins while a pass is under way is shown the rest of it first.
        :returns: The campaigns that have ended since they were last looked at.
        """
        page, asked_at = listed.page, int(listed.asked_at)
        if listed.offset == 0 or not self.is_in_pass:
            self.is_in_pass = True
            self._pass_began, self._total, self._is_complete = asked_at, page.total, listed.offset == 0
            self._passes += self._is_complete
            self._seen = set()
        elif listed.offset != self._next_offset or page.total != self._total:
            self._is_complete = False
        if len(page.campaigns) != page.size:
            self._is_complete = False
        ended = []
        for campaign in page.campaigns:
            digest = _digest(campaign.campaign_id)
            if digest in self._seen:
                # Pages have shifted, which may have hidden another one.
                self._is_complete = False
                continue
            self._seen.add(digest)
            if self._observe(digest, campaign, asked_at):
                ended.append(campaign)
        self._next_offset = listed.offset + page.size
        if page.size == 0 or self._next_offset >= page.total:
            self._end_pass()
        return ended

    def _end_pass(self) -> None:
        seen, self._seen = self._seen, set()
        self._is_complete = self._is_complete and len(seen) >= self._total
        self.is_in_pass = False
        self.listed_count = len(seen)
        if self._read_at is None:
            if not self._is_complete and self._passes < _ENOUGH_PASSES:
                return
            self.version += 1
            self._is_empty = True
        if seen and self._is_empty:
            self._is_empty = False
            self.version += 1
        self._read_at = self._pass_began
        if self._is_complete:
            self._forget_removed(seen)
        oldest = self._read_at - _CLOCKS_DIFFER
        self._ended = {digest: earlier for digest, earlier in self._ended.items() if earlier.latest > oldest}

    def _forget_removed(self, seen: set[str]) -> None:
        """Forget the open campaigns that no pass has shown for long: they were removed from the account."""
        missing = {digest: self._missing.get(digest, self._pass_began) for digest in self._open - seen}
        removed = {digest for digest, since in missing.items() if self._pass_began - since >= _REMOVED}
        missing = {digest: since for digest, since in missing.items() if digest not in removed}
        if missing != self._missing:
            self._missing = missing
            self._open -= removed
            self.version += 1

    def _observe(self, digest: str, campaign: Campaign, now: int) -> bool:
        earlier = self._ended.get(digest)
        if not campaign.status.has_ended:
            self._observe_open(digest, campaign.status)
            return False
        self._doubted.discard(digest)
        ended_at, started_at = _seconds(campaign.ended_at), _seconds(campaign.started_at)
        latest = max(ended_at or 0, started_at or 0, _seconds(campaign.created_at) or 0)
        if digest in self._open:
            # Unless it is the end of before, and only old responses said that it went on.
            is_new = (
                earlier is None
                or ended_at is None
                or ended_at != earlier.ended_at
                or _is_later(started_at, earlier.started_at)
            )
        elif earlier is not None:
            # It may have gone on and ended again, between two looks.
            is_new = _is_later(ended_at, earlier.ended_at) or _is_later(started_at, earlier.started_at)
        else:
            # After nothing but an empty list, all would look new that ended in the last day.
            is_new = self._read_at is not None and latest > self._read_at - (0 if self._is_empty else _CLOCKS_DIFFER)
        if is_new or earlier is None:
            if not is_new and self._watched is None and latest <= self._pass_began - _CLOCKS_DIFFER:
                return False
            ended = _Ended(ended_at, started_at, max(now, latest))
        else:
            ended = _Ended(ended_at or earlier.ended_at, started_at or earlier.started_at, earlier.latest)
        if ended != earlier or digest in self._open:
            self._open.discard(digest)
            self._ended[digest] = ended
            self.version += 1
        return is_new

    def _observe_open(self, digest: str, status: CampaignStatus) -> None:
        if digest in self._open:
            return
        if digest in self._ended:
            # A status that is unknown here does not say that a campaign which had ended goes on.
            if status is CampaignStatus.UNKNOWN:
                return
            # One response may be an old one. Two in a row are believed.
            if digest not in self._doubted:
                self._doubted.add(digest)
                return
        self._doubted.discard(digest)
        self._open.add(digest)
        self.version += 1

    def to_json(self, now: float) -> dict[str, Any]:
        """
        Return what is worth keeping, as plain JSON.

        :param now: Unix seconds.
        """
        return {
            "format": _FORMAT,
            "stored_at": int(now),
            "read_at": self._read_at,
            "open": "".join(sorted(self._open)),
            "ended": [[digest, *earlier] for digest, earlier in sorted(self._ended.items())],
            "missing": sorted(self._missing.items()),
            "is_empty": self._is_empty,
        }

    def restore(self, stored: object) -> None:
        """
        Begin with what was kept.

        :param stored: What :meth:`to_json` returned.
        :raises ValueError: It is something else.
        """
        _, self._read_at, self._open, self._ended, self._missing, self._is_empty = _read(stored)
        if self._watched is not None:
            self._open &= self._watched
            self._ended = {digest: earlier for digest, earlier in self._ended.items() if digest in self._watched}


def stored_at(stored: object) -> int:
    """
    Return when something was kept, Unix seconds.

    :param stored: What :meth:`KnownCampaigns.to_json` returned.
    :raises ValueError: It is something else.
    """
    return _read(stored).at


def add_others(state: dict[str, Any], stored: object, campaign_ids: Collection[str]) -> dict[str, Any]:
    """
    Return a state with what is kept of other campaigns: another watcher of the asset may watch them.

    :param state: What :meth:`KnownCampaigns.to_json` returned.
    :param stored: The state that is stored so far.
    :param campaign_ids: The campaigns that the state is about.
    """
    try:
        others = _read(stored)
    except ValueError:
        return state
    own = {_digest(campaign_id) for campaign_id in campaign_ids}
    return {
        **state,
        "open": state["open"] + "".join(sorted(others.open - own)),
        "ended": state["ended"] + [[digest, *earlier] for digest, earlier in others.ended.items() if digest not in own],
    }


def _read(stored: object) -> _Stored:
    try:
        if not isinstance(stored, Mapping) or stored["format"] != _FORMAT:
            raise ValueError("another format")
        text, read_at = stored["open"], stored["read_at"]
        return _Stored(
            at=int(stored["stored_at"]),
            read_at=None if read_at is None else int(read_at),
            open={text[at : at + _DIGEST_CHARACTERS] for at in range(0, len(text), _DIGEST_CHARACTERS)},
            ended={digest: _Ended(*times) for digest, *times in stored["ended"]},
            missing=dict(stored["missing"]),
            is_empty=bool(stored["is_empty"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"another format: {error!r}") from None


def _digest(campaign_id: str) -> str:
    digest = hashlib.blake2b(campaign_id.encode(), digest_size=_DIGEST_CHARACTERS * 6 // 8).digest()
    return base64.b64encode(digest).decode()


def _campaigns_in(reading: AnyReading) -> Sequence[Campaign]:
    if isinstance(reading, ListedPage):
        return reading.page.campaigns
    found = reading.reading if isinstance(reading, CampaignReading) else None
    return [found] if isinstance(found, Campaign) else []


def _seconds(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    seconds = round(moment.timestamp(), 3)
    return int(seconds) if seconds.is_integer() else seconds


def _is_later(moment: float | None, earlier: float | None) -> bool:
    return moment is not None and earlier is not None and moment > earlier + _CORRECTED
