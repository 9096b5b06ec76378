"""What a path, a URL or a name stands for: a config, its weights, and the classes."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir
from torch import Tensor

from mask_former.checkpoint.inference_data import (
    InferenceData,
    classes_of,
    inference_settings,
    read_inference_data,
)
from mask_former.config.keys import validate
from mask_former.config.loading import cfg_from_settings, plugins_named_in, read_cfg
from mask_former.data.datasets.classes import Classes
from mask_former.data.datasets.config_keys import register_own_tables
from mask_former.huggingface import read_huggingface_folder
from mask_former.registries import naming_missing_plugins
from mask_former.utils.weight_files import CLASS_NAMES, read_extras

__all__ = ["Pretrained", "find_pretrained", "packaged_models"]

_SUFFIXES = (".pth", ".safetensors", ".pkl")
_OF_A_TRAINING = ("model_final.pth", "last_checkpoint", "model_best.pth")
"""The first that is there is taken; ``last_checkpoint`` holds a file's name."""
_ROOT = Path(__file__).resolve().parents[1]
_MODEL_ZOO = (_ROOT / "model_zoo", _ROOT.parent / "model_zoo")
"""In a wheel the folder lies inside the package, in the repository beside it."""


class Pretrained(NamedTuple):
    """A model that can be built."""

    cfg: CfgNode
    """Checked and frozen; ``MODEL.WEIGHTS`` says where the weights come from."""
    classes: Classes
    weights: dict[str, Tensor] | None = None
    """Where they are not those of the file ``MODEL.WEIGHTS``."""


class _Options(NamedTuple):
    """What the user says beside the path."""

    device: str | None
    opts: Sequence[Any]
    things: Sequence[str | int] | None


def find_pretrained(
    source: str | Path,
    *,
    config_file: str | Path | None = None,
    device: str | torch.device | None = None,
    opts: Sequence[Any] = (),
    things: Sequence[str | int] | None = None,
) -> Pretrained:
    """See :meth:`mask_former.MaskFormerPredictor.from_pretrained`, as for errors."""
    options = _Options(None if device is None else str(device), list(opts), things)
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        if config_file is None and _is_huggingface(path):
            return _from_huggingface(path, options)
        weights, beside = _in_folder(path)
        return _from_checkpoint(weights, config_file or beside, options)
    if path.suffix in (".yaml", ".yml"):
        return _from_config(path, options)
    if "://" in name:
        return _from_checkpoint(_download(name), config_file, options)
    if not Path(str(path).partition("?")[0]).is_file():
        path = _packaged(name)
    return _from_checkpoint(str(path), config_file, options)


def packaged_models() -> dict[str, Path]:
    """The models that come with the code, by name."""
    found = [file for folder in _MODEL_ZOO for file in sorted(folder.glob("*.safetensors"))]
    return {file.stem: file for file in found}


def _packaged(name: str) -> Path:
    models = packaged_models()
    if name not in models:
        raise FileNotFoundError(
            f"There is no checkpoint or folder {name}, and no model of that name comes with the "
            f"code; there are: {', '.join(models) or 'none'}."
        )
    return models[name]


def _download(url: str) -> str:
    """The local copy of a URL, with the URL's query behind it.

    Raises:
        OSError: if it cannot be fetched.
    """
    plain, mark, query = url.partition("?")
    parts = urlparse(plain)
    where = {}
    if parts.scheme in ("http", "https"):  # two hosts may have a file of one name
        where["cache_dir"] = os.path.join(get_cache_dir(), parts.netloc.replace(":", "_"))
    try:
        local = PathManager.get_local_path(plain, **where)
        if not os.path.isfile(local):
            raise OSError("there is nothing that reads such an address")
    except (OSError, ValueError) as error:  # ValueError: no URL at all
        raise OSError(f"{url} cannot be fetched: {error}") from error
    return f"{local}{mark}{query}"


def _in_folder(folder: Path) -> tuple[str, Path | None]:
    """The checkpoint of a folder and the config beside it.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not clear which one is meant.
    """
    config = folder / "config.yaml"
    return str(_checkpoint_in(folder)), config if config.is_file() else None


