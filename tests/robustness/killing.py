"""Kill a training repeatedly, and compare its end result with an undisturbed training."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import JSONWriter

from mask_former.utils.weight_files import read_checkpoint
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.isolation import Outcome, Process
from tests.robustness.trainings import SameImages, tiny_cfg

LOSS = "total_loss"
TIMEOUT = 600.0  # seconds


class OftenWritingTrainer(SameImages):
    """A trainer that writes metrics at every iteration, without averaging over iterations."""

    def build_hooks(self) -> list[Any]:
        made = super().build_hooks()
        for hook in made:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = 1
        return made

    def build_writers(self) -> list[Any]:
        writers = super().build_writers()
        for writer in writers:
            if isinstance(writer, JSONWriter):
                writer._window_size = 1  # a median over 20 iterations would not survive a kill
        return writers


def run_training(config: Path, output: Path, iterations: int) -> float:
    """Start or resume a training, run it to the end, and return the last loss."""
    # With a checkpoint at each iteration, most of the time is spent on writing files.
    cfg = tiny_cfg(config, output, SOLVER__MAX_ITER=iterations, SOLVER__CHECKPOINT_PERIOD=1)
    trainer = OftenWritingTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return float(trainer.storage.history(LOSS).latest())


@dataclass
class KillReport:
    """Counts of a run of :func:`kill_training`, and its ``problems``; none are expected."""

    kills: int = 0
    while_writing: int = 0
    """Kills that left an unfinished file behind."""
    iterations_lost: int = 0
    """Iterations that were done before a kill and repeated after it."""
    ended_before_a_kill: int = 0
    """Trainings that ended before their next kill; they are compared, and a new one starts."""
    problems: list[str] = field(default_factory=list)


def kill_training(folder: Path, kills: int, seed: int, iterations: int = 20) -> KillReport:
    """Kill a training ``kills`` times at random moments, let it end, and compare.

    Every second kill comes within milliseconds after a file has changed.

    All iterations see the same images, because a resumed run draws another order. Weights and
    losses must equal those of the undisturbed run, bit by bit.

    Args:
        folder: an empty folder.
        kills: number of SIGKILLs that hit a running training.
        seed: seed of the moments.
        iterations: length of the training.
    """
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    report, rng = KillReport(), random.Random(seed)
    unbroken, broken = folder / "unbroken", folder / "broken"
    start = partial(Process, run_training, config, iterations=iterations, log=folder / "log.txt")
    expected = start(unbroken).outcome(TIMEOUT)
    if not isinstance(expected.value, float):
        report.problems.append(f"the undisturbed training failed: {expected}")
        return report
    # On average, the times until the kills add up to one training, start-ups included. A kill
    # comes no later than its share of the iterations, so that the last one precedes the end.
    longest = max(1.0, 2 * expected.seconds / kills)
    moments = [
        (rng.uniform(0.02, 1.0) * longest, _checkpoint(broken, iterations * n // (kills + 1)))
        for n in range(1, kills + 1)
    ]
    while not report.problems:
        earlier = report.kills
        end = _kill_until_the_end(partial(start, broken), broken, moments, rng, report)
        _compare(unbroken, broken, expected.value, end, report, report.kills - earlier)
        if report.kills == kills:
            break
        report.ended_before_a_kill += 1
        if report.ended_before_a_kill > kills:
            report.problems.append(f"{iterations} iterations are too few for {kills} kills")
        _begin_again(broken)
    return report


def _kill_until_the_end(
    start: Callable[[], Process],
    output: Path,
    moments: Sequence[tuple[float, Path]],
    rng: random.Random,
    report: KillReport,
) -> Outcome:
    """Kill a training at the remaining moments; return its outcome once it ends by itself."""
    before: set[str] = set()
    for seconds, checkpoint in moments[report.kills :]:
        process = start()
        _wait_for_the_moment(process, seconds, checkpoint)
        if report.kills % 2:
            _wait_for_a_write(output)
            time.sleep(rng.uniform(0.0, 0.01))
        process.kill()
        outcome = process.outcome()
        if outcome.signal != signal.SIGKILL:
            return outcome
        report.kills += 1
        before = _check_files(output, before, report)
    return start().outcome(TIMEOUT)


def _checkpoint(output: Path, iteration: int) -> Path:
    return output / f"model_{iteration:07d}.pth"


def _wait_for_the_moment(process: Process, seconds: float, checkpoint: Path) -> None:
    """Let a training run for that time, but at most until a checkpoint exists."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive and not checkpoint.exists():
        time.sleep(0.002)


