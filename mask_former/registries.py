"""Registries of parts by name, and the plug-ins that fill them.

Backbones, heads and pixel decoders live in detectron2's own registries (``BACKBONE_REGISTRY``,
``SEM_SEG_HEADS_REGISTRY``), meta-architectures in ``META_ARCH_REGISTRY``. The registries here are
for parts that detectron2 has no registry for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fvcore.common.registry import Registry as _Registry

__all__ = [
    "CRITERION_REGISTRY",
    "DATASET_MAPPER_REGISTRY",
    "LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "PREDICTOR_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "MissingPluginError",
    "Registry",
    "load_plugin",
    "load_plugins",
    "loaded_plugins",
    "lookup",
    "naming_missing_plugins",
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
    """fvcore's registry, with names that may differ from the objects' ``__name__``."""

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Register ``obj`` as ``name`` (default ``obj.__name__``); usable as a decorator."""
        if obj is None:
            return self._decorator(name)
        self._do_register(name or obj.__name__, obj)
        return obj

    def _decorator(self, name: str | None) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, name=name)


TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
"""Transformer decoders: ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``."""

PREDICTOR_REGISTRY = TRANSFORMER_DECODER_REGISTRY
"""The published name of :data:`TRANSFORMER_DECODER_REGISTRY`."""

CRITERION_REGISTRY = Registry("CRITERION")
"""Criteria: ``MODEL.MASK_FORMER.CRITERION_NAME``. See :mod:`mask_former.losses.build`."""

MATCHER_REGISTRY = Registry("MATCHER")
"""Matchers: ``MODEL.MASK_FORMER.MATCHER.NAME``. See :mod:`mask_former.losses.build`."""

LOSS_REGISTRY = Registry("MASK_FORMER_LOSS")
"""Set losses: ``MODEL.MASK_FORMER.LOSSES``. See :mod:`mask_former.losses.set_losses`."""

DATASET_MAPPER_REGISTRY = Registry("MASK_FORMER_DATASET_MAPPER")
"""Training mappers: ``INPUT.DATASET_MAPPER_NAME``."""


def lookup(registry: _Registry, name: str, key: str) -> Any:
    """Return the entry ``name`` of ``registry``; ``key`` is the config key of the name.

    Raises:
        KeyError: if ``name`` is not registered; the message has ``key`` and all registered names.
    """
    known = dict(registry)
    if name not in known:
        raise KeyError(f"{key} is {name!r}, which is not registered. Known: {sorted(known)}.")
    return known[name]


def plugins() -> tuple[ModuleType, ...]:
    """Return every plug-in: the package's own, and those that :func:`load_plugin` imported.

    A plug-in may define ``add_config(cfg)``, which adds the config keys that it reads.

    Returns:
        The package's modules, sorted by name within each package, then the loaded files in the
        order of loading.
    """
    return (*_own_plugins(), *_LOADED.values())


@cache
def _own_plugins() -> tuple[ModuleType, ...]:
    modules = []
    for name in _PLUGIN_PACKAGES:
        package = importlib.import_module(f"{__package__}.{name}")
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
            if not module.ispkg:
                modules.append(importlib.import_module(f"{package.__name__}.{module.name}"))
    return tuple(modules)


_LOADED: dict[Path, ModuleType] = {}
"""The plug-ins outside the package, by their resolved path."""


def load_plugin(path: str | os.PathLike[str]) -> ModuleType:
    """Import a Python file that lies outside the package, and remember it as a plug-in.

    Configs can then name the parts that the file registers, and use the keys that its
    ``add_config(cfg)``, if defined, adds. Loading a file again returns the same module.

    Args:
        path: a ``.py`` file. Its name is recorded in checkpoints, so two loaded plug-ins must not
            share one.

    Returns:
        The module.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a ``.py`` file, if another plug-in has its name, or if importing it
            fails; the message has the file, line and reason.
    """
    file = Path(path).expanduser().resolve()
    if file in _LOADED:
        return _LOADED[file]
    if not file.exists():
        raise FileNotFoundError(f"The plug-in {path} is missing; expected the path of a file.")
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"The plug-in {path} is not a Python file: expected a file NAME.py.")
    if other := next((known for known in _LOADED if known.name == file.name), None):
        raise ValueError(
            f"The plug-ins {other} and {file} share a name, and a checkpoint records plug-ins by "
            "name: rename one of them."
        )
    _LOADED[file] = _imported(str(file)) or _import_file(file)
    return _LOADED[file]


def load_plugins(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Load each of the files; see :func:`load_plugin`."""
    for path in paths:
        load_plugin(path)


def loaded_plugins() -> tuple[Path, ...]:
    """Return the files of the loaded plug-ins, for example to load them in another process."""
    return tuple(_LOADED)


class MissingPluginError(KeyError):
    """A config needs a plug-in that is not loaded; the message names it."""


@contextmanager
def naming_missing_plugins(source: str, names: Iterable[str]) -> Iterator[None]:
    """Explain a ``KeyError`` of a config whose plug-ins are not all loaded.

    Args:
        source: the config or checkpoint, for the message.
        names: file names of the plug-ins that it was created with.

    Raises:
        MissingPluginError: in place of any other ``KeyError``, if a plug-in is missing.
    """
    try:
        yield
    except KeyError as error:
        loaded = {file.name for file in _LOADED}
        missing = [name for name in dict.fromkeys(names) if name not in loaded]
        if not missing or isinstance(error, MissingPluginError):
            raise
        options = " ".join(f"--plugin {name}" for name in missing)
        calls = ", ".join(f"mask_former.load_plugin({name!r})" for name in missing)
        raise MissingPluginError(
            f"{source} needs the plug-in {' and '.join(missing)}, which is not loaded: give "
            f"{options} with the path of the file, or in Python call {calls} first. Without it: "
            f"{error.args[0]}"
        ) from error


def _imported(file: str) -> ModuleType | None:
    """Find the module that Python already imported from ``file``."""
    modules = list(sys.modules.values())
    return next(
        (one for one in modules if getattr(one, "__dict__", {}).get("__file__") == file), None
    )


def _import_file(file: Path) -> ModuleType:
    name = f"mask_former_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for pickle and dataclasses, which look up a class's module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(
            f"The plug-in {file} cannot be imported: line {_line_in(file, error)}: "
            f"{type(error).__name__}: {error.args[0] if error.args else error}"
        ) from error
    return module


def _line_in(file: Path, error: Exception) -> int | None:
    """Return the number of the line of ``file`` that raised ``error``."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(file)), None)
