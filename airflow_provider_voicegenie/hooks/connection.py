# SPDX-License-Identifier: Apache-2.0
"""
From an Airflow connection to checked settings.

Every message names the connection, the field and the remedy. None quotes a value: an API key that was pasted
into the wrong field would go out with it.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_voicegenie.api.errors import ConnectionFailedError, InvalidConnectionError, unchained
from airflow_provider_voicegenie.api.settings import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_REQUESTS_PER_MINUTE,
    DEFAULT_TIMEOUT,
    DOCUMENTED_BASE_URL,
    ClientSettings,
    is_proxy_url,
)
from airflow_provider_voicegenie.get_provider_info import CONNECTION_FIELDS, CONNECTION_TYPE
from airflow_provider_voicegenie.metrics import count_request
from airflow_provider_voicegenie.rules.parameters import did_you_mean, is_whole_connection

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_voicegenie.api.client import VoiceGenieClient

log = logging.getLogger(__name__)


_SHORTEST_KEY = 8
# As Airflow calls it, and as our form does.
_HOST = "Host (Base URL)"
_PASSWORD = "Password (API key)"  # noqa: S105  the name of a field
#: Letters of other alphabets are fine.
_HOST_NAME = re.compile(r"[\w.-]+")
_NO_HOST = f"{_HOST} is not a host or base URL. Enter a host name, or https://host/path."


class _FieldError(Exception):
    """A field has no usable value; the message is a sentence that begins with the field."""


def client_settings(connection: Connection) -> ClientSettings:
    """
    Check a connection and turn it into settings.

    :param connection: An Airflow connection of type ``voicegenie``.
    :raises InvalidConnectionError: A field is missing or wrong.
    """
    conn_id = connection.conn_id
    with unchained():
        try:
            return _check(connection)
        except _FieldError as error:
            raise InvalidConnectionError(f"Connection {conn_id!r}: {error}") from None
        finally:
            # A traceback may show local variables, and the connection's own `repr` has the password.
            del connection


def make_client(settings: ClientSettings) -> VoiceGenieClient:
    """Return a client whose requests Airflow's metrics count."""
    # From here, as it loads the HTTP library.
    from airflow_provider_voicegenie.api.client import VoiceGenieClient

    return VoiceGenieClient(settings, on_result=count_request)


def no_such_connection(conn_id: str) -> InvalidConnectionError:
    """Return the error for a connection that Airflow does not know, or of which it cannot read the variable."""
    if is_whole_connection(conn_id):
        return InvalidConnectionError("voicegenie_conn_id is a whole connection. Give the id of an Airflow connection.")
    if (variable := f"AIRFLOW_CONN_{conn_id.upper()}") in os.environ:
        return InvalidConnectionError(
            f"Connection {conn_id!r} cannot be read: the variable {variable} is there, but is neither JSON nor a URI "
            "that Airflow understands. Look for a comma or a quotation mark too many, or too few."
        )
    return InvalidConnectionError(
        f"Connection {conn_id!r} is not defined. Add one of type VoiceGenie under Admin, Connections, or correct "
        "voicegenie_conn_id."
    )


def unreadable_connection(conn_id: str, error: Exception) -> ConnectionFailedError:
    """Return the error for a connection that Airflow could not be asked for."""
    return ConnectionFailedError(f"Connection {conn_id!r} could not be read from Airflow ({type(error).__name__}).")


def _check(connection: Connection) -> ClientSettings:
    if connection.conn_type not in (None, "", CONNECTION_TYPE):
        # Its password is of something else, and would be sent as the API key.
        raise _FieldError(
            "its type is not VoiceGenie. Choose the type VoiceGenie (`voicegenie` in a variable or a secrets backend), "
            "or name another connection in voicegenie_conn_id."
        )
    extra = _read_extra(connection.conn_id, connection.extra)
    base_url = _base_url(connection, insecure_allowed=extra.pop("allow_insecure_http", False))
    api_key = _api_key(connection.password)
    _refuse_key_in(_HOST, base_url, api_key)
    _refuse_key_in("Extra field `campaign_url`", extra.get("campaign_url") or "", api_key)
    return ClientSettings(base_url, api_key, conn_id=connection.conn_id, **extra)


def _api_key(password: object) -> str:
    if not isinstance(password, str) or not password:
        raise _FieldError(
            f"{_PASSWORD} is empty. Enter the API key, from the VoiceGenie dashboard, under Settings > API Keys."
        )
    # A header can hold no more, and a pasted line end is the usual mistake.
    if not password.isascii() or not password.isprintable() or " " in password:
        raise _FieldError(
            f"{_PASSWORD} contains whitespace, a line break or an invalid character. Enter the key again, without "
            "anything before or after it."
        )
    return password


