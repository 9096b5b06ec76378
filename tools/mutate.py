#!/usr/bin/env python3
"""Mutation testing: make one small change to the code at a time and see whether a test fails.

    python tools/mutate.py losses --sample 150 --seed 0
    python tools/mutate.py inference --file panoptic.py     # every mutant of one file

A mutant is the code with one comparison, operation, number, condition, `return`, `raise` or call
changed or left out. A process that is forked after the large libraries are loaded compiles the
mutant in place of the file on disk, which is never changed, and runs the tests of its package.
Survivors are listed. Those that no test can kill do not count: tests/mutation/equivalent.txt lists
them, with the reason. Needs fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tests" / "mutation" / "equivalent.txt"

# Options and tests of each package; memory tests are left out, because they are slow.
FAST = ("-k", "not memory")
TESTS = {
    "losses": (
        "tests/losses",
        "tests/engine/test_nonfinite.py",
        "tests/docs/test_troubleshooting.py",
    ),
    "ops": ("tests/ops", "tests/losses", "tests/inference/test_results.py"),
    "inference": (
        *("tests/inference/test_results.py", "tests/inference/test_logits.py"),
        *("tests/inference/test_scenes.py", "tests/inference/test_sliding_window.py"),
        "tests/inference/test_golden_inference.py",
    ),
}
# libraries that every test process needs; they contain no mutant
PRELOADED = ("torch", "scipy.optimize", "timm", "detectron2.engine", "pytest")

SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: Path
    line: int
    scope: str
    """Innermost function or class that contains the change, or "module"."""
    change: str
    """Old code → new code."""
    tree: ast.Module

    @property
    def name(self) -> str:
        """Name of the mutant, which does not depend on its line number."""
        return f"{self.file.relative_to(ROOT)}:{self.scope}: {self.change}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the replacements of a node."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            changed = [*node.ops[:i], SWAPS[type(operator)](), *node.ops[i + 1 :]]
            yield ast.Compare(node.left, changed, node.comparators)
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        changed_node = copy.copy(node)
        changed_node.op = SWAPS[type(node.op)]()
        yield changed_node
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp) and isinstance(node.test, ast.Name | ast.Call):
        changed_if = copy.copy(node)
        changed_if.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed_if
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def unmutated(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes that are not mutated: annotations, decorators, overloads and f-strings."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            roots += [*node.decorator_list, *filter(None, [node.returns])]
            if any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list):
                roots.append(node)
        elif isinstance(node, ast.ClassDef):
            roots += node.decorator_list
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            roots.append(node.annotation)
        elif isinstance(node, ast.JoinedStr):  # messages
            roots.append(node)
    return {inner for root in roots for inner in ast.walk(root)}


class Replace(ast.NodeTransformer):
    """Transformer that replaces the node ``old`` by ``new``."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self.new, node) if node is self.old else super().visit(node)


