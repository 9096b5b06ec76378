"""Resolve a path, a URL or a name to a model: its config, its weights, and its classes."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.checkpoint.inference_data import (
    InferenceData,
    classes_of,
    inference_settings,
    read_inference_data,
)
from mask_former.config.loading import cfg_from_settings, plugins_named_in, read_cfg
from mask_former.config.validation import validate
from mask_former.data.datasets.classes import Classes
from mask_former.data.datasets.config_keys import register_own_tables
from mask_former.huggingface import read_huggingface_folder
from mask_former.registries import naming_missing_plugins
from mask_former.utils.downloads import local_weights
from mask_former.utils.web import is_url
from mask_former.utils.weight_files import CLASS_NAMES, read_extras

from .sources import checkpoint_in, is_huggingface_folder, packaged_models

__all__ = ["Pretrained", "find_pretrained"]


class Pretrained(NamedTuple):
    """A resolved model: its config, classes and weights."""

    cfg: CfgNode
    """Checked and frozen config; ``MODEL.WEIGHTS`` names the source of the weights."""
    classes: Classes
    weights: dict[str, Tensor] | None = None
    """Weights of the model; None: they are in the file ``MODEL.WEIGHTS``."""


class _Request(NamedTuple):
    """The arguments of :func:`find_pretrained`."""

    source: str
    config_file: str | None
    device: str | None
    opts: Sequence[Any]
    things: Sequence[str | int] | None

    @property
    def path(self) -> Path:
        return Path(self.source).expanduser()

    @property
    def file(self) -> Path:
        """The path without a query such as ``?ema=True``."""
        return Path(str(self.path).partition("?")[0])


def find_pretrained(
    source: str | Path,
    *,
    config_file: str | Path | None = None,
    device: str | torch.device | None = None,
    opts: Sequence[Any] = (),
    things: Sequence[str | int] | None = None,
) -> Pretrained:
    """Resolve a source; see :meth:`mask_former.MaskFormerPredictor.from_pretrained`."""
    request = _Request(
        os.fspath(source),
        None if config_file is None else os.fspath(config_file),
        None if device is None else str(device),
        list(opts),
        things,
    )
    for kind in _SOURCE_KINDS:
        if kind.matches(request):
            return kind.resolve(request)
    raise FileNotFoundError(
        f"There is no checkpoint or folder {source}, and no model of that name comes with the "
        f"code, only {', '.join(packaged_models()) or 'none'}.{_hub_hint(request.source)}"
    )


def _hub_hint(source: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return ""
    return (
        " For a model of the Hugging Face Hub, first run "
        f"`hf download {source} --local-dir FOLDER`; then give FOLDER."
    )


def _from_huggingface(request: _Request) -> Pretrained:
    settings, weights, names = read_huggingface_folder(request.path)
    cfg = _complete(settings, request, request.source, request.source)
    return Pretrained(cfg, _with_things(classes_of(cfg, names), request.things), weights)


def _from_folder(request: _Request) -> Pretrained:
    weights, config = checkpoint_in(request.path), request.path / "config.yaml"
    if request.config_file is None and config.is_file():
        request = request._replace(config_file=str(config))
    return _from_checkpoint(request, str(weights))


def _from_config(request: _Request) -> Pretrained:
    config_file = str(request.path)
    weights = read_cfg(config_file, list(request.opts)).MODEL.WEIGHTS
    if not weights:
        raise ValueError(f"{config_file} has no MODEL.WEIGHTS: set it, or give the checkpoint.")
    return _from_checkpoint(request._replace(config_file=config_file), local_weights(weights))


def _from_url(request: _Request) -> Pretrained:
    return _from_checkpoint(request, local_weights(request.source, by_user=True))


def _from_file(request: _Request) -> Pretrained:
    return _from_checkpoint(request, str(request.path))


def _from_model_zoo(request: _Request) -> Pretrained:
    return _from_checkpoint(request, str(packaged_models()[request.source]))


class _SourceKind(NamedTuple):
    """A kind of source: a function that recognises it, and one that resolves it."""

    matches: Callable[[_Request], bool]
    resolve: Callable[[_Request], Pretrained]


def _is_huggingface(request: _Request) -> bool:
    """Return True for a folder of transformers, unless a config file replaces its config."""
    return request.config_file is None and is_huggingface_folder(request.path)


_SOURCE_KINDS = (
    _SourceKind(_is_huggingface, _from_huggingface),
    _SourceKind(lambda r: r.path.is_dir(), _from_folder),
    _SourceKind(lambda r: r.path.suffix in (".yaml", ".yml"), _from_config),
    _SourceKind(lambda r: is_url(r.source), _from_url),
    _SourceKind(lambda r: r.file.is_file(), _from_file),
    _SourceKind(lambda r: r.source in packaged_models(), _from_model_zoo),
)
"""Kinds of sources, in the order in which they are tried."""


def _from_checkpoint(request: _Request, weights: str) -> Pretrained:
    extras = read_extras(weights.partition("?")[0])
    config_file = request.config_file
    stored = _stored_data(extras, weights, config_file)
    plugins = [*(stored.plugins if stored else ()), *plugins_named_in(config_file or "")]
    with naming_missing_plugins(weights, plugins):
        if config_file is not None:
            settings = _settings_of(config_file, tables=stored is None)
        elif stored is not None:
            settings = stored.settings
        else:
            raise ValueError(
                f"{weights} has no config and classes, because other code or an older version of "
                "this one wrote it. Give the config that it was trained with: config_file=…."
            )
        cfg = _complete(settings, request, weights, config_file or weights)
    if stored is not None and len(stored.classes.names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        classes = stored.classes
    else:
        classes = classes_of(cfg, extras.get(CLASS_NAMES))
    return Pretrained(cfg, _with_things(classes, request.things))


def _stored_data(
    extras: Mapping[str, Any], weights: str, config_file: str | None
) -> InferenceData | None:
    """Read a checkpoint's config and classes; None if damaged and a config file is given."""
    try:
        return read_inference_data(extras, weights)
    except ValueError as error:
        if config_file is None:
            raise
        logging.getLogger(__name__).warning(f"Only {config_file} is used, because {error}")
        return None