def _refuse_key_in(field: str, url: str, api_key: str) -> None:
    # A shorter text is no key of a service, and may be part of a name.
    if len(api_key) >= _SHORTEST_KEY and api_key in (url + unquote(url)):
        raise _FieldError(
            f"{field} contains the API key, which would end up in the logs of every server on the way. Remove it; the "
            "API key belongs in Password."
        )


def _base_url(connection: Connection, *, insecure_allowed: bool) -> str:
    host = (connection.host or "").strip()
    if not host:
        log.info(
            "Connection %r has no host: using %s, the address on the vendor's Start Campaign page. The vendor calls "
            "none of its addresses production; enter yours as host.",
            connection.conn_id,
            DOCUMENTED_BASE_URL,
        )
        return DOCUMENTED_BASE_URL
    # In the URI form of a connection, what follows the host arrives as schema: a scheme, as in Airflow's HTTP
    # connections, or the path.
    if isinstance(_ip_address(host), ipaddress.IPv6Address):  # Airflow takes the brackets off the host of a URI
        host = f"[{host}]"
    schema = (connection.schema or "").strip().strip("/")
    scheme, path = (schema.lower(), "") if schema.lower() in ("http", "https") else ("", schema)
    if "://" not in host:
        host = f"{scheme or 'https'}://{host}"
    parts = _split(host)
    if scheme and scheme != parts.scheme:
        raise _FieldError("Schema names another scheme than the host does. Leave it empty.")
    name = parts.hostname or ""
    if name.rstrip(".") in ("http", "https"):
        # From https:/host, https//host, or two schemes: the key would go to a host of that name.
        raise _FieldError(f"{_HOST} has a mistyped https:// at its beginning. Enter a host name, or https://host/path.")
    ip_address = _ip_address(name)
    is_host = _is_host_name(name) or isinstance(ip_address, ipaddress.IPv6Address)
    if not is_host or any(c.isspace() or not c.isprintable() for c in host):
        raise _FieldError(_NO_HOST)
    is_loopback = name.lower().rstrip(".") == "localhost" if ip_address is None else ip_address.is_loopback
    if parts.scheme == "http" and not is_loopback and not insecure_allowed:
        raise _FieldError(
            f"{_HOST} is plain http:// to another machine, which would show the API key to the network. Use https://, "
            'or set "allow_insecure_http": true in Extra if the network is yours.'
        )
    port = _port(parts, connection.port)
    netloc = f"[{name}]" if ":" in name else name
    segments = [part.strip("/") for part in (parts.path, path) if part.strip("/")]
    return "/".join([f"{parts.scheme}://{netloc}{f':{port}' if port else ''}", *segments])


def _is_host_name(name: str) -> bool:
    try:
        # Each part has 1 to 63 characters, as the name server is asked for it.
        name.removesuffix(".").encode("idna")
    except UnicodeError:
        return False
    return bool(_HOST_NAME.fullmatch(name)) and name != "."


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  reading it checks it
    except ValueError:
        raise _FieldError(_NO_HOST) from None
    problems = {
        "a scheme other than https or http. Use https://.": parts.scheme not in ("http", "https"),
        "a user name or password. Remove them; the API key belongs in Password.": "@" in parts.netloc,
        "a query or a fragment. Remove everything from the first ? or # on.": bool(parts.query or parts.fragment),
        'a "." or ".." in its path. Enter the path without.': any(p in (".", "..") for p in parts.path.split("/")),
    }
    for problem, present in problems.items():
        if present:
            raise _FieldError(f"{_HOST} has {problem}")
    return parts


def _port(parts: SplitResult, port: object) -> int | None:
    # Airflow's UI sends 0 for a port that is not there.
    if port in (None, "", 0, "0"):
        return parts.port
    text = str(port)
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise _FieldError("Port must be a number from 1 to 65535. Correct it or leave it empty.")
    if parts.port not in (None, int(text)):
        raise _FieldError("Port differs from the port in the host. Enter it in one place only.")
    return int(text)


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _read_extra(conn_id: object, text: object) -> dict[str, Any]:
    """Read the fields we know; an empty one, as the connection form leaves behind, counts as not there."""
    extra = _parse_extra(text)
    if extra is None:
        raise _FieldError('Extra must be a JSON object, such as {"timeout": 30}, or empty.')
    if found := "; ".join(chain.from_iterable(unknown_fields(extra))):
        log.warning("Connection %r: Extra has %s", conn_id, found if found.endswith("?") else f"{found}.")
    values = {}
    for name, (read, wanted) in _EXTRA_FIELDS.items():
        value = extra.get(name)
        if value in (None, ""):
            continue
        try:
            values[name] = read(value)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise _FieldError(f"Extra field `{name}` must be {wanted}.") from None
    return values


