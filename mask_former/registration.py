"""The one module with side effects: finds the plug-ins and the dataset tables.

A plug-in is a module in one of the packages below; importing it registers what it holds. It may
have an ``add_config(cfg)`` that adds the keys of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

__all__ = ["plugins", "register_all"]

_PLUGIN_PACKAGES = (
    "losses",
    "modeling",
    "modeling.backbone",
    "modeling.pixel_decoder",
    "modeling.heads",
    "data.mappers",
)


@cache
def plugins() -> tuple[ModuleType, ...]:
    """Every plug-in module, imported, in the order of their names within each package."""
    modules = []
    for name in _PLUGIN_PACKAGES:
        package = importlib.import_module(f"{__package__}.{name}")
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
            if not module.ispkg:
                modules.append(importlib.import_module(f"{package.__name__}.{module.name}"))
    return tuple(modules)


def register_all() -> None:
    """Register every plug-in and every dataset table; doing it twice is doing it once."""
    plugins()
    importlib.import_module(f"{__package__}.data.catalog").register_tables()
