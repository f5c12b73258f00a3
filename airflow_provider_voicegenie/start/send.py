# SPDX-License-Identifier: Apache-2.0
"""A start of this try: check, record, send once, and find out whether it took effect; or only rehearse it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.errors import RateLimitError, VoiceGenieError, unchained
from airflow_provider_voicegenie.api.models import TIME_TOLERANCE, Campaign, CampaignStatus, read_time, write_time
from airflow_provider_voicegenie.api.retries import retry_delay
from airflow_provider_voicegenie.metrics import count_start
from airflow_provider_voicegenie.rules.calling_hours import DAYS_AHEAD, next_closing, next_opening
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, Outcome, apply_outcome
from airflow_provider_voicegenie.start.find_out import doubt_pauses, find_out, log_start
from airflow_provider_voicegenie.start.guards import (
    check_calling_hours,
    check_campaign,
    check_configuration,
    describe_start,
)
from airflow_provider_voicegenie.start.record import LONGEST_START, OwnStart, Start, StartRecord
from airflow_provider_voicegenie.start.refusals import PATIENCE
from airflow_provider_voicegenie.start.take_over import await_pause, await_pause_of_another, may_be_paused_late
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting.stop import TaskKilled

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Quota
    from airflow_provider_voicegenie.rules.calling_hours import CallingHours

log = logging.getLogger(__name__)

#: Seconds by which a time may differ from itself once it was written and read.
_ROUNDED = 0.001


class _NotAllowedError(Exception):
    """A start must not be sent any more."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def start(own: OwnStart) -> Start | datetime:
    """
    Start the campaign; or return when to check everything anew.

    :raises VoiceGenieError: The service refused, or could not be asked.
    """
    before = _read_before(own)
    if not isinstance(before, Campaign):
        return before
    if own.paused is not None and (as_it_is := _leave_as_it_is(own, own.paused, before)) is not None:
        return as_it_is
    task = own.task
    finding = check_campaign(task, before) or check_calling_hours(task.calling_hours, datetime.now(UTC))
    if finding is None:
        try:
            return _Sending(own, before).send()
        except _NotAllowedError as error:
            finding = error.finding
        except RateLimitError as error:
            # A response that claims both success and a 429 proves neither.
            if error.may_have_taken_effect:
                raise
            return _try_again_after_429(own, error, was_start=True)
    if finding.condition is not Condition.OUTSIDE_CALLING_HOURS:
        return own.not_started(finding, before.status)
    opens = _opening(own, finding, before)
    if isinstance(opens, datetime):
        message = f"{finding.message}; they open on {_describe_opening(own, opens)}"
        if own.paused is None:
            apply_outcome(own.task.outcome_rules, finding._replace(message=message), own.campaign_id)
        own.refusals = own.refusals.counted_from(opens)
    return opens


class Plan(NamedTuple):
    """
    What a start would do, at the end of a task that only checks.

    :param campaign: The campaign as it was just read.
    :param opens: When it would be started, if it would wait for its calling hours.
    :param quota: What the account may still use, if it was read.
    """

    status: str
    campaign: Campaign | None = None
    opens: datetime | None = None
    quota: Quota | None = None

    def to_json(self, hours: Sequence[CallingHours]) -> dict[str, Any]:
        """
        Return what goes to XCom.

        :param hours: When people may be phoned; empty for any time.
        """
        left = None if self.quota is None else self.quota.calls_remaining
        return {
            "contacts": None if self.campaign is None else self.campaign.total_count,
            "name": None if self.campaign is None else self.campaign.name,
            "starts_at": write_time(self.opens),
            "closes_at": write_time(next_closing(hours, self.opens or datetime.now(UTC))) if hours else None,
            "quota_left": None if left is None else int(left),
        }


