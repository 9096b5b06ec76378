"""Check the memory through which DataLoader workers hand over images."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from detectron2.config import CfgNode

__all__ = ["check_shared_memory"]

FOLDER = Path("/dev/shm")
MEBIBYTE = 2**20
LEAST = 16 * MEBIBYTE
"""Free bytes for tiny images and few workers. Docker's default, 64 MiB in all, is more."""


def check_shared_memory(cfg: CfgNode) -> None:
    """Check that DataLoader workers can hand over images; without memory they wait for ever.

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
            f"has {usage.free / MEBIBYTE:.1f} MiB free of {usage.total / MEBIBYTE:.1f} MiB; at "
            f"least {LEAST / MEBIBYTE:.0f} MiB are needed"
        )
    else:
        return
    raise ValueError(
        f"{FOLDER} {found}. Through it the {workers} DataLoader workers hand over the images, and "
        "training would wait for them for ever. Set DATALOADER.NUM_WORKERS to 0, or give the "
        "container more shared memory: docker run --shm-size=8g (without a container: mount -o "
        f"remount,rw,size=8G {FOLDER})."
    )
