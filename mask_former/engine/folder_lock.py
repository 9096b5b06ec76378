"""One training at a time in an output folder."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from detectron2.utils import comm

from mask_former.utils.errors import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["training_alone_in"]

NAME = ".training.lock"
"""File in the output folder that names the training. It stays; only its lock means anything."""
_TAKEN = (errno.EACCES, errno.EAGAIN)

_held: set[tuple[int, Path]] = set()
"""Process id and folder of the locks that this process holds; a fork holds none."""


@contextmanager
def training_alone_in(folder: Path) -> Iterator[None]:
    """Refuse every other training in ``folder`` during the context, which may be nested.

    The main process holds a lock that the system releases however the process ends. Where the file
    system has no locks, a warning is logged.

    Args:
        folder: The output folder; it is created.

    Raises:
        ValueError: In all processes, if another training runs in the folder, or another kind of
            file is in the place of the lock.
    """
    with ExitStack() as stack:
        refusal = ""
        if comm.is_main_process():
            try:
                stack.enter_context(_locked(folder))
            except _TakenError as error:
                refusal = str(error)
        # All processes end with the reason, none with a lost connection.
        if refusal := comm.all_gather(refusal)[0]:
            raise ValueError(refusal)
        yield


class _TakenError(Exception):
    """The lock cannot be taken; the message names its holder, or what else is in its place."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    key = os.getpid(), folder.resolve()
    if fcntl is None or key in _held:
        yield
        return
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _TakenError(
            f"{folder / NAME}, the lock of a training, is not a file of its own, but a named pipe "
            "or a second name of another file. Nothing was written there: remove it."
        )
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        try:
            # Not flock: the data workers would inherit it, and outlive a killed training.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _TakenError(_refusal(folder, file.read(200))) from error
            logging.getLogger(__name__).warning(
                f"{folder} cannot be locked ({error.strerror}): make sure that no other training "
                "writes there."
            )
        else:
            file.truncate()
            start = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, started {start}")
            file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def _refusal(folder: Path, holder: str) -> str:
    return (
        f"OUTPUT_DIR {folder}: another training writes there ({printable(holder) or 'just started'}"
        "). Wait until it ends or stop it, or set OUTPUT_DIR to another folder."
    )
