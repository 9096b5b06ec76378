"""tools/matrix.py: the cells, the reasons for not running one, and the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

matrix = load_script("tools/matrix.py")

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def lock_of(cell):
    name = "lock-py310.txt" if cell.python == "3.10" else "lock-py311.txt"
    return (ROOT / "requirements" / name).read_text()


@pytest.mark.parametrize("cell", matrix.CELLS, ids=lambda cell: cell.name)
def test_each_cell_changes_versions_of_packages_in_its_lock(cell):
    lines = matrix.pin(lock_of(cell), cell.pins).splitlines()
    for name, version in cell.pins.items():
        assert f"{name}=={version}" in [line.split("#")[0].strip() for line in lines]
    locked = [line for line in lock_of(cell).splitlines() if not line.startswith("    --hash=")]
    assert len(lines) == len(locked if cell.pins else lock_of(cell).splitlines())
    assert any("--hash=" in line for line in lines) == (not cell.pins)


def test_the_cells_range_from_the_oldest_to_the_newest_versions():
    assert {cell.python for cell in matrix.CELLS} == {"3.10", "3.11", "3.12", "3.13"}
    pins = [cell.pins for cell in matrix.CELLS]
    for name, oldest in {"torch": "2.6.", "numpy": "1.26.", "pillow": "10."}.items():
        assert any(pin.get(name, "").startswith(oldest) for pin in pins)


def test_a_package_that_is_not_in_the_lock_is_refused():
    with pytest.raises(KeyError, match="0 lines nump==…, expected 1"):
        matrix.pin("numpy==2.0\n", {"nump": "1.26"})


def test_a_missing_python_is_the_reason_for_not_running(monkeypatch, tmp_path):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(matrix.NotRun, match=r"no working Python 3\.99 "):
        matrix.find_python("3.99")


def test_a_python_on_the_path_that_does_not_start_is_skipped(monkeypatch, tmp_path):
    shim = tmp_path / "bin" / f"python{PYTHON}"
    real = tmp_path / "versions" / f"{PYTHON}.9" / "bin" / "python"
    for file, line in ((shim, "exit 127"), (real, "exit 0")):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{shim.parent}:/usr/bin:/bin")
    assert matrix.find_python(PYTHON) == real


def test_missing_disk_space_is_found_before_the_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "NEEDED_GB", 10**9)
    monkeypatch.setattr(matrix, "find_python", lambda version: Path(sys.executable))
    cell = matrix.Cell("here", PYTHON)
    row = matrix.run_cell(cell, tmp_path, None)
    assert row["result"].startswith("not run: 1000000000 GB of disk are needed")


def test_a_failed_installation_gives_the_reason_of_pip(monkeypatch, tmp_path):
    def fail(command, log, minutes=0):
        log.write_text("ERROR: first\nERROR: no matching distribution\n")
        return 1

    monkeypatch.setattr(matrix, "find_python", lambda version: Path(sys.executable))
    monkeypatch.setattr(matrix, "run", fail)
    with pytest.raises(matrix.NotRun, match="the install failed: no matching distribution"):
        matrix.make_environment(matrix.CELLS[0], tmp_path, None)


@pytest.mark.parametrize(
    ("output", "result"),
    [
        ("....\n480 passed, 3 skipped in 61.20s (0:01:01)\n", "480 passed, 3 skipped"),
        ("FAILED a\n=== 1 failed, 2 passed in 1.00s ===\n", "1 failed, 2 passed"),
        ("1 error in 0.5s\n", "1 error"),
    ],
)
def test_the_result_is_the_last_line_of_pytest(output, result, monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "run", lambda command, log: log.write_text(output))
    assert matrix.test(Path("python"), tmp_path / "log") == result


def test_tests_that_do_not_start_count_as_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "run", lambda command, log: log.write_text("No module pytest\n"))
    with pytest.raises(matrix.NotRun, match="did not start, see log"):
        matrix.test(Path("python"), tmp_path / "log")


def test_a_command_that_hangs_is_stopped(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(matrix.NotRun, match="took more than"):
        matrix.run(command, tmp_path / "log", minutes=0.005)


def test_a_cell_that_ran_gets_its_row_and_the_remaining_page_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.START}\n{matrix.END}\nafter\n")
    matrix.write_row(page, {"cell": "py312", "python": "3.12.1", "result": "4 passed"})
    matrix.write_row(page, {"cell": "py310", "result": "1 failed"})
    matrix.write_row(page, {"cell": "py310", "result": "5 passed", "date": "2026-01-02"})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    rows = matrix.read_table(text)
    assert list(rows) == [cell.name for cell in matrix.CELLS]
    assert rows["py312"]["python"] == "3.12.1" and rows["py312"]["result"] == "4 passed"
    assert rows["py310"]["result"] == "5 passed" and rows["py310"]["date"] == "2026-01-02"
    assert rows["py311"]["result"] == "not run"


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected one line"):
        matrix.write_row(page, {"cell": "py310"})


@pytest.mark.parametrize(("result", "code"), [("1 failed, 2 passed", 1), ("2 passed", 0)])
def test_a_failed_test_is_exit_code_1(result, code, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{matrix.START}{matrix.END}")
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "run_cell", lambda *_: {"cell": "py310", "result": result})
    assert matrix.main(["--only", "py310", "--cache", str(tmp_path)]) == code
    not_run = {"cell": "py310", "result": "not run: the install failed: x"}
    monkeypatch.setattr(matrix, "run_cell", lambda *_: not_run)
    assert matrix.main(["--only", "py310", "--cache", str(tmp_path)]) == 0


def test_the_projects_page_has_the_marks_and_list_names_every_cell(capsys):
    page = matrix.PAGE.read_text()
    assert page.count(matrix.START) == page.count(matrix.END) == 1
    assert matrix.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [cell.name for cell in matrix.CELLS]


def test_the_core_tests_exist():
    assert all((ROOT / name).exists() for name in matrix.CORE if name.startswith("tests/"))
