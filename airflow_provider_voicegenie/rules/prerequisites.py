# SPDX-License-Identifier: Apache-2.0
"""
What must hold before a campaign is started.

Each prerequisite looks at one snapshot of the campaign and says: met, waiting (why), or impossible (why). To write
one, subclass :class:`Prerequisite` in a module that workers can import::

    @dataclass(frozen=True)
    class HasNoFailures(Prerequisite):
        at_most: int = 0

        def check(self, campaign, now):
            if (campaign.failed_count or 0) <= self.at_most:
                return Check.met()
            return Check.waiting(f"{campaign.failed_count} failed calls, at most {self.at_most} wanted")
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.rules.parameters import is_template, read_rendered_number

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_voicegenie.api.models import Campaign


class Source(StrEnum):
    """What is read for a prerequisite besides the campaign itself."""

    #: The list of campaigns, for ``registered_count``, ``started_at`` and ``ended_at`` of the campaign.
    LIST = "list"
    #: The account's quota, for ``quota`` of the campaign.
    QUOTA = "quota"


class Check(NamedTuple):
    """
    The result of one check; make it with :meth:`met`, :meth:`waiting` or :meth:`impossible`.

    :param missing: What is waited for, in words that fit behind "not ready: "; ``None`` if nothing is.
    :param finding: Why it can never hold; ``None`` if it can.
    """

    missing: str | None = None
    finding: Finding | None = None

    @classmethod
    def met(cls) -> Check:
        """It holds."""
        return cls()

    @classmethod
    def waiting(cls, why: str) -> Check:
        """It does not hold yet."""
        return cls(missing=why)

    @classmethod
    def impossible(cls, why: str, condition: Condition = Condition.PREREQUISITE_IMPOSSIBLE) -> Check:
        """It can never hold: the wait ends at once."""
        return cls(finding=Finding(condition, why))


@dataclass(frozen=True)
class Prerequisite(ABC):
    """
    Something that must hold before a start. Subclasses with arguments are frozen dataclasses, too.

    Objects must be able to be made again from their class path and their fields, which are plain JSON; otherwise
    override :meth:`keyword_arguments`. Two objects of one class with equal fields are equal, and are written alike in
    every process: Airflow makes a new DAG version whenever what it reads of a DAG changes.
    """

    #: What has to be read for :meth:`check` besides the campaign itself.
    needs: ClassVar[Collection[Source]] = ()
    #: The fields that may be templates.
    template_fields: ClassVar[Collection[str]] = ()

    @abstractmethod
    def check(self, campaign: Campaign, now: datetime) -> Check:
        """
        Look at a snapshot of the campaign.

        :param campaign: The campaign as it was just read.
        :param now: The time, with time zone.
        """

    def rendered(self, render: Callable[[Any], Any]) -> Self:
        """
        Return the prerequisite with its templates rendered.

        :param render: Renders one value.
        :raises ValueError: A template gave something else than is wanted.
        """
        given = {name: getattr(self, name) for name in self.template_fields}
        values = {name: render(value) for name, value in given.items() if is_template(value)}
        if (empty := next((name for name, value in values.items() if value is None), None)) is not None:
            raise ValueError(f"{type(self).__name__}: the template of {empty} gave nothing.")
        return replace(self, **values) if values else self

    def keyword_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments, plain JSON, from which an equal object can be made."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Return class path and keyword arguments.

        :raises ValueError: The class cannot be imported by its path, is no dataclass, or its fields are not plain JSON.
        """
        cls = type(self)
        path = f"{cls.__module__}.{cls.__qualname__}"
        if "." in cls.__qualname__:
            raise ValueError(
                f"prerequisites: {path} is defined inside a function or a class. Define it at the top level of a "
                "module."
            )
        arguments = self.keyword_arguments()
        if set(arguments) != set(inspect.signature(cls).parameters):
            raise ValueError(
                f"prerequisites: {path} has other arguments than fields. Write @dataclass(frozen=True) before the "
                "class, and its arguments as its fields."
            )
        problem = "they come back from JSON as something else"
        try:
            if json.loads(json.dumps(arguments)) == arguments:
                return path, arguments
        except (TypeError, ValueError) as error:
            problem = str(error)
        raise ValueError(f"prerequisites: the arguments of {path} cannot be kept as JSON ({problem}).")

    def modules(self) -> list[str]:
        """Return the modules that have to be imported to make it again."""
        return [type(self).__module__]

    def __init_subclass__(cls) -> None:
        # A dataclass leaves a method alone that its class has already. Its own would show a set in another order in
        # each process, and Airflow would make a new DAG version each time.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        try:
            arguments = self.keyword_arguments()
            json.dumps(arguments)
        except Exception:  # noqa: BLE001  whatever an author's class does; it is refused when the DAG is parsed
            return f"{type(self).__name__}(...)"
        given = (f"{name}={value!r}" for name, value in arguments.items() if value is not None)
        return f"{type(self).__name__}({', '.join(given)})"


