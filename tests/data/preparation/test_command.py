"""The command line and the conversion loop shared by the scripts in datasets/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mask_former.data.preparation.command import Job, convert_all, parallel_map, run_command
from mask_former.data.preparation.downloads import copy_file


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_parallel_map_equals_map(workers: int, count: int) -> None:
    numbers = list(range(-count, 0))
    assert parallel_map(abs, numbers, workers=workers, description="") == list(map(abs, numbers))


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(ChildProcessError, match=r"labels: .* fewer --workers"):
        parallel_map(os._exit, [1, 1], workers=2, description="labels")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_raised_unchanged(workers: int) -> None:
    with pytest.raises(ValueError, match="'x'"):
        parallel_map(int, ["1", "x", "2"], workers=workers, description="")


def jobs_of(folder: Path, names: str) -> list[Job]:
    jobs = []
    for name in names:
        (folder / name).write_text(name)
        jobs.append(Job((folder / name,), (folder / "out" / name,)))
    return jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_only_jobs_with_a_missing_target_run(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(tmp_path, "abcd")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b").write_text("done before")
    convert_all(copy_file, jobs, workers=workers, description="letters")
    found = {p.name: p.read_text() for p in (tmp_path / "out").iterdir()}
    assert found == {"a": "a", "b": "done before", "c": "c", "d": "d"}
    bar = capsys.readouterr().err
    assert "letters" in bar and "1/4" in bar and "4/4" in bar


def test_a_missing_source_is_an_error_before_the_first_job(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "abc")
    (tmp_path / "b").unlink()
    (tmp_path / "c").unlink()
    with pytest.raises(FileNotFoundError, match=r"b is missing \(as are 1 more\)"):
        convert_all(copy_file, jobs, workers=1, description="")
    assert not (tmp_path / "out").exists()


def test_finished_jobs_do_not_need_their_sources(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "a")
    convert_all(copy_file, jobs, workers=1, description="")
    (tmp_path / "a").unlink()
    convert_all(copy_file, jobs, workers=1, description="")


@pytest.mark.parametrize(
    ("error", "code", "names_source"),
    [
        (FileNotFoundError("a is missing."), 1, True),
        (ValueError("a is broken."), 1, True),
        (PermissionError("a is locked."), 1, False),
        (ModuleNotFoundError("pip install b"), 1, False),
        (KeyboardInterrupt(), 130, False),
    ],
)
def test_errors_are_one_line_that_names_the_download_for_a_faulty_source(
    error: BaseException, code: int, names_source: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(root: Path, workers: int) -> None:
        raise error

    assert run_command(prepare, "", "data.zip", []) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert str(error) in line
    assert ("The source is data.zip." in line) is names_source
