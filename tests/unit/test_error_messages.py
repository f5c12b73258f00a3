# SPDX-License-Identifier: Apache-2.0
"""What a user reads when something goes wrong: which connection, what to look at, where it matters which host."""

from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.raw_server import closed_port, raw_server
from helpers.tasks import context

from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

CONNECTION = "connection 'production'"


def connect(monkeypatch, host, password, **extra):
    fields = {"conn_type": "voicegenie", "host": host, "password": password}
    extra = {"max_attempts": 1, "timeout": 60, **extra}
    monkeypatch.setenv("AIRFLOW_CONN_PRODUCTION", json.dumps({**fields, "extra": json.dumps(extra)}))


TASKS = {
    "start": lambda: StartCampaignOperator(
        task_id="t", campaign_id="c", voicegenie_conn_id="production", outcomes={"CONNECTION_FAILED": "fail"}
    ).execute(context()),
    "pause": lambda: PauseCampaignOperator(
        task_id="t", campaign_id="c", voicegenie_conn_id="production", outcomes={"CONNECTION_FAILED": "fail"}
    ).execute(context()),
    "ready": lambda: CampaignReadySensor(
        task_id="t", campaign_id="c", voicegenie_conn_id="production", outcomes={"CONNECTION_FAILED": "fail"}
    ).poke(context()),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_key_that_is_not_accepted(voicegenie_sandbox, monkeypatch, task):
    connect(monkeypatch, voicegenie_sandbox.url, "wrong-key")
    with pytest.raises(AirflowFailException) as caught:
        task()
    for words in ("Invalid or missing API key (401 UNAUTHORIZED)", f"the API key of {CONNECTION}", "enter it again"):
        assert words in str(caught.value)
    assert "wrong-key" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_campaign_that_is_unknown(voicegenie_sandbox, monkeypatch, task):
    connect(monkeypatch, voicegenie_sandbox.url, voicegenie_sandbox.api_key)
    with pytest.raises(AirflowFailException) as caught:
        task()
    for words in ("Campaign not found (404 NOT_FOUND)", "Check the campaign's id", CONNECTION):
        assert words in str(caught.value)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_nobody_listens(monkeypatch, task):
    with closed_port() as port:
        connect(monkeypatch, f"http://127.0.0.1:{port}", "k")
        with pytest.raises(AirflowFailException) as caught:
            task()
    for words in (f"no connection to 127.0.0.1:{port}", f"Check host and port of {CONNECTION}"):
        assert words in str(caught.value)


HIDDEN = "the configured host, port 443"

#: Host of the connection -> what stands in the message in its place.
HOSTS = {
    "http://localhost:1": "localhost:1",
    "http://127.0.0.1:1": "127.0.0.1:1",
    "http://[::1]:1": "[::1]:1",
    "https://api.voicegenie.invalid": "api.voicegenie.invalid:443",
    "https://api.voicegenie.invalid:8443/v1": "api.voicegenie.invalid:8443",
    # Each of these could be an API key in the wrong field.
    "https://sk-live-0123456789abcdef": HIDDEN,
    "https://vg.0123456789abcdef0123456789abcdef.invalid": HIDDEN,
    "https://eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N": HIDDEN,
    "https://sk-abc123def456.example.com": HIDDEN,
    "https://abcdef.ghijklmnopqrstuvwxyz": HIDDEN,
    "https://the-password.invalid": HIDDEN,
    "https://0123456789abcdef": HIDDEN,
}


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_is_quoted_that_could_be_a_key(host):
    assert ClientSettings(host, "the-password").address == HOSTS[host]


@pytest.mark.parametrize("way", ["task", "test"])
def test_https_to_a_server_of_plain_http_is_said_to_be_that(voicegenie_sandbox, monkeypatch, way):
    url = voicegenie_sandbox.url
    connect(monkeypatch, url.replace("http://", "https://"), voicegenie_sandbox.api_key)
    if way == "task":
        with pytest.raises(AirflowFailException, match="TLS_FAILED") as caught:
            TASKS["start"]()
        message = str(caught.value)
        assert CONNECTION in message
    else:
        works, message = VoiceGenieHook("production").test_connection()
        assert not works
    assert f"{url.removeprefix('http://')} does not speak TLS" in message
    assert "needs http:// before the host" in message
    assert "certificate" not in message
    assert len(voicegenie_sandbox.sandbox.requests) == 0


NOT_FOUND = b'{"success":false,"message":"No","error":"NOT_FOUND"}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "Check that 127.0.0.1:{port}, the host of the connection"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi", "Check that 127.0.0.1:{port}"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "which leads to 127.0.0.1:{port}"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "the side of 127.0.0.1:{port}"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "the connection to 127.0.0.1:{port} broke"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 52\r\n\r\n" + NOT_FOUND, "Check that 127.0.0.1:{port}"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 51\r\n\r\n" + NOT_FOUND.replace(b"FOUND", b"HERE"),
            "Check that 127.0.0.1:{port}",
        ),
    ],
)
def test_the_test_of_a_connection_names_no_connection(monkeypatch, answer, words):
    """Airflow makes up the name under which it tests what is in the form."""
    with raw_server(lambda stream, request: stream.sendall(answer)) as (port, _):
        connect(monkeypatch, f"http://127.0.0.1:{port}", "k")
        works, message = VoiceGenieHook("production").test_connection()
    assert not works
    assert words.format(port=port) in message
    assert "production" not in message
    assert "campaign's id" not in message