class Readiness(NamedTuple):
    """
    What all prerequisites of a wait come to.

    :param missing: What is waited for; empty if nothing is.
    :param finding: Why one can never hold, if that is so.
    """

    missing: tuple[str, ...]
    finding: Finding | None = None

    @property
    def is_ready(self) -> bool:
        """Whether all of them hold."""
        return self.finding is None and not self.missing

    def describe(self) -> str:
        """Say it in words."""
        if self.finding is not None:
            return self.finding.message
        return f"not ready: {'; '.join(self.missing)}" if self.missing else "ready"


def check_readiness(prerequisites: Iterable[Prerequisite], campaign: Campaign, now: datetime) -> Readiness:
    """
    Check every prerequisite.

    :param campaign: The campaign as it was just read.
    :param now: The time, with time zone.
    """
    checks = [_checked(prerequisite, prerequisite.check(campaign, now)) for prerequisite in prerequisites]
    missing = tuple(check.missing for check in checks if check.missing is not None)
    return Readiness(missing, next((check.finding for check in checks if check.finding is not None), None))


def _checked(prerequisite: Prerequisite, check: object) -> Check:
    if isinstance(check, Check):
        return check
    raise TypeError(
        f"prerequisites: check() of {prerequisite!r:.200} returned {check!r:.80}. Return Check.met(), "
        "Check.waiting(why) or Check.impossible(why)."
    )


class HasScript(Prerequisite):
    """The campaign has a script."""

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Look for a script id."""
        return Check.met() if campaign.script_id else Check.waiting("no script")


@dataclass(frozen=True)
class HasContacts(Prerequisite):
    """
    The campaign has contacts.

    :param minimum: How many are wanted at least. (templated)
    :param maximum: How many are wanted at most; ``None`` for any number. While there are more, it waits: they may be
        taken out in the VoiceGenie dashboard. (templated)
    """

    template_fields = ("minimum", "maximum")

    minimum: int | str = 1
    maximum: int | str | None = None

    def __post_init__(self) -> None:
        for name in self.template_fields:
            value = _no_output(f"HasContacts: {name}", getattr(self, name))
            if not (is_template(value) or (value is None and name == "maximum")):
                object.__setattr__(self, name, read_rendered_number(f"HasContacts: {name}", value, minimum=1))
        if isinstance(self.minimum, int) and isinstance(self.maximum, int) and self.maximum < self.minimum:
            raise ValueError(f"HasContacts: maximum must not be below minimum ({self.minimum}); got {self.maximum}.")

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Compare the number of contacts."""
        count = campaign.total_count or 0
        _check_rendered(self)
        if count < int(self.minimum):
            return Check.waiting("no contacts" if not count else f"{count} of {self.minimum} contacts")
        if self.maximum is not None and count > int(self.maximum):
            return Check.waiting(f"{count} contacts, at most {self.maximum} wanted")
        return Check.met()


#: More than any account has.
_LARGEST_AMOUNT = 1e15


