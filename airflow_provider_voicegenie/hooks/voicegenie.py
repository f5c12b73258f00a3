# SPDX-License-Identifier: Apache-2.0
"""The hook: an Airflow connection in, the service's answers as typed objects out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_voicegenie.api.errors import ConnectionFailedError, VoiceGenieError
from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_voicegenie.hooks.connection import client_settings, no_such_connection, unknown_fields

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.async_client import AsyncVoiceGenieClient
    from airflow_provider_voicegenie.api.client import VoiceGenieClient
    from airflow_provider_voicegenie.api.models import (
        Campaign,
        CampaignPage,
        CampaignStats,
        PausedCampaign,
        StartedCampaign,
    )
    from airflow_provider_voicegenie.api.settings import ClientSettings


class VoiceGenieHook(BaseHook):
    """
    Speaks to the VoiceGenie campaign service with the API key of an Airflow connection.

    Every call raises a :class:`~airflow_provider_voicegenie.api.errors.VoiceGenieError` where it does not succeed;
    it says what happened, and whether the service may have acted all the same. Reads are repeated while trouble
    looks temporary. Starts and pauses are sent once: after an error with ``may_have_taken_effect``, read the
    campaign before anything else, as
    :class:`~airflow_provider_voicegenie.operators.campaign.StartCampaignOperator` does.

    The connection is read when the first call needs it. The hook can be pickled; its client, which holds the key,
    stays behind.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    conn_name_attr = "voicegenie_conn_id"
    default_conn_name = "voicegenie_default"
    conn_type = "voicegenie"
    hook_name = "VoiceGenie"

    def __init__(self, voicegenie_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.voicegenie_conn_id = voicegenie_conn_id

    def get_conn(self) -> VoiceGenieClient:
        """
        Return the client that speaks to the service.

        :raises InvalidConnectionError: The connection has a missing or wrong value; nothing is sent.
        """
        return self._client

    def start_campaign(self, campaign_id: str) -> StartedCampaign:
        """
        Start a campaign (``GET /startCampaign/{id}``): people are phoned at once. Sent once, whatever comes back.

        :param campaign_id: Id of the campaign.
        """
        return self._client.start_campaign(campaign_id)

    def pause_campaign(self, campaign_id: str) -> PausedCampaign:
        """
        Pause a campaign (``GET /pauseTheCampaign/{id}``): no call begins, those in progress run to their end.

        :param campaign_id: Id of the campaign.
        """
        return self._client.pause_campaign(campaign_id)

    def get_campaign(self, campaign_id: str, *, max_attempts: int | None = None) -> Campaign:
        """
        Read a campaign (``GET /campaign/{id}``).

        :param campaign_id: Id of the campaign.
        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return self._client.get_campaign(campaign_id, max_attempts=max_attempts)

    def list_campaigns(self, page_size: int = 1000, *, max_attempts: int | None = None) -> Iterator[Campaign]:
        """
        Read all campaigns of the key (``GET /fetchCampaignData``), each page when the iteration comes to it.

        :param page_size: Campaigns asked for at a time, 1 to 1000.
        :param max_attempts: Attempts for each page while trouble looks temporary; the connection's number by default.
        """
        return self._client.list_campaigns(page_size, max_attempts=max_attempts)

    def get_campaign_stats(self, campaign_id: str, *, max_attempts: int | None = None) -> CampaignStats:
        """
        Read a campaign's counters (``GET /getCampaignStats/{id}``); they may be 30 seconds old.

        :param campaign_id: Id of the campaign.
        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return self._client.get_campaign_stats(campaign_id, max_attempts=max_attempts)

    def server_time(self) -> float:
        """Return the service's clock in Unix seconds, as its last answer showed it."""
        return self._client.server_time()

    def campaign_url(self, campaign_id: str) -> str | None:
        """
        Return where people see a campaign, from the connection's extra ``campaign_url``.

        ``None`` where the extra has none; after an answer from the sandbox, the sandbox's page.

        :param campaign_id: Id of the campaign.
        """
        return self._client.campaign_url(campaign_id)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the service once for one campaign of the list, which changes nothing, and say in words how it went."""
        from airflow_provider_voicegenie.api.client import VoiceGenieClient

        try:
            connection = self._airflow_connection()
            # Airflow tests what is in a form under a name that it makes up.
            client = VoiceGenieClient(replace(client_settings(connection), conn_id=None))
            next(client.list_campaigns(page_size=1, max_attempts=1), None)
        except VoiceGenieError as error:
            message = error.message.removeprefix(f"Connection {self.voicegenie_conn_id!r}, ")
            return False, message[:1].upper() + message[1:]
        misspelled, others = unknown_fields(connection.extra)
        found = "; ".join((*misspelled, *others))
        works = not misspelled
        return works, f"The VoiceGenie service accepts the API key{f', but Extra has {found}' if found else ''}."

    def _airflow_connection(self) -> Any:
        problem: VoiceGenieError
        try:
            return self.get_connection(self.voicegenie_conn_id)
        except AirflowNotFoundException:
            problem = no_such_connection(self.voicegenie_conn_id)
        except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
            problem = _unreadable_connection(self.voicegenie_conn_id, error)
        raise problem

    @cached_property
    def _client(self) -> VoiceGenieClient:
        from airflow_provider_voicegenie.api.client import VoiceGenieClient

        return VoiceGenieClient(client_settings(self._airflow_connection()))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_client"}

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Describe the standard fields of the connection form to Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}

    @staticmethod
    def get_connection_form_widgets() -> dict[str, Any]:
        """Describe the extra fields of the connection form to Airflow before 3.2."""
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


class VoiceGenieAsyncHook(BaseHook):
    """
    Speaks to the VoiceGenie campaign service from an event loop, with the API key of an Airflow connection.

    By the same rules as :class:`VoiceGenieHook`, and with the same results and errors. Starts are left to workers. The
    client is made when the first call needs it.

    :param voicegenie_conn_id: Id of the Airflow connection.
    """

    conn_name_attr = VoiceGenieHook.conn_name_attr
    default_conn_name = VoiceGenieHook.default_conn_name

    def __init__(self, voicegenie_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.voicegenie_conn_id = voicegenie_conn_id
        self._client: AsyncVoiceGenieClient | None = None

    async def get_conn(self) -> AsyncVoiceGenieClient:
        """
        Return the client that speaks to the service.

        :raises InvalidConnectionError: The connection has a missing or wrong value, or is not there.
        :raises ConnectionFailedError: Airflow could not be asked for the connection.
        """
        if self._client is None:
            client_class = await asyncio.to_thread(_load_async_client)
            self._client = await client_class.open(await self._settings())
        return self._client

    async def reread_connection(self) -> None:
        """Read the Airflow connection again; if it has changed, the next call uses a new client."""
        settings = await self._settings()
        if self._client is not None and settings != self._client.settings:
            self._client = None

    async def pause_campaign(self, campaign_id: str) -> PausedCampaign:
        """
        Pause a campaign (``GET /pauseTheCampaign/{id}``): no call begins, those in progress run to their end.

        :param campaign_id: Id of the campaign.
        """
        return await (await self.get_conn()).pause_campaign(campaign_id)

    async def get_campaign(self, campaign_id: str, *, max_attempts: int | None = None) -> Campaign:
        """
        Read a campaign (``GET /campaign/{id}``).

        :param campaign_id: Id of the campaign.
        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return await (await self.get_conn()).get_campaign(campaign_id, max_attempts=max_attempts)

    async def get_campaign_stats(self, campaign_id: str, *, max_attempts: int | None = None) -> CampaignStats:
        """
        Read a campaign's counters (``GET /getCampaignStats/{id}``); they may be 30 seconds old.

        :param campaign_id: Id of the campaign.
        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return await (await self.get_conn()).get_campaign_stats(campaign_id, max_attempts=max_attempts)

    async def list_page(self, *, limit: int, offset: int, max_attempts: int | None = None) -> CampaignPage:
        """
        Read one page of all campaigns of the key (``GET /fetchCampaignData``).

        :param limit: Campaigns on the page, 1 to 1000.
        :param offset: Campaigns to skip.
        :param max_attempts: Attempts while trouble looks temporary; the connection's number by default.
        """
        return await (await self.get_conn()).list_page(limit=limit, offset=offset, max_attempts=max_attempts)

    async def _settings(self) -> ClientSettings:
        # From here, as its own import loads what a worker does not need.
        from airflow.providers.common.compat.connection import get_async_connection

        problem: VoiceGenieError
        try:
            # Checking a connection may look at files, so it is left to a thread.
            return await asyncio.to_thread(client_settings, await get_async_connection(self.voicegenie_conn_id))
        except AirflowNotFoundException:
            problem = no_such_connection(self.voicegenie_conn_id)
        except VoiceGenieError as error:
            problem = error
        except Exception as error:  # noqa: BLE001  Airflow says in many ways that it cannot answer now
            problem = _unreadable_connection(self.voicegenie_conn_id, error)
        raise problem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}


def _unreadable_connection(conn_id: str, error: Exception) -> ConnectionFailedError:
    return ConnectionFailedError(f"Connection {conn_id!r} could not be read from Airflow ({type(error).__name__}).")


def _load_async_client() -> type[AsyncVoiceGenieClient]:
    """Load what takes an event loop too long to load."""
    from airflow_provider_voicegenie.api.async_client import AsyncVoiceGenieClient

    return AsyncVoiceGenieClient
