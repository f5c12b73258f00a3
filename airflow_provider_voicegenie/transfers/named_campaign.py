# SPDX-License-Identifier: Apache-2.0
"""The campaign of one name: found, or made by the task, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.endpoints import check_campaign_name
from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import NamedCampaign, read_time, write_time
from airflow_provider_voicegenie.rules.outcomes import Condition, VoiceGenieRetryException

if TYPE_CHECKING:
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.memory import Memory

log = logging.getLogger(__name__)

#: Seconds before each look for a campaign whose making got no valid response.
_LOOK_DELAYS = (1.0, 2.0, 4.0, 8.0, 15.0)

#: For how long the service may still make a campaign after such a request; its longest upload takes a minute.
_LONGEST_CREATION = timedelta(minutes=10)

#: How many ids a message names.
_NAMED = 5


class CampaignOfName:
    """
    The one campaign that a task uploads to, by its name.

    *How it works.* The names of all campaigns are read first. If none has the name, the task records that it is about
    to make one, and sends one request, with one contact. The names are read once more: another task may have done the
    same. If the request got no valid response, they are read several times, and nothing else is done before.

    *What it does not do.* It never makes a second campaign while the service may still make the first one.

    *Known limitation.* Names need not be unique for the service, so of two tasks at the same moment each may make one.
    At least one of them sees both, and fails. Airflow before 3.3 keeps no record across tries: there, a campaign that
    was made since the run began is taken for the task's own by a later try.

    :param task: The operator, an ``UploadContactsOperator``.
    :param context: The task's context.
    :param hook: The task's hook.
    :param memory: What the task remembers.
    :raises VoiceGenieError: The name cannot be one.
    """

    def __init__(self, task: Any, context: Mapping[str, Any], hook: VoiceGenieHook, memory: Memory) -> None:
        check_campaign_name(task.campaign_name)
        self.name: str = task.campaign_name
        #: Whether this task made it, in this try or an earlier one.
        self.is_own = False
        self._task = task
        self._context = context
        self._hook = hook
        self._memory = memory
        before = (memory.document or memory.cleared or {}).get("creation") or {}
        #: What is on record of its making: when the request was sent, and the id.
        self._creation: Mapping[str, Any] = before if before.get("name") == self.name else {}

    def find(self) -> str | None:
        """
        Return the campaign's id; ``None`` if it is to be made.

        :raises AirflowFailException: Several have the name, or a condition fails the task.
        """
        if (campaign_id := self._creation.get("campaign_id")) is not None:
            log.info("Campaign %r: an earlier try of this task made it; its id is %r.", self.name, campaign_id)
            self.is_own = True
            return str(campaign_id)
        sent_at = read_time(self._creation.get("sent_at"))
        found = self._the_one() if sent_at is None else self._look_for_own()
        if found is not None:
            self.is_own = sent_at is not None or self._was_made_in_run(found)
            if not self.is_own:
                self._task.apply_condition(
                    Condition.CAMPAIGN_NAME_TAKEN,
                    f"this task did not make it, so its contacts would be called too (id {found.campaign_id!r:.80})",
                )
            return found.campaign_id
        if sent_at is not None and not self._may_make_again(sent_at):
            self._raise_unconfirmed("an earlier try of this task sent the request that makes it")
        return None

    def make(self, contact: Mapping[str, Any]) -> str:
        """
        Make the campaign with its first contact, and return its id.

        :raises VoiceGenieError: The service refused.
        :raises AirflowFailException: Whether it was made is unknown, or another task has made one of this name.
        """
        is_sent = False

        def on_sending() -> None:
            nonlocal is_sent
            if self._task.is_killed:
                raise VoiceGenieRetryException(
                    f"Campaign {self.name!r}: the task was ended from outside before the campaign was made."
                )
            is_sent = True

        # Without the record, a later try would make a second campaign.
        self._record(sent_at=write_time(datetime.fromtimestamp(self._hook.server_time(), UTC)))
        try:
            made = self._hook.create_campaign(
                self.name, [contact], script_id=self._task.script_id, on_sending=on_sending
            ).campaign_id
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                self._record()
                raise
            log.warning("%s The campaign may have been made; looking for it before anything else.", error)
            found = self._look_for_own()
            if found is None:
                self._raise_unconfirmed(f"no valid response came ({error.message.rstrip('.')})")
            made = found.campaign_id
        except BaseException:
            if not is_sent:
                self._record()
            raise
        self._record(campaign_id=made)
        self.is_own = True
        log.info("Campaign %r: it was made; its id is %r.", self.name, made)
        self._the_one()
        return made

    def _the_one(self) -> NamedCampaign | None:
        """Return the campaign of this name, if there is one."""
        found = self._hook.find_campaigns(self.name)
        if len(found) > 1:
            ids = ", ".join(repr(each.campaign_id)[:80] for each in found[:_NAMED])
            raise AirflowFailException(
                f"Campaign {self.name!r}: {len(found)} campaigns have this name ({ids}"
                f"{', and others' if len(found) > _NAMED else ''}), so nobody can say which is meant. Rename or delete "
                "all but one, or give campaign_id instead of campaign_name."
            )
        return next(iter(found), None)

    def _look_for_own(self) -> NamedCampaign | None:
        """Look several times for a campaign whose making got no valid response."""
        for delay in _LOOK_DELAYS[:-1]:
            time.sleep(delay)
            try:
                if (found := self._the_one()) is not None:
                    return found
            except VoiceGenieError as error:
                log.warning("%s", error)
        time.sleep(_LOOK_DELAYS[-1])
        return self._the_one()

    def _may_make_again(self, sent_at: datetime) -> bool:
        """Whether a campaign that is not there will not come any more, or a user has looked, and cleared the task."""
        return self._memory.document is None or self._hook.server_time() > (sent_at + _LONGEST_CREATION).timestamp()

    def _was_made_in_run(self, found: NamedCampaign) -> bool:
        """Whether it was made since the run began, if this is a later try, and Airflow keeps no record."""
        memory, began = self._memory, getattr(self._context.get("dag_run"), "start_date", None)
        if memory.is_kept or memory.is_first_try or began is None or found.created_at is None:
            return False
        return bool(found.created_at >= began)

    def _record(self, **creation: Any) -> None:
        """
        Record what is known of the making.

        :raises Exception: Airflow could not keep it.
        """
        self._creation = {"name": self.name, **creation} if creation else {}
        about = {**self._task.facts(), "campaign_id": creation.get("campaign_id") or ""}
        self._memory.write(**about, creation=self._creation)

    def _raise_unconfirmed(self, what: str) -> NoReturn:
        message = (
            f"it may have been made, as {what}, but no campaign of this name is there. Nobody was phoned. Look in the "
            "VoiceGenie dashboard, and clear this task: it goes on with the campaign if that is there by then, and "
            "makes it otherwise"
        )
        self._task.apply_condition(Condition.CREATION_UNCONFIRMED, message)
        raise AirflowFailException(f"Campaign {self.name!r}: {message}.")
