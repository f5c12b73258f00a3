# SPDX-License-Identifier: Apache-2.0
"""The link from a task in Airflow's UI to its campaign."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_voicegenie.campaign_task import CampaignTask
    from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

log = logging.getLogger(__name__)

_KEY = "_link_CampaignLink"


class CampaignLink(BaseOperatorLink):
    """
    Leads to the campaign in the VoiceGenie dashboard, if the connection's extra has a ``campaign_url``.

    The task stores the link in XCom as soon as it has looked at its campaign.
    """

    name = "VoiceGenie campaign"

    @property
    def xcom_key(self) -> str:
        """The XCom that Airflow 3 takes the link from."""
        return _KEY

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the link that the task has stored, or nothing."""
        # Airflow 3 asks at the end of a task too, and an XCom that is not there leaves an error in its log.
        if (url := getattr(operator, "campaign_url", None)) is not None:
            return str(url)
        from airflow.providers.common.compat.sdk import XCom

        return str(XCom.get_value(key=_KEY, ti_key=ti_key) or "")


def keep_link(context: Mapping[str, Any], hook: VoiceGenieHook, task: CampaignTask) -> None:
    """
    Store the link to a task's campaign in XCom, an empty one if there is none. A failure is logged, never raised.

    :param context: The task's context.
    :param hook: The task's hook.
    :param task: The task.
    """
    try:
        task.campaign_url = hook.campaign_url(task.campaign_id) or ""
        context["ti"].xcom_push(key=_KEY, value=task.campaign_url)
    except Exception as error:  # noqa: BLE001  Airflow may raise anything here
        log.debug("Campaign %r: no link to it could be stored (%s).", task.campaign_id, type(error).__name__)
