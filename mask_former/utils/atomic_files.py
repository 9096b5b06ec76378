"""Write files atomically: a reader sees the old file or the complete new one.

Every file that the program writes passes through here. The temporary file lies in the folder of the
target and has a name that nobody can predict; it is created, never opened, so that no link in a
shared folder leads it elsewhere.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "remove_parts",
    "replace_file",
    "replace_files",
    "replace_text",
    "replacing",
    "save_torch",
]

_LETTERS = 40
"""Letters of the target's name in the temporary file's: a name may have 255 bytes at most."""


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a temporary file in the folder of ``path``, then rename it to ``path``.

    Args:
        path: File to write or to replace.
        write: Called with the path of the temporary file, which it must write.

    Raises:
        OSError: If the disk is full or cannot be written. The message names ``path``, which stays
            unchanged.
    """
    replace_files({path: write})


def replace_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8); see :func:`replace_file`."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def replace_files(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write files that belong together, and rename them only once all of them are complete.

    Args:
        writers: What :func:`replace_file` takes for each file. The last file describes the others:
            it is removed before they are replaced, so that it never describes other files, even if
            the process is killed at that moment.

    Raises:
        OSError: As :func:`replace_file`; no file is changed.
    """
    with ExitStack() as stack:
        parts = {}
        for path, write in writers.items():
            part, mode = stack.enter_context(_part_of(path, ".part"))
            write(part)
            _settle(part, mode)
            parts[path] = part
        *others, last = parts
        with _signals_wait() if others else nullcontext():
            if others:
                last.unlink(missing_ok=True)
            for path, part in parts.items():
                part.replace(path)


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield the path of a temporary file to write within the context, which ends with its renaming.

    Args:
        path: File to write or to replace; unchanged after an exception.
        suffix: Suffix of the temporary file, for writers that choose a format by it.

    Raises:
        OSError: As :func:`replace_file`.
    """
    with _part_of(path, f".part{suffix}") as (part, mode):
        yield part
        _settle(part, mode)
        part.replace(path)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``.

    Those that a running process writes stay, where the file system has locks.
    """
    for pattern in (".*.part", ".*.part.*"):
        for part in folder.glob(pattern):
            if not part.is_dir() and not _is_being_written(part):
                part.unlink(missing_ok=True)


@contextmanager
def _part_of(path: Path, ending: str) -> Iterator[tuple[Path, int]]:
    """Yield a new, empty file next to ``path``, and its mode; remove it unless it was renamed."""
    part = path.with_name(f".{path.name[:_LETTERS]}.{secrets.token_hex(8)}{ending}")
    try:
        with ExitStack() as stack:
            file = part.open("xb")  # it fails where anything exists, even a link to nowhere
            stack.callback(part.unlink, missing_ok=True)
            mode = os.fstat(file.fileno()).st_mode
            if fcntl is None:
                file.close()  # Windows renames no open file
            else:
                stack.enter_context(file)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield part, mode
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None or str(cause.filename or part) != str(part):
            raise  # the error has another cause than this file
        reason = f"{cause.strerror}; nothing was changed. Fix the cause, then write it again"
        raise OSError(cause.errno, reason, str(path)) from error


def _settle(part: Path, mode: int) -> None:
    """Write a file through to the disk, readable by those whom the user's umask lets read it."""
    descriptor = os.open(
        part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(descriptor, "rb+") as file:
        if os.fstat(descriptor).st_mode != mode:  # safetensors lets only the owner read its files
            part.chmod(mode)
        os.fsync(file.fileno())


def _is_being_written(part: Path) -> bool:
    """Return True if a running process holds the lock of a temporary file."""
    if fcntl is None:
        return False
    try:
        file = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a link, or removed in the meantime
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals that end the process wait for the end of the context (in the main thread)."""
    caught: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not None:
                before[number] = signal.signal(number, lambda one, _: caught.append(one))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in caught:
            signal.raise_signal(number)


def _os_error(error: BaseException | None) -> OSError | None:
    """Find the operating system's error in a chain of errors; torch raises its own from it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def save_torch(content: Any, part: Path) -> None:
    """Save with torch into a Python file object, whose errors name the reason."""
    with part.open("wb") as file:
        torch.save(content, file)
