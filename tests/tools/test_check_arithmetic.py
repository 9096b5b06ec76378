"""tools/check_arithmetic.py: the command of each setting, and the table of the results."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

tool = load_script("tools/check_arithmetic.py")

PASSED = "........\n8 passed, 2 skipped in 3.14s\n"
FAILED = "..F.E\nFAILED tests/a.py::b - c\nERROR tests/d.py::e\n1 failed, 3 passed, 1 error in 2s\n"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Replace pytest by a function that fails with SSE41 only, and return its calls."""
    found: list[SimpleNamespace] = []

    def run(words: list[str], env: dict[str, str], **keywords: Any) -> SimpleNamespace:
        found.append(SimpleNamespace(words=words, environment=env))
        return SimpleNamespace(stdout=FAILED if env.get("ATEN_CPU_CAPABILITY") else PASSED)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_every_setting_is_a_row_and_a_failure_is_named(calls, capsys):
    assert tool.main([]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(calls) == len(tool.SETTINGS) == len(printed) - 4
    assert "| AVX2, 2 threads | 8 | 0 | 0 |" in printed
    assert "| SSE41 | 3 | 1 | 1 |" in printed
    assert printed[-2:] == ["SSE41: FAILED tests/a.py::b - c", "SSE41: ERROR tests/d.py::e"]


def test_settings_are_chosen_by_a_prefix_of_their_names(calls):
    assert tool.main(["--only", "AVX2", "noise", "--", "-k", "matcher"]) == 0
    assert len(calls) == 3
    variables = [
        [call.environment.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")]
        for call in calls[:2]
    ]
    assert variables == [["AVX2", "1"], ["AVX2", "2"]]
    assert "tests.helpers.rounding_noise" in calls[2].words
    assert all("-k" in call.words and "-n" not in call.words for call in calls)


def test_pytest_that_does_not_run_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match=r"without a summary; its last lines: .*no tests ran"):
        tool.summarize("ERROR: file or directory not found\n\nno tests ran in 0.01s\n")


def test_every_folder_exists():
    assert [name for name in tool.FOLDERS if not (ROOT / "tests" / name).is_dir()] == []
