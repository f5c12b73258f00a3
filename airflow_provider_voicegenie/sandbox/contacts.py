# SPDX-License-Identifier: Apache-2.0
"""The contacts that are uploaded to a campaign."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_PUNCTUATION = re.compile(r"[ ()-]+")
_PHONE_NUMBER = re.compile(r"\+?[0-9]{7,15}")

#: The documented fields of a contact that need not be there.
_OPTIONAL: Mapping[str, type] = {"name": str, "email": str, "custom_fields": dict}


class UploadedContacts:
    """
    The contacts that were uploaded to one campaign, each number once.

    Of a contact only its number and name stay, so that a million of them fit into the memory.
    """

    def __init__(self) -> None:
        self.numbers: list[str] = []
        self._names: list[str | None] = []
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[str, str | None]:
        return self.numbers[index], self._names[index]

    def upload(self, contacts: Iterable[object]) -> tuple[int, list[dict[str, Any]]]:
        """Add contacts, but no number twice; return how many were added, and an error for each that is wrong."""
        before, errors = len(self), []
        for contact in contacts:
            try:
                number, name = _read(contact)
            except ValueError as problem:
                written = contact.get("phone_number") if isinstance(contact, Mapping) else None
                errors.append({"phone_number": written, "message": str(problem)})
                continue
            identity = _identity(number)
            if identity not in self._known:
                self._known.add(identity)
                self.numbers.append(number)
                self._names.append(name)
        return len(self) - before, errors


def _read(contact: object) -> tuple[str, str | None]:
    """
    Return a contact's number and name.

    :raises ValueError: It is wrong. The message quotes the number: a client must be able to keep that out of its logs.
    """
    if not isinstance(contact, Mapping):
        raise ValueError("A contact must be an object")
    if "phone_number" not in contact:
        raise ValueError("Missing phone number")
    number = contact["phone_number"]
    if not (isinstance(number, str) and _PHONE_NUMBER.fullmatch(_PUNCTUATION.sub("", number))):
        raise ValueError(f"Invalid phone number: {number}")
    for field, kind in _OPTIONAL.items():
        if field in contact and not isinstance(contact[field], kind):
            raise ValueError(f"Invalid {field} of {number}")
    return number, contact.get("name")


def _identity(number: str) -> int:
    """Return what two spellings of a number have in common; an ``int``, as that takes the least memory."""
    # The 1 in front keeps zeros at the beginning.
    return int("1" + _PUNCTUATION.sub("", number).removeprefix("+"))
