# SPDX-License-Identifier: Apache-2.0
"""
The requests that the service understands: where each goes, whether it may be repeated, what reads its response.

The facts are those of the service's campaign pages (Start, Pause, Get, List and Stats Campaign, Upload Campaign Data,
Get History). The first five are ``GET``, and two of those change something; the history is a read by ``POST``. A
campaign id is checked and escaped here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar
from unicodedata import category
from urllib.parse import quote, unquote

from airflow_provider_voicegenie.api.errors import InvalidCampaignIdError
from airflow_provider_voicegenie.api.models import (
    CallPage,
    Campaign,
    CampaignPage,
    CampaignStats,
    NamedCampaign,
    PausedCampaign,
    Quota,
    StartedCampaign,
    UploadedContacts,
    write_time,
)

Result = TypeVar("Result")

#: The documented ids have 8 to 36 characters.
MAX_ID_CHARACTERS = 256

#: The documented range of the list's ``limit``.
MAX_PAGE_SIZE = 1000

#: One for all: a feed may hold ten thousand of these requests.
_READ_CAMPAIGN = Campaign.from_json

#: The documented number of uploads in a minute; the other limits are above what an account may send in all.
_UPLOADS_PER_MINUTE = 50


@dataclass(frozen=True, slots=True)
class Request(Generic[Result]):
    """
    One request, ready to be sent. The functions of this module make them. Equal ones ask for the same.

    :param name: The request's name in messages.
    :param path: Path below the base URL, escaped.
    :param decode: Reads the ``data`` object of the response; ``None`` leaves ``data`` as it is.
    :param is_repeatable: Whether sending it again is harmless. Any other is never repeated without looking first.
    :param campaign_id: The campaign it is about.
    :param id_field: The field of ``data`` that must name that campaign.
    :param params: The query.
    :param json: The body, which counts for equality, but not for the hash.
    :param per_minute: How many of its name the service allows in a minute, besides the connection's limit.
    :param is_about_people: Whether the response may name people: no error message quotes such a response.
    :param has_effect: Whether it changes something.
    :param is_list: Whether ``data`` of the response is a list, and no object.
    """

    name: str
    path: str
    decode: Callable[[Mapping[str, Any]], Result] | None
    is_repeatable: bool = True
    campaign_id: str | None = None
    id_field: str | None = None
    method: str = "GET"
    params: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    json: Any = field(default=None, repr=False, hash=False)
    per_minute: int | None = None
    is_about_people: bool = False
    has_effect: bool = False
    is_list: bool = False

    def __str__(self) -> str:
        if self.campaign_id is None:
            return f"VoiceGenie {self.name}"
        return f"VoiceGenie {self.name} of campaign {self.campaign_id!r}"


def start(campaign_id: str) -> Request[StartedCampaign]:
    """Start a campaign: people are phoned at once. See the Start Campaign page."""
    return _about("start", "/startCampaign/", campaign_id, StartedCampaign.from_json, is_repeatable=False)


def pause(campaign_id: str) -> Request[PausedCampaign]:
    """Pause a campaign: no call begins, those in progress run to their end. See the Pause Campaign page."""
    return _about("pause", "/pauseTheCampaign/", campaign_id, PausedCampaign.from_json, is_repeatable=False)


def campaign(campaign_id: str) -> Request[Campaign]:
    """Read one campaign. See the Get Campaign page."""
    return _about("get", "/campaign/", campaign_id, _READ_CAMPAIGN, id_field="id")


def statistics(campaign_id: str) -> Request[CampaignStats]:
    """Read one campaign's counters, which may be 30 seconds old. See the Campaign Stats page."""
    return _about("statistics", "/getCampaignStats/", campaign_id, CampaignStats.from_json)


def campaign_page(*, limit: int, offset: int, call_count: bool = True) -> Request[CampaignPage]:
    """
    Read one page of all campaigns. See the List Campaigns page.

    :param limit: Campaigns on the page, 1 to 1000.
    :param offset: Campaigns to skip.
    :param call_count: Whether the counters are wanted; without them the service is faster.
    """
    params = (("call_count", "true" if call_count else "false"), ("limit", limit), ("offset", offset))
    return Request("list", "/fetchCampaignData", CampaignPage.from_json, params=params)