def rehearse(own: OwnStart) -> Plan | datetime:
    """Do everything but the start; or return when to check everything anew, if the service refuses to be read."""
    own.kill.check()
    before = _read_before(own)
    if isinstance(before, Start):
        return Plan(before.status)
    if not isinstance(before, Campaign):
        return before
    quota = _read_quota(own) if own.task.read_quota else None
    if isinstance(quota, datetime | Start):
        return quota if isinstance(quota, datetime) else Plan(quota.status, before)
    plan = Plan(before.status.value, before, quota=quota)
    first = ""
    now = datetime.now(UTC)
    finding = (
        check_campaign(own.task, before)
        or check_configuration(before, now)
        or check_calling_hours(own.task.calling_hours, now)
    )
    if finding is not None:
        if finding.condition is not Condition.OUTSIDE_CALLING_HOURS:
            own.not_started(finding, before.status)
            return plan
        opens = _opening(own, finding, before)
        if isinstance(opens, Start):
            return plan
        plan = plan._replace(opens=opens)
        first = f"wait until {_describe_opening(own, opens)}, and then "
    left = None if quota is None else quota.calls_remaining
    log.info(
        "Campaign %r: would %sstart it: %s%s. Nothing was sent, as check_only is set.",
        own.campaign_id,
        first,
        describe_start(before, own.task.calling_hours, now),
        "" if left is None else f", {left:,g} calls left in the quota",
    )
    return plan


def _read_quota(own: OwnStart) -> Quota | Start | datetime:
    try:
        with own.reading():
            return own.hook.get_quota(max_attempts=1)
    except RateLimitError as error:
        return _try_again_after_429(own, error, was_start=False)


# Before the start.


def _read_before(own: OwnStart) -> Campaign | Start | datetime:
    """Check the run, and read the campaign; if a user has cleared this task, once its earlier start is paused."""
    if (finding := own.check_run()) is not None:
        return own.not_started(finding, CampaignStatus.UNKNOWN)
    await_pause_of_another(own)
    try:
        with own.reading():
            before = _read(own)
            if may_be_paused_late(own) and before.status.is_running:
                before = await_pause(own.hook, before)
    except RateLimitError as error:
        return _try_again_after_429(own, error, was_start=False)
    if before.status is CampaignStatus.UNKNOWN:
        log.warning(
            "Campaign %r: its status %.40r is unknown here, so the service decides whether it can be started.",
            own.campaign_id,
            before.status_text,
        )
    return before


def _read(own: OwnStart) -> Campaign:
    """Read the campaign. A 429 is not waited out here: the task does that, and may leave its worker for it."""
    maximum = own.hook.client.settings.max_attempts
    for attempt in range(1, maximum):
        try:
            return own.hook.get_campaign(own.campaign_id, max_attempts=1)
        except VoiceGenieError as error:
            if isinstance(error, RateLimitError) or not error.temporary:
                raise
            delay = retry_delay(attempt, error.retry_after)
            log.warning("%s Trying again in %.1f s (attempt %d of %d failed).", error, delay, attempt, maximum)
        time.sleep(delay)
    return own.hook.get_campaign(own.campaign_id, max_attempts=1)


@unchained()
def _try_again_after_429(own: OwnStart, error: RateLimitError, *, was_start: bool) -> Start | datetime:
    """Wait after a 429, as nothing was carried out: as asked, but not for ever, nor past what the task may do."""
    rules, now, maximum = own.task.outcome_rules, time.time(), own.hook.client.settings.max_attempts
    refusals = own.refusals = own.refusals.one_more(now, was_start=was_start)
    until = refusals.earliest_attempt(error.retry_after, now, maximum)
    if until is None:
        is_over = maximum == 1 or refusals.starts >= maximum
        longest = f"it would have to wait longer than {PATIENCE.total_seconds() / 3600:g} hours"
        why = f"{refusals} and {f'max_attempts is {maximum}' if is_over else longest}"
    elif _closes(own) and check_calling_hours(own.task.calling_hours, until) is not None:
        why = f"{refusals} and its calling hours are over when the service takes requests again"
    elif (too_late := own.check_run(until)) is not None:
        message = f"{error.message.rstrip('.')}; when it is tried again, {too_late.message}"
        return own.not_started(too_late._replace(message=message), CampaignStatus.UNKNOWN)
    else:
        until = next(at for at in refusals.spread_out(until) if at == until or _may_start(own, at))
        log.warning(
            "Campaign %r: rate limit reached (429), so it is not started yet. Next attempt at %s (%s max_attempts is "
            "%d).",
            own.campaign_id,
            write_time(until),
            refusals,
            maximum,
        )
        return until
    message = f"it was not started. {error.message} It is not tried again, as {why}"
    apply_outcome(rules, Finding.of(error)._replace(message=message), own.campaign_id)
    raise error


