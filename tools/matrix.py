#!/usr/bin/env python3
"""Run the core tests with other Pythons and other versions, and write down what ran.

    python3 tools/matrix.py                     # every cell that this machine has a Python for
    python3 tools/matrix.py --only py310 py312  # some of them (--list names them)

Each cell gets an environment of its own (tools/install.py) under --cache, 6 GB with a CUDA build of
torch; a second run finds it there. --detectron2 FOLDER puts a checkout of detectron2 in place of
the wheel. The cells that ran get a new row in docs/tested_on.md, the others keep theirs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tested_on.md"
START, END = "<!-- the table that tools/matrix.py writes -->", "<!-- end of the table -->"

COLUMNS = (
    *("cell", "python", "torch", "numpy", "pillow", "detectron2"),
    *("result", "machine", "date"),
)

NEEDED_GB = 8
MINUTES = 20

# What the versions matter to; tests that measure memory or time take long.
CORE = (
    *("tests/losses", "tests/layers", "tests/results", "tests/modeling/test_mask_former.py"),
    *(
        "tests/data/transforms/test_augmentation.py",
        "tests/data/test_targets.py",
        "tests/utils/test_weight_files.py",
    ),
    *(
        "tests/data/preparation/test_downloads.py",
        "tests/data/mappers/test_mappers.py",
        "tests/engine/test_trainer.py",
    ),
    *("tests/evaluation/test_panoptic.py", "tests/evaluation/test_semantic.py"),
    *(
        "tests/inference/test_results.py",
        "tests/predictor/test_predictor.py",
        "tests/robustness/test_pictures.py",
    ),
    *("-k", "not memory and not time"),
)

# The interpreter of a cell runs it to describe itself; detectron2's wheel has another name.
VERSIONS = """
import json, platform
from importlib import metadata
names = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
found = {name: names.get(name, "none") for name in ("torch", "numpy", "pillow", "detectron2")}
if "sal-detectron2" in names:
    found["detectron2"] = names["sal-detectron2"] + " (wheel)"
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclass(frozen=True)
class Cell:
    """A Python and what differs from its lock."""

    name: str
    python: str
    pins: Mapping[str, str] = field(default_factory=dict)


# Other packages of a cell are listed because its oldest ones need them.
CELLS = (
    Cell("py310", "3.10"),
    Cell("py311", "3.11"),
    Cell("py312", "3.12"),
    Cell("py313", "3.13"),
    Cell(
        "py310-torch26",
        "3.10",
        {"torch": "2.6.0", "torchvision": "0.21.0", "sympy": "1.13.1"},
    ),
    Cell(
        "py311-numpy1-pillow10",
        "3.11",
        {
            **{"numpy": "1.26.4", "pillow": "10.4.0"},
            **{"opencv-python-headless": "4.11.0.86", "ml-dtypes": "0.5.4"},
        },
    ),
)


class NotRun(Exception):
    """Why a cell did not run."""


def find_python(version: str) -> Path:
    """An interpreter of this version, on PATH or among pyenv's.

    Raises:
        NotRun: if there is none that runs.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for python in [on_path, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)]:
        if python and runs(python):
            return Path(python)
    raise NotRun(f"no Python {version} here")


def runs(python: str | Path) -> bool:
    """Return True if it makes environments; one of pyenv's names on PATH may not even start."""
    command = [python, "-c", "import venv, ensurepip"]
    return subprocess.run(command, capture_output=True).returncode == 0


def pin(lock: str, pins: Mapping[str, str]) -> str:
    """A lock file's text with other versions.

    Raises:
        KeyError: if the lock has no such package.
    """
    for name, version in pins.items():
        lock, count = re.subn(rf"^{re.escape(name)}==\S+", f"{name}=={version}", lock, flags=re.M)
        if count != 1:
            raise KeyError(f"the lock has {count} lines {name}==…, expected 1")
    return lock


