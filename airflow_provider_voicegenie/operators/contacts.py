# SPDX-License-Identifier: Apache-2.0
"""The operator that uploads contacts to a campaign."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.rules.contact_keys import check_key_connection
from airflow_provider_voicegenie.rules.contacts import ContactColumns, RejectedLimit
from airflow_provider_voicegenie.rules.file_formats import (
    KNOWN_ENDS,
    are_paths,
    check_literal_path,
    is_path,
    is_path_template,
)
from airflow_provider_voicegenie.rules.outcomes import (
    Condition,
    Finding,
    Outcome,
    OutcomeRules,
    TaskKind,
    apply_outcome,
)
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN, NotGiven, check_flags, read_whole_number

# What only a running task needs is imported in functions: each parse of a DAG file would pay for it.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, XComArg

__all__ = ["UploadContactsOperator"]

#: Contacts in a batch; the Upload Campaign Data page advises that many.
_BATCH_SIZE = 1000


#: The column of phone numbers, unless the author names another.
_NUMBER_COLUMN = "phone_number"


class _HiddenRows(Sequence[Any]):
    """Rows that Airflow does not render, and of which its logs, UI and database show only how many there are."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.hidden = rows

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: Any) -> Any:
        return self.hidden[index]

    def __repr__(self) -> str:
        return f"<{len(self)} rows, which are not shown>"

    def serialize(self) -> str:
        """Return what Airflow keeps of a rendered template."""
        return repr(self)


class _Hidden:
    """Something else that may name people, although it is of no use here. Airflow does not render it either."""

    def __init__(self, value: object) -> None:
        self.hidden = value

    def __repr__(self) -> str:
        return f"<{type(self.hidden).__name__}, which is not shown>"

    def serialize(self) -> str:
        """Return what Airflow keeps of a rendered template."""
        return repr(self)


