# SPDX-License-Identifier: Apache-2.0
"""What stands in for the transport of ``requests`` in somebody's tests stands in for ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from datetime import timedelta
from unittest import mock

import pytest
import requests
import urllib3
from helpers.leaks import MARKED_KEY, leak_in
from helpers.raw_server import raw_server
from helpers.tasks import Starting, Store, context

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException

STARTED = {"success": True, "message": "ok", "data": {"campaign_id": "c", "status": "running"}}
PENDING = {"success": True, "message": "ok", "data": {"id": "c", "campaign_status": "pending", "total_count": 3}}


@pytest.fixture
def real(monkeypatch):
    """The server that stands for the real one; gives what reached it."""

    def start(stream, request):
        body = json.dumps(STARTED).encode()
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(start) as (port, seen):
        connection = {"conn_type": "voicegenie", "host": f"http://127.0.0.1:{port}", "password": MARKED_KEY}
        connection["extra"] = json.dumps({"max_attempts": 1, "timeout": 20})
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))
        yield seen


def response_to(request, status=200, body=None):
    """Return what a server would have answered, as the library below gives it."""
    body = body or (STARTED if "start" in request.url else PENDING)
    response = requests.Response()
    response.status_code, response.url, response.request = status, request.url, request
    response.headers["Content-Type"] = "application/json"
    response.raw = urllib3.HTTPResponse(io.BytesIO(json.dumps(body).encode()), status=status, preload_content=False)
    return response


class Double(requests.adapters.BaseAdapter):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.keys = []

    def send(self, request, **options):
        self.seen.append(request.path_url)
        self.keys.append(request.headers.get("x-api-key"))
        return response_to(request)

    def close(self):
        pass


@contextlib.contextmanager
def in_place_of_get_adapter(hook, double):
    """As ``requests_mock.Mocker()`` does."""
    original = requests.Session.send

    def send(session, request, **options):
        session.get_adapter = lambda url: double
        try:
            return original(session, request, **options)
        finally:
            session.get_adapter = requests.Session.get_adapter.__get__(session)

    with mock.patch.object(requests.Session, "send", send):
        yield


@contextlib.contextmanager
def in_place_of_adapters(hook, double):
    """As ``responses`` does."""
    with mock.patch.object(
        requests.adapters.HTTPAdapter, "send", lambda adapter, request, **options: double.send(request)
    ):
        yield


@contextlib.contextmanager
def in_place_of_connections(hook, double):
    """As ``vcrpy`` does."""

    class Connection(urllib3.connection.HTTPConnection):
        def connect(self):
            pass

        def request(self, method, url, body=None, headers=None, **options):
            request = requests.Request(method, f"http://{self.host}:{self.port}{url}", headers=dict(headers)).prepare()
            self.response = double.send(request).raw

        def getresponse(self):
            return self.response

    with mock.patch.object(urllib3.HTTPConnectionPool, "ConnectionCls", Connection):
        yield


@contextlib.contextmanager
def mounted(hook, double):
    hook.get_conn().mount("http://", double)
    yield


@contextlib.contextmanager
def in_place_of_request(hook, double):
    def request(session, method, url, **options):
        return double.send(requests.Request(method, f"http://x{url}").prepare())

    with mock.patch.object(requests.Session, "request", request):
        yield


WAYS = {
    "requests_mock": in_place_of_get_adapter,
    "responses": in_place_of_adapters,
    "vcrpy": in_place_of_connections,
    "mount": mounted,
    "Session.request": in_place_of_request,
}
ALL = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ALL
def test_a_double_stops_a_start(real, way):
    hook, double, heard = VoiceGenieHook(), Double(), []
    with way(hook, double):
        started = hook.start_campaign("c", on_sending=lambda: heard.append("sent"))
        assert hook.get_campaign("c").status_text == "pending"
    assert started.status.value == "running"
    assert double.seen == ["/startCampaign/c", "/campaign/c"]
    assert heard == ["sent"]
    assert real == []
    if way is in_place_of_request:
        return
    assert double.keys == [MARKED_KEY, MARKED_KEY]
    if way is mounted:
        hook = VoiceGenieHook()
    # Once it is over, requests go to the service again.
    assert hook.start_campaign("c").status.value == "running"
    assert len(real) == 1
    assert b"x-api-key: " + MARKED_KEY.encode() in real[0]


@ALL
def test_a_task_can_be_tested_with_a_double(real, monkeypatch, way):
    double = Double()
    operator = Starting(campaign_id="c", wait_for_completion=False)(deferrable=False)
    with way(operator._hook, double):
        assert operator.execute(context(Store()))["started_by_task"]
    assert double.seen == ["/campaign/c", "/startCampaign/c"]
    assert real == []


def test_a_double_that_refuses_stops_a_start(real, monkeypatch):
    class Refusing(Double):
        def send(self, request, **options):
            raise requests.ConnectionError("no such recording")

    for way in WAYS.values():
        hook = VoiceGenieHook()
        with way(hook, Refusing()), pytest.raises(errors.ConnectionFailedError):
            hook.start_campaign("c")
    assert real == []


def test_what_refuses_before_a_start_is_sent_keeps_it_from_a_mounted_adapter(real):
    def refuse():
        raise VoiceGenieRetryException("too late")

    hook, double = VoiceGenieHook(), Double()
    hook.get_conn().mount("http://", double)
    with pytest.raises(VoiceGenieRetryException, match="too late"):
        hook.start_campaign("c", on_sending=refuse)
    assert double.seen == []


def test_response_hooks_are_called_with_the_whole_response(real):
    heard = []

    def note(response, **options):
        heard.append((response.json()["success"], leak_in(repr(response.request.headers)), threading.current_thread()))

    session = VoiceGenieHook().get_conn()
    session.hooks["response"].append(note)
    response = session.get("/x")
    assert heard == [(True, None, threading.main_thread())]
    assert timedelta(0) < response.elapsed < timedelta(minutes=1)
    assert session.get("/x", hooks={"response": lambda response, **_: setattr(response, "marked", True)}).marked
    # A hook may make requests of its own.
    session.hooks["response"] = [lambda response, **_: VoiceGenieHook().get_conn().get("/y")]
    assert session.get("/x").request.path_url == "/y"


@pytest.mark.parametrize("error", [requests.HTTPError("404"), ValueError("no"), OSError("no")])
def test_what_a_response_hook_raises_comes_through(real, error):
    def refuse(response, **options):
        raise error

    hook = VoiceGenieHook()
    hook.get_conn().hooks["response"].append(refuse)
    for send in (hook.get_conn().get, hook.get_campaign):
        with pytest.raises(type(error)) as caught:
            send("/x")
        assert caught.value is error


def test_a_mounted_adapter_of_the_library_sends(real):
    hook = VoiceGenieHook()
    hook.get_conn().mount("http://", requests.adapters.HTTPAdapter())
    assert hook.start_campaign("c").status.value == "running"
    assert len(real) == 1


# The packages themselves, if they are installed.


def test_requests_mock(real):
    requests_mock = pytest.importorskip("requests_mock")
    hook = VoiceGenieHook()
    with requests_mock.Mocker() as mocker:
        with pytest.raises(requests_mock.exceptions.NoMockAddress):
            hook.start_campaign("c")
        mocker.get(requests_mock.ANY, json=STARTED)
        assert hook.start_campaign("c").status.value == "running"
    with requests_mock.Mocker(session=hook.get_conn()) as mocker:
        mocker.get(requests_mock.ANY, json=STARTED, cookies={"a": "b"})
        heard = []
        assert hook.start_campaign("c", on_sending=lambda: heard.append("sent")).status.value == "running"
        assert heard == ["sent"]
    assert real == []
    assert not hook.get_conn().cookies
    with requests_mock.Mocker(real_http=True):
        assert hook.start_campaign("c").status.value == "running"
    assert hook.start_campaign("c").status.value == "running"
    assert len(real) == 2


def test_responses(real):
    responses = pytest.importorskip("responses")
    hook = VoiceGenieHook()
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocker:
        with pytest.raises(errors.ConnectionFailedError):
            hook.start_campaign("c")
        mocker.get(f"{hook.client.settings.base_url}/startCampaign/c", json=STARTED)
        assert hook.start_campaign("c").status.value == "running"
    assert real == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_vcrpy(real, monkeypatch, tmp_path, scheme):
    vcr = pytest.importorskip("vcr")
    connection = json.loads(os.environ["AIRFLOW_CONN_VOICEGENIE_DEFAULT"])
    connection["host"] = connection["host"].replace("http:", f"{scheme}:")
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))
    hook = VoiceGenieHook()
    cassette = tmp_path / "cassette.yaml"
    with vcr.use_cassette(str(cassette), record_mode="none"), pytest.raises(errors.ConnectionFailedError):
        hook.start_campaign("c")
    assert real == []
    if scheme == "https":
        return
    for _ in range(2):
        with vcr.use_cassette(str(cassette), filter_headers=["x-api-key"]):
            assert hook.start_campaign("c").status.value == "running"
        assert len(real) == 1
    assert leak_in(cassette.read_text()) is None
