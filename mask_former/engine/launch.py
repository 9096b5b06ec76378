"""Start the processes of a training run or an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from mask_former.config.loading import read_cfg
from mask_former.registries import load_plugins, loaded_plugins

__all__ = ["JobArguments", "run"]


@dataclass(frozen=True, kw_only=True)
class JobArguments:
    """The config of a job, and the processes that run it; see detectron2's ``launch``."""

    config_file: str
    opts: Sequence[str] = ()
    num_gpus: int = 1
    """Number of processes on this machine, with or without GPUs."""
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


Arguments = TypeVar("Arguments", bound=JobArguments)


def run(main: Callable[[Arguments], Any], arguments: Arguments) -> Any:
    """Run ``main(arguments)`` in as many processes as ``arguments`` ask for.

    Under ``torchrun`` this process is one of them; otherwise ``num_gpus`` processes are started on
    this machine, with the plug-ins of this one. If ``MODEL.DEVICE`` of the config is the CPU, they
    communicate with gloo.

    Raises:
        KeyError, FileNotFoundError, ValueError: If the config is wrong; see :func:`load_cfg`.
            Raised before any process starts.
    """
    if read_cfg(arguments.config_file, arguments.opts).MODEL.DEVICE.startswith("cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 uses NCCL if it sees a GPU
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _run_under_torchrun(main, arguments)
    if arguments.num_gpus > 1 and not torch.cuda.is_available():
        # Processes that each use every core slow each other down.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // arguments.num_gpus)))
    return launch(
        _run_with_plugins,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(main, arguments, loaded_plugins()),
    )


def _run_with_plugins(
    main: Callable[[Arguments], Any], arguments: Arguments, plugins: Sequence[Path]
) -> Any:
    load_plugins(plugins)  # a spawned process has loaded none
    return main(arguments)


def _run_under_torchrun(main: Callable[[Arguments], Any], arguments: Arguments) -> Any:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return main(arguments)
    finally:
        dist.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
