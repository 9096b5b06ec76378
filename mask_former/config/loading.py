"""Read a config file and options into a checked, frozen config."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from mask_former.data.datasets.config_keys import register_own_tables
from mask_former.registries import loaded_plugins, naming_missing_plugins
from mask_former.utils.bounded_files import read_bytes, read_yaml
from mask_former.utils.downloads import MAX_CONFIG_BYTES, fetch, named_in, typed_by_user
from mask_former.utils.errors import short
from mask_former.utils.web import is_url

from .keys import get_mask_former_cfg
from .validation import validate

__all__ = [
    "cfg_from_settings",
    "finish_cfg",
    "load_cfg",
    "plugin_comments",
    "plugins_named_in",
    "read_cfg",
    "resolve_device",
]

_PLUGIN_COMMENT = "# needs --plugin "
_MOST_FILES = 100
"""Most files that ``_BASE_`` may lead to, each counted as often as it is named."""


def load_cfg(config_file: str, opts: Sequence[str] | None = None) -> CfgNode:
    """Read a config file, override keys with ``KEY VALUE …``, validate and freeze the config.

    Raises:
        KeyError: for an unknown key; the message names similar keys, or the missing plug-in.
        FileNotFoundError: if the file, or one that its ``_BASE_`` names, is missing.
        ValueError: if a file is not a YAML mapping, or a value does not fit its key.
    """
    cfg = read_cfg(config_file, opts)
    with naming_missing_plugins(config_file, plugins_named_in(config_file)):
        finish_cfg(cfg)
    return cfg


def read_cfg(config_file: str, opts: Sequence[str] | None) -> CfgNode:
    """Read a config as :func:`load_cfg` does, but do not register tables, validate or freeze."""
    cfg = get_mask_former_cfg()
    if config_file:
        _check_files(Path(config_file))
        missing = naming_missing_plugins(config_file, plugins_named_in(config_file))
        with missing, _located_errors(cfg, config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
            _find_files_next_to(Path(config_file), cfg)
            named_in(cfg.MODEL.WEIGHTS, config_file)
    _merge_options(cfg, opts or [])
    return cfg


def plugin_comments() -> str:
    """Return the comment lines at the top of a config file that name the loaded plug-ins."""
    return "".join(f"{_PLUGIN_COMMENT}{file.name}\n" for file in loaded_plugins())


def plugins_named_in(config_file: str) -> list[str]:
    """Return the file names of plug-ins in the comments that :func:`plugin_comments` wrote."""
    if not Path(config_file).is_file():
        return []
    lines = read_bytes(config_file).decode("utf-8", errors="replace").splitlines()
    names = (
        line.removeprefix(_PLUGIN_COMMENT) for line in lines if line.startswith(_PLUGIN_COMMENT)
    )
    return [name.strip() for name in names]


def cfg_from_settings(settings: Mapping[str, Any], opts: Sequence[Any], source: str) -> CfgNode:
    """Build a config from the content of a config file, named ``source`` in error messages."""
    cfg = get_mask_former_cfg()
    with _located_errors(cfg, source):
        cfg.merge_from_other_cfg(CfgNode(dict(settings)))
    _merge_options(cfg, list(opts))
    return cfg


def finish_cfg(cfg: CfgNode) -> None:
    """Register the tables of a config, validate it and freeze it; see :func:`load_cfg`."""
    register_own_tables(cfg)
    validate(cfg)
    cfg.freeze()


def _find_files_next_to(config_file: Path, cfg: CfgNode) -> None:
    """Resolve weights and tables relative to the config's folder if the files exist there."""

    def find(name: str) -> str:
        plain, mark, query = name.partition("?")
        path = config_file.parent / plain
        return f"{path}{mark}{query}" if plain and path.is_file() else name

    cfg.MODEL.WEIGHTS = find(cfg.MODEL.WEIGHTS)
    cfg.DATASETS.TABLES = tuple(find(name) for name in cfg.DATASETS.TABLES)


