# SPDX-License-Identifier: Apache-2.0
"""
What a feed sends for the waits of an account with many campaigns, and whether there was a cheaper way.

First in simulated time, with a service that answers at once: accounts and waits of several sizes, and some that change
meanwhile. Printed are the requests in each poll interval, those that reading the whole list or each campaign by itself
would take, and what was read. A round takes 0.88 of an interval, on the average. Then once for real, over HTTP::

    python benchmarks/large_account.py --account 100000 --waits 500
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from deferred_waits import COLUMNS, ROW, measure, show

from airflow_provider_voicegenie.api.endpoints import campaign
from airflow_provider_voicegenie.feed.plan import Interest, PollingPlan, is_page, offset_of

#: Campaigns on a page, and the average part of an interval in which everything is read once.
PAGE, ROUND = 1000, 0.88


class Simulation:
    """
    A plan, and a service that answers at once.

    :param account: Campaigns in the account.
    """

    def __init__(self, account: int) -> None:
        self.account = account
        self.plan = PollingPlan()
        self.now = 0.0
        self.sent: Counter[str] = Counter()
        self._waits: list[tuple[Any, Any]] = []

    def wait_for(self, names: Iterable[str], interval: float) -> None:
        """Let more campaigns be waited for."""
        for name in names:
            waiting = Interest(interval, True, self.now)
            self.plan.add(campaign(name), waiting, self.now)
            self._waits.append((campaign(name), waiting))

    def end(self, count: int) -> None:
        """End some waits."""
        for _ in range(count):
            request, waiting = self._waits.pop(random.randrange(len(self._waits)))  # noqa: S311
            self.plan.remove(request, waiting, self.now)

    def run(self, seconds: float) -> None:
        """Send what falls due."""
        end = self.now + seconds
        while (due := self.plan.due_at()) <= end:
            self.now = max(self.now, due)
            request = self.plan.take()
            if is_page(request):
                self.sent["page"] += 1
                page = range(offset_of(request), min(offset_of(request) + PAGE, self.account))
                names = [f"c{number}" for number in page]
                self.plan.page_was_read(names, len(page), self.account, self.now, self.now)
            else:
                self.sent["single"] += 1
                self.plan.was_read(request, self.now, self.now)
        self.now = end


def main() -> None:
    """Simulate, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--account", type=int, default=100_000, help="campaigns of the real account; 0 for none")
    parser.add_argument("--waits", type=int, default=500)
    parser.add_argument("--poll-interval", type=float, default=60.0, help="seconds")
    options = parser.parse_args()
    random.seed(1)
    print(f"{'account':>28} {'waits':>12} {'requests':>9} {'by list':>8} {'singly':>8}  read")
    for account in (1000, 10_000, 30_000, 100_000):
        for waits in (1, 2, 10, 50, 99, 101, 500, 5000):
            if waits <= account:
                steady(account, waits, options.poll_interval)
    for name, change in CHANGES.items():
        changing(name, change, options.poll_interval)
    if options.account:
        print("\nover HTTP, in a round of one poll interval")
        print(ROW.format(*COLUMNS))
        others = options.account - options.waits
        show(
            "ours", options.waits, options.poll_interval, measure("ours", options.waits, options.poll_interval, others)
        )


def pages(account: int) -> int:
    """Return how many pages an account's list has."""
    return max(1, -(-account // PAGE))


def print_row(account: str, waits: str, requests: float, by_list: float, singly: float, sent: Counter[str]) -> None:
    """Print what a simulation has shown."""
    best = min(by_list, singly)
    more = f"  {requests / best:.2f} times the fewer" if requests > 1.1 * best else ""
    read = ", ".join(f"{kind} {count}" for kind, count in sorted(sent.items()))
    print(f"{account:>28} {waits:>12} {requests:9.1f} {by_list:8.1f} {singly:8.1f}  {read}{more}", flush=True)


def steady(account: int, waits: int, interval: float, rounds: int = 50) -> None:
    """Let nothing change."""
    simulation = Simulation(account)
    simulation.wait_for((f"c{number}" for number in random.sample(range(account), waits)), interval)
    simulation.run(2 * interval)
    simulation.sent.clear()
    simulation.run(rounds * interval)
    taken = simulation.sent.total() / rounds
    print_row(f"{account:,}", f"{waits:,}", taken, pages(account) / ROUND, waits / ROUND, simulation.sent)


def changing(name: str, change: Callable[[Simulation, float], None], interval: float, rounds: int = 120) -> None:
    """Let something change from second to second, for so many rounds, after ten that do not count."""
    simulation = Simulation(1000)
    by_list = singly = 0.0
    steps = int((rounds + 10) * interval)
    for step in range(steps):
        change(simulation, step / steps)
        simulation.run(1.0)
        if step < 10 * interval:
            simulation.sent.clear()
            continue
        intervals = Counter(waiting.interval for _, waiting in simulation._waits)
        by_list += pages(simulation.account) / min(intervals) / ROUND
        singly += sum(count / each for each, count in intervals.items()) / ROUND
    taken = simulation.sent.total() / rounds
    print_row(name, "", taken, by_list / rounds, singly / rounds, simulation.sent)


def account_grows(simulation: Simulation, part: float) -> None:
    """The account grows from 1,000 campaigns to 100,000, with 50 waits."""
    simulation.account = 1000 + int(99_000 * part)
    hold(simulation, 50)


def waits_grow(simulation: Simulation, part: float) -> None:
    """The waits grow from 1 to 500, in an account of 100,000."""
    simulation.account = 100_000
    hold(simulation, 1 + int(500 * part))


def waits_come_and_go(simulation: Simulation, part: float) -> None:
    """About a hundred waits, as many as pages, of which one ends and another one begins each second."""
    simulation.account = 100_000
    if len(simulation._waits) > 95:
        simulation.end(random.randint(0, 2))  # noqa: S311
    hold(simulation, len(simulation._waits) + (random.randint(0, 2) if simulation._waits else 100))  # noqa: S311
    if len(simulation._waits) > 105:
        simulation.end(2)


def one_in_a_hurry(simulation: Simulation, part: float) -> None:
    """300 waits that look once in ten minutes, and one that does so in each; an account of 50,000."""
    simulation.account = 50_000
    if not simulation._waits:
        simulation.wait_for((f"c{number}" for number in random.sample(range(50_000), 300)), 600.0)
        simulation.wait_for(["c7"], 60.0)


def hold(simulation: Simulation, waits: int, interval: float = 60.0) -> None:
    """Let more campaigns be waited for, until there are so many waits."""
    while len(simulation._waits) < waits:
        simulation.wait_for([f"c{random.randrange(simulation.account)}"], interval)  # noqa: S311


CHANGES = {
    "1,000 to 100,000, 50 waits": account_grows,
    "100,000, 1 to 500 waits": waits_grow,
    "100,000, waits around 100": waits_come_and_go,
    "50,000, one in a hurry": one_in_a_hurry,
}


if __name__ == "__main__":
    main()
