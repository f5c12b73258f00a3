# SPDX-License-Identifier: Apache-2.0
"""The client against real servers on loopback: what is sent, how often, for how long, and to whom."""

from __future__ import annotations

import contextlib
import pickle
import ssl
import threading
import time
from contextlib import suppress
from email.utils import formatdate

import pytest
import trustme
from helpers.raw_server import chain_of, closed_port, raw_server

from airflow_provider_voicegenie.api import endpoints, errors
from airflow_provider_voicegenie.api.client import VoiceGenieClient
from airflow_provider_voicegenie.api.rate_limit import RateLimiter
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

KEY = "sk-marked-key"


@pytest.fixture
def client(voicegenie_sandbox):
    voicegenie_sandbox.waits = waits = []
    return VoiceGenieClient(
        ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, timeout=60), sleep=waits.append
    )


def client_for(port, scheme="http", host="127.0.0.1", **settings):
    return VoiceGenieClient(
        ClientSettings(f"{scheme}://{host}:{port}", KEY, **{"timeout": 60, "max_attempts": 1, **settings}),
        sleep=lambda seconds: None,
    )


def test_the_request():
    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as (port, requests), pytest.raises(errors.RefusedError):
        client_for(port).send(endpoints.campaign("c 1"))
    head = requests[0].decode().lower()
    assert head.startswith("get /campaign/c%201 http/1.1\r\n")
    assert f"x-api-key: {KEY}" in head
    assert "connection: close" in head
    assert "cache-control: no-store" in head
    assert "user-agent: airflow-provider-voicegenie/" in head


def test_reads_are_repeated_until_they_succeed(client, voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "get", status=503, times=2)
    voicegenie_sandbox.inject("close", "get")
    assert client.send(endpoints.campaign("ready")).campaign_id == "ready"
    assert voicegenie_sandbox.request_count("get") == 4
    assert len(voicegenie_sandbox.waits) == 3
    assert voicegenie_sandbox.waits == sorted(voicegenie_sandbox.waits)


def test_reads_are_repeated_within_the_bound(client, voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "get", status=500, times=None)
    with pytest.raises(errors.ServerError):
        client.send(endpoints.campaign("ready"))
    assert voicegenie_sandbox.request_count("get") == 4


def test_refusals_are_not_repeated(client, voicegenie_sandbox):
    with pytest.raises(errors.NotFoundError):
        client.send(endpoints.campaign("nobody"))
    assert voicegenie_sandbox.request_count("get") == 1


@pytest.mark.parametrize("kind", ["close", "status", "truncated", "not_json", "redirect", "oversized", "drip"])
@pytest.mark.parametrize("operation", ["start", "pause"])
def test_starts_and_pauses_are_sent_once(client, clock, voicegenie_sandbox, monkeypatch, kind, operation):
    voicegenie_sandbox.inject(kind, operation, times=None)
    campaign_id = "ready" if operation == "start" else "running"
    if kind == "drip":
        clock.end_requests_that_are_held(monkeypatch)
    with pytest.raises(errors.VoiceGenieError) as caught:
        client.send(getattr(endpoints, operation)(campaign_id))
    assert caught.value.may_have_taken_effect
    assert voicegenie_sandbox.request_count(operation) == 1


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [({"Retry-After": "7"}, 7, 7), ({"Retry-After": "86400"}, 60, 60), ({"Retry-After": "0"}, 0, 2)],
)
def test_the_server_says_when(client, voicegenie_sandbox, headers, least, most):
    voicegenie_sandbox.inject("status", "get", status=429, headers=headers)
    client.send(endpoints.campaign("ready"))
    assert least <= voicegenie_sandbox.waits[0] <= most


