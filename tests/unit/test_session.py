# SPDX-License-Identifier: Apache-2.0
"""The session: where the key goes, how long a request may take, and that one whose time is over is never sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest
import requests
import trustme
from helpers.leaks import MARKED_KEY, check_exception, leak_in
from helpers.raw_server import raw_server, refuse

from airflow_provider_voicegenie.api import endpoints, errors
from airflow_provider_voicegenie.api.client import VoiceGenieClient
from airflow_provider_voicegenie.api.session import BoundSession, Exchange, _current
from airflow_provider_voicegenie.api.settings import ClientSettings
from airflow_provider_voicegenie.feed.threads import in_thread
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook

KEY = MARKED_KEY.encode()

#: Seconds after which something hangs, on the slowest of machines.
LONG = 50


def settings_for(port, scheme="http", host="127.0.0.1", path="", **fields):
    return ClientSettings(f"{scheme}://{host}:{port}{path}", MARKED_KEY, **{"timeout": 60, "max_attempts": 1, **fields})


def in_worker(client, request):
    return client.send(request)


def in_triggerer(client, request):
    return asyncio.run(in_thread(client.send, request))


BOTH = pytest.mark.parametrize("send", [in_worker, in_triggerer])


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# Where the key goes.


def ok(stream, request):
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\n{}")


def test_the_session_speaks_to_its_service():
    with raw_server(ok) as (port, seen):
        session = BoundSession(settings_for(port, path="/base"))
        for url in ("/campaign/1?a=b", "campaign/1?a=b", f"http://127.0.0.1:{port}/base/campaign/1?a=b"):
            assert session.get(url, params={"c": "d e"}).json() == {}
        assert session.post("/x", json={"a": 1}).json() == {}
    for request in seen[:3]:
        assert request.startswith(b"GET /base/campaign/1?a=b&c=d+e HTTP/1.1\r\n")
    assert seen[3].endswith(b'{"a": 1}')
    for request in seen:
        head = request.lower()
        assert b"x-api-key: " + KEY.lower() in head
        assert head.count(KEY.lower()) == 1
        for field in (b"connection: close", b"cache-control: no-store", b"accept-encoding: identity"):
            assert field in head
        assert b"cookie" not in head


def test_the_key_goes_to_no_other_address():
    with raw_server(ok) as (port, _), raw_server(ok) as (other, seen):
        session = BoundSession(settings_for(port))
        for url in (
            f"http://127.0.0.1:{other}/",
            f"http://localhost:{port}/",
            f"http://127.0.0.1:{port}@127.0.0.1:{other}/",
            f"http://127.0.0.1:{other}/?http://127.0.0.1:{port}/",
            f"http://127.0.0.1:{port}\\@127.0.0.1:{other}/",
        ):
            prepared = session.prepare_request(requests.Request("GET", url))
            if prepared.url.startswith(f"http://127.0.0.1:{port}/"):
                continue  # it is the service's
            with contextlib.suppress(requests.RequestException):
                assert session.get(url).status_code == 200
            assert leak_in(str(session._with_key(prepared).headers)) is None
        # Of two schemes, the key is for one.
        prepared = session.prepare_request(requests.Request("GET", f"https://127.0.0.1:{port}/"))
        assert leak_in(str(session._with_key(prepared).headers)) is None
    assert len(seen) >= 3
    assert all(leak_in(request) is None for request in seen)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://API.example.com", "https://api.example.com:443/x"),
        ("https://api.example.com:443", "https://api.example.com/x"),
        ("https://bücher.example", "https://xn--bcher-kva.example/x"),
        ("http://[::1]:80", "http://[::1]/x"),
    ],
)
def test_an_address_may_be_written_in_several_ways(base, url):
    session = BoundSession(ClientSettings(base, MARKED_KEY))
    prepared = session.prepare_request(requests.Request("GET", url))
    assert session._with_key(prepared).headers["x-api-key"] == MARKED_KEY


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    with raw_server(ok) as (other, seen):

        def redirect(stream, request):
            place = b"Location: http://127.0.0.1:%d/\r\n" % other
            stream.sendall(b"HTTP/1.1 %d Moved\r\n%sContent-Length: 0\r\n\r\n" % (status, place))

        with raw_server(redirect) as (port, _):
            session = BoundSession(settings_for(port))
            assert session.get("/x", allow_redirects=True).status_code == status
    assert seen == []


def test_what_is_handed_out_has_no_key():
    with raw_server(ok) as (port, _):
        session = BoundSession(settings_for(port))
        response = session.get("/x")
        # It is put on again if a request is sent again.
        assert session.send(response.request).json() == {}
    assert leak_in(repr(response.request.headers)) is None
    assert leak_in(f"{session!r} {session.headers!r} {session.auth!r}") is None
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(session)


def test_a_prepared_request_that_is_sent_elsewhere_has_no_key():
    with raw_server(ok) as (port, _), raw_server(ok) as (other, seen):
        session = BoundSession(settings_for(port))
        prepared = session.prepare_request(requests.Request("GET", "/x", headers={"x-api-key": MARKED_KEY}))
        prepared.url = f"http://127.0.0.1:{other}/x"
        assert session.send(prepared).status_code == 200
    assert len(seen) == 1
    assert leak_in(seen[0]) is None


def hang_up(stream, request):
    pass


def half(stream, request):
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


@pytest.mark.parametrize("handle", [hang_up, half, "nobody there", "bad proxy"])
def test_no_exception_shows_the_key_nor_any_frame_that_has_it(handle):
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(raw_server(handle if callable(handle) else hang_up))
        settings = settings_for(port)
        if handle == "nobody there":
            settings = settings_for(1)
        if handle == "bad proxy":
            settings = ClientSettings(
                "https://far.example.com", MARKED_KEY, proxies={"https": f"http://127.0.0.1:{port}"}
            )
        with pytest.raises(requests.RequestException) as caught:
            BoundSession(settings).get("/x")
        with pytest.raises(errors.VoiceGenieError) as ours:
            VoiceGenieClient(settings).send(endpoints.start("c"))
    check_exception(caught.value)
    check_exception(ours.value)
    if caught.value.request is not None:
        assert leak_in(pickle.dumps(caught.value.request.headers)) is None


@pytest.mark.parametrize("line", [b"x-api-key " + KEY, b" : " + KEY, KEY + b": \x00\r\nno colon " + KEY])
def test_malformed_headers_are_refused_rather_than_logged(caplog, line):
    """The library logs what it cannot parse."""
    caplog.set_level("DEBUG")

    def echo(stream, request):
        stream.sendall(b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 2\r\n\r\n{}")

    with raw_server(echo) as (port, _), pytest.raises(errors.VoiceGenieError):
        VoiceGenieClient(settings_for(port)).send(endpoints.start("c"))
    assert leak_in(caplog.text) is None


def test_what_a_response_echoes_is_not_logged(caplog):
    def echo(stream, request):
        stream.sendall(b"HTTP/1.1 302 %s\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n" % (KEY, KEY))

    caplog.set_level("DEBUG")
    with raw_server(echo) as (port, _), pytest.raises(errors.RedirectedError):
        VoiceGenieClient(settings_for(port)).send(endpoints.campaign("c"))
    assert leak_in(caplog.text) is None


# How long it may take.


@contextlib.contextmanager
def silent_address():
    """Give a port that does not answer: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


