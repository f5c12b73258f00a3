# SPDX-License-Identifier: Apache-2.0
"""What all operators and sensors have in common: a task about one campaign, which stays about that campaign."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, conf

from airflow_provider_voicegenie.links import LINK_KEY, CampaignLink
from airflow_provider_voicegenie.memory import Memory, note_end_by_user
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, OutcomeRules, apply_outcome
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN, NotGiven, check_flags, check_literal_text

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperatorLink, Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

_FACTS = ("campaign_id", "voicegenie_conn_id")


class CampaignTask(BaseOperator):
    """
    Base class of the operators and sensors.

    Airflow renders a task's templates anew in each process that runs it: at a retry, when it is resumed after a
    deferral, at each poke of a rescheduled sensor. What they give may be another campaign by then. So once a task has
    looked at a campaign, that campaign and the connection are facts, which it remembers, see
    :class:`~airflow_provider_voicegenie.memory.Memory`. Clearing a task makes it forget them.

    :param multiple_outputs: Airflow's: whether each field of the result is an XCom of its own too, so that
        ``start.output["campaign_id"]`` finds it. True by default.
    """

    template_fields: Sequence[str] = _FACTS
    operator_extra_links: Collection[BaseOperatorLink] = (CampaignLink(),)

    campaign_id: str
    voicegenie_conn_id: str

    #: Whether Airflow told this process to end the task, even before the task's own code runs.
    is_killed = False
    #: What it returns that the events of its outlets get too, besides ``campaign_id``.
    asset_event_fields: Sequence[str] = ()
    #: The link to the campaign, once it is known.
    campaign_url = ""
    #: What it returned in this process.
    returned: Mapping[str, Any] | None = None

    def __init__(
        self,
        *,
        campaign_id: str | NotGiven,
        voicegenie_conn_id: str,
        outcome_rules: OutcomeRules,
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=multiple_outputs, **kwargs)
        # Not one that a run makes of a mapped task: what other tasks gave it is a condition.
        if self.has_dag() and self.dag.task_dict.get(self.task_id) is self:  # type: ignore[no-untyped-call]
            for name, value in (("campaign_id", campaign_id), ("voicegenie_conn_id", voicegenie_conn_id)):
                if value is not NOT_GIVEN:
                    check_literal_text(name, value)
        # An upload by name knows it later.
        self.campaign_id = "" if isinstance(campaign_id, NotGiven) else campaign_id
        self.voicegenie_conn_id = voicegenie_conn_id
        self.outcome_rules = outcome_rules

    def on_kill(self) -> None:
        """Note that Airflow ends the task. Airflow calls this from a signal handler."""
        self.is_killed = True

    @cached_property
    def _hook(self) -> VoiceGenieHook:
        # Parsing a DAG file needs no hook.
        from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

        return VoiceGenieHook(self.voicegenie_conn_id)

    def apply_condition(self, condition: Condition, message: str) -> None:
        """
        Raise what ends the task, unless the outcome of a condition is a success.

        :param message: What was seen, in a sentence without its full stop.
        """
        apply_outcome(self.outcome_rules, Finding(condition, message), self.campaign_label)

    @property
    def campaign_label(self) -> str:
        """The campaign in messages: its id."""
        return self.campaign_id

    def execution_deadline(self, context: Mapping[str, Any]) -> float | None:
        """
        Return when the task's ``execution_timeout`` is over, in Unix seconds; ``None`` if it has none.

        Airflow 3 does not count the time that a task is deferred, so waits have to.
        """
        task_instance = context.get("ti")
        if self.execution_timeout is None or task_instance is None or task_instance.start_date is None:
            return None
        return float((task_instance.start_date + self.execution_timeout).timestamp())

    def keep_link(self, context: Context, hook: VoiceGenieHook) -> None:
        """
        Store the link to the campaign in XCom, if there is one. A failure is logged, never raised.

        Airflow 3 would store it once more at the end of each of the task's processes, and an empty one too.
        """
        try:
            self.campaign_url = hook.campaign_url(self.campaign_id) or ""
            if self.campaign_url:
                context["ti"].xcom_push(key=LINK_KEY, value=self.campaign_url)
            self._store_link_no_more()
        except Exception as error:  # noqa: BLE001  Airflow may raise anything here
            log.debug("Campaign %r: no link to it could be stored (%s).", self.campaign_id, type(error).__name__)

    def _store_link_no_more(self) -> None:
        self.operator_extra_links = [each for each in self.operator_extra_links if not isinstance(each, CampaignLink)]

    def add_to_asset_events(self, context: Context, result: dict[str, Any]) -> dict[str, Any]:
        """
        Attach the result to the task's asset events, and return it.

        OpenLineage is told of it, too, once it asks.
        """
        self.returned = result
        fields = {name: result[name] for name in self.asset_event_fields if name in result}
        if (events := context.get("outlet_events")) is not None:
            for outlet in self.outlets:
                # An alias has no event before a task adds one.
                if hasattr(outlet, "uri"):
                    events[outlet].extra.update({"campaign_id": self.campaign_id, **fields})
        return result

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """Return what is known for OpenLineage; asked at the end too, as there is no method for that."""
        # It needs Airflow's OpenLineage provider, which may not be installed.
        from airflow_provider_voicegenie.lineage import lineage_of

        return lineage_of(self)

    # What the task is about.

    def facts(self) -> dict[str, Any]:
        """Return the campaign and the connection."""
        return {name: getattr(self, name) for name in _FACTS}

    def keep_campaign(self, facts: Mapping[str, Any]) -> None:
        """
        Keep the campaign that the task first read, whatever its templates render now.

        :param facts: What :meth:`facts` returned then.
        """
        # By an earlier process.
        self._store_link_no_more()
        for name in _FACTS:
            kept, rendered = facts[name], getattr(self, name)
            if kept == rendered:
                continue
            log.warning(
                "Campaign %r: the template of %s now gives %.80r. This task stays with %.80r, which it first looked "
                "at; to switch, clear the task.",
                facts["campaign_id"],
                name,
                rendered,
                kept,
            )
            setattr(self, name, kept)
            # So that Airflow's UI shows what the task is about.
            self.overwrite_rtif_after_execution = True

    def go_on_after_deferral(self, context: Context, event: Mapping[str, Any] | None = None) -> Memory:
        """
        Go on with the campaign and the connection of before the deferral; return what the task remembers.

        :param event: The trigger's, if there is one.
        """
        memory = Memory(context)
        if (copy := memory.read_copy(event)) is not None:
            self.keep_campaign(copy)
        if event is not None:
            self._hook.service = event.get("service") or {}
        return memory

    def recall_after_deferral(self, context: Context, event: Mapping[str, Any] | None = None, *, remedy: str) -> Memory:
        """
        Go on as :meth:`go_on_after_deferral` does, but fail the task if Airflow has lost what it remembers.

        :param event: The trigger's, if there is one.
        :param remedy: What the message says to do then, in whole sentences.
        """
        memory = self.go_on_after_deferral(context, event)
        if memory.document is None:
            raise AirflowFailException(
                f"Campaign {self.campaign_id!r}: Airflow has lost what this task remembered across its deferral "
                f"(XCom). {remedy}"
            )
        return memory

    def remember(self, memory: Memory, **more: Any) -> None:
        """
        Remember the facts across pokes and tries, until a user clears the task; on Airflow 3.3 and later.

        :param more: What else is worth that, plain JSON.
        """
        try:
            memory.write(**self.facts(), **more)
        except Exception:
            log.warning(
                "Campaign %r: Airflow could not record that this task is about it; a later try may follow another.",
                self.campaign_id,
                exc_info=True,
            )

    def note_end_by_user(self, context: Context) -> None:
        """Note, if a user ended this process, that the next try is to forget what this one remembers."""
        # It loads the feed.
        from airflow_provider_voicegenie.waiting.stop import was_ended_by_user

        if self.is_killed and was_ended_by_user(context):
            note_end_by_user(context)


def read_deferrable(value: bool | None) -> bool:
    """
    Return whether a task waits in the triggerer.

    :param value: What the author says; ``None`` for Airflow's setting ``[operators] default_deferrable``.
    :raises ValueError: It is something else.
    """
    if value is None:
        return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
    check_flags(deferrable=value)
    return value


def was_ended_by_airflow(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Say whether Airflow's scheduler resumes a task because its deferral took too long."""
    # Airflow 2 says "Trigger/execution timeout", Airflow 3 "Trigger timeout".
    return next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower()
