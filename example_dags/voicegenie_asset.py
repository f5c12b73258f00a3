"""
### Use it to export the calls of each campaign that ends, whoever started it. Needs Airflow 3.0.

A watcher looks at the campaigns of the account. An end wakes this DAG up, and each campaign's calls go into a file of
its own. If several have ended, one run may export them all. A campaign that goes on by then is skipped: its next
end wakes the DAG up again.

It is paused until you switch it on, as it would export the campaigns of all other examples, too. A run that you
trigger by hand has no ended campaign, and exports nothing. In the sandbox, start a campaign, and wait until it is
completed.
"""

import os
from pathlib import Path
from urllib.parse import quote

from airflow.sdk import DAG, Asset, AssetWatcher, Param, task

from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator
from airflow_provider_voicegenie.triggers.events import CampaignEndedTrigger

HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "voicegenie_asset"

campaign_ended = Asset(
    "voicegenie_campaign_ended",
    watchers=[AssetWatcher(name="campaigns", trigger=CampaignEndedTrigger(poll_interval=60))],
)

with DAG(
    dag_id="voicegenie_asset",
    schedule=[campaign_ended],
    is_paused_upon_creation=True,
    params={"folder": Param(str(HOME), type="string", minLength=1, description="Where the files go")},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
) as dag:

    @task
    def ended_campaigns(params=None, triggering_asset_events=None) -> list[dict[str, str]]:
        """Return the campaigns that ended, and a file for each."""
        events = triggering_asset_events.get(campaign_ended, [])
        campaign_ids = {event.extra["payload"]["campaign_id"] for event in events}
        return [
            # An id may have characters that would lead to another folder.
            {"campaign_id": campaign_id, "path": f"{params['folder']}/calls-{quote(campaign_id, safe='')}.csv.gz"}
            for campaign_id in sorted(campaign_ids)
        ]

    CallHistoryToObjectStorageOperator.partial(
        task_id="export",
        columns=["call_id", "status", "duration", "call_time"],
        outcomes={"CAMPAIGN_STILL_RUNNING": "skip"},
        retries=3,
        map_index_template="{{ task.campaign_id }}",
    ).expand_kwargs(ended_campaigns())