def _wait_for_a_write(output: Path, patience: float = 1.0) -> None:
    """Wait until files of a folder change; polls, since a write takes only milliseconds."""
    end = time.monotonic() + patience
    before = _sizes(output)
    while time.monotonic() < end and _sizes(output) == before:
        pass


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return sizes


def _begin_again(output: Path) -> None:
    """Delete the files of a training that ended between kills, so that a new one can start."""
    for file in output.rglob("*"):
        if file.is_file():
            file.unlink()


def _check_files(output: Path, before: set[str], report: KillReport) -> set[str]:
    """Check that a kill left complete checkpoints and lost none; return their names."""
    where = f"after kill {report.kills}"
    checkpoints = sorted(output.glob("*.pth"))
    report.while_writing += any(output.glob(".*.part"))
    for path in checkpoints:
        try:
            read_checkpoint(path)
        except (OSError, ValueError) as error:
            report.problems.append(f"{where}: {error}")
    names = {path.name for path in checkpoints}
    if before - names:
        report.problems.append(f"{where}: lost {sorted(before - names)}")
    pointer = output / "last_checkpoint"
    if pointer.exists():
        last = pointer.read_text()
        if last not in names:
            report.problems.append(f"{where}: last_checkpoint names {last!r}, which is missing")
        elif done := _lines(output / "metrics.json", report, where):
            report.iterations_lost += max(0, done[-1]["iteration"] - _iteration_of(last))
    elif names:  # the kill may come between the first checkpoint and the pointer to it
        report.problems += [f"{where}: no last_checkpoint"] if len(names) > 1 else []
    return names


def _iteration_of(checkpoint: str) -> int:
    return int(checkpoint.removeprefix("model_").removesuffix(".pth"))


def _lines(path: Path, report: KillReport, where: str, whole: bool = False) -> list[dict[str, Any]]:
    """Read the metrics; unless ``whole``, the last line may be unfinished because of a kill."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    content = []
    for number, line in enumerate(lines):
        try:
            content.append(json.loads(line))
        except ValueError:
            if whole or number < len(lines) - 1 or line.endswith("\n"):
                report.problems.append(f"{where}: metrics.json: line {number + 1} is not JSON")
    return content


def _compare(
    unbroken: Path, broken: Path, expected: float, final: Outcome, report: KillReport, kills: int
) -> None:
    """Compare the results of a training that was killed ``kills`` times with the undisturbed."""
    if final.error is not None or not final.ended_well:
        report.problems.append(f"the last run failed: {final}")
        return
    if final.value != expected:
        report.problems.append(f"the final loss is {final.value!r}, without kills {expected!r}")
    one, other = (read_checkpoint(f / "model_final.pth")["model"] for f in (unbroken, broken))
    changed = [name for name in one if not one[name].equal(other[name])]
    if changed:
        report.problems.append(f"{len(changed)} weights differ; the first one is {changed[0]}")
    losses = [
        {line["iteration"]: line[LOSS] for line in _lines(f / "metrics.json", report, "end", True)}
        for f in (unbroken, broken)
    ]
    wrong = sorted(i for i in losses[1] if losses[1][i] != losses[0].get(i))
    if wrong:
        report.problems.append(f"metrics.json differs at the iterations {wrong[:5]}")
    # The line of an iteration is written after its checkpoint; a kill may come in between.
    missing = sorted(losses[0].keys() - losses[1].keys())
    if len(missing) > kills:
        report.problems.append(f"metrics.json lacks the iterations {missing[:5]}")
    if list(broken.glob(".*.part")):
        report.problems.append("an unfinished file is left at the end")