def mutants(file: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse(file.read_text())
    left_alone = unmutated(tree)
    nodes = list(ast.walk(tree))  # outer nodes come first
    scopes = {
        inner: outer.name
        for outer in nodes
        if isinstance(outer, ast.FunctionDef | ast.ClassDef)
        for inner in ast.walk(outer)
    }
    statements = {
        inner: outer for outer in nodes if isinstance(outer, ast.stmt) for inner in ast.walk(outer)
    }
    indices = {node: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        for which in range(0 if node in left_alone else len(list(variants(node)))):
            changed = copy.deepcopy(tree)
            old = nth(changed, index)
            changed = Replace(old, list(variants(old))[which]).visit(changed)
            changed = ast.fix_missing_locations(changed)
            statement = indices[statements[node]]  # the same in the mutant: inner nodes come later
            change = f"{first_line(nodes[statement])} → {first_line(nth(changed, statement))}"
            line = getattr(node, "lineno", statements[node].lineno)
            yield Mutant(file, line, scopes.get(node, "module"), change, changed)


def nth(tree: ast.AST, index: int) -> ast.AST:
    """Return the node at an index (from 0) of the walk through a tree."""
    return next(islice(ast.walk(tree), index, None))


def first_line(node: ast.AST) -> str:
    """Return the first line of a node's code."""
    return ast.unparse(node).splitlines()[0]


def load_in_place_of(mutant: Mutant) -> None:
    """Make this process load the mutant in place of the file."""
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def mutated(self: importlib.machinery.SourceFileLoader, name: str) -> object:
        if Path(self.path) == mutant.file:
            return compile(mutant.tree, self.path, "exec")
        return get_code(self, name)

    loader.get_code = mutated  # type: ignore[assignment,method-assign]


def run_tests(tests: Sequence[str], mutant: Mutant | None) -> int:
    """Run tests in a fork of this process and return its process id (None: without a mutant)."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 99
    try:
        os.setsid()  # so that the processes that the tests start can be killed with them
        if mutant:
            load_in_place_of(mutant)
        import pytest

        code = int(
            pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *FAST, *tests])
        )
    finally:
        os._exit(code)


def poll(child: int, end: float) -> str | None:
    """Return the result of a test process, killing it after ``end`` (on the monotonic clock).

    Returns:
        "survived", "killed", "broken" (the mutant could not be loaded) or "timeout"; None while
        the process runs.
    """
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        code = os.waitstatus_to_exitcode(status)
        return {0: "survived", 1: "killed"}.get(code, "broken")
    if time.monotonic() < end:
        return None
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def try_all(
    chosen: Sequence[Mutant | None], tests: Sequence[str], timeout: float, jobs: int = 1
) -> Iterator[tuple[Mutant | None, str]]:
    """Yield each mutant (None: the unchanged code) and its result, running ``jobs`` at a time.

    All processes are forked from the main thread, because some tests fail in forks of another one.
    """
    waiting = list(reversed(chosen))
    running: dict[int, tuple[Mutant | None, float]] = {}
    with tqdm(total=len(chosen), unit="mutant", disable=len(chosen) < 2) as bar:
        while waiting or running:
            while waiting and len(running) < jobs:
                child = run_tests(tests, waiting[-1])
                running[child] = waiting.pop(), time.monotonic() + timeout
            for child, (mutant, end) in list(running.items()):
                if result := poll(child, end):
                    del running[child]
                    bar.update()
                    yield mutant, result
            time.sleep(0.05)


def outcome(tests: Sequence[str], mutant: Mutant | None, timeout: float) -> str:
    """Return the result of one mutant: see :func:`poll`."""
    ((_, result),) = try_all([mutant], tests, timeout)
    return result


def read_equivalent(file: Path = EQUIVALENT) -> set[str]:
    """Read the names of the mutants that no test can kill; lines with # give the reasons."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def report(results: Iterable[tuple[Mutant | None, str]]) -> float:
    """Print the survivors and the counts; return the share of killed mutants, in [0, 1]."""
    results = list(results)
    for mutant, result in results:
        if mutant and result == "survived":
            print(f"survived: {mutant.name} (line {mutant.line})")
    counts = Counter(result for _, result in results)
    share = 1 - counts["survived"] / max(len(results), 1)
    print(
        f"{len(results)} mutants: {counts['killed']} failed a test, {counts['broken']} did not "
        f"load, {counts['timeout']} ran too long, {counts['survived']} survived: {share:.1%} killed"
    )
    return share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", choices=sorted(TESTS))
    parser.add_argument("--file", help="only this file, such as matcher.py")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="number of mutants to try, at random; default: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument(
        "--minimum",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="exit with 1 if a smaller share is killed, such as 0.85",
    )
    args = parser.parse_args(argv)

    folder = ROOT / "mask_former" / args.package
    files = sorted(folder.glob(args.file or "*.py"))
    if not files:
        print(f"mutate: {folder / args.file} is missing", file=sys.stderr)
        return 1
    known = read_equivalent()
    found = [mutant for file in files for mutant in mutants(file)]
    alive = [mutant for mutant in found if mutant.name not in known]
    chosen = alive
    if args.sample is not None and args.sample < len(alive):
        chosen = random.Random(args.seed).sample(alive, args.sample)
    print(
        f"{len(found)} mutants, {len(found) - len(alive)} of them equivalent; trying {len(chosen)}"
    )

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    tests = TESTS[args.package]
    start = time.monotonic()
    if outcome(tests, None, timeout=600) != "survived":
        print(f"mutate: these tests fail without a mutant: {' '.join(tests)}", file=sys.stderr)
        return 1
    timeout = 30 + 5 * (time.monotonic() - start)
    share = report(try_all(chosen, tests, timeout, args.jobs))
    if outcome(tests, None, timeout) != "survived":
        print("mutate: invalid figures, because files were changed during the run", file=sys.stderr)
        return 1
    return int(share < args.minimum)


if __name__ == "__main__":
    sys.exit(main())