def run(command: Sequence[str | Path], log: Path, minutes: float = MINUTES) -> int:
    """Run a command in the checkout, its output going into ``log``; returns its exit code.

    Raises:
        NotRun: if it takes too long.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        with log.open("w") as file:
            return subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=60 * minutes
            ).returncode
    except subprocess.TimeoutExpired:
        raise NotRun(f"took more than {minutes:g} minutes, see {log.name}") from None


def make_environment(cell: Cell, cache: Path, detectron2: Path | None) -> Path:
    """Return the interpreter of the cell's environment; made if it is missing.

    Raises:
        NotRun: if it cannot be made.
    """
    python = find_python(cell.python)
    free = shutil.disk_usage(cache).free / 1e9
    folder = cache / cell.name
    if free < NEEDED_GB and not folder.exists():
        raise NotRun(f"{NEEDED_GB} GB of disk are needed, {free:.0f} GB are free")
    lock = ROOT / "requirements" / f"lock-py{'310' if cell.python == '3.10' else '311'}.txt"
    pinned = cache / f"{cell.name}.txt"
    pinned.write_text(pin(lock.read_text(), cell.pins))
    inside = folder / "bin" / "python"
    steps: list[list[str | Path]] = [
        [python, ROOT / "tools" / "install.py", "--venv", folder, "--lock", pinned]
    ]
    if detectron2:
        pip: list[str | Path] = [inside, "-m", "pip"]
        steps.append([*pip, "uninstall", "-y", "sal-detectron2"])
        steps.append([*pip, "install", "--no-deps", "--no-build-isolation", detectron2])
    for step in steps:
        log = cache / f"{cell.name}-install.log"
        if run(step, log):
            errors = re.findall(r"^ERROR: (.*)", log.read_text(), flags=re.M)
            raise NotRun(f"the install failed: {errors[-1] if errors else f'see {log.name}'}")
    return inside


def test(python: Path, log: Path) -> str:
    """Run the core tests; returns pytest's last line, as ``480 passed, 3 skipped``.

    Raises:
        NotRun: if they take too long or do not start.
    """
    run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE], log)
    found = re.findall(
        r"^=*\s*(\d+ (?:passed|failed|error)[^=]*?) in [\d.]+s", log.read_text(), re.M
    )
    if not found:
        raise NotRun(f"the tests did not start, see {log.name}")
    return found[-1]


def run_cell(cell: Cell, cache: Path, detectron2: Path | None) -> dict[str, str]:
    """Return the row of the table for a cell."""
    row = {"cell": cell.name, "date": datetime.date.today().isoformat()}
    row["machine"] = f"{platform.system()} {platform.machine()}"
    try:
        python = make_environment(cell, cache, detectron2)
        found = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True)
        row |= json.loads(found.stdout)
        row["result"] = test(python, cache / f"{cell.name}-tests.log")
    except NotRun as reason:
        row["result"] = f"not run: {reason}"
    return row


def read_table(text: str) -> dict[str, dict[str, str]]:
    """The rows of a Markdown table that :func:`table` wrote, by their cells' names."""
    lines = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    entries = ([entry.strip() for entry in line] for line in lines[2:])
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in entries]
    return {row["cell"]: row for row in rows}


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[row.get(column, "") for column in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_row(page: Path, row: Mapping[str, str]) -> None:
    """Put a cell's row into the table between the page's two marks; the other cells keep theirs."""
    text = page.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected one line '{START}' and one '{END}'")
    before, rest = text.split(START)
    kept, after = rest.split(END)
    rows = {cell.name: {"cell": cell.name, "result": "not run"} for cell in CELLS}
    known = {**read_table(kept), row["cell"]: row}
    rows |= {name: dict(row) for name, row in known.items() if name in rows}
    page.write_text(f"{before}{START}\n\n{table(rows.values())}\n\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CELL")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "mask_former", "matrix")
    parser.add_argument("--cache", type=Path, default=cache, help=f"default: {cache}")
    parser.add_argument("--detectron2", type=Path, help="a checkout, in place of the wheel")
    args = parser.parse_args(argv)
    if args.list:
        for cell in CELLS:
            print(cell.name, f"Python {cell.python}", *(f"{n}=={v}" for n, v in cell.pins.items()))
        return 0
    args.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for cell in (cell for cell in CELLS if cell.name in args.only):
        print(f"matrix: {cell.name} …", flush=True)
        rows.append(run_cell(cell, args.cache, args.detectron2))
        print(f"matrix: {cell.name}: {rows[-1]['result']}", flush=True)
        write_row(PAGE, rows[-1])
    return int(any(re.search(r"\d+ (failed|error)", row["result"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
