# SPDX-License-Identifier: Apache-2.0
"""Faults to inject: what can go wrong with a response."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """What happens instead of a good response."""

    #: The connection is closed without a response.
    CLOSE = "close"
    #: No response until the client is gone.
    HOLD = "hold"
    #: The response comes late: ``seconds``.
    DELAY = "delay"
    #: Another status, with ``headers`` and ``body``.
    STATUS = "status"
    #: The response ends half-way.
    TRUNCATED = "truncated"
    #: A page of HTML with status 200.
    NOT_JSON = "not_json"
    #: ``size`` bytes.
    OVERSIZED = "oversized"
    #: A small body that is ``size`` bytes when decompressed.
    GZIP_BOMB = "gzip_bomb"
    #: One byte at a time, ``seconds`` apart.
    DRIP = "drip"
    #: A redirect to ``location``.
    REDIRECT = "redirect"


@dataclass
class Fault:
    """
    One fault to inject.

    :param kind: What happens.
    :param operation: Only in this request: ``start``, ``pause``, ``get``, ``list``, ``stats``, ``upload``, ``history``
        or ``quota``; ``*`` for every one.
    :param campaign_id: Only in requests about this campaign; ``None`` for every one.
    :param after_acting: Whether the request takes effect before it goes wrong.
    :param times: How often it happens; ``None``: until it is removed.
    :param status: HTTP status, for ``status`` and ``redirect``.
    :param headers: Header fields, for ``status``.
    :param body: The body, for ``status``; the service's error object if it is ``None``.
    :param seconds: For ``delay`` and ``drip``.
    :param size: Bytes, for ``oversized`` and ``gzip_bomb``.
    :param location: For ``redirect``.
    """

    kind: FaultKind
    operation: str = "*"
    campaign_id: str | None = None
    after_acting: bool = False
    times: int | None = 1
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    seconds: float = 1.0
    size: int = 64 * 1024 * 1024
    location: str = "/"

    def __post_init__(self) -> None:
        self.kind = FaultKind(self.kind)
        if self.operation not in OPERATIONS and self.operation != "*":
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)} or *, not {self.operation!r}.")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fault:
        """
        Read a fault.

        :raises ValueError: It has an unknown field or value.
        """
        unknown = set(data) - {each.name for each in fields(cls)}
        if unknown or "kind" not in data:
            raise ValueError(f"a fault has a kind and no field {', '.join(sorted(unknown)) or 'unknown'}")
        return cls(**data)


#: The requests that can go wrong.
OPERATIONS = ("start", "pause", "get", "list", "stats", "upload", "history", "quota", "names")


class FaultList:
    """The faults that are still to happen, the oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Add a fault."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults.clear()

    def waiting(self) -> list[Fault]:
        """Return copies of the faults that are still to happen."""
        with self._lock:
            return [replace(fault) for fault in self._faults]

    def take(self, operation: str, campaign_id: str | None) -> Fault | None:
        """Return the fault that happens to a request, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.operation in ("*", operation) and fault.campaign_id in (None, campaign_id):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._faults.remove(fault)
                    return fault
        return None
