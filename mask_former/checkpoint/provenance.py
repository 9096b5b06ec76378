"""Origin of a checkpoint: seeds, versions, and the state of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

__all__ = ["git_state", "run_metadata"]

_PACKAGES = ("mask-former", "torch", "torchvision", "numpy", "fvcore", "Pillow", "timm")
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


def run_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Describe the run that writes a checkpoint, as plain data.

    Returns:
        ``seed`` (``SEED`` of the config; negative if it is not set), ``initial_seed`` (torch's
        seed in the main process when the trainer was built), ``world_size``, ``device`` (its
        name), ``versions`` by package (None if it is not installed), and ``git``, see
        :func:`git_state`.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    is_gpu = device.type == "cuda"
    return {
        "seed": int(cfg.SEED),
        "initial_seed": torch.initial_seed(),
        "world_size": comm.get_world_size(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "versions": {
            "python": platform.python_version(),
            "detectron2": str(detectron2.__version__),
            **{name: _version(name) for name in _PACKAGES},
        },
        "git": git_state(_PACKAGE_FOLDER),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Describe the git checkout that a package belongs to.

    Args:
        folder: Folder of the package, with its ``__init__.py``.

    Returns:
        ``commit`` (hexadecimal) and ``dirty`` (True if a tracked file differs from the commit).
        None if git is missing or does not track the package, as for a package that is installed in
        an environment inside another repository.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
