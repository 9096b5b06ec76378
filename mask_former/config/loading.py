"""From command-line arguments to a checked config and running processes."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.common.config import BASE_KEY

from ..config import get_mask_former_cfg, validate
from .datasets import register_own_tables

__all__ = ["cfg_from_settings", "load_cfg", "read_cfg", "resolve_device", "run", "setup"]


def load_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """The config of a file with ``KEY VALUE …`` on top, checked and frozen.

    Raises:
        KeyError: for a key that does not exist; names those that are near.
        FileNotFoundError: if there is no such file, or none that its ``_BASE_`` names.
        ValueError: if a file is no YAML mapping, or a value does not fit its key.
    """
    cfg = read_cfg(config_file, opts)
    _finish_cfg(cfg)
    return cfg


def read_cfg(config_file: str, opts: list[str] | None) -> CfgNode:
    """As :func:`load_cfg`, but neither checked nor frozen, and without its tables registered."""
    cfg = get_mask_former_cfg()
    if config_file:
        _check_file(Path(config_file), "--config-file")
        with _naming_mistakes(cfg, config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
            _find_files_beside(cfg, Path(config_file))
    _merge_options(cfg, opts or [])
    return cfg


def cfg_from_settings(settings: Mapping[str, Any], opts: Sequence[Any], source: str) -> CfgNode:
    """As :func:`read_cfg`, from the content of a config file; ``source`` stands in the error."""
    cfg = get_mask_former_cfg()
    with _naming_mistakes(cfg, source):
        cfg.merge_from_other_cfg(CfgNode(dict(settings)))
    _merge_options(cfg, list(opts))
    return cfg


def _finish_cfg(cfg: CfgNode) -> None:
    register_own_tables(cfg)
    resolve_device(cfg)
    validate(cfg)
    cfg.freeze()


def _find_files_beside(cfg: CfgNode, config_file: Path) -> None:
    """Weights and tables that a config names by a relative path may lie beside it."""

    def find(name: str) -> str:
        beside = config_file.parent / name
        return str(beside) if name and not os.path.exists(name) and beside.is_file() else name

    cfg.MODEL.WEIGHTS = find(cfg.MODEL.WEIGHTS)
    cfg.DATASETS.TABLES = tuple(find(name) for name in cfg.DATASETS.TABLES)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of several values for one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value} is there twice,{key.start_mark}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_file(path: Path, named_by: str) -> None:
    """See that a config file is there and a YAML mapping, and so are those it is based on."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {path} ({named_by}).")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The config file {path} is no plain YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"The config file {path} holds {type(content).__name__} {str(content)[:40]!r}; "
            "expected keys and values, such as 'SEED: 1'."
        )
    bases = content.get(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        if "://" not in base:
            _check_file(path.parent / os.path.expanduser(base), f"{BASE_KEY} of {path}")


def _merge_options(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ValueError(
            f"Expected KEY VALUE pairs, got {len(opts)} words: {' '.join(map(str, opts))}. "
            "Options such as --resume stand before the first key."
        )
    known = list(_keys(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        with _naming_mistakes(cfg, f"{key} {value}"):
            if key not in known:
                raise KeyError(f"Non-existent key: {key}")
            cfg.merge_from_list([key, value])


@contextmanager
def _naming_mistakes(cfg: CfgNode, source: str) -> Iterator[None]:
    """Say where a mistake that yacs finds comes from, and which keys are near an unknown one."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error.args[0]) if error.args else type(error).__name__
        unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
        if not unknown:
            if len(text) > 500:  # yacs shows whole groups of keys
                text = f"{text[:100]} … {text[-100:]}"
            kind = KeyError if isinstance(error, KeyError) else ValueError
            raise kind(f"{source}: {text}") from error
        near = difflib.get_close_matches(unknown[1].upper(), _keys(cfg))
        hint = f"did you mean {' or '.join(near)}?" if near else "mask_former/config.py lists ours."
        raise KeyError(f"{source}: there is no config key {unknown[1]}; {hint}") from error


def _keys(cfg: CfgNode) -> Iterator[str]:
    """The full name of every key, and of every group of keys."""
    for name, value in cfg.items():
        yield name
        if isinstance(value, CfgNode):
            yield from (f"{name}.{key}" for key in _keys(value))


def resolve_device(cfg: CfgNode) -> None:
    """Fall back to the CPU where ``MODEL.DEVICE`` is a GPU and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but there is no GPU: using the CPU."
        )
        cfg.MODEL.DEVICE = "cpu"


def setup(args: argparse.Namespace) -> CfgNode:
    """detectron2's ``default_setup`` with our config and loggers."""
    cfg = read_cfg(args.config_file, args.opts)
    # The log is there before the config is finished, so that what that has to say is kept.
    setup_logger(cfg.OUTPUT_DIR, name="mask_former", distributed_rank=comm.get_rank())
    _finish_cfg(cfg)
    default_setup(cfg, args)
    return cfg


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in as many processes as asked for.

    Under ``torchrun`` this process is one of them; otherwise ``--num-gpus`` processes are started
    on this machine. Where the config's ``MODEL.DEVICE`` is the CPU they are CPU processes (gloo).

    Raises:
        KeyError, FileNotFoundError, ValueError: see :func:`load_cfg`; before any process starts.
    """
    if read_cfg(args.config_file, args.opts).MODEL.DEVICE.startswith("cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 takes NCCL wherever it sees a GPU
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _run_under_torchrun(main, args)
    if args.num_gpus > 1 and not torch.cuda.is_available():
        # Processes that each take every core get in each other's way.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // args.num_gpus)))
    return launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _run_under_torchrun(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return main(args)
    finally:
        dist.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
