"""Run the long version of the robustness tests: ``make soak``.

    python -m tests.robustness.soak                        # half an hour at most
    python -m tests.robustness.soak --minutes 5 --only fuzz kill --seed 7

The report keeps the results of each unit of work. The same command, with the same code on the same
machine, continues where the last run ended, and repeats units that had problems. The exit code is 1
if there was a problem.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from tabulate import tabulate
from tqdm import tqdm

import mask_former  # noqa: F401  (registers everything)
from mask_former.checkpoint.provenance import git_state
from mask_former.utils.atomic_files import replace_file
from tests.helpers.paths import ROOT
from tests.helpers.servers import serving
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.attacks import attack_samples
from tests.robustness.fuzzing import Case, all_samples, fuzz
from tests.robustness.greedy import KINDS as GREEDY
from tests.robustness.greedy import problems_of
from tests.robustness.isolation import isolated
from tests.robustness.killing import kill_training
from tests.robustness.ranks import end_a_rank
from tests.robustness.trainings import (
    PARTS,
    memory_of_prediction,
    memory_of_training,
    train_on_a_full_disk,
    train_with_a_dying_worker,
)
from tests.robustness.units import Found, Unit
from tests.robustness.writing import writing_units

MINUTE = 60.0  # seconds
KILLS, ITERATIONS = 20, 100
MUTATIONS, MUTATIONS_A_UNIT = 1000, 50
ATTACK_UNITS = 4
STEPS, PREDICTIONS = 2000, 5000
GROWTH = 30.0
"""Mebibytes by which the memory of a process may grow from 10 % of its work to the end."""


def all_units(seed: int) -> list[Unit]:
    """List all units, in an order in which a short run includes some of every part."""
    disk = [
        Unit("disk", f"full from iteration {i}, files of {s:.0%}", partial(_disk, i, s))
        for i, s in ((0, 0.0), (1, 0.01), (3, 0.3), (4, 0.6), (5, 0.9))
    ]
    workers = [Unit("worker", end, partial(_worker, end)) for end in ("exit", "kill")]
    kills = Unit("kill", f"{KILLS} kills of one training", partial(_kills, seed))
    starts = range(0, MUTATIONS, MUTATIONS_A_UNIT)
    mutations = [Unit("fuzz", f"from {i}", partial(_fuzz, seed * MUTATIONS + i)) for i in starts]
    attacks = [Unit("attack", f"from {i}", partial(_attacks, seed * MUTATIONS + i))
               for i in starts[:ATTACK_UNITS]]  # fmt: skip
    endings = {
        "spawn": ("kill", "raise"),
        "torchrun": ("kill", "raise"),
        "machines": ("machine", "command"),
    }
    ranks = [
        Unit("ranks", f"{launcher}, {end}, rank {dying}", partial(_ranks, end, launcher, dying))
        for launcher, ends in endings.items()
        for end in ends
        for dying in (0, 1)
    ]
    memory = [
        Unit("memory", f"{STEPS} training steps", partial(_memory, memory_of_training, STEPS)),
        Unit("memory", f"{PREDICTIONS} predictions", partial(_memory, memory_of_prediction,
                                                             PREDICTIONS)),
    ]  # fmt: skip
    greedy = [Unit("malice", kind, partial(_malice, kind)) for kind in GREEDY]
    first = [*disk, *writing_units(seed, KILLS), *workers, *greedy, kills, *mutations[:2]]
    return [*first, *attacks[:1], ranks[0], *memory, *ranks[1:], *attacks[1:], *mutations[2:]]


def _malice(kind: str, folder: Path) -> Found:
    return Found({}, problems_of(kind, folder))


def _kills(seed: int, folder: Path) -> Found:
    report = kill_training(folder, KILLS, seed, ITERATIONS)
    names = ("kills", "while_writing", "iterations_lost", "ended_before_a_kill")
    return Found({name: getattr(report, name) for name in names}, report.problems)


def _fuzz(start: int, folder: Path) -> Found:
    return _verdicts(list(fuzz(all_samples(folder), range(start, start + MUTATIONS_A_UNIT))))


def _attacks(start: int, folder: Path) -> Found:
    os.environ["FVCORE_CACHE"] = str(folder / "cache")
    with serving({"/base.yaml": b"{}"}) as server:
        samples = attack_samples(folder, server)
        return _verdicts(list(fuzz(samples, range(start, start + MUTATIONS_A_UNIT))))


def _verdicts(cases: list[Case]) -> Found:
    counts: dict[str, dict[str, int]] = {}
    for case in cases:
        of_kind = counts.setdefault(case.kind, {})
        of_kind[case.verdict] = of_kind.get(case.verdict, 0) + 1
    slowest = max(case.seconds for case in cases)
    problems = [f"{c.file} {c.damage} seed {c.seed}: {c.detail[:2000]}" for c in cases
                if c.verdict == "problem"]  # fmt: skip
    return Found({"verdicts": counts, "slowest_seconds": round(slowest, 2)}, problems)


def _disk(iteration: int, share: float, folder: Path) -> Found:
    config, weights = write_tiny_model(folder, SEMANTIC_ON=True)
    limit = int(share * weights.stat().st_size)
    output = folder / "output"
    outcome = isolated(train_on_a_full_disk, config, output, limit, iteration)
    problems = []
    if not isinstance(outcome.error, OSError) or str(output) not in str(outcome.error):
        problems.append(f"expected an OSError with the file's name, got {outcome}")
    if list(output.glob(".*.part")):
        problems.append("an unfinished file is left")
    again = isolated(train_on_a_full_disk, config, output, limit, 100)
    if again.error is not None or not (output / "model_final.pth").exists():
        problems.append(f"the training does not resume with free disk space: {again}")
    return Found({"message": str(outcome.error).replace(str(folder), "…")}, problems)


def _worker(end: str, folder: Path) -> Found:
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    outcome = isolated(train_with_a_dying_worker, config, folder / "o", end, timeout=MINUTE)
    is_named = outcome.error is not None and "DataLoader worker" in str(outcome.error)
    figures = {"seconds": round(outcome.seconds, 1), "message": str(outcome.error).split("\n")[0]}
    return Found(figures, [] if is_named else [f"{outcome}"])


def _ranks(end: str, launcher: str, dying: int, folder: Path) -> Found:
    try:
        report = end_a_rank(folder, end, launcher, dying, timeout=5 * MINUTE)
    except subprocess.TimeoutExpired:
        return Found({}, ["the job hangs"])
    problems = [] if all(report.returncodes) else ["a command returned 0 despite the failure"]
    problems += [f"processes are left: {report.left}"] if report.left else []
    problems += ["it took more than a minute"] if report.seconds_after_death > MINUTE else []
    return Found({"seconds_after_death": round(report.seconds_after_death, 1)}, problems)


def _memory(work: Callable[[Path, int], list[float]], count: int, folder: Path) -> Found:
    outcome = isolated(work, folder, count, timeout=20 * MINUTE)
    if outcome.error is not None or not outcome.ended_well:
        return Found({}, [f"the process failed: {outcome}"])
    seen = [round(value, 1) for value in outcome.value]
    grown = seen[-1] - seen[0]
    figures = {"mebibytes": dict(zip((f"{part:.0%}" for part in PARTS), seen, strict=True))}
    return Found(figures, [f"memory grew by {grown:.0f} MiB"] if grown > GROWTH else [])


# The run


def machine() -> dict[str, str]:
    """Return the properties of the machine on which the figures depend."""
    versions = {"torch": torch.__version__, "numpy": np.__version__, "Pillow": PIL.__version__}
    cores = len(os.sched_getaffinity(0))
    system = {"name": platform.node(), "system": platform.platform(), "cores": str(cores)}
    return {**system, "python": platform.python_version(), **versions}


def code() -> str:
    """Return a checksum of the package and the tests."""
    files = [path for name in ("mask_former", "tests") for path in (ROOT / name).rglob("*.py")]
    content = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(content).hexdigest()


def as_json(report: dict[str, Any]) -> str:
    """Format a report as the content of its file."""
    return json.dumps(report, indent=1, ensure_ascii=False)


def begin(path: Path, seed: int) -> dict[str, Any]:
    """Read the report at ``path`` if machine, code and seed are the same, or begin a new one."""
    git = git_state(ROOT / "mask_former")
    report = {"machine": machine(), "git": git, "code": code(), "seed": seed}
    if path.is_file():
        earlier = json.loads(path.read_text())
        other = [name for name, value in report.items() if earlier.get(name) != value]
        if not other:
            return earlier
        print(f"{path} was made with another {', '.join(other)}: starting a new report.")
    return {**report, "done": {}}


def soak(units: list[Unit], done: dict[str, Any], minutes: float, save: Callable[[], None]) -> int:
    """Do the units that are not ``done`` or had problems, and return how many are left.

    The time is a hard limit: the unit that runs at its end is stopped, and left for the next run.
    """
    end = time.monotonic() + minutes * MINUTE
    left = [unit for unit in units if unit.key not in done or done[unit.key]["problems"]]
    progress = tqdm(left, desc="soak", unit="unit", dynamic_ncols=True)
    for number, unit in enumerate(progress):
        progress.set_postfix_str(unit.key)
        folder = Path(tempfile.mkdtemp(prefix="soak_"))
        outcome = isolated(unit.work, folder, timeout=end - time.monotonic())
        if outcome.timed_out:
            shutil.rmtree(folder, ignore_errors=True)
            return len(left) - number
        found = outcome.value or Found({}, [f"{outcome}"])
        found.seconds = round(outcome.seconds, 1)
        done[unit.key] = asdict(found)
        save()
        if not found.problems:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def rows(done: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield the rows of the table: one for each unit, or for each kind of mutated files."""
    verdicts: dict[str, dict[str, int]] = {}
    for name, found in done.items():
        for kind, counts in found["figures"].get("verdicts", {}).items():
            of_kind = verdicts.setdefault(kind, {})
            for verdict, count in counts.items():
                of_kind[verdict] = of_kind.get(verdict, 0) + count
        if "verdicts" not in found["figures"]:
            figures = ", ".join(f"{key} {value}" for key, value in found["figures"].items())
            yield [name, figures[:100], len(found["problems"]), found["seconds"]]
    for kind, counts in verdicts.items():
        total = sum(counts.values())
        figures = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        yield [f"fuzz: {kind}", f"{total} mutations: {figures}", counts.get("problem", 0), ""]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip  # noqa: E501
    parser.add_argument("--minutes", type=float, default=30, help="limit of the whole run")
    parser.add_argument("--only", nargs="+", help="kill, fuzz, attack, malice, disk, links, …")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=Path("output/soak.json"))
    parser.add_argument("--again", action="store_true", help="discard the report and start again")
    args = parser.parse_args(argv)
    units = [u for u in all_units(args.seed) if not args.only or u.part in args.only]
    if not units:
        parts = ", ".join(dict.fromkeys(u.part for u in all_units(args.seed)))
        print(f"--only {' '.join(args.only)}: no such part; expected {parts}.", file=sys.stderr)
        return 1
    args.report.parent.mkdir(parents=True, exist_ok=True)
    if args.again:
        args.report.unlink(missing_ok=True)
    report = begin(args.report, args.seed)

    def save() -> None:
        replace_file(args.report, lambda part: part.write_text(as_json(report)))

    left = soak(units, report["done"], args.minutes, save)
    print(tabulate(rows(report["done"]), ["what", "figures", "problems", "seconds"]))
    broken = {name: f["problems"] for name, f in report["done"].items() if f["problems"]}
    for name, problems in broken.items():
        print(f"\n{name}:", *problems[:3], sep="\n  ", file=sys.stderr)
    print(f"\n{left} of {len(units)} units are left; the report is {args.report}.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