def _may_start(own: OwnStart, at: datetime) -> bool:
    """Say whether the task may still start the campaign then."""
    ends = own.task.execution_deadline(own.context)
    if ends is not None and at.timestamp() >= ends:
        return False
    if _closes(own) and check_calling_hours(own.task.calling_hours, at) is not None:
        return False
    return own.check_run(at) is None


def _leave_as_it_is(own: OwnStart, paused: StartRecord, before: Campaign) -> Start | datetime | None:
    """
    Return what the task goes on with, if a campaign that it paused at closing is not to be started again.

    It is started again if nobody has started it since, and once the hours open that were looked up at closing.
    """
    deadline, opens_at = own.hours.get("deadline"), own.hours.get("opens_at", 0.0)
    started_at = read_time(paused.started_at)
    if before.status.is_running:
        return own.follow_again(before.status)
    if before.status is not CampaignStatus.PAUSED or own.is_out_of_time:
        return Start.by_task(before.status, started_at)
    if time.time() + _ROUNDED < opens_at:
        return datetime.fromtimestamp(min(opens_at, deadline or opens_at), UTC)
    with own.reading():
        latest = own.hook.get_campaign_stats(own.campaign_id).started_at
    sent_at = read_time(paused.sent_at)
    if started_at is not None:
        newest = started_at + TIME_TOLERANCE
    elif sent_at is not None:
        newest = sent_at + LONGEST_START
    else:
        newest = None
    if latest is None or newest is None or latest > newest:
        why = "may have been" if latest is None or newest is None else "was"
        log.warning(
            "Campaign %r: it %s started and paused since this task paused it, so this task does not start it again.",
            own.campaign_id,
            why,
        )
        return Start.by_task(before.status, started_at)
    log.info("Campaign %r: its calling hours are open again, so it goes on.", own.campaign_id)
    return None


def _closes(own: OwnStart) -> bool:
    """Say whether the task does not wait for its calling hours."""
    if own.paused is not None:
        return False
    return own.task.outcome_rules.outcome(Condition.OUTSIDE_CALLING_HOURS) is not Outcome.WAIT


def _opening(own: OwnStart, finding: Finding, before: Campaign) -> Start | datetime:
    """Return when the calling hours open, if the task waits for that; otherwise apply the outcome of being outside."""
    if _closes(own):
        return own.not_started(finding, before.status)
    opens = next_opening(own.task.calling_hours, datetime.now(UTC))
    if opens is None:
        raise AirflowFailException(
            f"Campaign {own.campaign_id!r}: {finding.message}, and they do not open within {DAYS_AHEAD} days. "
            f"Change calling_hours (days, except_dates) [{finding.condition}: the task fails, without retry]."
        )
    if (too_late := own.check_run(opens)) is not None:
        late = too_late._replace(message=f"{finding.message}; when they open, {too_late.message}")
        return own.not_started(late, before.status)
    return opens


def _describe_opening(own: OwnStart, opens: datetime) -> str:
    return f"{own.task.calling_hours[0].local_time(opens)} ({write_time(opens)})"