@dataclass(frozen=True)
class HasQuota(Prerequisite):
    """
    The account has enough quota left, by the service's Fetch Quota page.

    In a worker, each poke reads it; in the triggerer, one reading serves all waits of the connection.

    :param calls: How many calls must be left; ``None`` if they do not matter. (templated)
    :param minutes: How many minutes must be left; ``None`` if they do not matter. (templated)
    :raises ValueError: A number is wrong, or none is given.
    """

    needs = (Source.QUOTA,)

    template_fields = ("calls", "minutes")

    calls: float | str | None = None
    minutes: float | str | None = None

    def __post_init__(self) -> None:
        if self.calls is None and self.minutes is None:
            raise ValueError(
                "HasQuota: say how much must be left, such as HasQuota(calls=1000) or HasQuota(minutes=500)."
            )
        for name in self.template_fields:
            value = _no_output(f"HasQuota: {name}", getattr(self, name))
            if not (value is None or is_template(value)):
                object.__setattr__(self, name, _read_amount(f"HasQuota: {name}", value))

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Compare what is left."""
        quota = campaign.quota
        _check_rendered(self)
        left = {
            "calls": (self.calls, None if quota is None else quota.calls_remaining),
            "minutes": (self.minutes, None if quota is None else quota.minutes_remaining),
        }
        missing = [
            f"an unknown quota of {name}" if remaining is None else f"{remaining:,g} {name} left, {wanted:,g} wanted"
            for name, (wanted, remaining) in left.items()
            if isinstance(wanted, int | float) and (remaining is None or remaining < wanted)
        ]
        return Check.waiting(", ".join(missing)) if missing else Check.met()


def _no_output(name: str, value: object) -> object:
    if hasattr(value, "iter_references"):
        raise ValueError(
            f"{name} cannot be the output of a task. Write \"{{{{ ti.xcom_pull(task_ids='plan')['contacts'] }}}}\", "
            "and say which task comes first: plan >> ready."
        )
    return value


def _check_rendered(prerequisite: Prerequisite) -> None:
    """Refuse a template that nobody has rendered: what it stands for is not there."""
    for name in prerequisite.template_fields:
        if is_template(value := getattr(prerequisite, name)):
            raise ValueError(f"{type(prerequisite).__name__}: the template of {name}, {value!r:.80}, was not rendered.")


def _read_amount(name: str, value: object) -> float:
    """Return a number above 0, which a template may have made, so that it may be a text."""
    amount = value
    if isinstance(value, str):
        with suppress(ValueError):
            amount = float(value)
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not 0 < amount < _LARGEST_AMOUNT:
        raise ValueError(f"{name} must be a number above 0; got {value!r:.80}.")
    return amount


class ContactsRegistered(Prerequisite):
    """
    All contacts of the campaign are registered: the service has taken in what was uploaded.

    The counts come from the service's list of campaigns (List Campaigns page), which does not say what *registered*
    means beyond that. In a worker, each poke reads the list up to the campaign; in the triggerer, one reading of the
    list serves all waits of the connection.
    """

    needs = (Source.LIST,)

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Compare the number of registered contacts with the number of contacts."""
        registered, total = campaign.registered_count, campaign.total_count
        if registered is None or total is None:
            return Check.waiting("the service does not say how many contacts are registered")
        return Check.met() if registered >= total else Check.waiting(f"{registered} of {total} contacts registered")


class IsStartable(Prerequisite):
    """The campaign has a status from which it can be started: paused, scheduled, or not started yet."""

    def check(self, campaign: Campaign, now: datetime) -> Check:
        """Read the status."""
        status = campaign.status
        if status.is_startable:
            return Check.met()
        if status.is_running:
            return Check.impossible("the campaign is already running", Condition.CAMPAIGN_ALREADY_RUNNING)
        if status.has_ended:
            return Check.impossible(f"the campaign is over ({status.value})", Condition.CAMPAIGN_COMPLETED)
        return Check.waiting(f"status {campaign.status_text!r:.40} (paused, scheduled or pending is needed)")


def needs_of(prerequisites: Iterable[Prerequisite]) -> frozenset[Source]:
    """Return what has to be read for prerequisites, besides the campaign itself."""
    return frozenset(source for prerequisite in prerequisites for source in prerequisite.needs)


