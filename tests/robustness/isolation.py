"""Run a function in a process of its own, which may hang, crash or be killed without harm.

The process is a fork: it has all that is imported already, so that it starts in milliseconds.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
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
    """How a process ended."""

    value: Any = None
    """What the function returned."""
    error: BaseException | None = None
    """What it raised; its traceback is in ``trace``."""
    trace: str = ""
    signal: int | None = None
    """What ended the process, where neither of both came back."""
    timed_out: bool = False
    seconds: float = 0.0

    @property
    def ended_well(self) -> bool:
        """It returned, or raised: it did not hang, and nothing killed it."""
        return not self.timed_out and self.signal is None


class Process:
    """A function at work in a fork of this process."""

    def __init__(
        self, function: Callable[..., Any], *args: Any, log: Path | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            function, args, kwargs: what is called; what it returns has to be picklable.
            log: a file that what it says is added to; otherwise that is thrown away.
        """
        self._reader, writer = _FORK.Pipe(duplex=False)
        self._began = time.monotonic()
        work = (writer, log, function, args, kwargs)
        # Not daemonic: a training may have workers of its own.
        self._process = _FORK.Process(target=_work, args=work, daemon=False)
        self._process.start()
        writer.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL: the process, and those that it started, can do nothing about it."""
        kill_tree(self.pid)

    def outcome(self, timeout: float = TIMEOUT) -> Outcome:
        """Wait for the end; after ``timeout`` seconds the process is killed."""
        value, error, trace, timed_out = None, None, "", False
        there = self._reader.poll(max(0.0, self._began + timeout - time.monotonic()))
        if there:
            try:
                value, error, trace = self._reader.recv()
            except EOFError:  # it ended without a word
                there = False
        else:
            timed_out = True
            self.kill()
        self._process.join(max(0.0, self._began + timeout - time.monotonic()) if there else None)
        if self._process.is_alive():  # it has said all, but something that it started goes on
            timed_out = True
            self.kill()
            self._process.join()
        code = self._process.exitcode
        self._reader.close()
        seconds = time.monotonic() - self._began
        ended = None if there or timed_out else -code if code < 0 else code
        return Outcome(value, error, trace, ended, timed_out, seconds)


def isolated(function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> Outcome:
    """Call a function in a process of its own; see :class:`Process`."""
    return Process(function, *args).outcome(timeout)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that it started, and those in turn, in whatever session."""
    tree = [pid]
    for member in tree:  # which grows
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGSTOP)  # it starts no more of them
        tree += _children(member)
    for member in tree:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    state, _ = _state_and_parent(pid)
    return state not in ("", "Z")


def _children(pid: int) -> list[int]:
    everyone = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [one for one in everyone if _state_and_parent(one)[1] == str(pid)]


def _state_and_parent(pid: int) -> tuple[str, str]:
    """A process's state, a letter, and its parent's number; both empty once it is gone."""
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
    # Python's own may belong to somebody who captures it.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    faulthandler.disable()
    torch.set_num_threads(1)  # a fork has no other threads of torch's
    try:
        message: tuple[Any, ...] = (function(*args, **kwargs), None, "")
    except BaseException as error:
        message = (None, _plain(error), traceback.format_exc())
    writer.send(message)


def _plain(error: BaseException) -> BaseException:
    """The error, of a type that surely can be pickled."""
    for kind in (FileNotFoundError, OSError, KeyError, ValueError, RuntimeError):
        if isinstance(error, kind):
            return kind(str(error.args[0]) if isinstance(error, KeyError) else str(error))
    return AssertionError(f"{type(error).__name__}: {error}")