def test_read_waits_for_the_rate_limit_and_pause_does_not(voicegenie_sandbox, clock):
    waits = []
    voicegenie_sandbox.sandbox.enforce_rate_limits = True
    settings = ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, requests_per_minute=1000)
    client = VoiceGenieClient(settings, sleep=waits.append)
    began = time.monotonic()
    for _ in range(60):
        client.send(endpoints.campaign("running"))
    with pytest.raises(errors.RateLimitError):
        client.send(endpoints.pause("running"))
    assert not waits
    with pytest.raises(errors.RateLimitError) as caught:
        client.send(endpoints.campaign("running"))
    # The moment is rounded up to a second, and the server's Date is down to one and set by a task that may be late. The
    # sandbox's clock stands still, and that of its Date does not.
    passed = time.monotonic() - began
    assert 58 - passed <= caught.value.retry_after <= 65
    assert 58 - passed <= waits[0] <= 60


def test_the_client_stays_within_its_budget(voicegenie_sandbox):
    waits = []
    settings = ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, requests_per_minute=3)
    client = VoiceGenieClient(settings, sleep=waits.append)
    for _ in range(4):
        client.send(endpoints.campaign("ready"))
    assert len(waits) == 1
    assert 55 < waits[0] <= 60


def test_all_pages_of_the_list_each_when_it_is_needed(voicegenie_sandbox):
    campaigns = VoiceGenieHook().list_campaigns(page_size=5)
    assert voicegenie_sandbox.request_count("list") == 0
    next(campaigns)
    assert voicegenie_sandbox.request_count("list") == 1
    names = [campaign.campaign_id for campaign in campaigns]
    assert len(names) == len(set(names)) == 11
    assert voicegenie_sandbox.request_count("list") == 3


@pytest.mark.parametrize("page_size", [0, 1001, -1, "5", True, 2.5])
def test_a_wrong_page_size_is_refused_at_once(page_size):
    with pytest.raises(ValueError, match="page_size"):
        VoiceGenieHook().list_campaigns(page_size)


@pytest.mark.parametrize("kind", ["drip-headers", "drip-body", "silence"])
def test_a_request_has_an_end_however_slowly_it_drips(kind):
    over = threading.Event()

    def handle(stream, request):
        head, drop = {
            "drip-headers": (b"HTTP/1.1 200 OK\r\n", b"x"),
            "drip-body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
            "silence": (b"", b""),
        }[kind]
        stream.sendall(head)
        # If the time began anew with each byte, the connection would end before it.
        for _ in range(900):
            stream.sendall(drop)
            if over.wait(0.1):
                return

    with raw_server(handle) as (port, seen):
        # A slow machine may need longer until it is sent.
        for timeout in (0.5, 5, 50):
            with pytest.raises(errors.RequestTimeoutError) as caught:
                client_for(port, timeout=timeout).send(endpoints.start("c"))
            if seen:
                break
        over.set()
    assert caught.value.may_have_taken_effect


@pytest.mark.parametrize("first", [b"200 OK", b"302 Found\r\nLocation: /x", b"500 No"])
def test_an_endless_response_is_not_read_to_its_end(first):
    sent = 0

    def handle(stream, request):
        nonlocal sent
        stream.sendall(b"HTTP/1.1 %s\r\nConnection: close\r\n\r\n" % first)
        for _ in range(2000):
            sent += stream.send(b"x" * 65536)

    with raw_server(handle) as (port, _), pytest.raises(errors.InvalidResponseError, match="larger than"):
        client_for(port).send(endpoints.campaign("c"))
    assert sent < 40_000_000


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "file:///etc/passwd", "//x", ":"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_its_body_not_swallowed(status, location):
    def elsewhere(stream, request):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with raw_server(elsewhere) as (other, seen):

        def handle(stream, request):
            target = location.format(port=other).encode()
            stream.sendall(b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, target))

        with raw_server(handle) as (port, requests):
            for request in (endpoints.start("c"), endpoints.campaign("c")):
                with pytest.raises(errors.RedirectedError):
                    client_for(port).send(request)
            assert len(requests) == 2
    assert seen == []


def test_a_refused_connection_reached_nobody():
    with closed_port() as port, pytest.raises(errors.ConnectionFailedError, match="no connection") as caught:
        client_for(port).send(endpoints.start("c"))
    assert not caught.value.may_have_taken_effect


