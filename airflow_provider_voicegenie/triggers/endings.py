# SPDX-License-Identifier: Apache-2.0
"""
Which campaigns have ended since they were last looked at. Without I/O.

An account may have a hundred thousand campaigns, most of which ended long ago. So what is kept are those that have not
ended, and those that ended lately: of any other one, the list's times say that it is old. A campaign is kept as a short
digest of its id.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.triggers.polling import ListedPage

#: Seconds by which the service's times may differ from ours; a wrong time zone makes up to fourteen hours.
_CLOCKS_DIFFER = 86_400

#: Passes over the list after which all campaigns count as known, although pages have shifted in each of them.
_ENOUGH_PASSES = 3

_DIGEST_CHARACTERS = 8

_FORMAT = 1


class _Ended(NamedTuple):
    """
    A campaign that is known to have ended; times are Unix seconds.

    :param ended_at: When it ended, if the list has said so.
    :param started_at: When it was started, if the list has said so.
    :param latest: The latest time that is known of it.
    """

    ended_at: int | None
    started_at: int | None
    latest: int


class _Kept(NamedTuple):
    """What was kept of the campaigns."""

    at: int
    looked_at: int | None
    open: set[str]
    ended: dict[str, _Ended]


class KnownCampaigns:
    """
    The campaigns of one watcher, as it last saw them.

    :param campaign_ids: The campaigns that are watched, each read by itself; ``None`` for the whole list, pass by pass.
    """

    def __init__(self, campaign_ids: Collection[str] | None = None) -> None:
        self._watched = None if campaign_ids is None else {_digest(campaign_id) for campaign_id in campaign_ids}
        self._open: set[str] = set()
        self._ended: dict[str, _Ended] = {}
        #: When the last pass over the list began; ``None`` before the first one that showed all campaigns.
        self._looked_at: int | None = None
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
        return self._looked_at is not None

    @property
    def is_ready(self) -> bool:
        """Whether what it knows is enough to go on from, after a restart."""
        return self._watched is not None or self.knows_all

    @property
    def open_count(self) -> int:
        """How many campaigns have not ended."""
        return len(self._open)

    def observe(self, campaign: Campaign, now: float) -> bool:
        """
        Take note of a campaign that was read.

        :param campaign: The campaign.
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
        if self._looked_at is None:
            if not self._is_complete and self._passes < _ENOUGH_PASSES:
                return
            self.version += 1
        self._looked_at = self._pass_began
        if self._is_complete and not self._open <= seen:
            # They were removed from the account.
            self._open &= seen
            self.version += 1
        oldest = self._looked_at - _CLOCKS_DIFFER
        self._ended = {digest: known for digest, known in self._ended.items() if known.latest > oldest}

    def _observe(self, digest: str, campaign: Campaign, now: int) -> bool:
        known = self._ended.get(digest)
        if not campaign.status.has_ended:
            # A status that is unknown here does not say that a campaign which had ended goes on.
            if digest not in self._open and not (known and campaign.status is CampaignStatus.UNKNOWN):
                self._open.add(digest)
                self._ended.pop(digest, None)
                self.version += 1
            return False
        ended_at, started_at = _seconds(campaign.ended_at), _seconds(campaign.started_at)
        latest = max(ended_at or 0, started_at or 0, _seconds(campaign.created_at) or 0)
        if digest in self._open:
            is_new = True
        elif known is not None:
            # It may have gone on and ended again, between two looks.
            is_new = _is_later(ended_at, known.ended_at) or _is_later(started_at, known.started_at)
        else:
            is_new = self._looked_at is not None and latest > self._looked_at - _CLOCKS_DIFFER
        if is_new or known is None:
            if not is_new and self._watched is None and latest <= self._pass_began - _CLOCKS_DIFFER:
                return False
            ended = _Ended(ended_at, started_at, max(now, latest))
        else:
            ended = _Ended(known.ended_at or ended_at, known.started_at or started_at, known.latest)
        if ended != known:
            self._open.discard(digest)
            self._ended[digest] = ended
            self.version += 1
        return is_new

    def to_json(self, now: float) -> dict[str, Any]:
        """
        Return what is worth keeping, as plain JSON.

        :param now: Unix seconds.
        """
        return {
            "format": _FORMAT,
            "kept_at": int(now),
            "looked_at": self._looked_at,
            "open": "".join(sorted(self._open)),
            "ended": [[digest, *known] for digest, known in sorted(self._ended.items())],
        }

    def restore(self, kept: object) -> None:
        """
        Begin with what was kept.

        :param kept: What :meth:`to_json` returned.
        :raises ValueError: It is something else.
        """
        _, self._looked_at, self._open, self._ended = _read(kept)
        if self._watched is not None:
            self._open &= self._watched
            self._ended = {digest: known for digest, known in self._ended.items() if digest in self._watched}


def kept_at(kept: object) -> int:
    """
    Return when something was kept, Unix seconds.

    :param kept: What :meth:`KnownCampaigns.to_json` returned.
    :raises ValueError: It is something else.
    """
    return _read(kept).at


def add_others(state: dict[str, Any], kept: object, campaign_ids: Collection[str]) -> dict[str, Any]:
    """
    Return a state with what is kept of other campaigns: another watcher of the asset may watch them.

    :param state: What :meth:`KnownCampaigns.to_json` returned.
    :param kept: What was kept before.
    :param campaign_ids: The campaigns that the state is about.
    """
    try:
        others = _read(kept)
    except ValueError:
        return state
    own = {_digest(campaign_id) for campaign_id in campaign_ids}
    return {
        **state,
        "open": state["open"] + "".join(sorted(others.open - own)),
        "ended": state["ended"] + [[digest, *known] for digest, known in others.ended.items() if digest not in own],
    }


def _read(kept: object) -> _Kept:
    try:
        if not isinstance(kept, Mapping) or kept["format"] != _FORMAT:
            raise ValueError("another format")
        text, looked_at = kept["open"], kept["looked_at"]
        return _Kept(
            at=int(kept["kept_at"]),
            looked_at=None if looked_at is None else int(looked_at),
            open={text[at : at + _DIGEST_CHARACTERS] for at in range(0, len(text), _DIGEST_CHARACTERS)},
            ended={digest: _Ended(*times) for digest, *times in kept["ended"]},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"another format: {error!r}") from None


def _digest(campaign_id: str) -> str:
    digest = hashlib.blake2b(campaign_id.encode(), digest_size=_DIGEST_CHARACTERS * 6 // 8).digest()
    return base64.b64encode(digest).decode()


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _is_later(moment: int | None, known: int | None) -> bool:
    return moment is not None and known is not None and moment > known
