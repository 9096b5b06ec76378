"""Registries: plug-ins are found by name, and this module finds the plug-ins.

Backbones, heads and pixel decoders live in detectron2's own registries (``BACKBONE_REGISTRY``,
``SEM_SEG_HEADS_REGISTRY``), meta-architectures in ``META_ARCH_REGISTRY``. What detectron2 has no
registry for is registered here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from fvcore.common.registry import Registry as _Registry

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "LOSS_REGISTRY",
    "PREDICTOR_REGISTRY",
    "Registry",
    "lookup",
    "plugins",
]

_PLUGIN_PACKAGES = (
    "losses",
    "modeling",
    "modeling.backbone",
    "modeling.pixel_decoder",
    "modeling.transformer_decoder",
    "modeling.heads",
    "data.mappers",
)
"""Packages whose modules are plug-ins: importing one registers what it defines."""


class Registry(_Registry):
    """fvcore's registry, where an entry may bear another name than the object's ``__name__``."""

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Register ``obj`` as ``name`` (default ``obj.__name__``); usable as a decorator."""
        if obj is None:
            return self._decorator(name)
        self._do_register(name or obj.__name__, obj)
        return obj

    def _decorator(self, name: str | None) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, name=name)


PREDICTOR_REGISTRY = Registry("TRANSFORMER_PREDICTOR")
"""Transformer predictors: ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``."""

LOSS_REGISTRY = Registry("MASK_FORMER_LOSS")
"""Set losses: ``MODEL.MASK_FORMER.LOSSES``. See :mod:`mask_former.losses.set_losses`."""

DATASET_MAPPER_REGISTRY = Registry("MASK_FORMER_DATASET_MAPPER")
"""Training mappers: ``INPUT.DATASET_MAPPER_NAME``."""


def lookup(registry: _Registry, name: str, key: str) -> Any:
    """The entry ``name`` of ``registry``.

    Raises:
        KeyError: if there is none; names the config ``key`` and every name there is.
    """
    known = dict(registry)
    if name not in known:
        raise KeyError(f"{key} is {name!r}, which is not registered. Known: {sorted(known)}.")
    return known[name]


@cache
def plugins() -> tuple[ModuleType, ...]:
    """Import every plug-in module of the package, once.

    A plug-in may define ``add_config(cfg)``, which adds the config keys that it reads.

    Returns:
        The modules, sorted by name within each package.
    """
    modules = []
    for name in _PLUGIN_PACKAGES:
        package = importlib.import_module(f"{__package__}.{name}")
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
            if not module.ispkg:
                modules.append(importlib.import_module(f"{package.__name__}.{module.name}"))
    return tuple(modules)