def _checkpoint_in(folder: Path) -> Path:
    for name in _OF_A_TRAINING:
        file = folder / name
        if name == "last_checkpoint" and file.is_file():
            file = folder / file.read_text(encoding="utf-8").strip()
        if file.is_file():
            logging.getLogger(__name__).info(f"{folder}: taking {file.name}.")
            return file
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{folder} has no checkpoint: expected {', '.join(_OF_A_TRAINING)}, or a file that "
            f"ends in {', '.join(_SUFFIXES)}."
        )
    if len(files) > 1:
        raise ValueError(
            f"{folder} has {len(files)} checkpoints ({', '.join(file.name for file in files[:5])}"
            f"{', …' if len(files) > 5 else ''}): name the one that is meant."
        )
    return files[0]


def _from_checkpoint(weights: str, config_file: str | Path | None, options: _Options) -> Pretrained:
    extras = read_extras(weights.partition("?")[0])
    carried = _carried(extras, weights, config_file)
    plugins = [*(carried.plugins if carried else ()), *plugins_named_in(str(config_file or ""))]
    with naming_missing_plugins(weights, plugins):
        if config_file is not None:
            settings = _settings_of(config_file, tables=carried is None)
        elif carried is not None:
            settings = carried.settings
        else:
            raise ValueError(
                f"{weights} does not carry its config and classes, as checkpoints of others and of "
                "older trainings do not. Give the config that it was trained with: config_file=."
            )
        cfg = _finished(settings, weights, str(config_file or weights), options)
    if carried is not None and len(carried.classes.names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        classes = carried.classes
    else:
        classes = classes_of(cfg, extras.get(CLASS_NAMES))
    return Pretrained(cfg, _with_things(classes, options.things))


def _carried(
    extras: Mapping[str, Any], weights: str, config_file: str | Path | None
) -> InferenceData | None:
    """What the checkpoint carries; a config file replaces what is broken."""
    try:
        return read_inference_data(extras, weights)
    except ValueError as error:
        if config_file is None:
            raise
        logging.getLogger(__name__).warning(f"Only {config_file} is used: {error}")
        return None


def _from_config(config_file: Path, options: _Options) -> Pretrained:
    weights = read_cfg(str(config_file), list(options.opts)).MODEL.WEIGHTS
    if not weights:
        raise ValueError(f"{config_file} names no MODEL.WEIGHTS: give the checkpoint instead.")
    weights = _download(weights) if "://" in weights else weights
    return _from_checkpoint(weights, config_file, options)


def _settings_of(config_file: str | Path, *, tables: bool) -> dict[str, Any]:
    """What inference reads of a config file, with the device and the ``tables`` of datasets."""
    cfg = read_cfg(str(config_file), [])
    settings = inference_settings(cfg)
    settings["MODEL"]["DEVICE"] = cfg.MODEL.DEVICE
    if tables:  # where the classes are not known they may stand there
        settings["DATASETS"]["TABLES"] = cfg.DATASETS.TABLES
    return settings


def _finished(settings: Mapping[str, Any], weights: str, source: str, options: _Options) -> CfgNode:
    """The config with all that the user says, checked and frozen."""
    cfg = cfg_from_settings(settings, options.opts, source)
    cfg.MODEL.WEIGHTS = weights
    if options.device is not None:
        cfg.MODEL.DEVICE = options.device
        _check_device(options.device)
    elif "MODEL.DEVICE" not in options.opts and "DEVICE" not in settings["MODEL"]:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    register_own_tables(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def _check_device(device: str) -> None:
    """A device that is asked for is there."""
    if device.startswith("cuda"):
        index, count = torch.device(device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise ValueError(f"device={device!r}, but torch sees {count} GPUs: device='cpu'.")


def _is_huggingface(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def _from_huggingface(folder: Path, options: _Options) -> Pretrained:
    settings, weights, names = read_huggingface_folder(folder)
    cfg = _finished(settings, str(folder), str(folder), options)
    return Pretrained(cfg, _with_things(classes_of(cfg, names), options.things), weights)


def _with_things(classes: Classes, things: Sequence[str | int] | None) -> Classes:
    """The classes, of which ``things`` (names or ids) and no others are things."""
    if things is None:
        return classes
    ids_by_name = {name: index for index, name in enumerate(classes.names)}
    ids = set()
    for thing in things:
        index = ids_by_name.get(thing, -1) if isinstance(thing, str) else thing
        if index not in ids_by_name.values():
            near = difflib.get_close_matches(str(thing), classes.names) or classes.names[:8]
            raise KeyError(f"things: there is no class {thing!r}; near it: {', '.join(near)}.")
        ids.add(index)
    return replace(classes, is_thing=[i in ids for i in range(len(classes.names))])