def _check_files(config_file: Path) -> None:
    """Check that a config file and those of its ``_BASE_`` exist and are YAML mappings.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if one is not a YAML mapping, ``_BASE_`` does not name files, or it leads in a
            circle or to too many files.
    """
    waiting: list[tuple[str, list[str]]] = [(str(config_file), [])]
    count = 0
    while waiting:
        file, users = waiting.pop()
        count += 1
        if file in users or count > _MOST_FILES:
            raise ValueError(
                f"The config file {config_file} was refused: its {BASE_KEY} leads "
                f"{'back to' if file in users else f'to more than {_MOST_FILES} files, such as'} "
                f"{file}. Name each base once, in one file."
            )
        bases = _bases_of(file, f"{BASE_KEY} of {users[-1]}" if users else "--config-file")
        waiting += [(base, [*users, file]) for base in bases]


def _bases_of(file: str, named_by: str) -> list[str]:
    """Check one config file, and return the files that its ``_BASE_`` names."""
    if is_url(file):
        named_in(file, named_by)
        path = fetch(file, _read_mapping, max_bytes=MAX_CONFIG_BYTES)
    else:
        path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"There is no config file {file} ({named_by}).")
    bases = _read_mapping(path).get(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ValueError(
            f"The config file {file}: {BASE_KEY} is {short(bases)}, expected the name of a config "
            "file, or a list of names."
        )
    if len(set(bases)) < len(bases):
        raise ValueError(f"The config file {file} was refused: {BASE_KEY} names a file twice.")
    folder = os.path.dirname(file)
    return [
        base if is_url(base) else os.path.join(folder, os.path.expanduser(base)) for base in bases
    ]


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a config file, which must be a YAML mapping."""
    content = read_yaml(path, f"The config file {path}")
    if not isinstance(content, dict):
        raise ValueError(
            f"The config file {path} holds {type(content).__name__} {short(content, 40)!r}; "
            "expected keys and values, such as 'SEED: 1'."
        )
    return content


def _merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    if len(opts) % 2:
        raise ValueError(
            f"Expected KEY VALUE pairs, got {len(opts)} words: {' '.join(map(str, opts))}. "
            "Options such as --resume go before the first key."
        )
    known = list(_keys(cfg))
    typed_by_user(opts)
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        with _located_errors(cfg, f"{key} {value}"):
            if key not in known:
                raise KeyError(f"Non-existent key: {key}")
            cfg.merge_from_list([key, value])


@contextmanager
def _located_errors(cfg: CfgNode, source: str) -> Iterator[None]:
    """Add ``source`` to yacs's error messages, and similar keys to those about unknown keys."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0]) if error.args else type(error).__name__
        unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
        if not unknown:
            if len(text) > 500:  # yacs prints whole groups of keys
                text = f"{text[:100]} … {text[-100:]}"
            kind = KeyError if isinstance(error, KeyError) else ValueError
            raise kind(f"{source}: {text}") from error
        near = difflib.get_close_matches(unknown[1].upper(), _keys(cfg))
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "mask_former/config/keys.py lists this project's; a plug-in's need --plugin."
        )
        raise KeyError(f"{source}: there is no config key {unknown[1]}; {hint}") from error


def _keys(cfg: CfgNode) -> Iterator[str]:
    """Yield the full name of every key, and of every group of keys."""
    for name, value in cfg.items():
        yield name
        if isinstance(value, CfgNode):
            yield from (f"{name}.{key}" for key in _keys(value))


def resolve_device(cfg: CfgNode) -> CfgNode:
    """Replace a GPU by the CPU if this machine has no GPU, and log a warning.

    A config and its file keep the requested device; code that runs a model calls this first.

    Returns:
        ``cfg`` itself if its device exists, otherwise a copy; frozen if ``cfg`` is.
    """
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    logging.getLogger(__name__).warning(
        f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but there is no GPU: using the CPU."
    )
    resolved = cfg.clone()
    resolved.defrost()
    resolved.MODEL.DEVICE = "cpu"
    if cfg.is_frozen():
        resolved.freeze()
    return resolved
