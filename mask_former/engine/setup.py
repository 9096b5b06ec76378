"""From command-line arguments to a checked config and running processes."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import get_mask_former_cfg, validate

__all__ = ["load_cfg", "resolve_device", "run", "setup"]


def load_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """The config of a file with ``KEY VALUE …`` on top, checked and frozen.

    Raises:
        KeyError: for a key that does not exist.
        FileNotFoundError: if there is no such file.
    """
    cfg = get_mask_former_cfg()
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"There is no config file {config_file} (--config-file).")
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(opts or [])
    resolve_device(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def resolve_device(cfg: CfgNode) -> None:
    """Fall back to the CPU where ``MODEL.DEVICE`` is a GPU and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but there is no GPU: using the CPU."
        )
        cfg.MODEL.DEVICE = "cpu"


def setup(args: argparse.Namespace) -> CfgNode:
    """detectron2's ``default_setup`` with our config and loggers."""
    # Before the config is read, so that what it has to say is seen.
    setup_logger(name="mask_former", distributed_rank=comm.get_rank())
    cfg = load_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="mask_former", distributed_rank=comm.get_rank())
    return cfg


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in as many processes as asked for.

    Under ``torchrun`` this process is one of them; otherwise ``--num-gpus`` processes are started
    on this machine. ``MODEL.DEVICE cpu`` makes them CPU processes (gloo).
    """
    if "cpu" in args.opts:
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
