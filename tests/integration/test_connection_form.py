# SPDX-License-Identifier: Apache-2.0
"""The connection form, as each Airflow's UI gets it; ``tests/browser`` looks at the newest in a browser."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from html import unescape
from urllib.parse import urlsplit

import pytest
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, Services

from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, UI_FIELD_BEHAVIOUR

pytestmark = pytest.mark.airflow


@pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow 2 makes the form itself, see below")
def test_the_form_and_its_test_over_rest(airflow, voicegenie_sandbox):
    # Airflow writes what a user posts into its audit log, less what it masks.
    airflow.environment["AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS"] = "True"
    with Services(airflow) as services:
        forms = services.request("GET", "/ui/connections/hook_meta")
        (form,) = (form for form in forms if form["connection_type"] == "voicegenie")
        assert form["hook_name"] == "VoiceGenie"
        if importlib.util.find_spec("flask_appbuilder") is not None or AIRFLOW_VERSION >= (3, 1):
            standard = form["standard_fields"]
            assert (standard["password"]["title"], standard["url_schema"]["hidden"]) == ("API key", True)
            assert standard["login"]["hidden"]
            assert standard["host"]["placeholder"] == UI_FIELD_BEHAVIOUR["placeholders"]["host"]
            assert set(form["extra_fields"]) == set(CONNECTION_FIELDS)
            timeout = form["extra_fields"]["timeout"]
            assert timeout["schema"]["title"] == CONNECTION_FIELDS["timeout"]["label"]
            assert timeout["description"] == CONNECTION_FIELDS["timeout"]["description"]

        # As the UI does it: with every field, empty or not, and a port of its own, see ``docs/versions.md``.
        host, port = urlsplit(voicegenie_sandbox.url).hostname, urlsplit(voicegenie_sandbox.url).port
        connection = {
            "connection_id": "vg",
            "conn_type": "voicegenie",
            "description": "",
            "host": f"http://{host}",
            "port": port,
            "login": "",
            "schema": "",
            "password": voicegenie_sandbox.api_key,
            "extra": json.dumps(dict.fromkeys(CONNECTION_FIELDS)),
        }
        services.request("POST", "connections", **connection)
        # The UI does not know a stored key, and sends asterisks in its place, with which 3.0 does nothing.
        key = {"password": "***"} if AIRFLOW_VERSION >= (3, 1) else {}
        stored = services.request("POST", "connections/test", **connection | key)
        assert stored == {"status": True, "message": "The VoiceGenie service accepts the API key."}
        wrong_key = {**connection, "connection_id": "wrong", "password": "wrong"}
        wrong = services.request("POST", "connections/test", **wrong_key)
        assert not wrong["status"]
        assert "enter it again" in wrong["message"]
        whole = {**connection, "connection_id": "u", "host": voicegenie_sandbox.url, "port": 0}
        assert services.request("POST", "connections/test", **whole)["status"]


PAGE = """
from airflow.www.app import create_app
app = create_app()
print(app.test_client().get("/connection/add").data.decode())
"""


@pytest.mark.skipif(not IS_AIRFLOW_2, reason="Airflow 3 has another form, see above")
def test_the_page_of_airflow_2(airflow, tmp_path):
    (airflow.home / "webserver_config.py").write_text('AUTH_ROLE_PUBLIC = "Admin"\nWTF_CSRF_ENABLED = False\n')
    command = [sys.executable, "-c", PAGE]
    result = subprocess.run(command, env=airflow.variables(), capture_output=True, text=True, check=False)
    page = result.stdout
    assert '<option value="voicegenie">VoiceGenie</option>' in page, result.stdout[-2000:] + result.stderr[-2000:]
    for name, field in CONNECTION_FIELDS.items():
        assert f'id="extra__voicegenie__{name}"' in page
        assert field["label"] in page
        assert field["description"] in unescape(page)
    assert "from Settings, API Keys of the VoiceGenie dashboard" in page
