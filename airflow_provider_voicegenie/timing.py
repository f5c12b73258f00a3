# SPDX-License-Identifier: Apache-2.0
"""How long the provider waits for what, in one object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timing:
    """Times in seconds. Each is read when it is used, so that a test can change it."""

    #: For how long statistics may be those of before: the service has them in a cache of 30 s, by its page.
    statistics_lag: float = 32.0

    # A start.

    #: Before each look at a campaign whose start got no valid response: a gateway may give up on a request that the
    #: service behind it still carries out.
    start_read_delays: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    #: By how much starts that were refused wait longer than asked, so that they keep out of each other's way: after the
    #: first refusal up to the shortest, then a random time up to the longest. Chosen by simulation, see
    #: tests/unit/test_many_starts.py: a thousand starts at 60 requests a minute.
    shortest_spread: float = 30.0
    longest_spread: float = 1200.0
    #: For how long Airflow's word counts that no user has ended the task, while a connection is made.
    fresh_state: float = 1.0
    #: For how long the response to a start is awaited once Airflow has ended the task: five seconds after it has said
    #: so, it ends the process, and by then the campaign has to be paused.
    response_after_kill: float = 1.0
    #: For how long a cleared task lets the triggerer pause the campaign that it started before. Airflow gives the
    #: triggerer 30 of them once it has told it of the clear, of which a busy one may hear half a minute late.
    pause_after_clear: float = 90.0
    #: Between two reads meanwhile, which count against the service's limit.
    pause_poll_interval: float = 3.0
    #: The same, if Airflow has forgotten which campaign that was, so that none can be read.
    unknown_pause_after_clear: float = 20.0

    # A wait.

    #: Between two reads of the statistics.
    statistics_delay: float = 5.0
    #: For how long the final statistics are tried while the service fails, and while its responses are invalid. That
    #: the campaign is completed is known, and a task must not hang on its numbers.
    statistics_patience: float = 300.0
    invalid_statistics_patience: float = 60.0
    #: In how long a triggerer must have an answer to what is read once; otherwise, the task reads it.
    single_read_patience: float = 5.0
    #: Before a pause that failed is sent again, at first.
    pause_delay: float = 1.0

    # The end of a task.

    #: Before each further attempt to pause. Airflow ends a killed task by force a few seconds later.
    kill_pause_delays: tuple[float, ...] = (0.5, 1.0, 2.0)
    #: In how long one read that precedes a pause must be over: Airflow gives the whole pause 30 s.
    read_before_pause: float = 5.0

    # The feed, and what watches an account.

    #: Between two reads of the Airflow connection while requests succeed, and after an error that a change of it could
    #: mend.
    connection_interval: float = 30.0
    connection_interval_after_error: float = 5.0
    #: Between two log lines about unexpected errors.
    error_log_interval: float = 600.0
    #: Between two reports of the number of waits.
    count_interval: float = 10.0
    #: The longest pause after refused requests, if the service does not say how long it wants.
    longest_pause: float = 30.0
    #: Between two tries to read what Airflow keeps.
    state_read_delay: float = 10.0
    #: From an event to the last one of a group: of events that come at once, Airflow 3.3 makes a run for the first.
    between_events: float = 5.0

    # An upload.

    #: How often the log says how far it is, and the campaign is looked at.
    upload_log_interval: float = 15.0
    upload_look_interval: float = 60.0
    #: Before each look for a campaign whose making got no valid response.
    creation_read_delays: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)


timing = Timing()
