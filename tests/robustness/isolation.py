"""Run a function in a process of its own, which may hang, crash or be killed without harm.

The process is a fork: modules are imported already, so it starts within milliseconds.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

TIMEOUT = 60.0  # seconds
_FORK: Any = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """The result of a process."""

    value: Any = None
    """The function's return value."""
    error: BaseException | None = None
    """The function's exception; ``trace`` has its traceback."""
    trace: str = ""
    signal: int | None = None
    """The signal or exit code that ended the process, if it sent neither value nor error."""
    timed_out: bool = False
    seconds: float = 0.0

    @property
    def ended_well(self) -> bool:
        """True if the function returned or raised: it did not hang, and nothing killed it."""
        return not self.timed_out and self.signal is None


class Process:
    """A function that runs in a fork of this process."""

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        log: Path | None = None,
        context: Any = _FORK,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            function, args, kwargs: the call; its return value must be picklable.
            log: file to which its output is appended; without one, the output is discarded.
            context: of ``multiprocessing``, if the process is not a fork of this one.
        """
        self._reader, writer = context.Pipe(duplex=False)
        self._began = time.monotonic()
        work = (writer, log, function, args, kwargs)
        # Daemonic processes cannot have children, but a training may have data workers.
        self._process = context.Process(target=_work, args=work, daemon=False)
        self._process.start()
        writer.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL to the process and its descendants, which they cannot handle or ignore."""
        kill_tree(self.pid)

    def outcome(self, timeout: float = TIMEOUT) -> Outcome:
        """Wait for the end, and kill the process ``timeout`` seconds after its start."""
        value, error, trace, timed_out = None, None, "", False
        received = self._reader.poll(max(0.0, self._began + timeout - time.monotonic()))
        if received:
            try:
                value, error, trace = self._reader.recv()
            except EOFError:  # it ended without sending a result
                received = False
        else:
            timed_out = True
            self.kill()
        left = max(0.0, self._began + timeout - time.monotonic())
        self._process.join(left if received else None)
        if self._process.is_alive():  # it sent its result, but waits for a process it started
            timed_out = True
            self.kill()
            self._process.join()
        code = self._process.exitcode
        self._reader.close()
        seconds = time.monotonic() - self._began
        ended = None if received or timed_out else -code if code < 0 else code
        return Outcome(value, error, trace, ended, timed_out, seconds)


def isolated(function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> Outcome:
    """Call a function in a process of its own and wait for it; see :class:`Process`."""
    return Process(function, *args).outcome(timeout)


def limited(function: Callable[[], Any], memory: int) -> Any:
    """Call a function in a process that may take only ``memory`` more bytes; see `isolated`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return function()


def kill_tree(pid: int) -> None:
    """Send SIGKILL to a process and all its descendants, whatever their session."""
    tree = [pid]
    for member in tree:  # the list grows in the loop
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGSTOP)  # so that it starts no more children
        tree += _children(member)
    for member in tree:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Return True if the process exists and is not a zombie."""
    state, _ = _state_and_parent(pid)
    return state not in ("", "Z")


def _children(pid: int) -> list[int]:
    everyone = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [one for one in everyone if _state_and_parent(one)[1] == str(pid)]


def _state_and_parent(pid: int) -> tuple[str, str]:
    """Return a process's state (a letter) and its parent's id; both are empty once it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return "", ""
    return state, parent


def _work(
    writer: Connection, log: Path | None, function: Callable[..., Any], args: Any, kwargs: Any
) -> None:
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    # pytest may have replaced Python's streams to capture output.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    faulthandler.disable()
    torch.set_num_threads(1)  # torch's thread pool does not survive a fork
    try:
        message: tuple[Any, ...] = (function(*args, **kwargs), None, "")
    except BaseException as error:
        message = (None, _plain(error), traceback.format_exc())
    writer.send(message)


def _plain(error: BaseException) -> BaseException:
    """Convert an error to one of a built-in type, which can always be pickled."""
    for kind in (FileNotFoundError, OSError, KeyError, ValueError, RuntimeError):
        if isinstance(error, kind):
            return kind(str(error.args[0]) if isinstance(error, KeyError) else str(error))
    return AssertionError(f"{type(error).__name__}: {error}")
