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
from cryptography.fernet import Fernet
from services import AIRFLOW_VERSION, IS_AIRFLOW_2

from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, UI_FIELD_BEHAVIOUR

pytestmark = pytest.mark.airflow


@pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow 2 makes the form itself, see below")
def test_the_form_and_its_test_over_rest(shared):
    services, sandbox = shared.services, shared.sandbox
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
    host, port = urlsplit(sandbox.url).hostname, urlsplit(sandbox.url).port
    connection = {
        "connection_id": "vg",
        "conn_type": "voicegenie",
        "description": "",
        "host": f"http://{host}",
        "port": port,
        "login": "",
        "schema": "",
        "password": sandbox.api_key,
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
    empty = services.request("POST", "connections/test", **connection | {"connection_id": "e", "password": ""})
    assert empty["message"].startswith("Password (API key) is empty.")
    whole = {**connection, "connection_id": "u", "host": sandbox.url, "port": 0}
    assert services.request("POST", "connections/test", **whole)["status"]


# What a browser does with the page of Airflow 2: look at the form, send it, and press Test, which sends what is typed
# as text, each field of the extra under two names, and a ticked box as "y".
PAGE = """
import json, sys
from airflow.www.app import create_app
fields, posted = json.loads(sys.argv[1]), json.loads(sys.argv[2])
client = create_app().test_client()
print(client.get("/connection/add").data.decode())
saved = client.post("/connection/add", data=fields)
assert saved.status_code == 302, saved.data.decode()
from airflow.models import Connection
from airflow.utils.session import create_session
with create_session() as session:
    session.add(Connection("by_command", "voicegenie", extra={"proxies": {"https": "http://proxy.example.com:3128"}}))
    session.flush()
    number = session.query(Connection.id).filter_by(conn_id="by_command").scalar()
print(client.get(f"/connection/edit/{number}").data.decode())
print("answers", json.dumps([client.post("/api/v1/connections/test", json=body).json for body in posted]))
"""


@pytest.mark.skipif(not IS_AIRFLOW_2, reason="Airflow 3 has another form, see above")
def test_the_page_of_airflow_2_and_its_test(airflow, voicegenie_sandbox):
    (airflow.home / "webserver_config.py").write_text('AUTH_ROLE_PUBLIC = "Admin"\nWTF_CSRF_ENABLED = False\n')
    # Airflow writes what a user posts into its audit log, less what it masks.
    airflow.environment["AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS"] = "True"
    airflow.environment["AIRFLOW__API__AUTH_BACKENDS"] = "airflow.api.auth.backend.default"
    airflow.environment["AIRFLOW__CORE__FERNET_KEY"] = Fernet.generate_key().decode()
    host, port = urlsplit(voicegenie_sandbox.url).hostname, urlsplit(voicegenie_sandbox.url).port
    standard = {"conn_type": "voicegenie", "host": f"http://{host}", "port": port}
    extra = dict.fromkeys(CONNECTION_FIELDS, "") | {"timeout": "7.5", "max_attempts": "2", "allow_insecure_http": "y"}
    fields = {
        **standard,
        "conn_id": "vg",
        "password": voicegenie_sandbox.api_key,
        **{f"extra__voicegenie__{name}": value for name, value in extra.items()},
    }
    typed = {name: value for name, value in fields.items() if value and name.startswith("extra__")}
    typed |= {name: value for name, value in extra.items() if value}
    posted = [
        {**standard, "connection_id": "vg", "password": password, "extra": json.dumps(typed)}
        for password in (voicegenie_sandbox.api_key, "wrong", "")
    ]
    command = [sys.executable, "-c", PAGE, json.dumps(fields), json.dumps(posted)]
    result = subprocess.run(command, env=airflow.variables(), capture_output=True, text=True, check=False)
    page, _, answers = result.stdout.rpartition("answers ")
    assert '<option value="voicegenie">VoiceGenie</option>' in page, result.stdout[-2000:] + result.stderr[-2000:]
    for name, field in CONNECTION_FIELDS.items():
        assert f'id="extra__voicegenie__{name}"' in page
        assert field["label"] in page
        assert field["description"] in unescape(page)
    placeholder = "in the dashboard: Settings > API Keys"
    assert placeholder in unescape(page).replace(r"\u003e", ">")
    assert 'value="{"https": "http://proxy.example.com:3128"}"' in unescape(page)
    right, wrong, empty = json.loads(answers)
    assert right == {"status": True, "message": "The VoiceGenie service accepts the API key."}
    assert not wrong["status"]
    assert "enter it again" in wrong["message"]
    assert empty["message"].startswith("Password (API key) is empty.")
    assert "mean nothing here" not in result.stdout + result.stderr
    # What was saved works too, empty fields and all.
    saved = airflow.run("connections", "test", "vg")
    assert "Connection success!" in saved.stdout, saved.stdout + saved.stderr
