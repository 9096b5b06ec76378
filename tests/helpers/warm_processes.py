"""Processes that start with the slow libraries imported, in the environment of another command.

Importing torch and detectron2 takes most of the time of a short command. One server for each
worker of pytest imports them once, and forks for each process. It does not import what reads
environment variables when it is imported, such as ``DETECTRON2_DATASETS``.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.robustness.isolation import Process

_SERVER: Any = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "torchvision", "scipy.ndimage", "scipy.optimize", "detectron2.layers"]
)


def start(
    function: Callable[..., Any],
    *args: Any,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path | None = None,
) -> Process:
    """Start a function of a module in a process with these environment variables."""
    call = (function, args, cwd, dict(environment))
    return Process(_call, *call, log=log, context=_SERVER)


def _call(
    function: Callable[..., Any], args: Any, cwd: Path, environment: Mapping[str, str]
) -> Any:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    return function(*args)


def script(words: Sequence[str]) -> Any:
    """Run ``python words …`` in this process, and return its exit code."""
    sys.argv = list(words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0