def _parse_extra(text: object) -> Mapping[str, Any] | None:
    """Return the object that an extra holds; ``None`` if it holds something else."""
    if text in (None, ""):
        return {}
    try:
        extra = text if isinstance(text, Mapping) else json.loads(str(text))
    except ValueError:
        return None
    return extra if isinstance(extra, Mapping) else None


def unknown_fields(extra: object) -> tuple[list[str], list[str]]:
    """
    Say which fields of a connection's extra mean nothing here: those that are surely misspelled, and the others.

    A name is quoted only if it resembles a known one: it could be an API key.

    :param extra: The extra, as an object or as JSON.
    """
    extra = _parse_extra(extra) or {}
    # Airflow 2 gives each field of the form under two names.
    names = [str(name).removeprefix(_FORM_PREFIX) for name in extra]
    unknown = [name for name in names if name not in _EXTRA_FIELDS]
    hints = {name: did_you_mean(name, _EXTRA_FIELDS) for name in unknown}
    misspelled = [f"unknown field {name!r}, {hint}" for name, hint in hints.items() if hint]
    others = sum(not hint for hint in hints.values())
    names_here = ", ".join(_EXTRA_FIELDS)
    return misspelled, [f"{others} field(s) that mean nothing here (known: {names_here})"] if others else []


def _number(name: str, what: str, example: float) -> tuple[Callable[[Any], float], str]:
    """Return what reads a number within the bounds that the connection form has for it, and what it must be."""
    schema = CONNECTION_FIELDS[name]["schema"]
    above, minimum, maximum = (schema.get(bound) for bound in ("exclusiveMinimum", "minimum", "maximum"))
    is_whole = "integer" in schema["type"]

    def read(value: Any) -> float:
        number = float(value)
        is_within = (above is None or number > above) and (minimum is None or number >= minimum) and number <= maximum
        if isinstance(value, bool) or not is_within or (is_whole and not number.is_integer()):
            raise ValueError
        return int(number) if is_whole else number

    from_where = f"above {above}" if minimum is None else f"from {minimum}"
    return read, f"{what} {from_where}, at most {maximum}, such as {example:g}"


def _read_flag(value: Any) -> bool:
    # The URI form of a connection carries text, and a ticked box of Airflow 2's form a "y".
    return {"true": True, "false": False, "y": True}[str(value).strip().lower()]


def _read_verify(value: Any) -> bool | str:
    try:
        return _read_flag(value)
    except KeyError:
        pass
    if not isinstance(value, str) or not os.path.exists(value):
        raise ValueError
    return value


def _read_proxies(value: Any) -> Mapping[str, str]:
    proxies = json.loads(value) if isinstance(value, str) else value
    if not isinstance(proxies, Mapping):
        raise ValueError
    for scheme, url in proxies.items():
        if scheme.partition("://")[0] not in ("http", "https", "all") or "://" not in url or not is_proxy_url(url):
            raise ValueError
    return dict(proxies)


def _read_campaign_url(value: Any) -> str:
    # It ends up in a page: nothing but a link to somewhere may come of it.
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or not value.isprintable():
        raise ValueError
    if "{campaign_id}" not in value or any(brace in value.replace("{campaign_id}", "") for brace in "{}"):
        raise ValueError
    return str(value)


#: What reads each field, and what the field must be.
_EXTRA_FIELDS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "timeout": _number("timeout", "a number of seconds", DEFAULT_TIMEOUT),
    "max_attempts": _number("max_attempts", "a whole number", DEFAULT_MAX_ATTEMPTS),
    "requests_per_minute": _number("requests_per_minute", "a whole number", DEFAULT_REQUESTS_PER_MINUTE),
    "verify": (_read_verify, "true, false, or the path of an existing CA bundle on this machine"),
    "proxies": (
        _read_proxies,
        'an object of proxy URLs by scheme, such as {"https": "http://proxy.example.com:3128"}',
    ),
    "campaign_url": (
        _read_campaign_url,
        "a URL with {campaign_id} in it, such as https://dashboard.example.com/{campaign_id}",
    ),
    "allow_insecure_http": (_read_flag, "true or false"),
}

_FORM_PREFIX = "extra__voicegenie__"
