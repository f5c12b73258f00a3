# SPDX-License-Identifier: Apache-2.0
"""
Makes prerequisites again from what the trigger table holds, and says when the DAG is read which could not be.

That table names classes. What it names is loaded only where it can be a prerequisite that someone wrote: nothing of
the standard library, and no module whose source does not define the class, so that a forged row runs no module for
its side effects.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from airflow_provider_voicegenie.decisions.prerequisites import Prerequisite

#: Why the triggerer cannot import a prerequisite, and what to do.
_NOT_IMPORTABLE = (
    "the triggerer cannot import it from there. Define it in a module that the triggerer can import too, such as one "
    "of an installed package, of the plugins folder or on PYTHONPATH; or use deferrable=False."
)


def check_importable(prerequisites: Iterable[Prerequisite], dag_folder: str | None) -> None:
    """
    Refuse prerequisites that the triggerer cannot import.

    :param prerequisites: What must hold.
    :param dag_folder: The folder that is on the import path where DAG files are read, and not in the triggerer;
        ``None`` if there is none.
    :raises ValueError: One of them is defined in a DAG file, which Airflow loads under a name of its own, or in a
        module of the DAG folder.
    """
    for prerequisite in prerequisites:
        cls = type(prerequisite)
        place = None
        if cls.__module__.startswith("unusual_prefix_"):
            place = "a DAG file"
        elif dag_folder is not None and _import_root(cls.__module__) == Path(dag_folder).resolve():
            place = f"the DAG folder (module {cls.__module__})"
        if place is not None:
            raise ValueError(f"prerequisites: {cls.__name__} is defined in {place}, and {_NOT_IMPORTABLE}")


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
    module, _, name = path.rpartition(".")
    found: object = None
    if module and all(part.isidentifier() and not part.startswith("__") for part in path.split(".")):
        with contextlib.suppress(ImportError):
            if module in sys.modules or _defines_class(module, name):
                found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Prerequisite)):
        raise ValueError(
            f"prerequisites: {path!r:.200} is no Prerequisite that can be imported here. If it is defined in the DAG "
            f"folder, {_NOT_IMPORTABLE}"
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