class _Sending:
    """
    The one request that starts the campaign.

    Once its connection is made, right before it is sent, run and time are checked again, and that Airflow has not ended
    the task.

    :param before: The campaign as it was just read.
    """

    def __init__(self, own: OwnStart, before: Campaign) -> None:
        self._own = own
        self._before = before
        self._sent_at = own.service_time()
        # Whether any of the request was sent.
        self._is_sent = False
        # When Airflow last said that nobody has ended the task, and when it was first seen to have ended it meanwhile.
        self._asked_airflow_at = 0.0
        self._killed_at: float | None = None

    def send(self) -> Start:
        """
        Record the start, send it, and return it; if it got no valid response, find out first whether it took effect.

        :raises _NotAllowedError: It must not be sent any more.
        :raises VoiceGenieError: It was refused, or did not take effect.
        """
        own = self._own
        with self._recorded():
            ambiguous = self._send()
            if isinstance(ambiguous, Start):
                return ambiguous
            log.warning("%s The start may have taken effect; looking at the campaign before anything else.", ambiguous)
            problem = f" What went wrong was: {ambiguous.message}"
            found = find_out(own, self._before, self._sent_at, problem=problem)
            if found is None:
                raise ambiguous
            return found

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record a start that is about to be sent; and that it has no effect, if it is known to have none."""
        own = self._own
        try:
            own.add_record(self._before, self._sent_at)
            if (task_instance := own.context.get("ti")) is not None:
                # Before the start: a task that pauses the campaign after a failure needs it.
                task_instance.xcom_push(key="campaign_id", value=own.campaign_id)
            own.kill.check_with_airflow(own.context)
            self._asked_airflow_at = time.monotonic()
            yield
        except BaseException as error:
            # Also if it was interrupted, as by a kill or by `execution_timeout`.
            is_refused = isinstance(error, VoiceGenieError) and not error.may_have_taken_effect
            if is_refused or not self._is_sent:
                own.may_be_in_effect = own.must_pause_on_kill
                own.take_back()
            raise

    def _send(self) -> Start | VoiceGenieError:
        own, before = self._own, self._before
        try:
            started = own.hook.start_campaign(
                own.campaign_id, on_sending=self._on_sending, while_waiting=self._while_waiting
            )
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                raise
            return error
        own.confirm(started.started_at)
        count_start(was_ambiguous=False)
        if not started.status.is_running:
            log.warning(
                "Campaign %r: the service accepted the start, but its status is %.40r, not running.",
                own.campaign_id,
                started.status_text,
            )
        log_start(own, before, started.status)
        counts = {"completed": before.completed_count, "failed": before.failed_count, "total": before.total_count}
        counters = {"at": time.time(), **counts}
        return Start.by_task(started.status, started.started_at, {**counters, **doubt_pauses(own, before)})

    def _on_sending(self) -> None:
        """
        Check, now that the connection is made, what must hold when the start is sent.

        :raises TaskKilled: Airflow has ended the task.
        :raises _NotAllowedError: The campaign must not be started any more.
        """
        own = self._own
        if time.monotonic() - self._asked_airflow_at > timing.fresh_state:
            own.kill.check_with_airflow(own.context)
        finding = own.check_run() or check_calling_hours(own.task.calling_hours, datetime.now(UTC))
        own.kill.check()
        if finding is not None:
            raise _NotAllowedError(finding)
        self._is_sent = own.may_be_in_effect = True

    def _while_waiting(self) -> None:
        """
        End the start if Airflow has ended the task: at once before it is sent, and soon while the response is awaited.

        :raises TaskKilled: Airflow has ended the task.
        """
        kill = self._own.kill
        if not self._is_sent:
            kill.check()
        elif kill.pulled:
            self._killed_at = self._killed_at or time.monotonic()
            if time.monotonic() - self._killed_at > timing.response_after_kill:
                raise TaskKilled
