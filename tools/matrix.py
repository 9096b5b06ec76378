#!/usr/bin/env python3
"""Run the core tests with other versions of Python and packages, and record the results.

    python3 tools/matrix.py                     # every cell whose Python is installed
    python3 tools/matrix.py --only py310 py312  # some cells (--list names them)

Each cell has its own environment (tools/install.py) below --cache, 6 GB with a CUDA build of torch,
which later runs reuse. The hashes of a lock hold for its own versions only, so what a cell with
other versions downloads is not checked. --detectron2 FOLDER installs a checkout of detectron2
instead of the wheel. The cells of this run get a new row in docs/tested_on.md; the others keep
theirs.
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

# Tests that depend on the versions, except those of memory and time, which take long.
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

# Run by the interpreter of a cell, to list its versions; detectron2's wheel has another name.
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
    """Environment to test: a Python version, and pins that replace those of its lock file."""

    name: str
    python: str
    pins: Mapping[str, str] = field(default_factory=dict)


# The further pins of a cell are versions that its old packages require.
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
    """Error that gives the reason why a cell did not run."""


def find_python(version: str) -> Path:
    """Find an interpreter of this version, on PATH or among pyenv's.

    Raises:
        NotRun: if no such interpreter works.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for python in [on_path, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)]:
        if python and runs(python):
            return Path(python)
    raise NotRun(f"no working Python {version} on PATH or below {pyenv}")


def runs(python: str | Path) -> bool:
    """Return True if it can make environments; pyenv's shims on PATH may not even start."""
    command = [python, "-c", "import venv, ensurepip"]
    return subprocess.run(command, capture_output=True).returncode == 0


def pin(lock: str, pins: Mapping[str, str]) -> str:
    """Return the text of a lock file with other versions; then without hashes, which fit no more.

    Raises:
        KeyError: if the lock does not pin such a package exactly once.
    """
    if pins:
        lock = re.sub(r" *\\\n +--hash=\S+", "", lock)
    for name, version in pins.items():
        lock, count = re.subn(rf"^{re.escape(name)}==\S+", f"{name}=={version}", lock, flags=re.M)
        if count != 1:
            raise KeyError(f"the lock has {count} lines {name}==…, expected 1")
    return lock


def run(command: Sequence[str | Path], log: Path, minutes: float = MINUTES) -> int:
    """Run a command in the checkout with its output in ``log``; return its exit code.

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
    """Return the interpreter of the cell's environment, after making it if it is missing.

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
    """Run the core tests; return pytest's counts, such as "480 passed, 3 skipped".

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
    """Read the rows of a Markdown table that :func:`table` wrote, by the names of their cells."""
    lines = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    entries = ([entry.strip() for entry in line] for line in lines[2:])
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in entries]
    return {row["cell"]: row for row in rows}


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Format rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[row.get(column, "") for column in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_row(page: Path, row: Mapping[str, str]) -> None:
    """Write a cell's row into the table between the page's two marks; keep the other rows."""
    text = page.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected one line '{START}' and one '{END}': restore them")
    before, rest = text.split(START)
    kept, after = rest.split(END)
    rows = {cell.name: {"cell": cell.name, "result": "not run"} for cell in CELLS}
    known = {**read_table(kept), row["cell"]: row}
    rows |= {name: dict(row) for name, row in known.items() if name in rows}
    page.write_text(f"{before}{START}\n\n{table(rows.values())}\n\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CELL")
    parser.add_argument("--list", action="store_true", help="list the cells and exit")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "mask_former", "matrix")
    parser.add_argument("--cache", type=Path, default=cache, help=f"default: {cache}")
    parser.add_argument(
        "--detectron2", type=Path, help="folder of a checkout, instead of the wheel"
    )
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
