"""Start the processes of a training or an evaluation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from mask_former.config.loading import read_cfg

__all__ = ["run"]


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