def _settings_of(config_file: str, *, tables: bool) -> dict[str, Any]:
    """Read the inference settings, the device and, if ``tables``, the dataset tables of a file."""
    cfg = read_cfg(config_file, [])
    settings = inference_settings(cfg)
    settings["MODEL"]["DEVICE"] = cfg.MODEL.DEVICE
    if tables:  # they may name the classes, if the checkpoint does not
        settings["DATASETS"]["TABLES"] = cfg.DATASETS.TABLES
    return settings


def _complete(settings: Mapping[str, Any], request: _Request, weights: str, source: str) -> CfgNode:
    """Complete the config with weights, device and options; check and freeze it."""
    cfg = cfg_from_settings(settings, request.opts, source)
    cfg.MODEL.WEIGHTS = weights
    if request.device is not None:
        cfg.MODEL.DEVICE = request.device
        _check_device(request.device)
    elif "MODEL.DEVICE" not in request.opts and "DEVICE" not in settings["MODEL"]:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    register_own_tables(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def _check_device(device: str) -> None:
    if device.startswith("cuda"):
        index, count = torch.device(device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise ValueError(f"device={device!r}, but torch sees {count} GPUs: use device='cpu'.")


def _with_things(classes: Classes, things: Sequence[str | int] | None) -> Classes:
    """Mark the classes of ``things`` (names or ids) as things, and no others."""
    if things is None:
        return classes
    ids_by_name = {name: index for index, name in enumerate(classes.names)}
    ids = set()
    for thing in things:
        index = ids_by_name.get(thing, -1) if isinstance(thing, str) else thing
        if index not in ids_by_name.values():
            known = difflib.get_close_matches(str(thing), classes.names) or classes.names[:8]
            raise KeyError(
                f"things: there is no class {thing!r}; expected names or ids of classes, such as "
                f"{', '.join(known)}."
            )
        ids.add(index)
    return replace(classes, is_thing=[i in ids for i in range(len(classes.names))])
