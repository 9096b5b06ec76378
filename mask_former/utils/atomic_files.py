"""Writing files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["replace_file", "save_torch"]


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside ``path`` with ``write(part)``, then put it in its place at once.

    Raises:
        OSError: if the disk is full or cannot be written; names ``path``, which stays as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        write(part)
        if part.stat().st_mode != mode:  # safetensors' files are for their owner alone
            part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None or str(cause.filename or part) != str(part):
            raise  # nothing of this file's
        reason = f"{cause.strerror}; nothing was changed, so mend that and write it again"
        raise OSError(cause.errno, reason, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _os_error(error: BaseException | None) -> OSError | None:
    """What the system said; torch raises errors of its own on top of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def save_torch(content: Any, path: Path) -> None:
    """``torch.save`` through a file of Python's, which says why it cannot be written."""
    with path.open("wb") as file:
        torch.save(content, file)
