"""A training in two processes of which one dies; ``python -m tests.robustness.ranks``.

Started by itself with ``--num-gpus 2``, by ``torchrun``, or once for each of two machines, as
tools/train_net.py is.
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
    """How the job ended."""

    returncodes: list[int]
    """Of each command."""
    seconds_after_death: float
    """Until all commands and processes had ended."""
    left: list[int]
    """Processes of the job that are still there."""
    output: str


def end_a_rank(
    folder: Path, end: str, launcher: str, dying: int, timeout: float = 120
) -> RankReport:
    """Train in two processes, let one of them die, and wait for the end of all of it.

    Args:
        folder: an empty one.
        end: "raise" (an error), or what gets a SIGKILL: "kill" (the process alone), "command" (the
            command that started it), "machine" (both).
        launcher: "spawn" (``--num-gpus 2``), "torchrun", or "machines": a command for each process,
            that meet at a port.
        dying: the rank of the process that dies.
        timeout: seconds for all of it.

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
    """In a process group of its own, as on a machine of its own."""
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
