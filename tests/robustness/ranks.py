"""A training in two processes of which one dies; ``python -m tests.robustness.ranks``.

Like tools/train_net.py, it is started with ``--num-gpus 2``, by ``torchrun``, or once on each of
two machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from detectron2.engine import default_argument_parser

import mask_former  # noqa: F401  (registers everything, in spawned processes too)
from mask_former.engine.launch import run
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.isolation import is_running, kill_tree
from tests.robustness.trainings import RankArguments, train_in_ranks


@dataclass(frozen=True)
class RankReport:
    """The end of a job of two processes."""

    returncodes: list[int]
    """The exit code of each command."""
    seconds_after_death: float
    """The time from the death of one process until all commands and processes had ended."""
    left: list[int]
    """The ids of processes that still run."""
    output: str
    """The output of all commands."""


def end_a_rank(
    folder: Path, end: str, launcher: str, dying: int, timeout: float = 120
) -> RankReport:
    """Train in two processes, let one of them die, and wait until all commands have ended.

    Args:
        folder: an empty folder.
        end: "raise" an error, or the target of a SIGKILL: "kill" (only the process), "command"
            (only the command that started it), "machine" (both).
        launcher: "spawn" (``--num-gpus 2``), "torchrun", or "machines" (one command for each
            process, which connect through a port).
        dying: rank of the process that dies.
        timeout: seconds for the whole job.

    Raises:
        subprocess.TimeoutExpired: if the job hangs.
    """
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    job = ["tests.robustness.ranks", "--end", end, "--dying", str(dying)]
    job += ["--config-file", str(config)]
    commands = _commands(launcher, job)
    logs = [folder / f"command{number}.log" for number in range(len(commands))]
    deadline = time.monotonic() + timeout
    started = [_start(*both) for both in zip(commands, logs, strict=True)]
    try:
        codes = [one.wait(max(0.0, deadline - time.monotonic())) for one in started]
    except subprocess.TimeoutExpired:
        for one in started:
            kill_tree(one.pid)
            one.wait()
        raise
    output = "\n".join(log.read_text() for log in logs)
    marks = [folder / f"rank{rank}" for rank in range(2)]
    assert all(mark.exists() for mark in [*marks, folder / "died"]), output[-3000:]
    left = [int(mark.read_text()) for mark in marks]
    while (left := [pid for pid in left if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    seconds = time.time() - (folder / "died").stat().st_mtime
    return RankReport(codes, seconds, left, output)


def _commands(launcher: str, job: list[str]) -> list[list[str]]:
    python = [sys.executable, "-m"]
    if launcher == "spawn":
        return [[*python, *job, "--num-gpus", "2"]]
    if launcher == "torchrun":
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        return [[*python, *words, *job]]
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [*python, *job, "--num-gpus", "1", "--num-machines", "2", "--dist-url", url]
    return [[*machines, "--machine-rank", str(rank)] for rank in range(2)]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in its own process group, which stands for a machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--end", choices=["raise", "kill", "command", "machine"], required=True)
    parser.add_argument("--dying", type=int, required=True)
    run(train_in_ranks, RankArguments(**vars(parser.parse_args())))
