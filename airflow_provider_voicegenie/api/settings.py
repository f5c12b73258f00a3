# SPDX-License-Identifier: Apache-2.0
"""What a client needs to know, already checked."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn
from urllib.parse import urlsplit

#: The only host on the vendor's Start Campaign page. The vendor names others, and calls none of them production.
DOCUMENTED_BASE_URL = "https://seamless-sandbox-dev-cm.oriserve.com"

#: 64 bits tell accounts apart, and are too few to check a guess of the whole digest against.
_DIGEST_CHARACTERS = 16

DEFAULT_TIMEOUT = 30.0
DEFAULT_MAX_ATTEMPTS = 4
#: The smallest documented plan.
DEFAULT_REQUESTS_PER_MINUTE = 60


class Account(NamedTuple):
    """
    The account that the service shows a client the campaigns of.

    :param base_url: Where the service is.
    :param digest: A digest of that, keyed with the API key: another key, another digest. It can be stored.
    """

    base_url: str
    digest: str


@dataclass(frozen=True)
class ClientSettings:
    """
    Where the service is, and how to speak to it.

    Nothing that could hold a secret is shown by ``repr``, and pickling is refused.

    :param base_url: Scheme, host, port and path, without a trailing slash.
    :param timeout: Seconds that one whole request may take, from resolving the host to the last byte.
    :param max_attempts: Attempts that a read may take in all, and a start that is refused with a 429.
    :param requests_per_minute: The limit for all that use the key together; one client sends no more in 60 seconds.
    :param verify: ``True``, ``False``, or the path of a CA bundle.
    :param proxies: Proxy URLs by scheme. If none is for the service, those of the environment apply, to ``https`` only.
    :param campaign_url: Where people see a campaign, with ``{campaign_id}`` in place of its id.
    :param conn_id: Id of the Airflow connection, for messages; ``None`` for one that has no name.
    """

    base_url: str = field(repr=False)
    api_key: str = field(repr=False)
    timeout: float = DEFAULT_TIMEOUT
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE
    verify: bool | str = True
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    campaign_url: str | None = field(default=None, repr=False)
    conn_id: str | None = None

    @property
    def connection(self) -> str:
        """The Airflow connection, in words."""
        return "the connection" if self.conn_id is None else f"connection {self.conn_id!r}"

    @property
    def address(self) -> str:
        """Host and port, in words; without the host's name if that could be an API key in the wrong field."""
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        port = parts.port or (443 if self.is_encrypted else 80)
        if not _is_surely_a_host(host) or self.api_key.casefold() in host:
            return f"the configured host, port {port}"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def account(self) -> Account:
        """The account behind these settings: equal for equal address and API key."""
        digest = self.digest()
        digest.update(self.base_url.encode())
        return Account(self.base_url, digest.hexdigest()[:_DIGEST_CHARACTERS])

    def digest(self) -> hmac.HMAC:
        """Return an HMAC-SHA256 keyed with the API key: nobody without the key can tell what a digest is of."""
        return hmac.new(self.api_key.encode(), digestmod=hashlib.sha256)

    @property
    def is_encrypted(self) -> bool:
        """Whether requests go out over TLS."""
        return self.base_url.startswith("https://")

    def __reduce__(self) -> NoReturn:
        raise TypeError("VoiceGenie client settings hold the API key and cannot be pickled; pass the connection id.")


#: A domain name as people write it. Keys have no dot, longer parts, or more digits.
_DOMAIN_NAME = re.compile(r"((?!([^.]*[0-9]){4})[a-z0-9-]{1,30}\.)+[a-z]{2,8}")


def _is_surely_a_host(host: str) -> bool:
    if host == "localhost" or _DOMAIN_NAME.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


#: The SOCKS ones need the package ``requests[socks]``.
_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def is_proxy_url(url: object) -> bool:
    """Say whether a text can be the URL of a proxy; without a scheme, it is one of plain HTTP."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        return parts.scheme in _PROXY_SCHEMES and bool(parts.hostname)
    except ValueError:
        return False
