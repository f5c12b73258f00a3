# SPDX-License-Identifier: Apache-2.0
"""
What each call of the service is: where it goes, whether repeating it is harmless, how its answer is read.

The facts are those of the service's campaign pages (Start, Pause, Get, List and Stats Campaign). All five are
``GET``; two of them change something. A campaign id is checked and escaped here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote, urlencode

from airflow_provider_voicegenie.api.answers import Answer, Secrets, read_data
from airflow_provider_voicegenie.api.errors import InvalidAnswerError, InvalidCampaignIdError
from airflow_provider_voicegenie.api.models import (
    Campaign,
    CampaignPage,
    CampaignStats,
    PausedCampaign,
    ShapeError,
    StartedCampaign,
)

Result = TypeVar("Result")

#: The documented ids have 8 to 36 characters.
MAX_ID_CHARACTERS = 256

#: The documented range of the list's ``limit``.
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class Endpoint(Generic[Result]):
    """
    One call of the service.

    :param name: The call's name in messages.
    :param path: Path below the base URL; ``{campaign_id}`` stands for the escaped id.
    :param has_effect: Whether it changes something. Such a call is never repeated without looking first.
    :param decode: Reads the answer's ``data``.
    :param id_field: The field of ``data`` that must name the campaign that was asked for.
    """

    name: str
    path: str
    has_effect: bool
    decode: Callable[[Mapping[str, Any]], Result]
    id_field: str | None


START = Endpoint("start", "/startCampaign/{campaign_id}", True, StartedCampaign.from_json, "campaign_id")
PAUSE = Endpoint("pause", "/pauseTheCampaign/{campaign_id}", True, PausedCampaign.from_json, "campaign_id")
GET = Endpoint("get", "/campaign/{campaign_id}", False, Campaign.from_json, "id")
STATS = Endpoint("statistics", "/getCampaignStats/{campaign_id}", False, CampaignStats.from_json, "campaign_id")
LIST = Endpoint("list", "/fetchCampaignData", False, CampaignPage.from_json, None)


@dataclass(frozen=True)
class Call(Generic[Result]):
    """
    One call, ready to go out. Build it with :func:`campaign_call` or :func:`list_call`.

    :param endpoint: What is called.
    :param target: Path below the base URL, with query, escaped.
    :param campaign_id: The campaign it is about.
    """

    endpoint: Endpoint[Result]
    target: str
    campaign_id: str | None = None

    def __str__(self) -> str:
        if self.campaign_id is None:
            return f"VoiceGenie {self.endpoint.name}"
        return f"VoiceGenie {self.endpoint.name} of campaign {self.campaign_id!r}"

    def read(self, answer: Answer, *, secrets: Secrets, now: float) -> Result:
        """
        Read the answer to this call.

        :raises VoiceGenieError: The answer is a refusal, or not one this service documents.
        """
        has_effect = self.endpoint.has_effect
        data = read_data(answer, call=str(self), has_effect=has_effect, secrets=secrets, now=now)
        problem = None
        try:
            result = self.endpoint.decode(data)
        except ShapeError as error:
            problem = str(error)
        else:
            if self._names_another(data):
                problem = "it is about another campaign"
        if problem is not None:
            raise InvalidAnswerError(
                f"{self}: the answer ({answer.status}) is not the documented one: {problem}.",
                status=answer.status,
                may_have_taken_effect=has_effect,
            )
        return result

    def _names_another(self, data: Mapping[str, Any]) -> bool:
        if self.endpoint.id_field is None or self.campaign_id is None:
            return False
        return str(data.get(self.endpoint.id_field)).strip().casefold() != self.campaign_id.casefold()


def campaign_call(endpoint: Endpoint[Result], campaign_id: str) -> Call[Result]:
    """
    Build a call about one campaign.

    :raises InvalidCampaignIdError: ``campaign_id`` cannot be an id.
    """
    check_campaign_id(campaign_id)
    return Call(endpoint, endpoint.path.format(campaign_id=quote(campaign_id, safe="")), campaign_id)


def list_call(*, limit: int, offset: int, call_count: bool = True) -> Call[CampaignPage]:
    """
    Build a call for one page of the list.

    :param limit: Campaigns on the page, 1 to 1000.
    :param offset: Campaigns to skip.
    :param call_count: Whether the counters are wanted; without them the service answers faster.
    """
    query = {"call_count": "true" if call_count else "false", "limit": limit, "offset": offset}
    return Call(LIST, f"{LIST.path}?{urlencode(query)}")


def check_campaign_id(campaign_id: object) -> None:
    """
    Refuse what cannot be a campaign id.

    An id may come from a DAG run's ``conf``. Escaping keeps it out of other paths, queries and hosts; what is
    refused here could still become another path where a proxy unescapes and tidies it.

    :raises InvalidCampaignIdError: It is no string, empty, what a template makes of a missing value, too long,
        surrounded by white space, has control or invisible characters, or a ``.`` or ``..`` segment.
    """
    if isinstance(campaign_id, str):
        problem = _problem_with(campaign_id)
    elif campaign_id is None:
        problem = _MISSING
    else:
        problem = f"must be a string; got {campaign_id!r:.80} ({type(campaign_id).__name__}). {_NO_STRING}"
    if problem is not None:
        raise InvalidCampaignIdError(f"campaign_id {problem}")


#: What a template makes of a value that is not there.
_MISSING_WORDS = frozenset({"none", "null", "undefined", "nil", "nan", "nat", "<na>"})

_MISSING = (
    "is missing: the template gave None. Check the param, variable, XCom or field of conf that the template names."
)

_NO_STRING = (
    "If it comes from a template, the DAG's render_template_as_native_obj=True made this of it, and quotes in the "
    "template do not help: leave that setting out, or take the id from an upstream task's output."
)


def _problem_with(campaign_id: str) -> str | None:
    if campaign_id.strip().casefold() in _MISSING_WORDS:
        return f"{campaign_id[:80]!r} {_MISSING}"
    problem = None
    if not campaign_id.strip():
        problem = "is empty"
    elif len(campaign_id) > MAX_ID_CHARACTERS:
        problem = f"has {len(campaign_id)} characters, more than {MAX_ID_CHARACTERS}"
    elif campaign_id != campaign_id.strip():
        problem = "has white space around it"
    elif not campaign_id.isprintable():
        problem = "has control or invisible characters"
    elif any(part in (".", "..") for part in unquote(unquote(campaign_id)).replace("\\", "/").split("/")):
        problem = "would lead to another path"
    return problem and f"{campaign_id[:80]!r} {problem}. Pass the id as the VoiceGenie dashboard shows it."
