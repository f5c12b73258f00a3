# SPDX-License-Identifier: Apache-2.0
"""What a campaign may do while it is followed. Whatever is beyond that is a reason to pause it."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_provider_voicegenie.api.models import CampaignStats
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.waiting.progress import success_rate

#: Seconds that a wait which begins outside the calling hours has to read the campaign before it pauses it unread.
_TIME_TO_READ = 1.0


#: What a wait finds when the calling hours have closed.
HOURS_OVER = Finding(Condition.CALLING_HOURS_OVER, "its calling hours are over")


class Limits:
    """
    The limits of one wait.

    A call has finished if the service counts it as completed or as failed.

    :param now: When the wait began, Unix seconds.
    :param open_times: When calling hours open and close, Unix seconds; ``None`` for one that is open already, and for a
        closing beyond what is known. No list of them for any time.
    :param resumes: Whether the task starts the campaign again when the hours open.
    :param stop_after_calls: How many calls may finish; ``None`` for any number.
    :param judge_success_rate_after: After how many finished calls the success rate is judged; ``None`` for not before
        the end.
    :param min_success_rate: Percentage of successful calls among the finished ones that is wanted.
    """

    __slots__ = (
        "_judge_after",
        "_max_calls",
        "_min_success_rate",
        "_open_times",
        "began_closed",
        "closes_at",
        "resumes",
    )

    def __init__(
        self,
        now: float,
        *,
        open_times: Sequence[Sequence[float | None]] | None = None,
        resumes: bool = False,
        stop_after_calls: int | None = None,
        judge_success_rate_after: int | None = None,
        min_success_rate: float | None = None,
    ) -> None:
        self._open_times = open_times or ()
        #: Whether a pause at closing is the task's to end.
        self.resumes = resumes
        self._max_calls = stop_after_calls
        self._judge_after = judge_success_rate_after
        self._min_success_rate = min_success_rate
        #: When the campaign is to be paused next, as the hours close; ``None`` if they do not.
        self.closes_at: float | None = None
        #: Whether they were closed when the wait began: a campaign that is seen to run then is paused at once.
        self.began_closed = False
        if open_times is not None:
            is_open = any((opens or 0.0) <= now and (closes is None or now < closes) for opens, closes in open_times)
            self.began_closed = not is_open
            self.closes_at = self._next_closing(now) if is_open else now + _TIME_TO_READ

    @property
    def counts_calls(self) -> bool:
        """Whether it has to be known how many calls have finished."""
        return self._max_calls is not None or self._judge_after is not None

    def go_on_after_closing(self, now: float) -> None:
        """Look ahead to the closing after this one."""
        if self.closes_at is not None and (self.began_closed or now >= self.closes_at):
            self.began_closed = False
            self.closes_at = self._next_closing(now)

    def _next_closing(self, now: float) -> float | None:
        return min((closes for _, closes in self._open_times if closes is not None and closes > now), default=None)

    def too_many_calls(self, finished: int) -> Finding | None:
        """Return the finding that enough calls have finished, if that is so."""
        if self._max_calls is None or finished < self._max_calls:
            return None
        return Finding(
            Condition.CALL_LIMIT_REACHED,
            f"{finished:,} calls have finished, and stop_after_calls is {self._max_calls:,}",
        )

    def is_to_be_judged(self, finished: int) -> bool:
        """Say whether enough calls have finished to judge how many of them were successful."""
        return self._judge_after is not None and finished >= self._judge_after

    def too_few_successes(self, statistics: CampaignStats) -> Finding | None:
        """Return the finding that too few calls were successful, if enough have finished to say so."""
        rate, minimum = success_rate(statistics), self._min_success_rate
        finished = statistics.calls_completed + statistics.calls_failed
        if rate is None or minimum is None or rate >= minimum or not self.is_to_be_judged(finished):
            return None
        return Finding(
            Condition.SUCCESS_RATE_TOO_LOW,
            f"{rate:g} % of {finished:,} finished calls were successful, and at least {minimum:g} % is wanted",
        )


class PauseOrder:
    """
    A pause that a wait wants, until it is settled.

    :param finding: Why.
    """

    __slots__ = ("failures", "finding", "is_lost", "must_read", "was_sent")

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        #: How often it failed, and whether one was sent.
        self.failures = 0
        self.was_sent = False
        #: Whether the response to a pause was lost.
        self.is_lost = False
        #: Whether the campaign is to be read before it is paused again.
        self.must_read = False