def resolve_to(monkeypatch, port, *, after=None, count=1):
    """Let the name of a host stand for so many addresses, found after an event; return the event that it is asked."""
    original, asked = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host, *rest, **more):
        if host not in ("slow.example.com", b"slow.example.com"):
            return original(host, *rest, **more)
        asked.set()
        if after is not None:
            after.wait(2 * LONG)
        return count * original("127.0.0.1", port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def wait_for(condition):
    """Wait for a sign."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def requests_are_over():
    return not any(thread.name == "voicegenie-request" for thread in threading.enumerate())


@BOTH
def test_the_time_limit_is_for_all_addresses(monkeypatch, send):
    with silent_address() as port:
        # If each had the time for itself, this would outlast the test.
        resolve_to(monkeypatch, port, count=1000)
        client = VoiceGenieClient(settings_for(port, host="slow.example.com", timeout=0.5))
        with pytest.raises(errors.RequestTimeoutError, match="in time") as caught:
            send(client, endpoints.start("c"))
    assert not caught.value.may_have_taken_effect


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_time_limit_covers_the_resolver_and_nothing_is_sent_later(monkeypatch, send, scheme):
    found = threading.Event()
    with raw_server(ok) as (port, seen):
        asked = resolve_to(monkeypatch, port, after=found)
        client = VoiceGenieClient(settings_for(port, scheme, "slow.example.com", timeout=0.3))
        # Nor does the event loop's end wait for the thread, which is held up in the resolver.
        with pytest.raises(errors.RequestTimeoutError) as caught:
            send(client, endpoints.start("c"))
        wait_for(asked.is_set)
        found.set()
        wait_for(requests_are_over)
    assert not caught.value.may_have_taken_effect
    assert all(KEY not in request for request in seen)


class Interruption(BaseException):
    pass


def interrupt(number, frame):
    raise Interruption


@pytest.mark.parametrize("moment", ["before it is sent", "after it was sent"])
def test_an_interruption_ends_a_request(monkeypatch, moment):
    """As ``execution_timeout`` and a kill do."""
    over, found = threading.Event(), threading.Event()

    def handle(stream, request):
        over.wait(2 * LONG)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with raw_server(handle) as (port, seen):
            asked = resolve_to(monkeypatch, port, after=found)
            client = VoiceGenieClient(settings_for(port, host="slow.example.com", timeout=2 * LONG))

            original = Exchange.ask_for_leave

            def ask_for_leave(exchange, connection=None):
                if moment == "before it is sent":
                    # In vain, and not for as long as the request might take.
                    exchange._deadline = time.monotonic() + 0.2
                original(exchange, connection)

            monkeypatch.setattr(Exchange, "ask_for_leave", ask_for_leave)

            def kill():
                wait_for(asked.is_set)
                if moment == "after it was sent":
                    found.set()
                    wait_for(lambda: seen)
                os.kill(os.getpid(), signal.SIGUSR1)

            killer = threading.Thread(target=kill)
            killer.start()
            begun = time.monotonic()
            with pytest.raises(Interruption):
                client.send(endpoints.start("c"))
            assert time.monotonic() - begun < LONG
            killer.join()
            found.set()
            wait_for(requests_are_over)
            over.set()
            assert len([request for request in seen if KEY in request]) == (moment == "after it was sent")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interruption_while_the_thread_begins_is_no_trouble_of_the_network(monkeypatch):
    """Python's own lock complains, too, if it is interrupted."""

    def start(thread):
        try:
            raise Interruption
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(threading.Thread, "start", start)
    for send in (in_worker, in_triggerer):
        with pytest.raises(Interruption):
            send(VoiceGenieClient(settings_for(1)), endpoints.start("c"))


def test_trouble_of_another_kind_with_a_thread_is_none_of_the_network(monkeypatch):
    def start(thread):
        raise RuntimeError("thread already started")

    monkeypatch.setattr(threading.Thread, "start", start)
    for send in (in_worker, in_triggerer):
        with pytest.raises(RuntimeError, match="already started"):
            send(VoiceGenieClient(settings_for(1)), endpoints.campaign("c"))


def test_a_thread_that_cannot_begin_during_a_kill_is_trouble_of_the_network(monkeypatch):
    """The pause that follows a kill is sent while the kill is handled."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    try:
        raise Interruption
    except Interruption:
        with pytest.raises(errors.ConnectionFailedError):
            in_worker(VoiceGenieClient(settings_for(1)), endpoints.pause("c"))


def test_two_interruptions_at_once_do_not_let_it_go():
    """Whatever a signal handler raises, and wherever: a caller that is gone gives no leave to send."""
    sent, raised = 0, []

    def interrupt_and_count(number, frame):
        raised.append(number)
        raise Interruption

    handlers = {each: signal.signal(each, interrupt_and_count) for each in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        for number in range(60):
            raised.clear()
            resolved = threading.Event()

            def send(resolved=resolved):
                resolved.wait(2 * LONG)
                time.sleep(0.01)
                _current.get().ask_for_leave(SimpleNamespace(sock=None))
                raise AssertionError("sent")

            exchange = Exchange()
            # A plain lock: an interrupted wait for the thread's begin would break that of a Condition.
            gate = threading.Lock()
            gate.acquire()

            def kill_twice(number=number, resolved=resolved, gate=gate):
                gate.acquire()
                time.sleep(0.02 + 0.0005 * (number % 7))
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR2)
                resolved.set()

            killer = threading.Thread(target=kill_twice)
            killer.start()
            # An interruption while the thread begins may look like a thread that cannot.
            with contextlib.suppress(Interruption, requests.ConnectionError):
                gate.release()
                exchange.run(send, LONG)
            # The second one comes when it likes.
            while len(raised) < 2:
                with contextlib.suppress(Interruption):
                    time.sleep(0.001)
            killer.join()
            sent += exchange.is_sent or True in [exchange._leave.get() for _ in range(exchange._leave.qsize())]
            # Lest the thread asks for it until its time is over.
            exchange._leave.put(None)
            wait_for(requests_are_over)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert sent == 0


@pytest.mark.parametrize("trouble", [None, "time is over"])
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_proxy_that_speaks_tls(trouble, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "far.example.com").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    over = threading.Event()
    asked = []

    def proxy(stream, request):
        asked.append(request)
        stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inner = context.wrap_bio(incoming, outgoing, server_side=True)

        def step(action):
            while True:
                try:
                    return action()
                except ssl.SSLWantReadError:
                    stream.sendall(outgoing.read())
                    incoming.write(stream.recv(65536))
                finally:
                    if outgoing.pending:
                        stream.sendall(outgoing.read())

        step(inner.do_handshake)
        asked.append(step(lambda: inner.read(65536)))
        if trouble:
            over.wait(2 * LONG)
        step(lambda: inner.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"))

    expected = errors.RequestTimeoutError if trouble else errors.UnauthorizedError
    with raw_server(proxy, tls=context) as (port, _):
        # A slow machine may need longer until it is sent.
        for timeout in (1, 10, LONG) if trouble else (LONG,):
            asked.clear()
            settings = ClientSettings(
                "https://far.example.com",
                MARKED_KEY,
                timeout=timeout,
                verify=str(bundle),
                proxies={"https": f"https://127.0.0.1:{port}"},
            )
            with pytest.raises(expected) as caught:
                VoiceGenieClient(settings).send(endpoints.start("c"))
            if len(asked) == 2:
                break
        over.set()
    assert caught.value.may_have_taken_effect is (trouble is not None)
    assert asked[0].startswith(b"CONNECT far.example.com:443 ")
    assert leak_in(asked[0]) is None
    assert asked[1].startswith(b"GET /startCampaign/c HTTP/1.1")


def test_the_caller_hears_of_the_moment_before_a_request_is_sent():
    heard = []
    with raw_server(ok) as (port, seen):
        client = VoiceGenieClient(settings_for(port))
        with pytest.raises(errors.InvalidResponseError):
            client.send(endpoints.start("c"), on_sending=lambda: heard.append(len(seen)))
    assert heard == [0]
    with pytest.raises(errors.ConnectionFailedError):
        VoiceGenieClient(settings_for(1)).send(endpoints.start("c"), on_sending=lambda: heard.append("sent"))
    assert heard == [0]


def test_a_process_that_can_have_no_more_threads_has_trouble_that_may_pass(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    client = VoiceGenieClient(settings_for(1))
    for send in (in_worker, in_triggerer):
        with pytest.raises(errors.ConnectionFailedError) as caught:
            send(client, endpoints.start("c"))
        assert not caught.value.may_have_taken_effect


@pytest.mark.parametrize("is_over", [True, False])
def test_an_interruption_while_the_thread_starts_is_no_trouble_with_the_network(monkeypatch, is_over):
    """A second signal, while Python handles the first one, leaves it with a lock that it cannot release."""

    def start(thread, original=threading.Thread.start):
        if is_over:
            original(thread)
        try:
            raise Interruption
        except Interruption:
            raise RuntimeError("release unlocked lock") from None

    with raw_server(ok) as (port, seen):
        client = VoiceGenieClient(settings_for(port, max_attempts=3))
        monkeypatch.setattr(threading.Thread, "start", start)
        for request in (endpoints.start("c"), endpoints.campaign("c")):
            with pytest.raises(Interruption):
                in_worker(client, request)
        monkeypatch.undo()
        while any(thread.name == "voicegenie-request" for thread in threading.enumerate()):
            time.sleep(0.02)
    assert all(KEY not in request for request in seen)


def test_trouble_of_another_kind_with_a_thread_is_none_with_the_network(monkeypatch):
    def start(thread):
        raise RuntimeError("thread already started")

    monkeypatch.setattr(threading.Thread, "start", start)
    for send in (in_worker, in_triggerer):
        with pytest.raises(RuntimeError, match="already started"):
            send(VoiceGenieClient(settings_for(1)), endpoints.campaign("c"))


def test_a_request_that_its_caller_ends_leaves_no_thread_behind():
    """The time of the request would be an hour."""

    def refuse():
        raise Interruption

    with raw_server(ok) as (port, seen):
        client = VoiceGenieClient(settings_for(port, timeout=3600))
        with pytest.raises(Interruption):
            client.send(endpoints.start("c"), on_sending=refuse)
        while any(thread.name == "voicegenie-request" for thread in threading.enumerate()):
            time.sleep(0.02)
    assert all(KEY not in request for request in seen)


def test_a_check_that_raises_stop_iteration_is_an_error():
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(in_thread(lambda: next(iter(()))))


def test_a_thread_that_is_left_behind_is_woken_up():
    over = threading.Event()
    with raw_server(lambda stream, request: over.wait(2 * LONG)) as (port, seen):
        # A slow machine may need longer until it is sent.
        for timeout in (0.2, 5, LONG):
            with pytest.raises(errors.RequestTimeoutError) as caught:
                VoiceGenieClient(settings_for(port, timeout=timeout)).send(endpoints.start("c"))
            if seen:
                break
        wait_for(requests_are_over)
        over.set()
    assert caught.value.may_have_taken_effect


def test_the_event_loop_reads_no_response(voicegenie_sandbox):
    threads = []

    def decode(data):
        threads.append(threading.current_thread())
        return data

    client = VoiceGenieClient(ClientSettings(voicegenie_sandbox.url, voicegenie_sandbox.api_key))
    request = endpoints.Request("get", "/campaign/ready", decode)
    assert in_triggerer(client, request)["id"] == "ready"
    assert threads != [threading.main_thread()]


# What is on the way.


@pytest.mark.parametrize("trouble", ["unknown authority", "another name", None, "unchecked", "no tls", "no bundle"])
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificates(trouble, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example.com" if trouble == "another name" else "127.0.0.1").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    if trouble == "no bundle":
        bundle.write_text("no certificate")
    verify = {"unknown authority": True, "unchecked": False}.get(trouble, str(bundle))
    with raw_server(refuse, tls=None if trouble == "no tls" else context) as (port, seen):
        client = VoiceGenieClient(settings_for(port, "https", verify=verify))
        with pytest.raises(errors.VoiceGenieError) as caught:
            client.send(endpoints.pause("c"))
    expected = {None: errors.UnauthorizedError, "unchecked": errors.UnauthorizedError}
    expected["no bundle"] = errors.InvalidConnectionError
    assert type(caught.value) is expected.get(trouble, errors.TlsFailedError)
    if trouble in (None, "unchecked"):
        assert len(seen) == 1
    else:
        assert not caught.value.may_have_taken_effect
        assert all(leak_in(request) is None for request in seen)


def test_verify_false_ignores_the_bundle_of_the_environment(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    session = BoundSession(ClientSettings("https://far.example.com", MARKED_KEY, verify=False))
    assert session.merge_environment_settings("https://far.example.com/x", {}, None, None, None)["verify"] is False


@pytest.mark.parametrize("source", ["environment", "connection"])
def test_proxies_of_plain_http(monkeypatch, source):
    with raw_server(refuse) as (proxy, at_proxy), raw_server(refuse) as (port, at_host):
        url = f"http://127.0.0.1:{proxy}"
        monkeypatch.setenv("http_proxy", url if source == "environment" else "")
        proxies = {"http": url} if source == "connection" else {}
        with pytest.raises(errors.UnauthorizedError):
            VoiceGenieClient(settings_for(port, proxies=proxies)).send(endpoints.campaign("c"))
    # Of plain http, a proxy of the environment would see the key.
    assert (len(at_proxy), len(at_host)) == ((0, 1) if source == "environment" else (1, 0))


def test_an_encrypted_request_goes_through_the_proxy_of_the_environment(monkeypatch):
    def forbid(stream, request):
        stream.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(forbid) as (proxy, seen):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
        client = VoiceGenieClient(ClientSettings("https://far.example.com", MARKED_KEY, timeout=60))
        with pytest.raises(errors.ConnectionFailedError, match="the proxy did not let the connection") as caught:
            client.send(endpoints.pause("c"))
    assert not caught.value.may_have_taken_effect
    assert [request.split(b" HTTP/")[0] for request in seen] == [b"CONNECT far.example.com:443"]
    assert all(leak_in(request) is None for request in seen)


@pytest.mark.parametrize(
    ("environment", "proxies", "chosen"),
    [
        ({"https_proxy": "http://of-environment:1"}, {}, "http://of-environment:1"),
        ({"all_proxy": "http://of-environment:1"}, {}, "http://of-environment:1"),
        ({"HTTPS_PROXY": "http://of-environment:1", "no_proxy": "example.com"}, {}, None),
        ({"https_proxy": "http://of-environment:1", "NO_PROXY": "*"}, {}, None),
        ({"https_proxy": "http://of-environment:1"}, {"all": "http://own:2"}, "http://own:2"),
        ({"https_proxy": "http://of-environment:1"}, {"https://far.example.com": "http://own:2"}, "http://own:2"),
        ({"https_proxy": "http://of-environment:1"}, {"http": "http://own:2"}, "http://of-environment:1"),
    ],
)
def test_the_connection_chooses_before_the_environment(monkeypatch, environment, proxies, chosen):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = "https://far.example.com/x"
    session = BoundSession(ClientSettings("https://far.example.com", MARKED_KEY, proxies=proxies))
    merged = session.merge_environment_settings(url, {}, None, None, None)["proxies"]
    assert requests.utils.select_proxy(url, merged) == chosen


@pytest.mark.parametrize("url", ["ftp://proxy:1", "http://[bad", "://", "http://"])
def test_the_url_of_a_proxy_that_is_none(monkeypatch, url):
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(errors.InvalidConnectionError, match=r"the proxy cannot be used.*HTTPS_PROXY"):
        VoiceGenieClient(ClientSettings("https://far.example.com", MARKED_KEY)).send(endpoints.campaign("c"))


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_cannot_be_found_is_said_to_be_the_trouble(scheme):
    if scheme == "socks5h":
        pytest.importorskip("socks")
    settings = ClientSettings(
        "https://far.example.com",
        MARKED_KEY,
        timeout=60,
        max_attempts=1,
        proxies={"https": f"{scheme}://proxy.invalid:1"},
    )
    with pytest.raises(errors.ConnectionFailedError, match="the proxy did not let the connection"):
        VoiceGenieClient(settings).send(endpoints.campaign("c"))


@pytest.mark.parametrize("name", ["https_proxy", "REQUESTS_CA_BUNDLE"])
def test_an_environment_that_cannot_be_used_is_named(monkeypatch, name):
    def no_socks(*arguments, **options):
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", no_socks)
    monkeypatch.setenv(name, {"https_proxy": "socks5://proxy.example.com"}.get(name, "/no/such/bundle"))
    with pytest.raises(errors.InvalidConnectionError, match=name.upper()):
        VoiceGenieClient(ClientSettings("https://far.example.com", MARKED_KEY)).send(endpoints.campaign("c"))


def test_a_socks_proxy_is_gone_through():
    pytest.importorskip("socks")
    asked = []

    def socks(stream, greeting):
        stream.sendall(b"\x05\x00")
        asked.append(stream.recv(65536))
        stream.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        asked.append(stream.recv(65536))
        refuse(stream, asked[-1])

    with raw_server(socks) as (proxy, _):
        settings = settings_for(80, host="far.example.com", proxies={"http": f"socks5h://127.0.0.1:{proxy}"})
        with pytest.raises(errors.UnauthorizedError):
            VoiceGenieClient(settings).send(endpoints.campaign("c"))
    assert b"far.example.com" in asked[0]
    assert asked[1].startswith(b"GET /campaign/c HTTP/1.1\r\n")


# The hook's own way in.


def connect(monkeypatch, port):
    extra = json.dumps({"max_attempts": 3, "timeout": 60})
    fields = {"conn_type": "voicegenie", "host": f"http://127.0.0.1:{port}", "password": MARKED_KEY, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(fields))


def test_hook_request_and_get_conn(monkeypatch):
    def handle(stream, request):
        body = b'{"success": true, "data": [1, 2]}'
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(handle) as (port, seen):
        connect(monkeypatch, port)
        assert VoiceGenieHook().request("post", "/getHistory", params={"page": 2}, json={"campaign_id": "c"}) == [1, 2]
        assert VoiceGenieHook().get_conn().get("/quota").json()["data"] == [1, 2]
    assert seen[0].startswith(b"POST /getHistory?page=2 HTTP/1.1\r\n")
    assert seen[0].endswith(b'{"campaign_id": "c"}')
    assert seen[1].startswith(b"GET /quota HTTP/1.1\r\n")


@pytest.mark.parametrize("repeatable", [False, True])
def test_hook_request_is_repeated_only_if_repeatable(monkeypatch, repeatable):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def fail(stream, request):
        stream.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    with raw_server(fail) as (port, seen):
        connect(monkeypatch, port)
        with pytest.raises(errors.ServerError) as caught:
            VoiceGenieHook().request("POST", "/x", repeatable=repeatable)
    assert len(seen) == (3 if repeatable else 1)
    assert caught.value.may_have_taken_effect is not repeatable


@pytest.mark.parametrize("path", ["/../startCampaign/c", "/x/%2e%2e/y", "/./x", "/x\\..\\y"])
def test_a_path_stays_below_the_base_url(monkeypatch, path):
    with raw_server(ok) as (port, seen):
        connect(monkeypatch, f"{port}/base")
        with pytest.raises(ValueError, match="path must be a path below the base URL"):
            VoiceGenieHook().request("GET", path)
        with pytest.raises(requests.exceptions.InvalidURL):
            VoiceGenieHook().get_conn().get(path)
    assert seen == []


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("number", [Decimal("1.5"), Decimal("NaN")])
def test_a_number_that_json_lacks_is_a_wrong_argument(monkeypatch, number):
    connect(monkeypatch, 1)
    with pytest.raises(ValueError, match=r"POST /x: json cannot be written as JSON: .*Decimal"):
        VoiceGenieHook().request("POST", "/x", json={"amount": number})
    with pytest.raises(requests.exceptions.InvalidJSONError, match="Decimal"):
        VoiceGenieHook().get_conn().request("POST", "/x", json={"amount": number})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "BAD METHOD", "path": "/x"}, "method must be an HTTP method"),
        ({"method": "POST", "path": "/x", "json": {"a": float("nan")}}, "json cannot be written as JSON"),
        ({"method": "POST", "path": "/x", "json": {"a": object()}}, "json cannot be written as JSON: .*object"),
        ({"method": "POST", "path": "/x", "json": {"a": {1, 2}}}, "json cannot be written as JSON: .*set"),
        ({"method": "POST", "path": "/x", "json": {"a": datetime.now(UTC)}}, "json cannot be written as JSON"),
        ({"method": "POST", "path": "/x", "json": {("a", "b"): 1}}, "json cannot be written as JSON"),
        ({"method": "POST", "path": "/x", "json": nested(100_000)}, "json cannot be written as JSON"),
        ({"method": "GET", "path": "/x", "params": [1]}, "params must be a mapping"),
    ],
)
def test_a_wrong_argument_of_a_request_is_named(monkeypatch, arguments, words):
    connect(monkeypatch, 1)
    with pytest.raises(ValueError, match=words):
        VoiceGenieHook().request(repeatable=True, **arguments)


def test_a_response_of_another_form_is_said_to_be_that(voicegenie_sandbox):
    with pytest.raises(errors.VoiceGenieError, match=r"Check the path of the request, .* use get_conn\(\) of the hook"):
        VoiceGenieHook().request("GET", "/getQuota")


def test_a_thread_that_reads_a_drip_is_woken_up():
    """The library's own timeout is for each read, and a server that drips never lets one take so long."""
    over = threading.Event()

    def drip(stream, request):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not over.wait(0.05):
            stream.sendall(b" ")

    with raw_server(drip) as (port, _):
        client = VoiceGenieClient(settings_for(port, timeout=0.5))
        with pytest.raises(errors.RequestTimeoutError):
            client.send(endpoints.start("c"))
        try:
            # Else it reads for as long as the server drips.
            wait_for(requests_are_over)
        finally:
            over.set()