def test_an_unknown_host_is_said_to_be_one_but_not_quoted():
    with pytest.raises(
        errors.ConnectionFailedError, match=r"name of the host \(the configured host, port 1\) cannot be resolved"
    ) as caught:
        client_for(1, host=f"{KEY}.invalid").send(endpoints.start("c"))
    assert not caught.value.may_have_taken_effect
    assert all(KEY not in f"{error} {error!r}" for error in chain_of(caught.value))


@pytest.mark.parametrize("trouble", ["unknown authority", "another name"])
def test_an_untrusted_certificate_stops_before_the_key_is_sent(trouble, tmp_path):
    authority = trustme.CA()
    name = "127.0.0.1" if trouble == "unknown authority" else "elsewhere.example.com"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    verify = True if trouble == "unknown authority" else str(bundle)
    server = raw_server(lambda stream, request: None, tls=context)
    with server as (port, requests), pytest.raises(errors.TlsFailedError) as caught:
        client_for(port, "https", verify=verify).send(endpoints.start("c"))
    assert not caught.value.may_have_taken_effect
    assert not caught.value.temporary
    assert requests == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_trusted_certificate_is_spoken_to(tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))

    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle, tls=context) as (port, requests):
        for verify in (str(bundle), False):
            with pytest.raises(errors.UnauthorizedError):
                client_for(port, "https", verify=verify).send(endpoints.campaign("c"))
    assert len(requests) == 2


def test_a_proxy_of_the_environment_does_not_see_the_key_of_plain_http(monkeypatch, client):
    with raw_server(lambda stream, request: None) as (port, requests):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client.send(endpoints.campaign("ready"))
    assert requests == []


def test_a_proxy_of_the_connection_is_used():
    def handle(stream, request):
        stream.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as (port, requests), pytest.raises(errors.UnauthorizedError):
        client_for(1, host="far.example.com", proxies={"http": f"http://127.0.0.1:{port}"}).send(
            endpoints.campaign("c")
        )
    assert requests[0].startswith(b"GET http://far.example.com:1/campaign/c ")


def test_no_exception_below_ours_is_kept(client, voicegenie_sandbox):
    voicegenie_sandbox.inject("close", "start")
    with pytest.raises(errors.ConnectionFailedError) as caught:
        client.send(endpoints.start("ready"))
    assert list(chain_of(caught.value)) == [caught.value]


def test_the_client_shows_no_key_and_cannot_be_pickled(client, voicegenie_sandbox):
    assert voicegenie_sandbox.api_key not in repr(client)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(client)


@pytest.mark.parametrize("ahead", [-240, 0, 240, None])
def test_the_service_clock_comes_from_its_answers(ahead):
    with dated(lambda: None if ahead is None else formatdate(time.time() + ahead, usegmt=True)) as client:
        assert abs(client.server_time() - time.time() - (ahead or 0)) < 10
        assert client.is_clock_known


@pytest.mark.parametrize(
    ("date", "words"),
    [
        (lambda: formatdate(time.time() + 3600, usegmt=True), "ahead of"),
        (lambda: formatdate(time.time() - 3600, usegmt=True), "behind"),
        (lambda: "Thu, 01 Jan 1970 00:00:00 GMT", "behind"),
        (lambda: "Fri, 31 Dec 9999 23:59:59 GMT", "ahead of"),
    ],
)
def test_a_clock_that_is_far_off_is_not_the_services(caplog, date, words):
    with dated(date) as client:
        assert abs(client.server_time() - time.time()) < 10
        assert not client.is_clock_known
        with pytest.raises(errors.UnauthorizedError):
            client.send(endpoints.campaign("c"))
    (warning,) = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert f"s {words} that of this machine" in warning


@contextlib.contextmanager
def dated(date):
    """A client that has just had a response with a date."""

    def handle(stream, request):
        field = "" if date() is None else f"Date: {date()}\r\n"
        stream.sendall(f"HTTP/1.1 401 No\r\n{field}Content-Length: 0\r\n\r\n".encode())

    with raw_server(handle) as (port, _):
        client = client_for(port)
        with pytest.raises(errors.UnauthorizedError):
            client.send(endpoints.campaign("c"))
        yield client


