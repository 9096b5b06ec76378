"""Report a shortage of the shared memory through which DataLoader workers pass examples.

torch itself shares an example in a thread of the worker: an error there is lost, and the training
waits for the example forever.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import get_worker_info

from mask_former.utils.errors import one_line

__all__ = ["SharingMapper", "check_shared_memory"]

FOLDER = Path("/dev/shm")
MEBIBYTE = 2**20
LEAST = 16 * MEBIBYTE
"""Free bytes for a few workers and small images. Docker's default is 64 MiB in all."""
ADVICE = (
    "Set DATALOADER.NUM_WORKERS to a smaller number (0 needs no shared memory), or give the "
    f"container more: docker run --shm-size=8g (elsewhere: mount -o remount,rw,size=8G {FOLDER})."
)


def check_shared_memory(cfg: CfgNode) -> None:
    """Check that DataLoader workers have some shared memory, before anything starts.

    Args:
        cfg: Config with ``DATALOADER.NUM_WORKERS``; with 0 nothing is needed.

    Raises:
        ValueError: If the shared memory of a Linux system is missing, read-only or nearly full.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    if not workers or sys.platform != "linux":
        return
    if not os.access(FOLDER, os.W_OK):
        found = "cannot be written" if FOLDER.exists() else "is missing"
    elif (usage := shutil.disk_usage(FOLDER)).free < LEAST:
        found = (
            f"has {usage.free / MEBIBYTE:.1f} MiB free of {usage.total / MEBIBYTE:.1f} MiB, "
            f"expected {LEAST / MEBIBYTE:.0f} MiB or more"
        )
    else:
        return
    raise ValueError(f"{FOLDER} {found}; {workers} DataLoader workers pass images there. {ADVICE}")


class SharingMapper:
    """A mapper whose examples are moved to shared memory in the worker, where errors are reported.

    They would be moved there anyway; in the main process nothing is moved.
    """

    def __init__(self, mapper: Callable[[Any], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: Any) -> Any:
        """Map a record of a dataset.

        Raises:
            OSError: If the shared memory is full.
        """
        example = self.mapper(record)
        worker = get_worker_info()
        if worker is not None:
            try:
                _share(example)
            except RuntimeError as error:
                raise OSError(
                    f"The shared memory {FOLDER} is too small for the examples of "
                    f"{worker.num_workers} DataLoader workers ({one_line(error)}). {ADVICE}"
                ) from error
        return example


def _share(value: Any) -> None:
    """Move all tensors of an example to shared memory, in place."""
    if isinstance(value, Tensor):
        if value.untyped_storage().nbytes():
            value.share_memory_()
    elif isinstance(value, Instances):
        _share(value.get_fields())
    elif isinstance(value, dict):
        for part in value.values():
            _share(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _share(part)
    elif isinstance(tensor := getattr(value, "tensor", None), Tensor):  # BitMasks, Boxes
        _share(tensor)
