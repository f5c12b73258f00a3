# SPDX-License-Identifier: Apache-2.0
"""The hook: an Airflow connection in, the service's responses as typed objects out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date, datetime
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_voicegenie.api import endpoints
from airflow_provider_voicegenie.api.errors import UnauthorizedError, VoiceGenieError, unchained
from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, CONNECTION_TYPE, UI_FIELD_BEHAVIOUR
from airflow_provider_voicegenie.hooks.connection import (
    client_settings,
    make_client,
    no_such_connection,
    unknown_fields,
    unreadable_connection,
)
from airflow_provider_voicegenie.rules.contact_keys import MINIMUM_SECRET, contact_key
from airflow_provider_voicegenie.rules.parameters import read_bounds, read_call_statuses

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.endpoints import Request
    from airflow_provider_voicegenie.api.models import (
        Call,
        CallPage,
        Campaign,
        CampaignStats,
        NamedCampaign,
        PausedCampaign,
        Quota,
        StartedCampaign,
        UploadedContacts,
    )
    from airflow_provider_voicegenie.api.session import BoundSession

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def _check_contacts(contacts: Sequence[Mapping[str, Any]]) -> None:
    for number, contact in enumerate(contacts, start=1):
        if not contact.get("phone_number"):
            raise ValueError(f"contacts: number {number:,} has no phone_number; nothing was sent.")


def _distinct_calls(pages: Iterable[CallPage], seen: set[str], secret: str | None) -> Iterator[Call]:
    """
    Give each call of the pages once.

    :param seen: The keys of those that were given.
    :param secret: That of their contact keys; ``None`` for none.
    """
    for page in pages:
        for key, _, call in page.distinct():
            if key not in seen:
                seen.add(key)
                yield call if secret is None else replace(call, contact_key=contact_key(secret, call.phone_number))


def _check_page_size(page_size: object) -> None:
    if isinstance(page_size, bool) or not isinstance(page_size, int) or not 1 <= page_size <= endpoints.MAX_PAGE_SIZE:
        raise ValueError(f"page_size must be a whole number from 1 to {endpoints.MAX_PAGE_SIZE}, not {page_size!r}.")


class VoiceGenieHook(BaseHook):
    """
    Speaks to the VoiceGenie campaign service with the API key of an Airflow connection.

    A request that does not succeed raises a :class:`~airflow_provider_voicegenie.api.errors.VoiceGenieError`; it says
    what happened, and whether the service may have acted all the same. Reads are repeated while trouble looks
    temporary. Starts and pauses are sent once: after an error with ``may_have_taken_effect``, read the campaign before
    anything else, as :class:`~airflow_provider_voicegenie.operators.campaign.StartCampaignOperator` does.

    The connection is read when the first request needs it, and again if the service no longer accepts its API key:
    reads, uploads and pauses go on if it has another key by then, so ``on_sending`` of a pause may be called twice.
    The hook can be pickled; its client, which holds the key, stays behind.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    conn_name_attr = "voicegenie_conn_id"
    default_conn_name = "voicegenie_default"
    conn_type = CONNECTION_TYPE
    hook_name = "VoiceGenie"

    #: The service's ``address``, and its ``clock_offset`` in seconds, from a trigger's event. They count until this
    #: hook reads its connection itself.
    service: Mapping[str, Any] = MappingProxyType({})

    #: Makes the context in which Airflow is asked for the connection: what may interrupt a request must not interrupt
    #: that.
    asking_airflow: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    def __init__(self, voicegenie_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.voicegenie_conn_id = voicegenie_conn_id

    def get_conn(self) -> BoundSession:
        """
        Return a ``requests.Session`` for the service, for requests that this hook has no method for.

        A path is one below the connection's base URL: ``hook.get_conn().get("/campaign/1")``. The API key goes to the
        connection's own scheme, host and port only. Each request is bounded by the connection's ``timeout``, follows no
        redirect, and is never repeated. Its adapters and response hooks are those of this hook's other methods, too.
        :meth:`request` also checks the response.

        :raises InvalidConnectionError: The connection has a missing or wrong value; nothing is sent.
        """
        return self.client.session

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        repeatable: bool = False,
    ) -> Any:
        """
        Send a request that this hook has no method for, and return the ``data`` of the response.

        :param method: HTTP method, such as ``"POST"``.
        :param path: Path below the connection's base URL, such as ``"/getHistory"``. Escape data in it.
        :param params: The query.
        :param json: The body.
        :param repeatable: Whether sending it again is harmless. It is repeated then while trouble looks temporary, and
            otherwise never.
        :raises VoiceGenieError: There is no response, or one that does not say success.
        :raises ValueError: An argument is wrong.
        """
        return self.send(endpoints.other(method, path, params=params, json=json, repeatable=repeatable))

    def start_campaign(
        self,
        campaign_id: str,
        *,
        on_sending: Callable[[], None] | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> StartedCampaign:
        """
        Start a campaign (``GET /startCampaign/{id}``): people are phoned at once. Sent once, whatever comes back.

        :param on_sending: Called once the connection is made, right before the request is sent: from then on, the
            campaign may have been started. If it raises, nothing is sent, and this method raises the same.
        :param while_waiting: Called several times a second while the connection is made or the response awaited. If it
            raises, that ends, and this method raises the same; a request that was not sent by then is never sent.
        """
        return self.client.send(endpoints.start(campaign_id), on_sending=on_sending, while_waiting=while_waiting)

    def pause_campaign(self, campaign_id: str, *, on_sending: Callable[[], None] | None = None) -> PausedCampaign:
        """
        Pause a campaign (``GET /pauseTheCampaign/{id}``): no call begins, those in progress run to their end.

        :param on_sending: Called once the connection is made, right before the request is sent. If it raises, nothing
            is sent, and this method raises the same.
        """
        return self.send(endpoints.pause(campaign_id), on_sending=on_sending)

    def get_campaign(self, campaign_id: str, *, max_attempts: int | None = None) -> Campaign:
        """
        Read a campaign (``GET /campaign/{id}``).

        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return self.send(endpoints.campaign(campaign_id), max_attempts=max_attempts)

    def get_campaign_stats(self, campaign_id: str, *, max_attempts: int | None = None) -> CampaignStats:
        """
        Read a campaign's counters (``GET /getCampaignStats/{id}``); they may be 30 seconds old.

        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return self.send(endpoints.statistics(campaign_id), max_attempts=max_attempts)

    def list_campaigns(self, page_size: int = 1000, *, max_attempts: int | None = None) -> Iterator[Campaign]:
        """
        Read all campaigns of the key (``GET /fetchCampaignData``), each page when the iteration comes to it.

        The service promises no order, so pages may shift while they are read: a campaign that shows up twice is
        given once, and one may be missed.

        :param page_size: Campaigns asked for at a time, 1 to 1000.
        :param max_attempts: Attempts for each page while trouble looks temporary; the connection's number by default.
        :raises ValueError: ``page_size`` is something else.
        """
        _check_page_size(page_size)

        def campaigns() -> Iterator[Campaign]:
            seen: set[str] = set()
            offset = 0
            while True:
                page = self.send(endpoints.campaign_page(limit=page_size, offset=offset), max_attempts=max_attempts)
                for campaign in page.campaigns:
                    if campaign.campaign_id not in seen:
                        seen.add(campaign.campaign_id)
                        yield campaign
                offset += page.size
                if page.size == 0 or offset >= page.total:
                    return

        return campaigns()

    def get_quota(self, *, max_attempts: int | None = None) -> Quota:
        """
        Read what the account may still use (``GET /fetchQuota``).

        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return self.send(endpoints.quota(), max_attempts=max_attempts)

    def upload_contacts(
        self,
        campaign_id: str,
        contacts: Sequence[Mapping[str, Any]],
        *,
        before_attempt: Callable[[VoiceGenieError | None], None] | None = None,
        on_sending: Callable[[], None] | None = None,
    ) -> UploadedContacts:
        """
        Add contacts to a campaign (``POST /uploadCampaignData``): a running campaign phones them at once.

        The request is repeated while trouble looks temporary, also if its response was lost: the service skips a
        number that the campaign has already. Contacts that it rejects are in the result.

        :param contacts: ``phone_number``, and as you have them ``name``, ``email`` and ``custom_fields``, of each; a
            thousand at a time, as the service advises.
        :param before_attempt: Called before each attempt, with the error of the attempt before.
        :param on_sending: Called once the connection of an attempt is made, right before any of it is sent. If it
            raises, nothing more is sent, and this method raises the same.
        :raises ValueError: A contact has no ``phone_number``.
        """
        _check_contacts(contacts)
        request = endpoints.upload(campaign_id, contacts)
        return self.send(request, before_attempt=before_attempt, on_sending=on_sending)

    def create_campaign(
        self,
        name: str,
        contacts: Sequence[Mapping[str, Any]],
        *,
        script_id: str | None = None,
        on_sending: Callable[[], None] | None = None,
    ) -> UploadedContacts:
        """
        Make a campaign with its first contacts (``POST /uploadCampaignData`` without an id); nobody is phoned.

        Sent once, whatever comes back: several campaigns may have one name. Look with :meth:`find_campaigns` before.

        :param name: Its name.
        :param contacts: As those of :meth:`upload_contacts`; ``campaign_id`` of the result is the new campaign's.
        :param script_id: The script of its calls.
        :param on_sending: Called once the connection is made, right before the request is sent. If it raises, nothing
            is sent, and this method raises the same.
        :raises ValueError: There is no contact, or one has no ``phone_number``.
        """
        if not contacts:
            raise ValueError("contacts: there is none; nothing was sent.")
        _check_contacts(contacts)
        return self.send(endpoints.create(name, contacts, script_id), on_sending=on_sending)

    def find_campaigns(self, name: str) -> tuple[NamedCampaign, ...]:
        """
        Find the campaigns of one name (``GET /fetchCampaignDataOnlyNamesAndAll``).

        The service leaves out those that were deleted or hidden.

        :param name: The name, exactly.
        """
        return self.send(endpoints.names(name))

    def iter_call_history(
        self,
        campaign_id: str,
        *,
        statuses: Iterable[str] | None = None,
        since: date | str | None = None,
        until: date | str | None = None,
        page_size: int = 1000,
        contact_key_conn_id: str | None = None,
    ) -> Iterator[Call]:
        """
        Read a campaign's calls (``POST /getHistory``), each page when the iteration comes to it.

        A call is personal data: name, number, recording. The service promises no order, so pages may shift while they
        are read: a call that shows up twice is given once, and one may be missed. The ids of all calls stay in memory.
        :class:`~airflow_provider_voicegenie.transfers.history.CallHistoryToObjectStorageOperator` misses none and
        needs no memory.

        :param statuses: Only calls with these outcomes: ``answered``, ``busy``, ``no_answer``, ``failed``.
        :param since: Only calls from then on, as a ``datetime`` or in ISO 8601; in UTC if it names no zone. A plain
            date begins with that day, in UTC.
        :param until: Only calls until then, in the same forms; a plain date includes that day.
        :param page_size: Calls asked for at a time.
        :param contact_key_conn_id: The Airflow connection whose password is the secret of ``contact_key``, which the
            calls have then; see :func:`~airflow_provider_voicegenie.rules.contact_keys.contact_key`.
        :raises ValueError: ``page_size``, a status, a time or the secret is wrong.
        """
        _check_page_size(page_size)
        secret = None if contact_key_conn_id is None else self.contact_key_secret(contact_key_conn_id)
        wanted = read_call_statuses(statuses) or (None,)
        begin, end = read_bounds(since, until)
        seen: set[str] = set()
        pages = chain.from_iterable(
            self.call_history_pages(
                campaign_id, lambda: len(seen), status=status, since=begin, until=end, page_size=page_size
            )
            for status in wanted
        )
        return _distinct_calls(pages, seen, secret)

    @unchained()
    def contact_key_secret(self, conn_id: str) -> str:
        """
        Return the secret of contact keys: the password of an Airflow connection, of any type.

        :raises ValueError: There is no such connection, or its password is too short.
        """
        try:
            secret = self.get_connection(conn_id).password or ""
        except AirflowNotFoundException:
            raise ValueError(
                f"contact_key_conn_id: there is no Airflow connection {conn_id!r:.80}. Add one of any type, whose "
                "password is a random text, such as the output of `openssl rand -hex 32`."
            ) from None
        if len(secret) < MINIMUM_SECRET:
            problem = f"has a password of fewer than {MINIMUM_SECRET} characters" if secret else "has no password"
            raise ValueError(
                f"contact_key_conn_id: connection {conn_id!r:.80} {problem}. With a short secret, the phone numbers "
                "behind the keys can be guessed: take a random text, such as the output of `openssl rand -hex 32`."
            )
        return str(secret)

    def call_history_pages(
        self,
        campaign_id: str,
        count_known: Callable[[], int],
        *,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 1000,
    ) -> Iterator[CallPage]:
        """
        Read a campaign's calls once, page by page, until one is empty, or is beyond the total and shows nothing new.

        So a total that is too low hides no call, and a service that does not know of offsets is not read for ever.

        :param count_known: Returns how many different calls have been seen.
        :param status: Only calls with this outcome.
        :param since: Only calls from then on.
        :param until: Only calls until then.
        :param page_size: Calls asked for at a time.
        """
        offset = 0
        while True:
            request = endpoints.history(
                campaign_id, limit=page_size, offset=offset, status=status, since=since, until=until
            )
            page = self.send(request)
            count = count_known()
            yield page
            offset += page.size
            if page.size == 0 or (offset >= page.total and count_known() == count):
                return

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last response showed it."""
        if "client" not in self.__dict__ and self.service:
            return float(time.time() + self.service["clock_offset"])
        return self.client.server_time()

    def campaign_url(self, campaign_id: str) -> str | None:
        """Return the address at which people see a campaign; ``None`` if Extra has no ``campaign_url``."""
        return self.client.campaign_url(campaign_id)

    @property
    def known_address(self) -> str | None:
        """Host and port of the service, in words; ``None`` while the connection has not been read."""
        client = self.__dict__.get("client")
        return self.service.get("address") if client is None else client.settings.address

    def test_connection(self) -> tuple[bool, str]:
        """Ask the service once for one campaign of the list, which changes nothing, and say in words how it went."""
        try:
            connection = self._airflow_connection()
            # Airflow tests a form under a connection id that it makes up.
            client = make_client(replace(client_settings(connection), conn_id=None))
            client.send(endpoints.campaign_page(limit=1, offset=0), max_attempts=1)
        except VoiceGenieError as error:
            message = error.message.removeprefix(f"Connection {self.voicegenie_conn_id!r}: ")
            return False, message[:1].upper() + message[1:]
        misspelled, others = unknown_fields(connection.extra)
        found = "; ".join((*misspelled, *others))
        message = f"The VoiceGenie service accepts the API key{f', but Extra has {found}' if found else ''}"
        return not misspelled, message if message.endswith("?") else f"{message}."

    def send(self, request: Request[Result], **options: Any) -> Result:
        """
        Send a request of :mod:`airflow_provider_voicegenie.api.endpoints`, and return what its response says.

        If the API key is no longer accepted, and the connection has another one, use that: a task may read, upload, or
        follow a campaign that it is to pause, for longer than its first key lives. A start is not sent again.

        :param options: Of :meth:`~airflow_provider_voicegenie.api.client.VoiceGenieClient.send`.
        :raises VoiceGenieError: There is no response, or one that does not say success.
        """
        client = self.client
        try:
            return client.send(request, **options)
        except UnauthorizedError:
            # With 401, nothing was carried out, and one pause more does no harm.
            if not ((request.is_repeatable or request.name == "pause") and self._take_new_key(client)):
                raise
        return self.client.send(request, **options)

    def _take_new_key(self, client: VoiceGenieClient) -> bool:
        """Make a client with the connection's API key of now; return whether that is another key."""
        try:
            settings = client_settings(self._airflow_connection())
        except VoiceGenieError:
            return False
        # Another address may be another account: its campaigns are not those that the task is about.
        if settings.api_key == client.settings.api_key or settings.base_url != client.settings.base_url:
            return False
        log.info("Connection %r: its API key was replaced; going on with the new one.", self.voicegenie_conn_id)
        self.client = make_client(settings)
        return True

    @unchained()
    def _airflow_connection(self) -> Any:
        try:
            with self.asking_airflow():
                return self.get_connection(self.voicegenie_conn_id)
        except AirflowNotFoundException:
            raise no_such_connection(self.voicegenie_conn_id) from None
        except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
            raise unreadable_connection(self.voicegenie_conn_id, error) from None

    @cached_property
    def client(self) -> VoiceGenieClient:
        """What sends the requests of this hook, for modules of this package."""
        return make_client(client_settings(self._airflow_connection()))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "client"}

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Describe the standard fields of the connection form to Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}

    @staticmethod
    def get_connection_form_widgets() -> dict[str, Any]:
        """Describe the extra fields of the connection form to Airflow before 3.2."""
        # From here, as only the web server of Airflow before 3.2 has them.
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import BooleanField, IntegerField, StringField
        from wtforms.validators import Optional

        text = BS3TextFieldWidget()

        def json_text(field: Any, **attributes: Any) -> Any:
            # An object is shown as it is entered, rather than as Python writes it.
            if isinstance(field.data, dict):
                attributes["value"] = json.dumps(field.data)
            return text(field, **attributes)

        classes = {"integer": IntegerField, "boolean": BooleanField}
        widgets = {}
        for name, field in CONNECTION_FIELDS.items():
            kind = field["schema"]["type"][0]
            style = {} if kind == "boolean" else {"widget": json_text if kind == "object" else text}
            widgets[name] = classes.get(kind, StringField)(
                field["label"], description=field["description"], validators=[Optional()], **style
            )
        return widgets