# The limit.


def test_uploads_count_in_the_connections_limit_and_heed_its_blocks(voicegenie_sandbox, clock):
    campaign_id = voicegenie_sandbox.add_campaign(total_count=0).id
    waits = []
    settings = ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, requests_per_minute=3)
    client = VoiceGenieClient(settings, sleep=waits.append)

    def upload(number):
        client.send(endpoints.upload(campaign_id, [{"phone_number": f"+49151234560{number}"}]))

    for number in range(3):
        upload(number)
    assert not waits
    upload(4)
    assert waits == [60]
    client.limiter = RateLimiter(1000)
    client.limiter.block(30, clock.monotonic())
    upload(5)
    assert waits == [60, 30]


@pytest.mark.parametrize("operation", ["start", "pause"])
def test_starts_and_pauses_count_in_the_limit_and_wait_for_nothing(voicegenie_sandbox, clock, operation):
    waits = []
    settings = ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, requests_per_minute=2)
    client = VoiceGenieClient(settings, sleep=waits.append)
    for campaign_id in ("ready", "paused") if operation == "start" else ("running", "running"):
        with suppress(errors.CampaignNotRunningError):
            client.send(getattr(endpoints, operation)(campaign_id))
    client.send(endpoints.campaign("ready"))
    assert waits == [60]
    # Now that three are counted of two, it is sent at once all the same.
    with suppress(errors.VoiceGenieError):
        client.send(getattr(endpoints, operation)("running"))
    assert len(waits) == 1
    assert voicegenie_sandbox.request_count(operation) == 3


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_requests_than_the_limit_in_any_minute(limit):
    limiter, now, sent = RateLimiter(limit), 1000.0, []
    for _ in range(4 * limit):
        sent.append(now + limiter.reserve(now))
        now += 1.0
    assert sent[:limit] == [1000.0 + number for number in range(limit)]
    assert all(later - earlier >= 60 for earlier, later in zip(sent, sent[limit:], strict=False))
    # Nor do they wait for longer than that takes.
    assert all(later - earlier == 60 for earlier, later in zip(sent, sent[limit:], strict=False))


def test_of_two_blocks_the_longer_one_counts():
    limiter = RateLimiter(10)
    limiter.block(40, 1000.0)
    limiter.block(5, 1001.0)
    assert limiter.reserve(1010.0) == 30
    assert limiter.reserve(1010.0, may_wait=False) == 0
    assert limiter.reserve(1041.0) == 0


def test_a_window_that_ends_in_hours_blocks_for_a_minute(voicegenie_sandbox):
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "7200"}
    settings = ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key, max_attempts=1)
    waits = []
    client = VoiceGenieClient(settings, sleep=waits.append)
    voicegenie_sandbox.inject("status", "get", status=503, headers=headers)
    with pytest.raises(errors.ServerError):
        client.send(endpoints.campaign("ready"))
    client.send(endpoints.campaign("ready"))
    assert len(waits) == 1
    assert 50 < waits[0] <= 60


def test_each_attempt_is_told_what_became_of_the_one_before(client, voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "get", status=503)
    voicegenie_sandbox.inject("close", "get")
    before = []
    client.send(endpoints.campaign("ready"), before_attempt=before.append)
    assert [type(error) for error in before] == [type(None), errors.ServerError, errors.ConnectionFailedError]


def test_a_read_is_never_said_to_have_taken_effect(client, clock, monkeypatch, voicegenie_sandbox):
    clock.end_requests_that_are_held(monkeypatch)
    for kind in ("close", "truncated", "drip"):
        voicegenie_sandbox.inject(kind, "get")
        with pytest.raises(errors.VoiceGenieError) as caught:
            client.send(endpoints.campaign("ready"), max_attempts=1)
        assert not caught.value.may_have_taken_effect


def test_the_number_of_attempts_may_be_given_for_one_request(client, voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "get", status=503, times=None)
    with pytest.raises(errors.ServerError):
        client.send(endpoints.campaign("ready"), max_attempts=1)
    assert voicegenie_sandbox.request_count("get") == 1