def _for_airflow(contacts: Any) -> Any:
    """
    Return what Airflow may render, log and show: paths, and what becomes one or becomes rows; all else is hidden.

    Airflow renders each string in a list or a dict, and logs the whole of a value that it cannot render. Names were
    written by outsiders: as templates they could read every connection and variable of the task.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    if isinstance(contacts, _HiddenRows | _Hidden | ObjectStoragePath):
        return contacts
    if isinstance(contacts, os.PathLike):
        # Airflow renders texts, but no path of Python's.
        contacts = os.fsdecode(contacts)
    if isinstance(contacts, str):
        is_shown = not contacts.strip() or is_path(contacts) or is_path_template(contacts)
        return contacts if is_shown else _Hidden(contacts)
    if hasattr(contacts, "resolve"):
        # An XComArg, or a `literal(...)`, which shows the rows in it.
        rows: Any = getattr(contacts, "value", None)
        return _HiddenRows(rows) if _is_rows(rows) else contacts
    if callable(contacts):
        return contacts
    if _is_list_of_paths(contacts):
        paths = [_for_airflow(each) for each in contacts]
        if not any(isinstance(each, _Hidden) for each in paths):
            return paths
    return _HiddenRows(contacts) if _is_rows(contacts) else _Hidden(contacts)


def _as_given(shown: Any) -> Any:
    """Return what :func:`_for_airflow` made this of."""
    if isinstance(shown, list):
        return [_as_given(each) for each in shown]
    return getattr(shown, "hidden", shown)


def _is_list_of_paths(value: object) -> bool:
    try:
        return are_paths(value)
    except ValueError:
        # It is refused where it is read.
        return False


def _is_rows(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _check_no_references(name: str, rows: object) -> None:
    """
    Refuse rows that hold the output of a task: what is in a row is data, and never resolved.

    :param name: The parameter's name, for the message.
    :param rows: The rows, or a value in them.
    :raises ValueError: There is one in them.
    """
    if hasattr(rows, "iter_references"):
        raise ValueError(
            f"{name}: the output of another task is inside a list, where Airflow does not look for it. Make the rows "
            f"in a task, and give its output: {name}=make_rows()."
        )
    if isinstance(rows, Mapping):
        rows = rows.values()
    elif not isinstance(rows, list | tuple):
        return
    for value in rows:
        _check_no_references(name, value)


def _check_campaign(campaign_id: object, campaign_name: object, script_id: object) -> None:
    if (campaign_id is NOT_GIVEN) is (campaign_name is NOT_GIVEN):
        given = "neither is given. Give" if campaign_id is NOT_GIVEN else "both are given. Give only"
        raise ValueError(
            f"campaign_id, campaign_name: {given} the id of a campaign that exists, or the name of one that is made if "
            "there is none."
        )
    if campaign_name is not NOT_GIVEN:
        _check_name(campaign_name)
    if script_id is None:
        return
    if not isinstance(script_id, str) and not hasattr(script_id, "resolve"):
        raise ValueError(f"script_id must be a text; got {script_id!r:.80} ({type(script_id).__name__}).")
    if campaign_name is NOT_GIVEN:
        raise ValueError("script_id: a campaign that exists has its script. Leave it out, or give campaign_name.")


def _check_exclusions(exclude: Any, column: object) -> None:
    if exclude is None:
        raise ValueError("exclude: None says nothing. Leave it out if anybody may be called.")
    if isinstance(exclude, list | tuple):
        _check_no_references("exclude", exclude)
    try:
        paths: Any = exclude if are_paths(exclude) else [exclude]
    except ValueError as error:
        raise ValueError(f"exclude: {error}") from None
    for each in paths:
        if isinstance(each, str) and not isinstance(exclude, str) and "." not in each and "{" not in each:
            raise ValueError(
                'exclude must be paths, or rows such as [{"phone_number": "+1..."}]; it is a list of texts that end in '
                f"none of {KNOWN_ENDS}."
            )
        if isinstance(each, str):
            check_literal_path("exclude", each)
    if exclude is NOT_GIVEN and column != _NUMBER_COLUMN:
        raise ValueError("exclude_column: there is no list of people for it. Add exclude, or leave it out.")
    if not isinstance(column, str) or not column.strip():
        raise ValueError(f"exclude_column must be the name of a column; got {column!r:.80}.")


def _check_name(name: object) -> None:
    """
    Refuse what cannot be the name of a campaign, as far as that is known at parse time.

    :raises ValueError: It cannot be one.
    """
    if not isinstance(name, str):
        if not hasattr(name, "resolve"):
            raise ValueError(f"campaign_name must be a text; got {name!r:.80} ({type(name).__name__}).")
    elif not name.strip() or name != name.strip():
        problem = "white space around it" if name.strip() else "nothing in it"
        raise ValueError(f"campaign_name {name[:80]!r} has {problem}. Write the name as the dashboard is to show it.")


class UploadContactsOperator(CampaignTask):
    """
    Upload contacts to a VoiceGenie campaign that exists, or to one of a name, which is made if there is none.

    **A running campaign phones them at once**, so by default the task fails if the campaign runs.

    How it works: The task reads all rows once, and counts those that are no contacts. It reads the campaign. Then
    it reads the rows again, compares them with what it has checked, and sends them in batches
    (``POST /uploadCampaignData``, the service's Upload Campaign Data page), at most 50 a minute. It fails if they
    have changed meanwhile, and says how many were sent. It looks at the campaign again if its last look is a minute
    old. A million rows of a CSV or JSON lines file need no more memory than ten thousand, those of a Parquet file
    little more. The service skips numbers that a campaign has already. So a batch is sent again if its response was
    lost, and a later try of the task that has the same rows goes on after the last batch that the service
    acknowledged (Airflow 3.3; before, from the beginning). A batch that the service calls too large is sent in
    halves. A later try that is given another campaign fails.

    Each phone number is sent once: of several rows that have it, the first. People on the lists of ``exclude`` are not
    sent. These lists are read again by each try, right before its first batch; if one is missing, empty or unreadable,
    the condition ``EXCLUSIONS_MISSING`` holds, and nothing is sent.

    With ``campaign_name``, the task looks for a campaign of exactly that name. If there is none, it makes one, with the
    first contact; nobody is phoned by that. It records in Airflow that it is about to do so, and sends that request
    once. If the response is lost, it looks for the campaign several times. If that is not there, the condition
    ``CREATION_UNCONFIRMED`` holds, as the service may still make it; a later try looks first. If another task, or a
    person, made the campaign, the condition ``CAMPAIGN_NAME_TAKEN`` holds. If several have the name, the task fails.
    No campaign is made if nobody is to be uploaded.

    What it does not do: It removes no contact, and does not change phone numbers, unless ``region`` is given. It knows
    no calling hours: upload to a campaign that does not run, and start that within them.

    Known limitation: Airflow keeps the result of an upstream task in its database, and the source of a DAG file. If
    ``contacts`` or ``exclude`` are rows of one of these, or are given to ``partial()``, their names and numbers are
    there; write them to a file instead if they must not be. This task itself shows no number, name or address in its
    log, its errors, XCom, its rendered templates or its state. What the service says about rejected contacts is not
    quoted, only counted. While it works, a scratch database in the folder for temporary files holds hashes of the
    numbers; it is gone with the process. A file of ``rejected_path`` holds the rows themselves.

    Returns to XCom, as plain JSON:

    - ``campaign_id``: the id; ``None`` if no campaign was made, as there was nobody to upload.
    - ``campaign_name``: its name.
    - ``campaign_created``: whether this task made it, in this try or an earlier one.
    - ``uploaded``: contacts that the service added. Of a batch that may have been sent before, by an earlier try or
      before its response was lost, all count that were not rejected.
    - ``rejected``: rows that are no contacts, and contacts that the service rejected.
    - ``duplicates``: rows whose phone number an earlier row has.
    - ``excluded``: rows of people who must not be called.
    - ``batches``: batches that the service acknowledged.

    :param campaign_id: Id of a campaign that exists; or give ``campaign_name``. (templated)
    :param campaign_name: Name of the campaign, such as ``"reminders {{ ds }}"``; the page on pipelines says which day
        that is. (templated)
    :param script_id: Id of the script of a campaign that is made. Without one, somebody has to give it a script in the
        dashboard before it can be started. (templated)
    :param contacts: Rows (a list of dicts, or the output of an upstream task), or the path of a file: a
        string, a ``pathlib.Path`` or an ``ObjectStoragePath``, ending in ``.csv`` (UTF-8, commas, names of the columns
        in the first line), ``.jsonl`` or ``.ndjson`` (one JSON object a line), each also with ``.gz``, or ``.parquet``.
        (A path is templated. Rows are data: nothing in them is rendered, wherever they come from.)
    :param columns: Which columns are which part of a contact: ``{"mobile": "phone_number", "full name": "name"}``.
        The parts are ``phone_number``, ``name``, ``email``, and ``contact_id`` for your own id, which becomes a custom
        field of that name; columns with these names need none. All others become custom fields of the contact.
    :param region: The country of phone numbers without a country code, by its two letters in ISO 3166, such as ``IN``.
        The library ``phonenumbers`` (extra ``phone``) reads them: those that are not possible are rejected, those that
        are possible but not valid are counted in a warning, and all are sent in E.164, such as ``+919812345678``. By
        default, numbers are sent as they are written, and equal digits make equal numbers (``00`` in front is ``+``).
    :param exclude: People who must not be called: a path or a list of paths, in the same forms as ``contacts``, or
        rows. Their numbers are read as those of the contacts are; without ``region``, contacts who may be meant in
        another notation are left out, too. Leave it out if anybody may be called. (Paths are templated.)
    :param exclude_column: The column of the phone numbers in ``exclude``.
    :param rejected_path: A file for the rows that are not sent, with the columns ``row_number``, ``why``
        (``rejected``, ``duplicate`` or ``excluded``), ``reason``, and those of the row; in the format that its end
        says. It replaces the one before, whole or not at all, before anything is sent, also if the task fails with
        ``CONTACTS_REJECTED``. **It holds personal data.** (templated)
    :param contact_keys_path: A file for the contacts that are sent, with the columns ``contact_id`` and
        ``contact_key``: a keyed hash of the phone number, by which they join with the calls of a
        :class:`~airflow_provider_voicegenie.transfers.history.CallHistoryToObjectStorageOperator`. It replaces the one
        before, whole or not at all, before anything is sent. Who has the secret can find out the numbers. (templated)
    :param contact_key_conn_id: The Airflow connection, of any type, whose password is the secret of the keys: a random
        text of at least 16 characters.
    :param voicegenie_conn_id: Id of the Airflow connection. (templated)
    :param batch_size: Contacts in a batch.
    :param max_rejected: How many rows may be rejected, as a number or as a percentage of all rows such as ``"2%"``.
        More are the condition ``CONTACTS_REJECTED``. If rows that are no contacts are already too many, nothing is
        sent.
    :param upload_in_backfill: Whether backfill runs upload too, and runs that asset events of backfill runs alone have
        triggered. They do not by default.
    :param outcomes: Changes to the outcome table. ``{"CAMPAIGN_ALREADY_RUNNING": "succeed"}`` uploads to a running
        campaign, which phones the contacts at once; ``{"CONTACTS_REJECTED": "succeed"}`` uploads the others;
        ``{"CAMPAIGN_NAME_TAKEN": "succeed"}`` uploads to a campaign that this task has not made.
    :raises ValueError: An argument is wrong; raised when the DAG is parsed.
    """

    template_fields: Sequence[str] = (
        "campaign_id",
        "campaign_name",
        "script_id",
        "contacts",
        "exclude",
        "rejected_path",
        "contact_keys_path",
        "voicegenie_conn_id",
    )
    ui_color = "#dbe7f6"
    asset_event_fields = ("uploaded",)

    def __init__(
        self,
        *,
        campaign_id: str | NotGiven = NOT_GIVEN,
        campaign_name: str | NotGiven = NOT_GIVEN,
        script_id: str | None = None,
        contacts: Sequence[Mapping[str, Any]] | str | os.PathLike[str] | ObjectStoragePath | XComArg,
        columns: Mapping[str, str] | None = None,
        region: str | NotGiven = NOT_GIVEN,
        exclude: Sequence[Any] | str | os.PathLike[str] | ObjectStoragePath | XComArg | NotGiven = NOT_GIVEN,
        exclude_column: str = _NUMBER_COLUMN,
        rejected_path: str | ObjectStoragePath | None = None,
        contact_keys_path: str | ObjectStoragePath | None = None,
        contact_key_conn_id: str | None = None,
        voicegenie_conn_id: str = "voicegenie_default",
        batch_size: int = _BATCH_SIZE,
        max_rejected: int | str = 0,
        upload_in_backfill: bool = False,
        outcomes: Mapping[Condition | str, Outcome | str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.contacts = contacts
        self.exclude = exclude
        is_by_name = campaign_name is not NOT_GIVEN
        super().__init__(
            campaign_id=campaign_id,
            voicegenie_conn_id=voicegenie_conn_id,
            outcome_rules=OutcomeRules(TaskKind.UPLOAD, outcomes),
            **kwargs,
        )
        # Behind Airflow's own check, which names an argument that is unknown.
        _check_campaign(campaign_id, campaign_name, script_id)
        check_flags(upload_in_backfill=upload_in_backfill)
        check_literal_path("contacts", self.rows_or_path)
        if isinstance(contacts, list | tuple):
            _check_no_references("contacts", contacts)
        _check_exclusions(exclude, exclude_column)
        for name, path in (("rejected_path", rejected_path), ("contact_keys_path", contact_keys_path)):
            if path is not None:
                check_literal_path(name, path)
        check_key_connection("contact_keys_path", contact_keys_path is not None, contact_key_conn_id)
        if region is None:
            raise ValueError(
                'region: None says nothing. Leave it out to send numbers as written, or give such as "IN".'
            )
        known_region = None if region is NOT_GIVEN else region
        # Made only to refuse wrong arguments now; a try makes its own.
        ContactColumns(columns, known_region)
        RejectedLimit(max_rejected)
        #: Whether ``campaign_name`` was given, whatever its template renders to.
        self.is_by_name = is_by_name
        self.campaign_name = campaign_name if is_by_name else None
        self.script_id = script_id
        # What a template makes of a missing value may stand in the middle of a name.
        self.may_be_named_none = not isinstance(campaign_name, str) or "None" in campaign_name
        self.columns = columns
        self.region = known_region
        self.exclude_column = exclude_column
        self.rejected_path = rejected_path
        self.contact_keys_path = contact_keys_path
        self.contact_key_conn_id = contact_key_conn_id
        self.batch_size = read_whole_number("batch_size", batch_size, minimum=1)
        self.max_rejected = max_rejected
        self.upload_in_backfill = upload_in_backfill

    @property
    def contacts(self) -> Any:
        """What the task was given, in a form that Airflow may show."""
        return self._contacts

    @contacts.setter
    def contacts(self, value: Any) -> None:
        # Airflow renders what is here, sets the result, keeps that in its database and shows it in its UI.
        self._contacts = _for_airflow(value)

    @property
    def rows_or_path(self) -> Any:
        """What the task was given."""
        return _as_given(self._contacts)

    @property
    def exclude(self) -> Any:
        """Who must not be called, in a form that Airflow may show."""
        return self._exclude

    @exclude.setter
    def exclude(self, value: Any) -> None:
        self._exclude = value if value is None or value is NOT_GIVEN else _for_airflow(value)

    @property
    def excluded_people(self) -> Any:
        """Who must not be called, as the task was given it."""
        return _as_given(self._exclude)

    @property
    def campaign_label(self) -> str:
        """The campaign in messages: its id, or its name while the id is not known."""
        return self.campaign_id or str(self.campaign_name)

    def execute(self, context: Context) -> dict[str, Any]:
        """Upload the contacts, and return the XCom value described in the class docstring."""
        from airflow_provider_voicegenie.api.endpoints import check_campaign_id
        from airflow_provider_voicegenie.api.errors import VoiceGenieError
        from airflow_provider_voicegenie.start.guards import check_backfill
        from airflow_provider_voicegenie.transfers.contacts import ContactUpload

        memory = Memory(context)
        if (remembered := memory.read()) is not None:
            self._check_same_campaign(remembered)
        if not self.upload_in_backfill:
            finding = check_backfill(context, "upload nothing", "upload_in_backfill")
            if finding is not None:
                apply_outcome(self.outcome_rules, finding, self.campaign_label)
        hook = self._hook
        try:
            hook.get_conn()
            if self.is_by_name:
                self.campaign_id = ""
            else:
                check_campaign_id(self.campaign_id)
                if not self.is_killed:
                    self.keep_link(context, hook)
            result = ContactUpload(self, context, hook, memory).run()
        except VoiceGenieError as error:
            apply_outcome(self.outcome_rules, Finding.of(error), self.campaign_label)
            raise
        finally:
            self.note_end_by_user(context)
        return self.add_to_asset_events(context, result)

    def facts(self) -> dict[str, Any]:
        """Return the campaign, by its name too if it has one, and the connection."""
        return {**super().facts(), **({"campaign_name": self.campaign_name} if self.is_by_name else {})}

    def _check_same_campaign(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with another campaign: the contacts that are rendered now may be meant for that one."""
        facts = self.facts()
        if self.is_by_name:
            # Its id is what the name leads to.
            del facts["campaign_id"]
        elif not before["campaign_id"]:
            return
        for name, now in facts.items():
            if (then := before.get(name)) != now:
                about = before["campaign_id"] or before.get("campaign_name")
                raise AirflowFailException(
                    f"An earlier try of this task was about campaign {about!r:.80}, and the template of {name} now "
                    f"gives {now!r:.80} instead of {then!r:.80}. Nothing was sent. To upload to another campaign, "
                    "clear the task."
                )