def effective_prerequisites(wanted: Iterable[Prerequisite] | None) -> list[Prerequisite]:
    """
    Return the prerequisites of a sensor: the default ones, and those asked for.

    One asked for replaces the default one of its class.

    :param wanted: What the author asked for.
    :raises ValueError: One of them is no :class:`Prerequisite`, or cannot be serialised.
    """
    if isinstance(wanted, Prerequisite):
        raise ValueError(f"prerequisites must be a list: write [{wanted!r:.200}].")
    if wanted is not None and (isinstance(wanted, str) or not isinstance(wanted, Iterable)):
        raise ValueError(f"prerequisites must be a list, such as [HasContacts(minimum=100)]; got {wanted!r:.80}.")
    asked = list(wanted or [])
    for prerequisite in asked:
        if isinstance(prerequisite, type) and issubclass(prerequisite, Prerequisite):
            name = prerequisite.__name__
            arguments = "..." if inspect.signature(prerequisite).parameters else ""
            raise ValueError(f"prerequisites: {name} is a class, and an object is needed: write {name}({arguments}).")
        if not isinstance(prerequisite, Prerequisite):
            raise ValueError(
                f"prerequisites: {prerequisite!r:.80} is not a Prerequisite, such as HasContacts(minimum=100). For one "
                "of your own, subclass airflow_provider_voicegenie.sensors.campaign.Prerequisite."
            )
        prerequisite.serialize()
        if isinstance(prerequisite.needs, str) or not set(prerequisite.needs) <= set(Source):
            raise ValueError(
                f"prerequisites: needs of {type(prerequisite).__name__} must be a tuple such as (Source.QUOTA,); "
                f"got {prerequisite.needs!r:.80}."
            )
    classes = {type(prerequisite) for prerequisite in asked}
    defaults: list[Prerequisite] = [IsStartable(), HasScript(), HasContacts()]
    return [default for default in defaults if type(default) not in classes] + asked


#: Why the triggerer cannot import a prerequisite, and what to do.
_NOT_IMPORTABLE = (
    "the triggerer cannot import it from there. Define it in a module that the triggerer can import too, such as one "
    "of an installed package, of the plugins folder or on PYTHONPATH; or use deferrable=False."
)


def check_importable(prerequisites: Iterable[Prerequisite], dag_folder: str | None) -> None:
    """
    Refuse prerequisites that the triggerer cannot import.

    :param dag_folder: The folder that is on the import path of a process that reads DAG files, and not in the
        triggerer; ``None`` if there is none.
    :raises ValueError: One of them is defined in a DAG file, which Airflow loads under a name of its own, or in a
        module of the DAG folder.
    """
    for prerequisite in prerequisites:
        for module in prerequisite.modules():
            place = None
            if module.startswith("unusual_prefix_"):
                place = "a DAG file"
            elif dag_folder is not None and _import_root(module) == Path(dag_folder).resolve():
                place = f"the DAG folder (module {module})"
            if place is not None:
                name = type(prerequisite).__name__
                what = name if module == type(prerequisite).__module__ else f"a function that {name} calls"
                raise ValueError(f"prerequisites: {what} is defined in {place}, and {_NOT_IMPORTABLE}")


def _import_root(module: str) -> Path | None:
    """Return the folder on the import path that holds a module; ``None`` if PYTHONPATH gives it to every process."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    root = path.parents[module.count(".") + (path.name == "__init__.py")]
    everywhere = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return None if root in everywhere else root


def load_prerequisite(path: str, arguments: Mapping[str, Any]) -> Prerequisite:
    """
    Make a prerequisite again from what :meth:`Prerequisite.serialize` returned.

    :param path: Class path.
    :param arguments: Keyword arguments.
    :raises ValueError: The path does not lead to a subclass of :class:`Prerequisite`.
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Prerequisite)):
        raise ValueError(
            f"prerequisites: {path!r:.200} is no Prerequisite that can be imported here. If it is defined in the DAG "
            f"folder, {_NOT_IMPORTABLE}"
        )
    return found(**arguments)