@pytest.mark.parametrize(
    ("extra", "words", "passes"),
    [
        ({"timout": 3}, "but Extra has unknown field 'timout', did you mean 'timeout'?", False),
        ({"Max-Attempts": 3}, "unknown field 'Max-Attempts', did you mean 'max_attempts'?", False),
        # It may be for something else.
        ({"sk-live-0123": 1}, "but Extra has 1 field(s) that mean nothing here (known: timeout, ", True),
        ({"campaign_ur": "x", "y": 1}, "unknown field 'campaign_ur', did you mean 'campaign_url'?; 1 field(s)", False),
    ],
)
def test_the_test_of_a_connection_finds_what_means_nothing(voicegenie_sandbox, monkeypatch, extra, words, passes):
    connect(monkeypatch, voicegenie_sandbox.url, voicegenie_sandbox.api_key, **extra)
    works, message = VoiceGenieHook("production").test_connection()
    assert works is passes
    assert message.startswith("The VoiceGenie service accepts the API key, ")
    assert words in message
    assert "sk-live" not in message
    # It is no reason not to use the connection.
    assert VoiceGenieHook("production").get_campaign("ready")


def test_the_test_of_a_good_connection(voicegenie_sandbox, monkeypatch):
    connect(monkeypatch, voicegenie_sandbox.url, voicegenie_sandbox.api_key)
    assert VoiceGenieHook("production").test_connection() == (True, "The VoiceGenie service accepts the API key.")


@pytest.mark.parametrize("form", ["uri", "json"])
def test_a_host_of_ipv6(monkeypatch, form):
    """In the URI form, Airflow takes the brackets off it."""
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox

    with running(Sandbox(api_key="the-key"), host="::1") as url:
        port = url.rpartition(":")[2]
        connections = {
            "uri": f"voicegenie://:the-key@[::1]:{port}/http",
            "json": json.dumps(
                {"conn_type": "voicegenie", "host": "::1", "schema": "http", "port": int(port), "password": "the-key"}
            ),
        }
        monkeypatch.setenv("AIRFLOW_CONN_PRODUCTION", connections[form])
        hook = VoiceGenieHook("production")
        assert hook.get_campaign("ready").campaign_id == "ready"
        monkeypatch.setenv("AIRFLOW_CONN_PRODUCTION", connections[form].replace("the-key", "wrong-key"))
        with pytest.raises(AirflowFailException, match=r"API key of connection 'production'"):
            TASKS["start"]()


def test_a_failure_that_may_pass_names_the_connection_too(voicegenie_sandbox, monkeypatch):
    connect(monkeypatch, voicegenie_sandbox.url, voicegenie_sandbox.api_key)
    voicegenie_sandbox.inject("status", "pause", status=429)
    with pytest.raises(VoiceGenieRetryException) as caught:
        TASKS["pause"]()
    assert f"The API key of {CONNECTION} has used up its requests" in str(caught.value)