def quota() -> Request[Quota]:
    """Read what the account may still use. See the Fetch Quota page."""
    return Request("quota", "/fetchQuota", Quota.from_json)


def upload(campaign_id: str, contacts: Sequence[Mapping[str, Any]]) -> Request[UploadedContacts]:
    """
    Add contacts to a campaign. See the Upload Campaign Data page.

    It may be repeated, although it changes something: the service skips a number that the campaign has already.

    :param campaign_id: The campaign. Without one, the service would make a new campaign.
    :param contacts: ``phone_number``, ``name``, ``email`` and ``custom_fields`` of each.
    """
    check_campaign_id(campaign_id)
    return Request(
        "upload",
        "/uploadCampaignData",
        UploadedContacts.from_json,
        campaign_id=campaign_id,
        id_field="campaign_id",
        method="POST",
        json={"campaign_id": campaign_id, "contacts": contacts},
        per_minute=_UPLOADS_PER_MINUTE,
        is_about_people=True,
        has_effect=True,
    )


def create(name: str, contacts: Sequence[Mapping[str, Any]], script_id: str | None = None) -> Request[UploadedContacts]:
    """
    Make a campaign with its first contacts; nobody is phoned. See the Upload Campaign Data page.

    It is not repeated: each makes a campaign, and several may have one name.

    :param name: Its name.
    :param contacts: As those of :func:`upload`.
    :param script_id: The script of its calls.
    """
    check_campaign_name(name)
    if script_id is not None and (problem := _problem("script_id", script_id)) is not None:
        raise InvalidCampaignIdError(f"{problem} Pass the id of the script as the VoiceGenie dashboard shows it.")
    script = {} if script_id is None else {"script_id": script_id}
    return Request(
        "creation",
        "/uploadCampaignData",
        UploadedContacts.from_json,
        is_repeatable=False,
        method="POST",
        json={"campaign_name": name, **script, "contacts": contacts},
        is_about_people=True,
        has_effect=True,
    )


def names(name: str) -> Request[tuple[NamedCampaign, ...]]:
    """
    Find the campaigns of one name in the list of all names. See the page Fetch Campaign Data Only Names And All.

    :param name: The name, exactly. Several campaigns may have it.
    """
    check_campaign_name(name)
    return Request("names", "/fetchCampaignDataOnlyNamesAndAll", partial(NamedCampaign.of_name, name), is_list=True)


