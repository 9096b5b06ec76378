#!/usr/bin/env python3
"""Write the lock files in requirements/ from their .in files, with the hashes of every package.

    python tools/lock.py             # adds hashes; versions that are locked already stay
    python tools/lock.py --upgrade   # the newest versions that the .in files allow

It needs uv (`pip install uv`) and the package index. The .in files name what the project uses; the
locks add what those packages bring, for every platform, and the sha256 of every file that the index
has of each version, so `pip install --require-hashes` refuses any other file. The packages of
torch's CUDA build go to lock-cuda.txt. detectron2.txt is written by hand.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
MAIN = {"lock-py310": "3.10", "lock-py311": "3.11"}
EXTRA = ("app", "docs")
"""Installed after the main lock, so they keep its versions, except those that they pin."""

HEADER = "# Written by `python tools/lock.py` from {}: change that, not this.\n"
REQUIREMENT = re.compile(r"^([\w.-]+)==\S+(?:.*\\\n)*.*\n", re.M)
CUDA = re.compile(r"nvidia-|cuda-|triton==")
LATER = re.compile(r".*; python_full_version >= '3\.1[1-9]'")
"""A requirement of Pythons that do not use lock-py310.txt."""


def compile_lock(source: Path, output: Path, *options: str | Path) -> str:
    """Resolve a .in file with uv, starting from the versions of the old lock; return the lock."""
    command: list[str | Path] = [sys.executable, "-m", "uv", "pip", "compile", "--quiet"]
    command += ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--no-config"]
    command += ["--output-file", output, *options, source]
    subprocess.run(command, check=True)
    return output.read_text()


def split(lock: str, python: str) -> tuple[str, str]:
    """Split a lock into its own packages and those of torch's CUDA build.

    The latter are the same for all Pythons; their markers tell apart the few that differ.
    """
    blocks = [found[0] for found in REQUIREMENT.finditer(lock)]
    own = [block for block in blocks if not CUDA.match(block)]
    if python == "3.10":
        own = [block for block in own if not LATER.match(block)]
    return "".join(own), "".join(block for block in blocks if CUDA.match(block))


def constraints(locks: dict[str, str], besides: str) -> str:
    """Return the versions of the main locks, each for its Pythons, as constraints of another.

    Args:
        locks: text of the locks, by name.
        besides: text of a .in file; the packages that it pins are left out.
    """
    pinned = set(re.findall(r"^([\w.-]+)==", besides, re.M))
    lines = []
    for name, operator in (("lock-py310", "<"), ("lock-py311", ">=")):
        for package, version in re.findall(r"^([\w.-]+)==(\S+)", locks[name], re.M):
            if package not in pinned:
                lines.append(f'{package}=={version} ; python_version {operator} "3.11"')
    return "\n".join(lines)


def write(name: str, text: str, source: str) -> None:
    """Write a lock file."""
    (REQUIREMENTS / f"{name}.txt").write_text(HEADER.format(source) + text)
    print(f"lock: requirements/{name}.txt: {len(REQUIREMENT.findall(text))} packages", flush=True)


def make_locks(folder: Path, *options: str) -> None:
    """Write every lock file; ``folder`` is for uv's files."""
    for old in REQUIREMENTS.glob("*.txt"):
        cuda = REQUIREMENTS / "lock-cuda.txt"
        main = old.stem in MAIN and cuda.exists()
        (folder / old.name).write_text(old.read_text() + (cuda.read_text() if main else ""))
    locks, of_cuda = {}, ""
    for name, python in MAIN.items():
        arguments = (REQUIREMENTS / f"{name}.in", folder / f"{name}.txt")
        lock = compile_lock(*arguments, "--python-version", python, *options)
        locks[name], found = split(lock, python)
        of_cuda = of_cuda or found  # of the oldest Python, which covers the newer ones
        write(name, locks[name], f"{name}.in")
    write("lock-cuda", of_cuda, "lock-py310.in")
    for name in EXTRA:
        source, bounds = REQUIREMENTS / f"{name}.in", folder / f"{name}-constraints.txt"
        bounds.write_text(constraints(locks, source.read_text()))
        more: list[str | Path] = ["--python-version", "3.10", "--constraint", bounds, *options]
        write(name, compile_lock(source, folder / f"{name}.txt", *more), source.name)
    source = REQUIREMENTS / "no-deps.in"
    lock = compile_lock(source, folder / "no-deps.txt", "--no-deps", *options)
    write("no-deps", lock, source.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upgrade", action="store_true", help="do not keep the locked versions")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_locks(Path(folder), *(["--upgrade"] if args.upgrade else []))
    except subprocess.CalledProcessError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
