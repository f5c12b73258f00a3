# SPDX-License-Identifier: Apache-2.0
"""From a connection to settings: every field, right and wrong, and no value in any message."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest

from airflow_provider_voicegenie.api.errors import InvalidConnectionError
from airflow_provider_voicegenie.api.settings import DOCUMENTED_BASE_URL
from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS
from airflow_provider_voicegenie.hooks.connection import _EXTRA_FIELDS, client_settings


def connection(
    host="https://api.example.com", password="sk-secret", schema=None, port=None, conn_type="voicegenie", **extra
):
    return SimpleNamespace(
        conn_id="vg",
        conn_type=conn_type,
        host=host,
        schema=schema,
        port=port,
        password=password,
        extra=json.dumps(extra) if extra else None,
    )


@pytest.mark.parametrize("conn_type", ["voicegenie", None, ""])
def test_a_connection_may_have_no_type(conn_type):
    assert client_settings(connection(conn_type=conn_type)).base_url == "https://api.example.com"


@pytest.mark.parametrize("conn_type", ["postgres", "http", "generic", "VoiceGenie"])
def test_the_password_of_another_type_is_not_sent_as_the_key(conn_type):
    with pytest.raises(InvalidConnectionError, match=r"^Connection 'vg': its type is not VoiceGenie\. .* name another"):
        client_settings(connection(conn_type=conn_type))


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "api.example.com"}, "https://api.example.com"),
        ({"host": "https://api.example.com/"}, "https://api.example.com"),
        ({"host": "https://api.example.com/voice/genie/"}, "https://api.example.com/voice/genie"),
        ({"host": "api.example.com:8443/v1"}, "https://api.example.com:8443/v1"),
        ({"host": "api.example.com", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "http://127.0.0.1", "port": 80}, "http://127.0.0.1:80"),
        ({"host": "http://127.0.0.1:80", "port": 0}, "http://127.0.0.1:80"),
        ({"host": "http://localhost:8642"}, "http://localhost:8642"),
        ({"host": "http://[::1]:8642"}, "http://[::1]:8642"),
        # Airflow takes the brackets off the host of a URI.
        ({"host": "::1", "port": 8642, "schema": "http"}, "http://[::1]:8642"),
        ({"host": "::1"}, "https://[::1]"),
        ({"host": "2001:db8::5", "port": 443, "schema": "v1"}, "https://[2001:db8::5]:443/v1"),
        ({"host": "[2001:db8::5]:8443"}, "https://[2001:db8::5]:8443"),
        ({"host": "127.0.0.1", "port": 8642, "schema": "http"}, "http://127.0.0.1:8642"),
        ({"host": "api.example.com", "schema": "v1"}, "https://api.example.com/v1"),
        ({"host": "http://internal", "allow_insecure_http": True}, "http://internal"),
        ({"host": "http://internal", "allow_insecure_http": "true"}, "http://internal"),
        ({"host": "http://internal", "allow_insecure_http": "y"}, "http://internal"),
        ({"host": ""}, DOCUMENTED_BASE_URL),
        ({"host": None}, DOCUMENTED_BASE_URL),
        ({"host": "  "}, DOCUMENTED_BASE_URL),
    ],
)
def test_base_url(fields, base_url):
    assert client_settings(connection(**fields)).base_url == base_url


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"password": None}, "Password"),
        ({"password": ""}, "Password"),
        ({"password": "sk-secret\n"}, "Password"),
        ({"password": " sk-secret"}, "Password"),
        ({"password": "sk-secret\x00"}, "Password"),
        ({"password": "sk-secrét"}, "Password"),
        ({"host": "http://sk-secret.example.com"}, "Host"),
        ({"host": "http://127.0.0.1.example.com"}, "Host"),
        ({"host": "2001:db8::5", "schema": "http"}, "Host"),
        ({"host": "http://::1:8642"}, "Host"),
        ({"host": "http://localhost@sk-secret"}, "Host"),
        ({"host": "https://sk-secret:x@api.example.com"}, "Host"),
        ({"host": "ftp://sk-secret"}, "Host"),
        ({"host": "file:///sk-secret"}, "Host"),
        ({"host": "https://"}, "Host"),
        ({"host": "https://api.example.com?key=sk-secret"}, "Host"),
        ({"host": "https://api.example.com/#sk-secret"}, "Host"),
        ({"host": "https://api.example.com/../sk-secret"}, "Host"),
        ({"host": "https://api.example.com:sk-secret"}, "Host"),
        ({"host": "https://[sk-secret"}, "Host"),
        ({"host": "https://api.example.com/sk%2Dsecret%21", "password": "sk-secret!"}, "Host"),
        ({"schema": "sk-secret!", "password": "sk-secret!"}, "Host"),
        ({"host": "sk secret"}, "Host"),
        ({"host": ".secret.example.com"}, "Host (Base URL)"),
        ({"host": "https://."}, "Host (Base URL)"),
        ({"host": "a..secret"}, "Host (Base URL)"),
        ({"host": "secret" * 11 + ".example.com"}, "Host (Base URL)"),
        ({"host": "é" * 64 + ".example.com"}, "Host (Base URL)"),
        ({"host": "https:/sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https//sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "HTTP//sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "http:/127.0.0.1:8642/secret"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https.//sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https://https://sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https://https//sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https", "schema": "/sk-secret.example.com"}, "Host (Base URL) has a mistyped https://"),
        ({"host": "https:sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "https;//sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "https,//sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "https:\\\\sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "//sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "https:///sk-secret.example.com"}, "Host (Base URL) is not a host"),
        ({"host": "https://api.example.com", "schema": "http"}, "Schema"),
        ({"port": -1}, "Port"),
        ({"port": 65536}, "Port"),
        ({"port": "0000012345678"}, "Port"),
        ({"port": "sk-secret"}, "Port"),
        ({"host": "api.example.com:1", "port": 2}, "Port"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "sk-secret"}, "timeout"),
        ({"timeout": "nan"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": [1]}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": "sk-secret"}, "max_attempts"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"requests_per_minute": "sk-secret"}, "requests_per_minute"),
        ({"verify": "/no/such/sk-secret.pem"}, "verify"),
        ({"verify": 5}, "verify"),
        ({"proxies": "sk-secret"}, "proxies"),
        ({"proxies": {"https": 5}}, "proxies"),
        ({"proxies": {"gopher": "http://sk-secret"}}, "proxies"),
        ({"proxies": {"https": "sk-secret"}}, "proxies"),
        ({"proxies": {"https": "ftp://sk-secret:1080"}}, "proxies"),
        ({"campaign_url": "https://dashboard.example.com/sk-secret"}, "campaign_url"),
        ({"campaign_url": "javascript:secret('{campaign_id}')"}, "campaign_url"),
        ({"campaign_url": "https://sk-secret@dashboard.example.com/{campaign_id}"}, "campaign_url"),
        ({"campaign_url": "https://dashboard.example.com/{campaign_id}/{secret}"}, "campaign_url"),
        ({"campaign_url": "https://dashboard.example.com/{campaign_id}?key=sk-secret"}, "campaign_url"),
        ({"campaign_url": 5}, "campaign_url"),
        ({"allow_insecure_http": "perhaps"}, "allow_insecure_http"),
    ],
)
def test_wrong_values_are_named_and_not_quoted(fields, named):
    with pytest.raises(InvalidConnectionError) as caught:
        client_settings(connection(**fields))
    assert str(caught.value).removeprefix("Connection 'vg': ").removeprefix("Extra field `").startswith(named)
    # What a traceback with local variables would show.
    for frame in caught.traceback[1:]:
        assert "secret" not in repr(frame.frame.f_locals)
    chain = caught.value
    while chain is not None:
        assert "secret" not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__


def test_a_short_password_may_be_in_the_host():
    assert client_settings(connection(host="https://kiosk.example.com", password="k"))


@pytest.mark.parametrize("extra", ["{", "[1]", '"sk-secret"', "sk-secret"])
def test_an_extra_that_is_no_object(extra):
    broken = connection()
    broken.extra = extra
    with pytest.raises(InvalidConnectionError, match="Extra must be a JSON object") as caught:
        client_settings(broken)
    assert "secret" not in str(caught.value)


def test_extra_fields_as_numbers_and_as_texts(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    numbers = connection(
        timeout=5, max_attempts=2, requests_per_minute=300, verify=False, proxies={"https": "http://p:1"}
    )
    texts = connection(
        timeout="5", max_attempts="2", requests_per_minute="300", verify="false", proxies='{"https": "http://p:1"}'
    )
    assert client_settings(numbers) == client_settings(texts)
    settings = client_settings(numbers)
    assert (settings.timeout, settings.max_attempts, settings.requests_per_minute) == (5, 2, 300)
    assert settings.verify is False
    assert client_settings(connection(verify=str(bundle))).verify == str(bundle)
    assert client_settings(connection(timeout="", verify=None)) == client_settings(connection())
    for scheme in ("socks4", "socks4a", "socks5", "socks5h"):
        assert client_settings(connection(proxies={"all": f"{scheme}://p:1"})).proxies == {"all": f"{scheme}://p:1"}


def test_an_unknown_extra_field_is_reported_without_its_text(caplog):
    client_settings(connection(timeuot="sk-secret", **{"sk-secret": 5}))
    assert "unknown field 'timeuot', did you mean 'timeout'?" in caplog.text
    assert "1 field(s) that mean nothing here (known: timeout, max_attempts" in caplog.text
    assert "secret" not in caplog.text


def test_form_names_of_extra_fields_are_known(caplog):
    client_settings(connection(timeout="5", extra__voicegenie__timeout="5"))
    assert not caplog.text


def test_an_empty_host_is_said_once(caplog):
    caplog.set_level("INFO")
    client_settings(connection(host=""))
    assert caplog.text.count(DOCUMENTED_BASE_URL) == 1


def test_settings_show_no_key_and_cannot_be_pickled():
    settings = client_settings(connection(host="https://secret.example.com"))
    assert "secret" not in repr(settings)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(settings)


def test_the_form_has_the_fields_that_are_read():
    assert set(CONNECTION_FIELDS) == set(_EXTRA_FIELDS)


@pytest.mark.parametrize("name", ["timeout", "max_attempts", "requests_per_minute"])
def test_the_bounds_are_those_of_the_form(name):
    schema = CONNECTION_FIELDS[name]["schema"]
    for bound, step in (("exclusiveMinimum", 0), ("minimum", 1), ("maximum", -1)):
        if bound not in schema:
            continue
        if bound != "exclusiveMinimum":
            assert getattr(client_settings(connection(**{name: schema[bound]})), name) == schema[bound]
        with pytest.raises(
            InvalidConnectionError, match=f"Extra field `{name}` must be a .* at most {schema['maximum']}"
        ):
            client_settings(connection(**{name: schema[bound] - step}))