def history(
    campaign_id: str,
    *,
    limit: int,
    offset: int,
    status: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Request[CallPage]:
    """
    Read one page of a campaign's calls. See the Get History page.

    :param limit: Calls on the page; the service states no most.
    :param offset: Calls to skip.
    :param status: Only calls with this outcome: ``answered``, ``busy``, ``no_answer`` or ``failed``.
    :param since: Only calls from then on.
    :param until: Only calls until then.
    """
    check_campaign_id(campaign_id)
    filters = {"status_filter": status, "date_from": write_time(since), "date_to": write_time(until)}
    wanted = {name: value for name, value in filters.items() if value is not None}
    return Request(
        "history",
        "/getHistory",
        CallPage.from_json,
        campaign_id=campaign_id,
        method="POST",
        json={"campaign_id": campaign_id, "limit": limit, "offset": offset, **wanted},
        is_about_people=True,
    )


def other(
    method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None, repeatable: bool = False
) -> Request[Any]:
    """
    Make a request that this module does not name; its result is ``data`` as it came.

    :param path: Path below the base URL. Escape data in it.
    :param params: The query.
    :param json: The body.
    :param repeatable: Whether sending it again is harmless.
    :raises ValueError: ``path`` is no path, ``method`` no method, or ``params`` no mapping.
    """
    if not path.startswith("/") or path.startswith("//") or leads_out(path):
        raise ValueError(f'path must be a path below the base URL, such as "/getHistory"; got {path!r:.80}.')
    if not (method.isascii() and method.isalpha()):
        raise ValueError(f'method must be an HTTP method, such as "POST"; got {method!r:.80}.')
    if not isinstance(params, Mapping | None):
        raise ValueError(f'params must be a mapping, such as {{"page": 2}}; got {params!r:.80}.')
    method = method.upper()
    name = f"{method} {path}"
    # The response may name people.
    return Request(
        name,
        path,
        None,
        repeatable,
        method=method,
        params=tuple((params or {}).items()),
        json=json,
        is_about_people=True,
        has_effect=not repeatable,
    )


def _about(
    name: str,
    path: str,
    campaign_id: str,
    decode: Callable[[Mapping[str, Any]], Result],
    *,
    is_repeatable: bool = True,
    id_field: str = "campaign_id",
) -> Request[Result]:
    check_campaign_id(campaign_id)
    return Request(
        name,
        path + quote(campaign_id, safe=""),
        decode,
        is_repeatable,
        campaign_id,
        id_field,
        has_effect=not is_repeatable,
    )


def leads_out(path: str) -> bool:
    """Say whether a path, or what a proxy may make of it, has a ``.`` or ``..`` segment."""
    plain = unquote(unquote(path.partition("?")[0])).replace("\\", "/")
    return any(part in (".", "..") for part in plain.split("/"))


#: What a template makes of a value that is not there.
_MISSING_WORDS = frozenset({"none", "null", "undefined", "nil", "nan", "nat", "<na>"})

_MISSING = (
    "is missing: the template gave None. Check the param, variable, XCom or field of conf that the template names."
)

_NO_STRING = (
    "If it comes from a template, the DAG's render_template_as_native_obj=True made this of it, and quotes in the "
    "template do not help: leave that setting out. If an upstream task returned it, let that return a text."
)


def check_campaign_id(campaign_id: object) -> None:
    """
    Refuse what cannot be a campaign id.

    An id may come from a DAG run's ``conf``. Escaping keeps it out of other paths, queries and hosts; what is
    refused here could still become another path if a proxy unescapes and tidies it.

    :raises InvalidCampaignIdError: It is no string, empty, what a template makes of a missing value, too long,
        surrounded by white space, an address, has control or invisible characters, or a ``.`` or ``..`` segment.
    """
    problem = _problem("campaign_id", campaign_id, leads_out=leads_out)
    if problem is None and "://" in str(campaign_id):
        problem = "campaign_id is an address."
    if problem is not None:
        raise InvalidCampaignIdError(f"{problem} Pass the id as the VoiceGenie dashboard shows it.")


def check_campaign_name(name: object) -> None:
    """
    Refuse what cannot be the name of a campaign. It goes into no path, so it may have slashes and quotes.

    :raises InvalidCampaignIdError: It is no string, empty, what a template makes of a missing value, too long,
        surrounded by white space, or has control characters.
    """
    if (problem := _problem("campaign_name", name, is_readable=_is_one_line)) is not None:
        raise InvalidCampaignIdError(problem)


def _is_one_line(name: str) -> bool:
    """Say whether a name has no control characters; letters of some alphabets are joined by invisible ones."""
    return not any(category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _problem(
    argument: str,
    value: object,
    *,
    is_readable: Callable[[str], bool] = str.isprintable,
    leads_out: Callable[[str], bool] = lambda _: False,
) -> str | None:
    """Say what is wrong with an id or a name."""
    if not isinstance(value, str):
        problem = f"must be a string; got {value!r:.80} ({type(value).__name__}). {_NO_STRING}"
        return f"{argument} {_MISSING if value is None else problem}"
    if value.strip().casefold() in _MISSING_WORDS:
        return f"{argument} {value[:80]!r} {_MISSING}"
    if not value.strip():
        problem = "is empty"
    elif len(value) > MAX_ID_CHARACTERS:
        problem = f"has {len(value)} characters, more than {MAX_ID_CHARACTERS}"
    elif value != value.strip():
        problem = "has white space around it"
    elif not is_readable(value):
        problem = "has control or invisible characters"
    elif leads_out(value):
        problem = "would lead to another path"
    else:
        return None
    return f"{argument} {value[:80]!r} {problem}."
