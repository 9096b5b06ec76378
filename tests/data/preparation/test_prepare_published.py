"""Tests that all scripts for published datasets have to pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.preparation_trees import (
    CASES,
    Case,
    contents,
    registered,
    snapshot,
    training_example,
)
from tests.helpers.scripts import load_script


@pytest.fixture(params=CASES, ids=lambda case: case.script)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def script(case: Case) -> ModuleType:
    return load_script(f"datasets/{case.script}.py")


@pytest.fixture
def root(case: Case, tmp_path: Path) -> Path:
    case.tree(tmp_path / "root")
    return tmp_path / "root"


def run(script: ModuleType, root: Path, workers: int = 1) -> int:
    return script.main(["--root", str(root), "--workers", str(workers)])


each_source = pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CASES for name in case.sources],
    ids=lambda value: value.script if isinstance(value, Case) else Path(value).suffix,
)


@pytest.mark.usefixtures("restored_catalogs")
def test_the_written_files_are_readable_by_catalog_and_mapper(
    script: ModuleType, case: Case, root: Path
) -> None:
    assert run(script, root) == 0
    if case.script == "prepare_ade20k_pan_seg":  # its records also name the semantic maps
        assert run(load_script("datasets/prepare_ade20k_sem_seg.py"), root) == 0
    train, test = (registered(name, root) for name in case.datasets)
    assert (len(train), len(test)) == (2, 1)
    for record in train:
        example = training_example(case.config, record)
        assert example["instances"].gt_masks.any(), "a crop may empty some masks, but not all"


def test_source_files_are_not_modified(script: ModuleType, case: Case, root: Path) -> None:
    before = snapshot(root)
    assert run(script, root) == 0
    after = snapshot(root)
    assert after.items() > before.items()
    assert {*case.targets} <= after.keys() - before.keys()


def test_a_second_run_changes_nothing(script: ModuleType, root: Path) -> None:
    assert run(script, root) == 0
    before = snapshot(root)
    assert run(script, root) == 0
    assert snapshot(root) == before


def test_several_processes_write_the_same_files_as_one(
    script: ModuleType, case: Case, root: Path, tmp_path: Path
) -> None:
    case.tree(tmp_path / "other")
    assert run(script, root) == 0
    assert run(script, tmp_path / "other", workers=2) == 0
    assert contents(tmp_path / "other") == contents(root)


def test_an_interrupted_run_is_completed_by_the_next(
    script: ModuleType,
    case: Case,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case.tree(tmp_path / "whole")
    assert run(script, tmp_path / "whole") == 0
    before = snapshot(root).keys()
    convert, calls = script.convert, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return convert(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(script, "convert", interrupted)
        assert run(script, root) == 130
    assert "continues from here" in capsys.readouterr().err
    done = {name: file for name, file in snapshot(root).items() if name not in before}
    assert bool(done) != case.json_only
    assert not [name for name in done if name.endswith("json")], "the JSON must be written last"
    assert run(script, root) == 0
    assert contents(root) == contents(tmp_path / "whole")
    assert snapshot(root).items() >= done.items(), "finished files must not be written again"


def test_a_failed_write_leaves_no_partial_file(
    script: ModuleType,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(root)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    assert run(script, root) == 1
    assert snapshot(root) == before
    assert "no space left" in capsys.readouterr().err


@each_source
def test_a_missing_file_is_a_one_line_error_that_names_it_and_the_download(
    script: ModuleType, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / name).unlink()
    before = snapshot(root)
    assert run(script, root) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert Path(name).stem in line and str((root / name).parent) in line
    assert script.DOWNLOAD in line
    assert snapshot(root) == before, "it must be found before anything is written"


@each_source
@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_file_is_an_error_that_names_it_and_the_download(
    script: ModuleType,
    root: Path,
    name: str,
    workers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = root / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(script, root, workers) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in line
    assert script.DOWNLOAD in line


@each_source
def test_an_empty_file_is_an_error_that_names_it(
    script: ModuleType, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / name).write_bytes(b"")
    assert run(script, root) == 1
    assert str(root / name) in capsys.readouterr().err


def test_a_missing_download_is_an_error_that_names_its_source(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, tmp_path / "empty") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "empty") in line and script.DOWNLOAD in line


def test_the_default_root_is_detectron2s(
    script: ModuleType, case: Case, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert script.main(["--workers", "1"]) == 0
    assert (root / case.targets[-1]).is_file()


@pytest.mark.subprocess
def test_a_script_runs_from_the_command_line_in_several_processes(tmp_path: Path) -> None:
    case = CASES[0]
    case.tree(tmp_path)
    file = ROOT / "datasets" / f"{case.script}.py"
    command = [sys.executable, str(file), "--root", str(tmp_path), "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "annotations_detectron2" in done.stdout
    assert (tmp_path / case.targets[0]).is_file()


def test_zero_processes_are_refused(script: ModuleType, root: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(script, root, workers=0)
