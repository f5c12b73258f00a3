# SPDX-License-Identifier: Apache-2.0
"""The two transports come to the same: the same request on the wire, the same result or error for the same answer."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import socket
import ssl
import time

import pytest
import trustme
from raw_server import chain_of, raw_server

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.async_client import AsyncVoiceGenieClient
from airflow_provider_voicegenie.api.client import VoiceGenieClient
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.api.wire import Route

KEY = "sk-marked-key"


def outcome(action):
    """Return what a call comes to, comparable."""
    caught = None
    try:
        return action()
    except errors.VoiceGenieError as error:
        caught = error
    assert list(chain_of(caught)) == [caught]
    assert KEY not in f"{caught} {caught!r} {vars(caught)}"
    retry_after = None if caught.retry_after is None else round(caught.retry_after)
    # Ports are not the same for both where each has a server of its own.
    text = re.sub(r"127.0.0.1:[0-9]+", "there", str(caught))
    return type(caught), text, caught.status, caught.code, caught.may_have_taken_effect, retry_after


def in_worker(settings, method, *arguments):
    def call():
        client = VoiceGenieClient(settings, sleep=lambda seconds: None)
        return getattr(client, method)(*arguments)

    return outcome(call)


def in_event_loop(settings, method, *arguments):
    async def call():
        client = await AsyncVoiceGenieClient.open(settings)
        return await getattr(client, method)(*arguments)

    return outcome(lambda: asyncio.run(call()))


TRANSPORTS = {"worker": in_worker, "event loop": in_event_loop}


def on_both(settings, method, *arguments, before=lambda: None):
    results = []
    for call in TRANSPORTS.values():
        before()
        results.append(call(settings, method, *arguments))
    assert results[0] == results[1]
    return results[0]


def settings_for(sandbox, **fields):
    return ClientSettings(sandbox.url, sandbox.api_key, **{"timeout": 1, "max_attempts": 1, **fields})


@pytest.mark.parametrize("method", ["get_campaign", "get_campaign_stats"])
@pytest.mark.parametrize("campaign_id", ["ready", "paused", "running", "completed", "draft", "nobody", "a/b", "a%2Fb"])
def test_reads(voicegenie_sandbox, method, campaign_id):
    result = on_both(settings_for(voicegenie_sandbox), method, campaign_id)
    assert getattr(result, "campaign_id", None) == campaign_id or result[0] is errors.NotFoundError


def test_pauses(voicegenie_sandbox):
    for status, kind in (("completed", errors.CampaignNotRunningError), ("scheduled", errors.CampaignNotRunningError)):
        campaign = voicegenie_sandbox.add_campaign(status=status)
        assert on_both(settings_for(voicegenie_sandbox), "pause_campaign", campaign.id)[0] is kind
    campaign = voicegenie_sandbox.add_campaign(status="running")
    assert in_event_loop(settings_for(voicegenie_sandbox), "pause_campaign", campaign.id).status == "paused"
    assert voicegenie_sandbox.status(campaign.id) == "paused"


FAULTS = [
    ("close", {}),
    ("delay", {"seconds": 1.5}),
    ("truncated", {}),
    ("not_json", {}),
    ("oversized", {}),
    ("drip", {"seconds": 0.05}),
    *[
        ("redirect", {"location": place})
        for place in ("/x", "http://elsewhere.invalid/", "file:///etc/passwd", ":", "")
    ],
    *[("status", {"status": status}) for status in (400, 401, 403, 404, 408, 409, 422, 425, 500, 502, 503, 504)],
    *[("status", {"status": 429, "headers": {"Retry-After": text}}) for text in ("7", "-1", "soon", "1e400", "")],
    ("status", {"status": 404, "body": "<html>No such page</html>"}),
    ("status", {"status": 200, "body": '{"success": false, "error": "NOT_FOUND"}'}),
    ("status", {"status": 200, "body": '{"success": true, "data": []}'}),
    ("status", {"status": 200, "body": "not gzip", "headers": {"content-encoding": "gzip"}}),
    ("status", {"status": 204, "body": ""}),
]


@pytest.mark.parametrize(("kind", "fields"), FAULTS, ids=str)
@pytest.mark.parametrize("method", ["get_campaign", "pause_campaign"])
def test_faults(voicegenie_sandbox, method, kind, fields):
    operation = method.partition("_")[0]

    def fault():
        voicegenie_sandbox.inject(kind, operation, **fields)

    result = on_both(settings_for(voicegenie_sandbox), method, "running", before=fault)
    assert issubclass(result[0], errors.VoiceGenieError)
    assert voicegenie_sandbox.request_count(operation) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_reads_are_repeated_and_pauses_are_not(voicegenie_sandbox, transport):
    settings = settings_for(voicegenie_sandbox, max_attempts=3)
    voicegenie_sandbox.inject("close", "*", times=None)
    TRANSPORTS[transport](settings, "get_campaign", "running")
    TRANSPORTS[transport](settings, "pause_campaign", "running")
    assert voicegenie_sandbox.request_count("get") == 3
    assert voicegenie_sandbox.request_count("pause") == 1


def test_the_request_on_the_wire():
    heads = []

    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\n\r\n")

    for call in TRANSPORTS.values():
        with raw_server(handle) as (port, requests):
            settings = ClientSettings(f"http://127.0.0.1:{port}/base", KEY, timeout=2, max_attempts=1)
            call(settings, "get_campaign", "c 1/x?y#z")
            call(settings, "get_campaign", "c")
        first, *fields = requests[0].decode().split("\r\n")
        assert first == "GET /base/campaign/c%201%2Fx%3Fy%23z HTTP/1.1"
        heads.append(sorted(field.lower() for field in fields if field and not field.lower().startswith("host:")))
        assert b"cookie" not in requests[1].lower()
    assert heads[0] == heads[1]
    assert f"x-api-key: {KEY}" in heads[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_an_answer_echoes_is_not_logged(caplog, transport):
    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 302 %s\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n" % (2 * (KEY.encode(),)))

    caplog.set_level("DEBUG")
    with raw_server(handle) as (port, _):
        settings = ClientSettings(f"http://127.0.0.1:{port}", KEY, timeout=2, max_attempts=1)
        assert TRANSPORTS[transport](settings, "get_campaign", "c")[0] is errors.RedirectedError
    assert KEY not in caplog.text
    # Others' exchanges are theirs to log.
    logging.getLogger("httpcore.http11").debug("another's exchange")
    assert "another's exchange" in caplog.text


@pytest.mark.parametrize("host", ["unknown.invalid", "127.0.0.1"])
def test_nobody_there(host):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = ClientSettings(f"http://{host}:{port}", KEY, timeout=2, max_attempts=1)
    result = on_both(settings, "pause_campaign", "c")
    assert result[0] is errors.ConnectionFailedError
    assert result[4] is False


@pytest.mark.parametrize("trouble", ["unknown authority", "another name", None, "unchecked", "no tls"])
def test_certificates(trouble, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example.com" if trouble == "another name" else "127.0.0.1").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    verify = {"unknown authority": True, "unchecked": False}.get(trouble, str(bundle))

    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle, tls=None if trouble == "no tls" else context) as (port, requests):
        settings = ClientSettings(f"https://127.0.0.1:{port}", KEY, timeout=2, max_attempts=1, verify=verify)
        result = on_both(settings, "pause_campaign", "c")
    if trouble in (None, "unchecked"):
        assert result[0] is errors.UnauthorizedError
    else:
        assert result[0] is errors.TlsFailedError
        assert result[4] is False
        assert all(KEY.encode() not in request for request in requests)


@pytest.mark.parametrize("kind", ["head", "body", "silence"])
def test_an_exchange_has_an_end_however_slowly_it_drips(kind):
    def handle(stream, request):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        if kind == "body":
            stream.sendall(head)
        for byte in {"head": head, "body": b" " * 100, "silence": b""}[kind]:
            stream.sendall(bytes([byte]))
            time.sleep(0.1)
        time.sleep(2)

    with raw_server(handle) as (port, _):
        settings = ClientSettings(f"http://127.0.0.1:{port}", KEY, timeout=0.5, max_attempts=1)
        begun = time.monotonic()
        result = in_event_loop(settings, "pause_campaign", "c")
        assert time.monotonic() - begun < 2
    assert result[0] is errors.ExchangeTimeoutError
    assert result[4] is True


@pytest.mark.parametrize("source", ["environment", "connection"])
def test_proxies(monkeypatch, source):
    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for call in TRANSPORTS.values():
        with raw_server(handle) as (proxy, at_proxy), raw_server(handle) as (port, at_host):
            url = f"http://127.0.0.1:{proxy}"
            monkeypatch.setenv("http_proxy", url if source == "environment" else "")
            proxies = {"http": url} if source == "connection" else {}
            settings = ClientSettings(f"http://127.0.0.1:{port}", KEY, timeout=2, max_attempts=1, proxies=proxies)
            assert call(settings, "get_campaign", "c")[0] is errors.UnauthorizedError
        # Of plain http, a proxy of the environment would see the key.
        assert (len(at_proxy), len(at_host)) == ((0, 1) if source == "environment" else (1, 0))


def test_an_encrypted_request_goes_through_the_proxy_of_the_environment(monkeypatch):
    def refuse(stream, request):
        stream.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(refuse) as (proxy, at_proxy):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        settings = ClientSettings("https://far.example.com", KEY, timeout=2, max_attempts=1)
        result = on_both(settings, "pause_campaign", "c")
    assert "proxy" in result[1]
    assert result[4] is False
    assert [request.split(b" HTTP/")[0] for request in at_proxy] == [b"CONNECT far.example.com:443"] * 2
    assert all(KEY.encode() not in request for request in at_proxy)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"https_proxy": "{proxy}"}, True),
        ({"all_proxy": "{proxy}"}, True),
        ({"HTTPS_PROXY": "{proxy}", "no_proxy": "example.com"}, False),
        ({"https_proxy": "{proxy}", "NO_PROXY": "*"}, False),
    ],
)
def test_hosts_that_the_environment_takes_from_its_proxy(monkeypatch, environment, asked):
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(proxy="proxy.example.com:3128"))
    proxy = Route.of(ClientSettings("https://far.example.com", KEY)).proxy
    assert (proxy is not None) is asked
    assert proxy is None or proxy.url == "http://proxy.example.com:3128"


@pytest.mark.parametrize("name", ["https_proxy", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_environment_that_cannot_be_used_is_named(monkeypatch, transport, name):
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, {"https_proxy": "socks5://proxy.example.com"}.get(name, "/no/such/bundle"))
    result = TRANSPORTS[transport](ClientSettings("https://far.example.com", KEY), "get_campaign", "c")
    assert result[0] is errors.InvalidConnectionError
    assert name.upper() in result[1]


def test_pages(voicegenie_sandbox):
    async def read():
        client = await AsyncVoiceGenieClient.open(settings_for(voicegenie_sandbox))
        return [await client.list_page(limit=4, offset=offset) for offset in (0, 8, 100)]

    first, last, beyond = asyncio.run(read())
    assert (first.size, last.size, beyond.size, first.total) == (4, 3, 0, 11)


def test_the_client_shows_no_key_and_cannot_be_pickled(voicegenie_sandbox):
    client = asyncio.run(AsyncVoiceGenieClient.open(settings_for(voicegenie_sandbox)))
    assert voicegenie_sandbox.api_key not in repr(client)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(client)
