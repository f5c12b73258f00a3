# SPDX-License-Identifier: Apache-2.0
"""What Airflow's provider manager reads: what this package brings, and how its connection form looks."""

from __future__ import annotations

from typing import Any

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.settings import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_REQUESTS_PER_MINUTE,
    DEFAULT_TIMEOUT,
)

_PACKAGE = "airflow_provider_voicegenie"

#: What Airflow calls a connection of ours.
CONNECTION_TYPE = "voicegenie"
_INTEGRATION = "VoiceGenie"

#: The standard fields of the connection form. Airflow 3.2 and later read it from here, older ones from the hook.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "schema"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {
        "password": "in the dashboard: Settings > API Keys",
        "host": "https://host (empty: as the vendor's pages)",
        "port": "443 (for Airflow 3.3's Test button)",
    },
}

#: The fields of the form that live in the connection's extra; each bound is here, and nowhere else.
CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "timeout": {
        "label": "Timeout",
        "description": "Seconds that one whole request may take, from resolving the host to the last byte. Empty: "
        f"{DEFAULT_TIMEOUT:g}.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 3600},
    },
    "max_attempts": {
        "label": "Max attempts",
        "description": "How often a read is tried in all, and a start that is refused with a 429. Empty: "
        f"{DEFAULT_MAX_ATTEMPTS}.",
        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 20},
    },
    "requests_per_minute": {
        "label": "Requests per minute",
        "description": "Your plan's rate limit, for all together. Empty: "
        f"{DEFAULT_REQUESTS_PER_MINUTE}, the smallest documented plan.",
        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000},
    },
    "verify": {
        "label": "Verify",
        "description": "TLS: path of a CA bundle on the workers, or false to trust any certificate. Empty: verify.",
        "schema": {"type": ["string", "null"]},
    },
    "proxies": {
        "label": "Proxies",
        "description": 'Proxy URLs by scheme, as JSON: {"https": "http://proxy.example.com:3128"}.',
        "schema": {"type": ["object", "null"]},
    },
    "campaign_url": {
        "label": "Campaign URL",
        "description": "Address of a campaign in your dashboard, with {campaign_id} for its id. Tasks link to it.",
        "schema": {"type": ["string", "null"]},
    },
    "allow_insecure_http": {
        "label": "Allow insecure HTTP",
        "description": "Let the API key travel unencrypted to a host other than this machine.",
        "schema": {"type": ["boolean", "null"]},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description; the entry point ``apache_airflow_provider`` names this function."""
    return {
        "package-name": "airflow-provider-voicegenie",
        "name": _INTEGRATION,
        "description": "Runs VoiceGenie outbound phone-call campaigns from data pipelines.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://voicegenie.gitbook.io/voicegenie-ai/",
                "how-to-guide": ["docs/operators.md"],
                "logo": "docs/images/logo.svg",
                "tags": ["service"],
            },
            {"integration-name": "Object storage", "tags": ["software"]},
        ],
        "operators": [_modules("operators.campaign", "operators.contacts")],
        "sensors": [_modules("sensors.campaign")],
        "transfers": [
            {
                "source-integration-name": _INTEGRATION,
                "target-integration-name": "Object storage",
                "python-module": f"{_PACKAGE}.transfers.history",
            }
        ],
        "triggers": [_modules("triggers.events", "triggers.wait")],
        "hooks": [_modules("hooks.voicegenie")],
        "extra-links": [f"{_PACKAGE}.links.CampaignLink"],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": f"{_PACKAGE}.hooks.voicegenie.VoiceGenieHook",
                "hook-name": _INTEGRATION,
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONNECTION_FIELDS,
            }
        ],
    }


def _modules(*names: str) -> dict[str, Any]:
    return {"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{name}" for name in names]}
