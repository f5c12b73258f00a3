# SPDX-License-Identifier: Apache-2.0
"""
Makes prerequisites again from what the trigger table holds.

That table names classes. What it names is loaded only where it can be a prerequisite that someone wrote: nothing of
the standard library, and no module whose source does not define the class, so that a forged row runs no module for
its side effects.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from typing import Any

from airflow_provider_voicegenie.decisions.prerequisites import Prerequisite


def load_prerequisite(path: str, arguments: Mapping[str, Any]) -> Prerequisite:
    """
    Make a prerequisite again from what :meth:`Prerequisite.serialize` returned.

    :param path: Class path.
    :param arguments: Keyword arguments.
    :raises ValueError: The path does not lead to a subclass of :class:`Prerequisite`.
    """
    module, _, name = path.rpartition(".")
    found: object = None
    if module and all(part.isidentifier() and not part.startswith("__") for part in path.split(".")):
        with contextlib.suppress(ImportError):
            if module in sys.modules or _defines_class(module, name):
                found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Prerequisite)):
        raise ValueError(
            f"prerequisites: {path!r:.200} is no Prerequisite that can be imported here. Define it at the top level "
            "of a module that the triggerer can import too."
        )
    return found(**arguments)


def _defines_class(module: str, name: str) -> bool:
    """Tell by its source alone whether a module defines a class; neither it nor its packages are run for that."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        locations = None if spec is None else spec.submodule_search_locations
        if spec is not None and locations is None:
            return False
        spec = _find(".".join(parts[:depth]), locations)
        if spec is None:
            return False
    get_source = getattr(spec.loader if spec else None, "get_source", None)
    source = get_source(module) if get_source else None
    return bool(source and re.search(rf"^class\s+{name}\b", source, re.MULTILINE))


def _find(name: str, locations: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if (spec := finder.find_spec(name, locations)) is not None:
            return spec
    return None
