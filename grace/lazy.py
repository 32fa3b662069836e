"""Packages whose names are imported when they are first used: help and settings come quickly."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """A package's ``__getattr__``: a name is imported from its module when it is asked for.

    Modules are named in full, for whatever reads the code to see what it depends on::

        __getattr__ = lazy(__name__, {"grace.data.collator": ["Collator"]})

    Args:
        package: The package's name.
        homes: By module, the names that the package takes from it.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
