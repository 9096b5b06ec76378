"""Command line and parallel loop over files of the scripts in ``datasets/``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..datasets.catalog import datasets_root
from .downloads import require

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_command(
    prepare: Callable[[Path, int], None],
    description: str,
    download: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the command line of a script that prepares a dataset in place.

    Args:
        prepare: called with the root of all datasets and the number of processes.
        description: the first line of the help.
        download: where to get the source files, printed after an error about one of them.
        arguments: command-line arguments; None: those of the process.

    Returns:
        The exit code: 0; 1 after an error, printed as one line on stderr; 130 if interrupted.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="the folder of all datasets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=int, default=cores, help="number of processes (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more.")
    try:
        prepare(args.root, args.workers)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"{parser.prog}: {error} The source is {download}.\n")
        return 1
    except (ImportError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command continues from here.\n")
        return 130
    return 0


@dataclass(frozen=True)
class Job:
    """The files of one image: those to read, and those to write."""

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]

    @property
    def done(self) -> bool:
        """True if all targets exist; they are complete, because each is written atomically."""
        return all(path.exists() for path in self.targets)


def convert_all(
    convert: Callable[..., None], jobs: Sequence[Job], *, workers: int, description: str
) -> None:
    """Call ``convert(*sources, *targets)`` for each job with a missing target.

    Args:
        convert: writes the targets, each atomically, so that a job may be interrupted.
        jobs: all jobs, including those that are done.
        workers, description: see ``parallel_map``.

    Raises:
        FileNotFoundError: if a source is missing; then nothing is converted.
    """
    todo = [job for job in jobs if not job.done]
    make_ready(todo)
    call = partial(_call, convert)
    parallel_map(call, todo, workers=workers, description=description, done=len(jobs) - len(todo))


def _call(convert: Callable[..., None], job: Job) -> None:
    convert(*job.sources, *job.targets)


def make_ready(jobs: Sequence[Job]) -> None:
    """Check that all sources exist, and create the folders of the targets.

    Raises:
        FileNotFoundError: if a source is missing.
    """
    require(path for job in jobs for path in job.sources)
    for folder in {path.parent for job in jobs for path in job.targets}:
        folder.mkdir(parents=True, exist_ok=True)


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    description: str,
    done: int = 0,
) -> list[Result]:
    """Compute ``[function(item) for item in items]`` in several processes, with a progress bar.

    Args:
        function: picklable, like items and results.
        items: the arguments of the calls.
        workers: number of processes; 1 runs in this process.
        description: the text before the progress bar.
        done: number of items done earlier, which the progress bar counts, too.

    Raises:
        ChildProcessError: if a process was killed.
        Exception: the first error of ``function``; items that have not started are dropped.
    """
    count = len(items) + done
    progress = partial(tqdm, total=count, initial=done, desc=description, unit="image")
    workers = min(workers, len(items))
    if workers <= 1:
        with progress(items) as bar:
            return [function(item) for item in bar]
    # Forked processes need no imports; outside Linux, fork is unavailable or unsafe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
            results = pool.map(function, items)
            with progress(results) as bar:
                return list(bar)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"{description}: a worker process was killed, perhaps because memory ran out. "
            "Files written so far are kept: run the command again, with fewer --workers."
        ) from error


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
