"""tools/mutate.py: the mutants of a file, and the outcomes of tests on them."""

from __future__ import annotations

import ast
import os

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

mutate = load_script("tools/mutate.py")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    return tmp_path


def changes(folder, source):
    file = folder / "code.py"
    file.write_text(source)
    return [mutant.change for mutant in mutate.mutants(file)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a <= b"]),
        ("a < b == c", ["a <= b == c", "a < b != c"]),
        ("x = a * b", ["x = a / b"]),
        ("x += a", ["x -= a"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = 2", ["x = 3"]),
        ("x = True", ["x = False"]),
        ("x = 'text'", []),
        ("if a:\n    pass", ["if not a:"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("call()", ["pass"]),
        ("raise error", ["pass"]),
        ("def f():\n    return x", ["return None"]),
        ("def f():\n    return None", []),
    ],
)
def test_each_kind_of_mutant(source, expected, folder):
    assert [change.split(" → ")[1] for change in changes(folder, source)] == expected


def test_decorators_annotations_and_docstrings_have_no_mutants(folder):
    source = '@wraps(1)\ndef f(a: int | None, b: "x" = None) -> int | None:\n    """1 < 2"""\n'
    assert not changes(folder, source + "x: int | None\nf'{a + 1}'\n")
    assert not changes(folder, "@overload\ndef f(a, b=1): ...\n")


def test_a_mutant_is_the_file_with_one_change(folder):
    source = "def f(a, b):\n    if a < b:\n        return a + b\n    return a - b\n"
    (folder / "code.py").write_text(source)
    found = list(mutate.mutants(folder / "code.py"))
    results = []
    for mutant in found:
        space: dict = {}
        exec(compile(mutant.tree, "code.py", "exec"), space)
        results.append((space["f"](1, 2), space["f"](2, 2), space["f"](3, 2)))
    assert sorted(results, key=str) == sorted(
        [
            (3, 4, 1),  # a <= b
            (None, 0, 1),  # return None, first
            (3, None, None),  # return None, second
            (-1, 0, 1),  # a - b
            (3, 4, 5),  # a + b
        ],
        key=str,
    )
    assert {mutant.line for mutant in found} == {2, 3, 4}
    names = [mutant.name for mutant in found]
    assert len(set(names)) == len(names) and "code.py:f: if a < b: → if a <= b:" in names
    assert ast.unparse(ast.parse(source)) == ast.unparse(
        ast.parse((folder / "code.py").read_text())
    )


@needs_fork
def test_a_mutant_is_killed_by_a_test_that_detects_it_and_the_file_is_not_changed(folder):
    source = "def larger(a, b):\n    return a > b\n"
    code, test = folder / "mutated_code.py", folder / "test_code.py"
    code.write_text(source)
    lines = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom mutated_code import larger\n"
    mutant = next(m for m in mutate.mutants(code) if ">=" in m.change)
    for claim, expected in (("larger(2, 1)", "survived"), ("not larger(1, 1)", "killed")):
        test.write_text(f"{lines}def test_it():\n    assert {claim}\n")
        tests = ["-c", os.devnull, "--rootdir", str(folder), str(test)]
        assert mutate.outcome(tests, None, timeout=60) == "survived"
        assert mutate.outcome(tests, mutant, timeout=60) == expected
        assert code.read_text() == source


@needs_fork
def test_tests_that_cannot_be_loaded_are_broken(folder):
    test = folder / "test_broken.py"
    test.write_text("raise RuntimeError\n")
    tests = ["-c", os.devnull, "--rootdir", str(folder), str(test)]
    assert mutate.outcome(tests, None, timeout=60) == "broken"


@needs_fork
def test_tests_that_hang_are_stopped(folder):
    test = folder / "test_slow.py"
    test.write_text("import time\ndef test_it():\n    time.sleep(600)\n")
    tests = ["-c", os.devnull, "--rootdir", str(folder), str(test)]
    assert mutate.outcome(tests, None, timeout=2) == "timeout"


def test_the_report_names_survivors_and_counts_timeouts_as_killed(folder, capsys):
    changes(folder, "x = 1 + 2\n")
    found = list(mutate.mutants(folder / "code.py"))
    share = mutate.report(zip(found, ["broken", "timeout", "survived"], strict=True))
    assert share == pytest.approx(2 / 3)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"survived: {found[2].name}")
    assert (
        last.startswith("3 mutants: 0 failed a test, 1 did not load, 1 ran too long")
        and "66.7% killed" in last
    )


def test_every_mutant_in_the_list_of_equivalent_ones_exists():
    known = mutate.read_equivalent()
    files = {mutate.ROOT / name.split(":")[0] for name in known}
    assert not known - {mutant.name for file in files for mutant in mutate.mutants(file)}


def test_the_tests_that_it_runs_exist():
    assert all((ROOT / test).exists() for tests in mutate.TESTS.values() for test in tests)
