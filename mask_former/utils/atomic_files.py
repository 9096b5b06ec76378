"""Write files atomically: a reader sees the old file or the complete new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["replace_file", "save_torch"]


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a temporary file in the folder of ``path``, then rename it to ``path``.

    Args:
        path: File to write or to replace.
        write: Called with the path of the temporary file, which it must write.

    Raises:
        OSError: If the disk is full or cannot be written. The message names ``path``, which stays
            unchanged.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        write(part)
        if part.stat().st_mode != mode:  # safetensors lets only the owner read its files
            part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None or str(cause.filename or part) != str(part):
            raise  # the error has another cause than this file
        reason = f"{cause.strerror}; nothing was changed. Fix the cause, then write it again"
        raise OSError(cause.errno, reason, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _os_error(error: BaseException | None) -> OSError | None:
    """Find the operating system's error in a chain of errors; torch raises its own from it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def save_torch(content: Any, path: Path) -> None:
    """Save with torch into a Python file object, whose errors name the reason."""
    with path.open("wb") as file:
        torch.save(content, file)
