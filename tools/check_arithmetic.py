#!/usr/bin/env python3
"""Run the numeric tests with the kernels of other processors, and show a table of the results.

    python tools/check_arithmetic.py                       # every setting, one after another
    python tools/check_arithmetic.py --only noise SSE41 -- -n 4 -k matcher

The last digits of a sum depend on the kernel that computes it, and the kernel depends on the
processor's instructions and on the number of threads. oneDNN, MKL and torch choose older kernels
if an environment variable asks for them; kernels for newer processors cannot run on this one.
Instead, the setting "noise" adds random rounding errors (tests/helpers/rounding_noise.py).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [
    *("losses", "layers", "ops", "inference", "modeling", "huggingface", "export", "predictor"),
    *("results", "evaluation", "checkpoint", "solver", "utils", "data/transforms", "data/mappers"),
]
"""Folders of the tests that compute in floating point, golden cases included."""


@dataclass(frozen=True)
class Setting:
    """Environment variables and pytest options that select the kernels of a test run."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


def with_threads(name: str, **environment: str) -> list[Setting]:
    """List a setting with one and with two threads."""
    return [
        Setting(f"{name}, {count} threads", {**environment, "OMP_NUM_THREADS": str(count)})
        for count in (1, 2)
    ]


SETTINGS = [
    *with_threads("default"),
    *with_threads("AVX2", ONEDNN_MAX_CPU_ISA="AVX2"),
    *with_threads("AVX512_CORE", ONEDNN_MAX_CPU_ISA="AVX512_CORE"),
    Setting(
        "SSE41",
        {
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_CBWR": "COMPATIBLE",
            "ATEN_CPU_CAPABILITY": "default",
        },
    ),
    Setting("noise", options=("-p", "tests.helpers.rounding_noise")),
]


def run(setting: Setting, options: Sequence[str]) -> str:
    """Run the tests and return the report of pytest."""
    words = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider"]
    words += [*setting.options, *options, *(f"tests/{folder}" for folder in FOLDERS)]
    environment = {**os.environ, **setting.environment}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return done.stdout


def summarize(report: str) -> tuple[dict[str, int], list[str]]:
    """Read the numbers of tests by outcome, and the failed tests, from a report of pytest.

    Raises:
        ValueError: if the report ends without numbers, because pytest did not run.
    """
    lines = report.strip().splitlines() or [""]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
    if not {"passed", "failed"} & counts.keys():
        raise ValueError(f"pytest ended without a summary; its last lines: {lines[-5:]}")
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return counts, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen settings; return 1 if a test failed with any of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[""],
        help="settings whose name starts with NAME",
    )
    parser.add_argument(
        "options", nargs="*", default=["-n", "2"], help="options of pytest, after --"
    )
    args = parser.parse_args(arguments)
    all_failed: list[str] = []
    print("| setting | passed | failed | errors |\n| --- | --- | --- | --- |")
    for setting in SETTINGS:
        if not setting.name.startswith(tuple(args.only)):
            continue
        counts, failed = summarize(run(setting, args.options))
        errors = counts.get("error", 0) + counts.get("errors", 0)
        row = [setting.name, counts.get("passed", 0), counts.get("failed", 0), errors]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        all_failed += [f"{setting.name}: {line}" for line in failed]
    print(*all_failed, sep="\n")
    return 1 if all_failed else 0


if __name__ == "__main__":
    sys.exit(main())
