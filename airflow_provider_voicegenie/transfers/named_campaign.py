# SPDX-License-Identifier: Apache-2.0
"""The campaign of one name: found, or made by the task, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.endpoints import check_campaign_name
from airflow_provider_voicegenie.api.errors import NotFoundError, VoiceGenieError
from airflow_provider_voicegenie.api.models import NamedCampaign, read_time, write_time
from airflow_provider_voicegenie.rules.outcomes import Condition, VoiceGenieRetryException
from airflow_provider_voicegenie.timing import timing

if TYPE_CHECKING:
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
    from airflow_provider_voicegenie.memory import Memory

log = logging.getLogger(__name__)

#: For how long the service may still make a campaign after such a request; its longest upload takes a minute.
_LONGEST_CREATION = timedelta(minutes=10)

#: How many seconds after its record the request may be sent. A process that was suspended for longer is not the only
#: one any more.
_LONGEST_CONNECT = 120.0

#: How many ids a message names.
_NAMED = 5


class CampaignOfName:
    """
    The one campaign that a task uploads to, by its name.

    *How it works.* The names of all campaigns are read first. If none has the name, the task records that it is about
    to make one, and sends one request, with one contact. The names are read once more: another task may have done the
    same. If the request got no valid response, they are read several times, and nothing else is done before. A campaign
    that turns up then is the task's own if it has no more than that one contact.

    *What it does not do.* It never makes a second campaign while the service may still make the first one.

    *Known limitation.* Names need not be unique for the service, so of two tasks at the same moment each may make one.
    At least one of them sees both, and fails. Airflow before 3.3 keeps no record across tries: there, a campaign that
    was made since the run began is taken for the task's own by a later try, and a process that is killed outright while
    it sends may have a second one made. From 3.4 on, a clear by a user deletes the record.

    :param task: The operator, an ``UploadContactsOperator``.
    :raises VoiceGenieError: The name cannot be one.
    """

    def __init__(self, task: Any, context: Mapping[str, Any], hook: VoiceGenieHook, memory: Memory) -> None:
        check_campaign_name(task.campaign_name)
        self.name: str = task.campaign_name
        if "None" in self.name.split() and not task.may_be_named_none:
            raise AirflowFailException(
                f"campaign_name {self.name!r}: the template made None of a value that is missing. Check the param, "
                "variable, XCom or field of conf that it names. Nothing was sent."
            )
        #: Whether this task made it, in this try or an earlier one.
        self.is_own = False
        self._task = task
        self._context = context
        self._hook = hook
        self._memory = memory
        before = memory.document or memory.cleared or {}
        is_same = all(before.get(each) == getattr(task, each) for each in ("campaign_name", "voicegenie_conn_id"))
        #: What is on record of its making: when the request was sent, or the id.
        self._creation: Mapping[str, Any] = (before.get("creation") or {}) if is_same else {}

    def find(self) -> str | None:
        """
        Return the campaign's id; ``None`` if it is to be made.

        :raises AirflowFailException: Several have the name, or a condition fails the task.
        """
        sent_at = read_time(self._creation.get("sent_at"))
        found = self._look_several_times() if sent_at is not None or self._may_lack_record else self._the_one()
        if (recorded := self._creation.get("campaign_id")) is not None:
            return self._find_own(str(recorded), found)
        if found is None:
            if sent_at is not None and self._hook.server_time() < (sent_at + _LONGEST_CREATION).timestamp():
                self._raise_unconfirmed("an earlier try of this task may have sent the request that makes it", sent_at)
            return None
        return self._settle(found, sent_at)

    def make(self, contact: Mapping[str, Any]) -> str:
        """
        Make the campaign with its first contact, and return its id.

        :raises VoiceGenieError: The service refused.
        :raises AirflowFailException: Whether it was made is unknown, or another task has made one of this name.
        """
        is_sent, recorded_at = False, time.time()

        def on_sending() -> None:
            nonlocal is_sent
            if self._task.is_killed or time.time() - recorded_at > _LONGEST_CONNECT:
                raise VoiceGenieRetryException(
                    f"Campaign {self.name!r}: the task was ended from outside before the campaign was made."
                )
            is_sent = True

        sent_at = datetime.fromtimestamp(self._hook.server_time(), UTC)
        # Without the record, a later try would make a second campaign.
        self._record(sent_at=write_time(sent_at))
        try:
            response = self._hook.create_campaign(
                self.name, [contact], script_id=self._task.script_id, on_sending=on_sending
            )
        except VoiceGenieError as error:
            if not error.may_have_taken_effect:
                self._take_back()
                raise
            log.warning("%s The campaign may have been made; looking for it before anything else.", error)
            return self._find_after(error, sent_at)
        except BaseException:
            # Also if it was interrupted, as by `execution_timeout`.
            if not is_sent and time.time() - recorded_at <= _LONGEST_CONNECT:
                self._take_back()
            raise
        made = self._keep(response.campaign_id)
        log.info("Campaign %r: it was made; its id is %r.", self.name, made)
        listed = self._the_one()
        if listed is None:
            log.warning(
                "Campaign %r: it is not in the list of names yet, so one of another task may not be either.", made
            )
        elif listed.campaign_id != made:
            self._raise_several(made, listed.campaign_id)
        return made

    def _find_after(self, error: VoiceGenieError, sent_at: datetime) -> str:
        """Return the campaign that is there after a request without a valid response."""
        problem = f"no valid response came ({error.message.rstrip('.')})"
        found = None
        try:
            found = self._look_several_times()
        except VoiceGenieError as reading:
            if self._memory.is_kept:
                # The next try looks first.
                raise
            problem += f", and then: {reading.message.rstrip('.')}"
        if found is None:
            self._raise_unconfirmed(problem, sent_at)
        return self._settle(found, sent_at)

    def _settle(self, found: NamedCampaign, sent_at: datetime | None) -> str:
        """Return the id of a campaign that is there, if it is the task's own, or the author allows another."""
        if self._may_be_own(found, sent_at):
            return self._keep(found.campaign_id)
        self._task.apply_condition(
            Condition.CAMPAIGN_NAME_TAKEN,
            f"a campaign of this name is there already (id {found.campaign_id!r:.80}), and Airflow has no record that "
            "this task made it: its contacts would be called too. If another run made it for the same day, there is "
            f"nothing to do. To upload to it all the same, give campaign_id, or "
            f'outcomes={{"{Condition.CAMPAIGN_NAME_TAKEN}": "succeed"}}',
        )
        return found.campaign_id

    # What is there.

    def _the_one(self) -> NamedCampaign | None:
        """Return the campaign of this name, if there is one."""
        found = self._hook.find_campaigns(self.name)
        if len(found) > 1:
            self._raise_several(*(each.campaign_id for each in found))
        return next(iter(found), None)

    def _look_several_times(self) -> NamedCampaign | None:
        """Look for a campaign that the service may be about to make."""
        for delay in timing.creation_read_delays[:-1]:
            time.sleep(delay)
            try:
                if (found := self._the_one()) is not None:
                    return found
            except VoiceGenieError as error:
                log.warning("%s", error)
        time.sleep(timing.creation_read_delays[-1])
        return self._the_one()

    @property
    def _may_lack_record(self) -> bool:
        """Whether an earlier try may have sent the request, and Airflow has no record of it that can be read."""
        memory = self._memory
        if self._creation or memory.generation.try_number <= 1:
            return False
        # From Airflow 3.4 on, a clear deletes it.
        return memory.is_unreadable or not memory.is_kept or (memory.is_first_try and memory.cleared is None)

    def _may_be_own(self, found: NamedCampaign, sent_at: datetime | None) -> bool:
        """Say whether a campaign that was found is what this task's request has made."""
        memory, began = self._memory, getattr(self._context.get("dag_run"), "start_date", None)
        if sent_at is not None:
            # That has one contact at most; more were uploaded by somebody else.
            return self._hook.get_campaign(found.campaign_id).total_count in (0, 1)
        if memory.is_kept or memory.is_first_try or began is None or found.created_at is None:
            return False
        return bool(found.created_at >= began)

    def _find_own(self, recorded: str, found: NamedCampaign | None) -> str | None:
        """Return the campaign that is on record, if it is still there."""
        if found is not None and found.campaign_id != recorded:
            self._raise_several(recorded, found.campaign_id)
        try:
            if found is None:
                self._hook.get_campaign(recorded)
        except NotFoundError:
            if self._memory.document is not None:
                raise
            log.info("Campaign %r: this task made it before it was cleared, and it is gone (%r).", self.name, recorded)
            self._creation = {}
            return None
        log.info("Campaign %r: an earlier try of this task made it; its id is %r.", self.name, recorded)
        return self._keep(recorded)

    # What Airflow keeps.

    def _keep(self, campaign_id: str) -> str:
        """Record that a campaign is the task's own, also for the tries after a clear."""
        self._record(campaign_id=campaign_id)
        self.is_own = True
        return campaign_id

    def _take_back(self) -> None:
        """Record that nothing was sent. If that fails, the next try looks for the campaign."""
        with suppress(Exception):
            self._record()

    def _record(self, **creation: Any) -> None:
        """
        Record what is known of the making.

        :raises Exception: Airflow could not keep it.
        """
        self._creation = creation
        about = {**self._task.facts(), "campaign_id": creation.get("campaign_id") or ""}
        self._memory.write(**about, creation=creation)

    # What ends the task.

    def _raise_several(self, *campaign_ids: str) -> NoReturn:
        ids = ", ".join(repr(each)[:80] for each in campaign_ids[:_NAMED])
        raise AirflowFailException(
            f"Campaign {self.name!r}: {len(campaign_ids)} campaigns have this name ({ids}"
            f"{', and others' if len(campaign_ids) > _NAMED else ''}), so nobody can say which is meant. Rename or "
            "delete all but one, or give campaign_id instead of campaign_name."
        )

    def _raise_unconfirmed(self, what: str, sent_at: datetime) -> NoReturn:
        message = (
            f"it may have been made, as {what}, but no campaign of this name is there. Nobody was phoned. Look in the "
            f"VoiceGenie dashboard. Clear this task after {write_time(sent_at + _LONGEST_CREATION)}: it looks again, "
            "and makes the campaign if that is not there"
        )
        if self._memory.is_kept:
            self._task.apply_condition(Condition.CREATION_UNCONFIRMED, message)
        # A retry that knows nothing of this would make another one.
        raise AirflowFailException(f"Campaign {self.name!r}: {message} [{Condition.CREATION_UNCONFIRMED}].")
