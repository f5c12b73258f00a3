# SPDX-License-Identifier: Apache-2.0
"""The link from a task in Airflow's UI to its campaign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

#: The XCom under which a task stores its link.
LINK_KEY = "_link_CampaignLink"


class CampaignLink(BaseOperatorLink):
    """
    Leads to the campaign in the VoiceGenie dashboard, if the connection's extra has a ``campaign_url``.

    The task stores the link in XCom.
    """

    name = "VoiceGenie campaign"

    @property
    def xcom_key(self) -> str:
        """The XCom that Airflow 3 takes the link from."""
        return LINK_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the link that the task has stored, or nothing."""
        # Airflow 3 asks for it at the end of a task that has not stored it.
        if (url := getattr(operator, "campaign_url", None)) is not None:
            return str(url)
        # From here, as DAG files import this module.
        from airflow.providers.common.compat.sdk import XCom

        return str(XCom.get_value(key=LINK_KEY, ti_key=ti_key) or "")
