"""Two trainings never write into one folder, and a training that is gone blocks no other."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mask_former.engine import folder_lock
from mask_former.engine.folder_lock import NAME, training_alone_in
from tests.robustness.isolation import Process, isolated


def hold(folder: Path) -> None:
    with training_alone_in(folder):
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    process = Process(hold, tmp_path / "out")
    deadline = time.monotonic() + 30
    while not is_held(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    process.kill()
    process.outcome()


def is_held(folder: Path) -> bool:
    return (folder / NAME).is_file() and "started" in (folder / NAME).read_text()


def enter(folder: Path) -> str:
    with training_alone_in(folder):
        return "alone"


def test_a_second_training_is_refused_with_process_host_and_start_of_the_first(
    tmp_path: Path, holder: Any
) -> None:
    with pytest.raises(ValueError, match="another training writes there") as info:
        enter(tmp_path / "out")
    text = str(info.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in text
    assert time.strftime("started %Y-%m-%d") in text and str(tmp_path / "out") in text
    assert "set OUTPUT_DIR to another folder" in text
    assert enter(tmp_path / "other") == "alone"


def test_a_training_that_was_killed_blocks_none(tmp_path: Path, holder: Any) -> None:
    holder.kill()
    while holder.is_alive:
        time.sleep(0.01)
    assert is_held(tmp_path / "out")  # its file is left
    assert enter(tmp_path / "out") == "alone"


def test_a_training_may_follow_another_in_one_process_and_is_not_refused_within_it(
    tmp_path: Path,
) -> None:
    with training_alone_in(tmp_path):
        assert enter(tmp_path) == "alone"
        outcome = isolated(enter, tmp_path)  # the inner one has not given the folder back
        assert f"process {os.getpid()} on" in str(outcome.error)
    assert isolated(enter, tmp_path).value == "alone"


def test_a_data_worker_that_outlives_a_killed_training_does_not_block_the_next(
    tmp_path: Path,
) -> None:
    with training_alone_in(tmp_path):
        worker = Process(time.sleep, 60)  # it inherits what is open
    try:
        assert isolated(enter, tmp_path).value == "alone"
    finally:
        worker.kill()
        worker.outcome()


def test_where_the_file_system_has_no_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    assert enter(tmp_path) == "alone"
    assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text


def test_all_processes_of_a_refused_training_end_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(folder_lock.comm, "all_gather", lambda own: ["taken by process 7", own])
    with pytest.raises(ValueError, match="taken by process 7"):
        enter(tmp_path)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / NAME).symlink_to(victim)
    with pytest.raises(OSError, match=NAME):
        enter(tmp_path)
    assert victim.read_text() == "precious"


def test_a_pipe_or_another_file_in_place_of_the_lock_is_refused_and_unchanged(
    tmp_path: Path,
) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("precious")
    for put in (os.mkfifo, lambda lock: os.link(thesis, lock)):
        put(tmp_path / NAME)
        with pytest.raises(ValueError, match=f"{NAME}.* is not a file of its own"):
            enter(tmp_path)
        (tmp_path / NAME).unlink()
    assert thesis.read_text() == "precious"
