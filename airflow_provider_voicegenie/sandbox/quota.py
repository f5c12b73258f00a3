# SPDX-License-Identifier: Apache-2.0
"""The quota of the sandbox's account. Nothing uses it up; a test sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_voicegenie.api.models import write_time


@dataclass
class Allowance:
    """
    How much of one thing the account may use.

    :param limit: All of it, until the reset.
    :param used: What is used up.
    """

    limit: int
    used: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it the way the service writes it."""
        return {
            "used": self.used,
            "limit": self.limit,
            "remaining": max(0, self.limit - self.used),
            "percentage": round(100 * self.used / self.limit, 2) if self.limit else 100.0,
        }


@dataclass
class SandboxQuota:
    """
    The account's quota; it starts with that of the service's own example, unused.

    :param plan: The plan's name.
    :param minutes: Minutes of calls.
    :param sms: Text messages.
    """

    plan: str = "Pro"
    calls: Allowance = field(default_factory=lambda: Allowance(10_000))
    minutes: Allowance = field(default_factory=lambda: Allowance(50_000))
    sms: Allowance = field(default_factory=lambda: Allowance(5_000))

    def to_json(self) -> dict[str, Any]:
        """Return it the way the service writes it."""
        now = datetime.now(UTC)
        next_month = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=31)).replace(day=1)
        return {
            "plan": self.plan,
            "quota": {name: getattr(self, name).to_json() for name in _ALLOWANCES},
            "resetDate": write_time(next_month),
            "billingCycle": "monthly",
        }

    def change(self, changes: Mapping[str, Any]) -> None:
        """
        Change allowances: ``{"calls": {"used": 9990, "limit": 10000}}``.

        :raises ValueError: There is no such allowance, or it has no such number.
        """
        for name, numbers in changes.items():
            if name not in _ALLOWANCES or not isinstance(numbers, Mapping):
                raise ValueError(f"a quota has the objects {', '.join(_ALLOWANCES)}")
            for each, number in numbers.items():
                if each not in ("used", "limit") or type(number) is not int or number < 0:
                    raise ValueError(f"{name} has the numbers used and limit")
        for name, numbers in changes.items():
            for each, number in numbers.items():
                setattr(getattr(self, name), each, number)


_ALLOWANCES = ("calls", "minutes", "sms")
