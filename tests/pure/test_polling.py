# SPDX-License-Identifier: Apache-2.0
"""What a shared poll sends, and when, in simulated time."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from airflow_provider_voicegenie.api.endpoints import campaign, quota, statistics
from airflow_provider_voicegenie.feed.plan import LIST, Interest, PollingPlan, is_page, offset_of


@pytest.fixture(autouse=True, params=range(3))
def _chance(request):
    """Reads are spread by chance, which is not to decide what a test finds."""
    random.seed(request.param)


class Service:
    """Answers what a plan asks for, in no time."""

    def __init__(self, listed, order=None, page_size=1000):
        self.listed = listed
        self.page_size = page_size
        self.order = order or (lambda at: self.listed)
        self.sent = []
        self.list_fails = self.single_fails = False
        self.claims = None

    def run(self, plan, begin, end):
        now = begin
        while (due := plan.due_at()) <= end:
            now = max(now, due)
            request = plan.take()
            of_list = is_page(request)
            self.sent.append((now, "list" if of_list else request.campaign_id))
            if of_list and self.list_fails:
                plan.page_failed(now, retry_after=None)
            elif of_list:
                names = self.order(now)
                page = names[offset_of(request) :][: self.page_size]
                plan.page_was_read(page, len(page), self.claims or len(names), now, now)
            elif self.single_fails:
                plan.failed(request, now, now, retry_after=None)
            else:
                plan.was_read(request, now, now)
        return self.sent

    def counts(self, begin, end):
        return Counter("list" if what == "list" else "single" for at, what in self.sent if begin <= at < end)


def subscriber(interval=60.0, is_list_enough=True, joined_at=0.0):
    return Interest(interval, is_list_enough, joined_at)


def plan_for(waits, interval=60.0):
    plan = PollingPlan()
    for number in range(waits):
        plan.add(campaign(f"c{number}"), subscriber(interval), 0.0)
    return plan


def names(count):
    return [f"c{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("waits", "account", "kind", "most"),
    [
        (1, 1, "single", 1.2),
        (1, 50_000, "single", 1.2),
        (2, 2, "list", 1.2),
        (2, 1500, "single", 2.4),
        (10, 100, "list", 1.2),
        # So cheap that it is read a little more often.
        (10_000, 10_000, "list", 13.6),
        (30, 50_000, "single", 36),
        (60, 50_000, "list", 60),
        (5, 6000, "single", 6),
        (10, 6000, "list", 7.2),
    ],
)
def test_whichever_takes_fewer_requests_is_chosen(waits, account, kind, most):
    service = Service(names(account))
    service.run(plan_for(waits), 0, 3060)
    counts = service.counts(60, 3060)
    assert counts[kind] == counts.total()
    assert counts.total() / 50 <= most
    assert counts.total() / 50 >= most / 1.35


@pytest.mark.parametrize(("waits", "account"), [(1, 1), (7, 7), (2500, 2500), (30, 50_000), (100, 70_000)])
def test_each_campaign_is_read_within_each_interval(waits, account):
    plan = plan_for(waits)
    service = Service(names(account))
    stale = 0.0
    for now in range(1200):
        service.run(plan, now, now + 1)
        if now >= 60:
            stale = max(stale, max(now + 1 - poll.read_at for poll in plan.polls()))
    assert stale <= 61


@pytest.mark.parametrize(("waits", "account"), [(10_000, 10_000), (40, 50_000)])
def test_requests_are_spread_over_the_interval(waits, account):
    service = Service(names(account))
    service.run(plan_for(waits), 0, 600)
    seconds = Counter(int(at) for at, _ in service.sent if at > 60)
    assert max(seconds.values()) <= 8
    assert len(seconds) >= 60


def test_pages_that_are_shorter_than_was_asked_for_hide_no_campaign():
    plan = plan_for(1500)
    service = Service(names(1500), page_size=400)
    service.run(plan, 0, 600)
    assert {what for at, what in service.sent if at > 5} == {"list"}
    assert all(600 - poll.read_at <= 130 for poll in plan.polls())


def test_pages_that_shift_while_they_are_read_hide_no_campaign():
    def shifting(at):
        listed = names(5000)
        random.Random(int(at)).shuffle(listed)
        return listed

    plan = plan_for(500)
    service = Service([], order=shifting)
    for now in range(1200):
        service.run(plan, now, now + 1)
        if now >= 180:
            assert all(now + 1 - poll.read_at <= 130 for poll in plan.polls())


def test_unlisted_campaign_is_read_singly():
    plan = plan_for(10)
    service = Service(names(9))
    service.run(plan, 0, 600)
    singles = [at for at, what in service.sent if what == "c9"]
    assert 9 <= len(singles) <= 12
    # Before the others join, the first campaign has no need of the list.
    assert {what for at, what in service.sent if at > 2} == {"list", "c9"}


def test_a_campaign_that_was_joined_during_a_pass_is_not_missing_in_it():
    plan = plan_for(1500)
    first, second = names(2000)[:1000], names(2000)[1000:]
    now = 5.0
    for page in (first, second):
        now = max(now, plan.due_at())
        while not is_page(request := plan.take()):
            plan.was_read(request, now, now)
        if page is second:
            late = plan.add(campaign("c7"), subscriber(), now)
            newcomer = plan.add(campaign("c999_999"), subscriber(), now)
        plan.page_was_read(page, 1000, 2000, now, now)
    assert not late.is_single
    assert not newcomer.is_single
    # In the next pass, who is not listed is missing.
    for page in (first, second):
        now = max(now, plan.due_at())
        while not is_page(request := plan.take()):
            plan.was_read(request, now, now)
        plan.page_was_read(page, 1000, 2000, now, now)
    assert newcomer.is_single
    assert not late.is_single


def test_campaign_listed_again_is_no_longer_read_singly():
    plan = plan_for(10)
    service = Service(names(9))
    service.run(plan, 0, 300)
    service.listed = names(10)
    service.sent.clear()
    service.run(plan, 300, 900)
    assert {what for at, what in service.sent if at > 420} == {"list"}


def test_a_member_that_needs_more_than_the_list_gets_single_reads():
    plan = plan_for(10)
    plan.add(campaign("ready"), subscriber(is_list_enough=False), 0.0)
    service = Service([*names(10), "ready"])
    service.run(plan, 0, 600)
    assert {what for at, what in service.sent if at > 2} == {"list", "ready"}
    assert 9 <= sum(what == "ready" for _, what in service.sent) <= 12


def test_the_list_is_left_once_those_who_went_by_it_are_gone():
    """As the change to single reads of the others was not worth it before."""
    plan = PollingPlan()
    slow = [subscriber(600) for _ in range(400)]
    slow_polled = [plan.add(campaign(f"c{number}"), each, 0.0) for number, each in enumerate(slow)]
    service = Service(names(20_000))
    service.run(plan, 0, 1200)
    for number in range(21):
        plan.add(campaign(f"c{1000 + number}"), subscriber(10), 1200.0)
    service.run(plan, 1200, 1300)
    for polled, each in zip(slow_polled, slow, strict=True):
        plan.remove(polled.request, each, 1300.0)
    service.run(plan, 1300, 2300)
    assert service.counts(1400, 2300).total() <= 1.2 * 21 * 90


def test_a_read_that_nobody_waits_for_any_more_is_left_out():
    plan = plan_for(1)
    first, second = (plan.add(statistics(name), subscriber(math.inf), 0.0) for name in ("c1", "c2"))
    plan.remove(first.request, first.subscribers[0], 0.0)
    assert plan.due_at() == 0.0
    assert plan.take() == second.request
    plan.remove(second.request, second.subscribers[0], 0.0)
    assert plan.take() == campaign("c0")


def test_what_is_read_once_is_read_again_only_for_who_came_later():
    plan = PollingPlan()
    poll = plan.add(statistics("c"), subscriber(math.inf, joined_at=1.0), 1.0)
    assert plan.take() == poll.request
    plan.was_read(poll.request, 3.0, 1.0)
    assert plan.due_at() == math.inf
    # While it is under way, and after that.
    plan.add(statistics("c"), subscriber(math.inf, joined_at=4.0), 4.0)
    assert plan.take() == poll.request
    plan.add(statistics("c"), subscriber(math.inf, joined_at=5.0), 5.0)
    assert plan.due_at() == math.inf
    plan.was_read(poll.request, 6.0, 4.0)
    assert plan.due_at() == 6.0


@pytest.mark.parametrize("waits", [0, 1, 10])
def test_a_campaign_that_is_read_once_does_not_wait_for_the_list(waits):
    plan = plan_for(waits)
    service = Service(names(10))
    service.run(plan, 0, 600)
    once = subscriber(math.inf, joined_at=600.0)
    plan.add(campaign("c0"), once, 600.0)
    assert plan.due_at() == 600.0
    assert plan.take() == campaign("c0")
    plan.was_read(campaign("c0"), 600.0, 600.0)
    plan.remove(campaign("c0"), once, 600.0)
    assert plan.is_idle == (waits == 0)
    service.sent.clear()
    service.run(plan, 600, 1200)
    assert len(service.sent) <= 12


def test_anything_may_be_polled_and_what_is_equal_is_sent_once():
    plan = PollingPlan()
    for _ in range(100):
        plan.add(quota(), subscriber(60), 0.0)
        plan.add(statistics("c"), subscriber(30), 0.0)
    sent = Counter()
    while (due := plan.due_at()) <= 3600:
        request = plan.take()
        sent[request] += 1
        plan.was_read(request, due, due)
    assert sent.keys() == {quota(), statistics("c")}
    assert 60 <= sent[quota()] <= 72
    assert 120 <= sent[statistics("c")] <= 144


def test_who_joins_in_more_of_a_hurry_does_not_wait_for_the_others():
    for request in (campaign("c"), quota()):
        plan = PollingPlan()
        plan.add(request, subscriber(3600), 0.0)
        plan.was_read(plan.take(), 0.0, 0.0)
        plan.add(request, subscriber(10), 1.0)
        assert plan.due_at() <= 11.0


def test_a_cheap_list_is_read_more_often_only_if_that_takes_few_requests():
    service = Service(names(40_000))
    service.run(plan_for(3000), 0, 3060)
    assert service.counts(60, 3060)["list"] / 50 <= 48


def test_the_shortest_interval_counts():
    plan = plan_for(3, interval=600)
    plan.add(campaign("c0"), subscriber(10), 0.0)
    service = Service(names(3))
    service.run(plan, 0, 600)
    assert 55 <= service.counts(0, 600)["list"] <= 75


@pytest.mark.parametrize(
    ("account", "hurried", "most"),
    [
        # The list in each long interval, and one single read in each short one; either alone takes 36 a minute.
        (50_000, 1, 1.2 * (50 / 10 + 1)),
        # The list in each short interval.
        (1000, 5, 1.36),
    ],
)
def test_waits_in_no_hurry_go_by_the_list_though_others_are_in_one(account, hurried, most):
    plan = PollingPlan()
    service = Service(names(account))
    for number in range(300):
        plan.add(campaign(f"c{number}"), subscriber(600), 0.0)
    late = [subscriber(60) for _ in range(hurried)]
    polled = [plan.add(campaign(f"c{account - 1 - number}"), each, 0.0) for number, each in enumerate(late)]
    stale: Counter[float] = Counter()
    for now in range(0, 6600, 5):
        service.run(plan, now, now + 5)
        if now >= 1200:
            for each in plan.polls():
                stale[each.interval] = max(stale[each.interval], now + 5 - each.read_at)
    assert service.counts(600, 6600).total() / 100 <= most
    assert stale[60] <= 66
    assert stale[600] <= 606
    # Without the hurried ones, and with them again.
    for each, one in zip(polled, late, strict=True):
        plan.remove(each.request, one, 6600.0)
    service.run(plan, 6600, 12600)
    assert service.counts(7200, 12600).total() / 90 <= 1.36 * account / 10_000
    plan.add(campaign("c7"), subscriber(60), 12600.0)
    service.run(plan, 12600, 12700)
    assert 12700 - plan.poll_of("c7").read_at <= 61


def test_waits_that_come_and_go_do_not_change_the_way_all_the_time():
    plan = plan_for(98)
    service = Service(names(100_000))
    service.run(plan, 0, 120)
    for now in range(120, 3120):
        one = subscriber()
        if now % 20 < 10:
            plan.add(campaign(f"c{1000 + now % 10}"), one, now)
        else:
            polled = plan.poll_of(f"c{1000 + now % 10}")
            plan.remove(polled.request, polled.subscribers[0], now)
        service.run(plan, now, now + 1)
    assert service.counts(120, 3120).total() / 50 <= 1.15 * 108


def test_subscribers_come_and_go():
    plan = PollingPlan()
    both = [(plan.add(campaign("c0"), one, 0.0), one) for one in (subscriber(), subscriber(5))]
    assert len(plan.polls()) == 1
    for polled, one in both:
        plan.remove(polled.request, one, 1.0)
    assert plan.is_idle
    assert plan.due_at() == math.inf
    rejoined = plan.add(campaign("c0"), subscriber(), 2.0)
    assert plan.due_at() < math.inf
    assert plan.take() is rejoined.request


def test_a_hurried_campaign_is_read_at_once_and_the_list_goes_on():
    plan = plan_for(10)
    service = Service(names(10))
    service.run(plan, 0, 100)
    polled = plan.poll_of("c3")
    plan.poll_now(polled.request, 100.0)
    assert plan.due_at() == 100.0
    assert plan.take() == polled.request
    plan.was_read(polled.request, 100.1, 100.0)
    service.sent.clear()
    service.run(plan, 101, 400)
    assert {what for _, what in service.sent} == {"list"}


def test_an_outage_costs_few_requests_and_its_end_is_noticed_soon():
    plan = plan_for(10_000)
    service = Service(names(10_000))
    service.run(plan, 0, 300)
    service.list_fails = service.single_fails = True
    service.sent.clear()
    service.run(plan, 300, 900)
    assert len(service.sent) <= 60
    service.list_fails = service.single_fails = False
    service.sent.clear()
    service.run(plan, 900, 1000)
    assert service.sent[0][0] <= 931
    assert service.counts(900, 1000)["list"] >= 8
    assert service.counts(900, 1000)["single"] <= 2


def test_single_reads_take_over_if_only_the_list_fails():
    plan = plan_for(10)
    service = Service(names(10))
    service.list_fails = True
    service.run(plan, 0, 600)
    assert service.counts(200, 600)["list"] == 0
    assert service.counts(200, 600)["single"] >= 50
    service.list_fails = False
    service.run(plan, 600, 1400)
    assert service.counts(1000, 1400)["single"] == 0


def test_a_refused_list_is_left_alone_for_a_while():
    plan = plan_for(10)
    requests = (plan.take() for _ in itertools.count() if plan.due_at() <= 2)
    assert any(is_page(request) for request in requests)
    plan.block_list(1.0)
    service = Service(names(10))
    service.run(plan, 1, 500)
    assert service.counts(0, 500)["list"] == 0
    assert service.counts(0, 500)["single"] >= 70


def test_single_reads_that_fail_are_repeated_with_growing_pauses():
    plan = plan_for(1, interval=1)
    service = Service(names(1))
    service.single_fails = True
    service.run(plan, 0, 300)
    times = [at for at, _ in service.sent]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= 30
    assert gaps[0] < 2
    assert min(gaps[6:]) > 20
    assert plan.poll_of("c0") is not None


@pytest.mark.parametrize("result", ["read", "failed"])
@pytest.mark.parametrize("others", [0, 1])
def test_a_wait_that_ends_while_its_campaign_is_read_disturbs_nobody(result, others):
    plan = PollingPlan()
    leaving = subscriber(5.0, is_list_enough=False)
    polled = plan.add(campaign("left"), leaving, 0.0)
    for number in range(others):
        plan.add(campaign(f"other-{number}"), subscriber(5.0, is_list_enough=False), 0.0)
    plan.poll_now(polled.request, 0.0)
    assert plan.take() == polled.request
    plan.remove(polled.request, leaving, 1.0)
    if result == "read":
        plan.was_read(polled.request, 2.0, 0.0)
    else:
        plan.failed(polled.request, 2.0, 0.0, retry_after=None)
    plan.poll_now(polled.request, 2.0)
    assert (plan.due_at() == math.inf) == (not others)


@pytest.mark.parametrize("cap", [100, 250])
@pytest.mark.parametrize("interval", [5.0, 60.0])
def test_rounds_are_in_time_although_the_service_gives_shorter_pages(cap, interval):
    plan = plan_for(1000, interval)
    service = Service(names(1000), page_size=cap)
    stale = 0.0
    for tick in range(1, 201):
        now = tick * interval / 10
        service.run(plan, now - interval / 10, now)
        if tick > 20:
            stale = max(stale, max(now - poll.read_at for poll in plan.polls()))
    assert stale <= 1.15 * interval
    # Single reads would take a thousand in an interval.
    assert service.counts(2 * interval, 20 * interval).total() / 18 <= 1.4 * 1000 / cap


def test_short_pages_count_when_it_is_chosen_what_takes_fewer_requests():
    """Ten pages for five campaigns are more than five single reads."""
    service = Service(names(1000), page_size=100)
    service.run(plan_for(5), 0, 1260)
    assert service.counts(120, 1260)["list"] == 0
    assert service.counts(60, 1260).total() / 20 <= 6


def test_pages_that_become_longer_again_are_counted_so():
    plan = plan_for(1000)
    service = Service(names(1000), page_size=100)
    service.run(plan, 0, 300)
    service.page_size = 1000
    service.run(plan, 300, 900)
    assert service.counts(480, 900)["list"] / 7 <= 1.4


def test_a_total_that_is_too_large_makes_no_flood_of_requests():
    plan = PollingPlan()
    plan.add(LIST, subscriber(), 0.0)
    service = Service(names(10))
    service.claims = 2**53 - 1
    service.run(plan, 0, 600)
    # The page, and the empty one after it.
    assert 18 <= len(service.sent) <= 2 * 10 * 1.4


# Trouble that is over.


@pytest.mark.parametrize("request_", [campaign("c0"), quota()], ids=str)
def test_trouble_that_is_over_slows_no_read(request_):
    plan = PollingPlan()
    one = subscriber(0.1)
    plan.add(request_, one, 0.0)

    def delays(outcomes):
        for is_fine in outcomes:
            now = plan.due_at()
            assert plan.take() == request_
            if is_fine:
                plan.was_read(request_, now, now)
            else:
                plan.failed(request_, now, now, retry_after=None)
            yield plan.due_at() - now

    assert max(delays([False, True] * 6)) <= 1.0
    assert max(delays([False] * 8)) > 20
    # Nor does the trouble of before slow whoever asks for it anew.
    plan.remove(request_, one, plan.due_at())
    assert plan.due_at() == math.inf
    plan.add(request_, one, 1000.0)
    assert max(delays([False])) <= 1.0


def test_trouble_that_is_over_slows_no_page():
    plan = PollingPlan()
    plan.add(LIST, subscriber(0.1), 0.0)
    delays = []
    for number in range(12):
        now = plan.due_at()
        assert offset_of(plan.take()) == 0
        if number % 2:
            plan.page_was_read(["c"], 1, 1, now, now)
        else:
            plan.page_failed(now, retry_after=None)
        delays.append(plan.due_at() - now)
    assert max(delays) <= 1.0


@pytest.mark.parametrize("asked", [17.0, 60.0, 86400.0])
def test_the_service_says_when_it_is_asked_again(asked):
    plan = plan_for(1, interval=0.1)
    now = plan.due_at()
    plan.failed(plan.take(), now, now, retry_after=asked)
    assert plan.due_at() - now == min(asked, 60.0)


def test_what_nobody_waits_for_any_more_is_not_read():
    plan = PollingPlan()
    alone = subscriber(5.0)
    polled = plan.add(campaign("c"), alone, 0.0)
    assert plan.due_at() < 5
    plan.remove(polled.request, alone, 1.0)
    assert (plan.due_at(), plan.is_idle) == (math.inf, True)


def test_who_needs_more_than_the_list_counts_although_others_come_and_go():
    plan = PollingPlan()
    modest, demanding, other = subscriber(), subscriber(is_list_enough=False), subscriber()
    for each in (modest, demanding, other):
        polled = plan.add(campaign("c"), each, 0.0)
    assert polled.is_single
    plan.remove(polled.request, modest, 1.0)
    assert polled.is_single


def test_so_many_reads_of_something_once_are_under_way_and_no_more():
    plan = plan_for(1)
    wanted = [statistics(f"c{number}") for number in range(5)]
    for request in wanted:
        plan.add(request, subscriber(math.inf), 0.0)
    taken = []
    while plan.due_at() <= 0.0:
        taken.append(plan.take())
    assert taken == wanted[:3]
    plan.was_read(taken[0], 0.0, 0.0)
    assert plan.take() == wanted[3]
    # Also if nobody waits for it any more.
    poll = plan.poll(taken[1])
    plan.remove(poll.request, poll.subscribers[0], 0.0)
    plan.failed(taken[1], 0.0, 0.0, retry_after=None)
    assert plan.take() == wanted[4]
    assert plan.due_at() > 0.0


def test_the_shortest_interval_of_a_campaign_counts():
    plan = PollingPlan()
    for interval in (60.0, 5.0, 30.0):
        polled = plan.add(campaign("c"), subscriber(interval), 0.0)
    assert polled.interval == 5.0
