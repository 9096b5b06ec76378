"""Trainings under failures: kills, full disks, dying workers and processes, and memory growth."""

from __future__ import annotations

import re
import shutil
import signal
import time

import pytest

from mask_former.utils.weight_files import read_checkpoint
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness import killing
from tests.robustness.isolation import isolated
from tests.robustness.killing import kill_training, run_training
from tests.robustness.ranks import end_a_rank
from tests.robustness.trainings import (
    memory_of_prediction,
    memory_of_training,
    train_on_a_full_disk,
    train_with_a_dying_worker,
)

MINUTE = 60.0
GROWTH = 12.0
"""Mebibytes by which the memory of a process may grow from 10 % of a short run to its end."""


def test_a_training_that_is_killed_repeatedly_ends_like_the_undisturbed_one(tmp_path):
    report = kill_training(tmp_path, kills=3, seed=0)
    assert not report.problems, report
    assert (report.kills, report.ended_before_a_kill) == (3, 0)


def never(process, *_):
    """Wait until the training has ended, so that the kill comes too late."""
    while process.is_alive:
        time.sleep(0.01)


def wrong_where_broken(config, output, iterations):
    return run_training(config, output, iterations) + (output.name == "broken")


def test_a_training_that_ends_before_it_is_killed_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setattr(killing, "_wait_for_the_moment", never)
    report = kill_training(tmp_path, kills=1, seed=0, iterations=2)
    assert report.problems == ["2 iterations are too few for 1 kills"]
    assert (report.kills, report.ended_before_a_kill) == (0, 2)
    shutil.rmtree(tmp_path / "unbroken")
    shutil.rmtree(tmp_path / "broken", ignore_errors=True)
    monkeypatch.setattr(killing, "run_training", wrong_where_broken)
    report = kill_training(tmp_path, kills=1, seed=0, iterations=2)
    assert report.ended_before_a_kill == 1 and len(report.problems) == 1
    assert "the final loss is" in report.problems[0]


@pytest.mark.parametrize("room", [0, 1])
def test_on_a_full_disk_the_first_error_is_raised_whatever_fails_after_it(tmp_path, room):
    config, _ = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    outcome = isolated(train_on_a_full_disk, config, tmp_path / "output", room, 2)
    assert isinstance(outcome.error, OSError) and "model_0000002.pth" in str(outcome.error)


def test_a_full_disk_ends_the_training_and_keeps_the_last_checkpoint(tmp_path):
    config, weights = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    output = tmp_path / "output"
    half = weights.stat().st_size // 2
    outcome = isolated(train_on_a_full_disk, config, output, half, 3)
    assert isinstance(outcome.error, OSError), outcome
    for text in ("File too large", "nothing was changed", str(output / "model_0000003.pth")):
        assert text in str(outcome.error)
    names = {path.name for path in output.iterdir() if path.suffix in (".pth", ".part")}
    assert names == {f"model_000000{i}.pth" for i in range(3)}
    assert (output / "last_checkpoint").read_text() == "model_0000002.pth"
    assert read_checkpoint(output / "model_0000002.pth")["iteration"] == 2
    resumed = isolated(train_on_a_full_disk, config, output, half * 100, 3)
    assert resumed.error is None and (output / "model_final.pth").exists(), resumed


@pytest.mark.parametrize("end, text", [("exit", "exited unexpectedly"), ("kill", "killed by sig")])
def test_a_data_worker_that_dies_ends_the_training_with_an_error_that_names_it(tmp_path, end, text):
    config, _ = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    outcome = isolated(train_with_a_dying_worker, config, tmp_path / "o", end, timeout=MINUTE)
    assert not outcome.timed_out and outcome.error is not None, outcome
    message = rf"DataLoader worker (\(pid.* \d+\).*{text}|died while it sent a batch)"
    assert re.search(message, str(outcome.error)), outcome


def test_when_one_of_two_processes_is_killed_the_other_ends_and_so_does_the_command(tmp_path):
    report = end_a_rank(tmp_path, "kill", "spawn", dying=1)
    assert all(report.returncodes) and not report.left, report
    assert report.seconds_after_death < MINUTE
    assert "process 1 terminated with signal SIGKILL" in report.output, report.output[-2000:]


def test_when_one_of_two_machines_is_lost_the_command_on_the_other_one_ends_with_an_error(tmp_path):
    report = end_a_rank(tmp_path, "machine", "machines", dying=0)
    killed, survivor = report.returncodes
    assert killed == -signal.SIGKILL and survivor == 1 and not report.left, report
    assert report.seconds_after_death < MINUTE
    assert re.search("Connection (reset|closed) by peer", report.output), report.output[-2000:]


@pytest.mark.parametrize("work, count", [(memory_of_training, 60), (memory_of_prediction, 200)])
def test_memory_does_not_grow_with_time(tmp_path, work, count):
    outcome = isolated(work, tmp_path, count, timeout=300)
    assert outcome.error is None and outcome.ended_well, outcome.trace
    first, _, last = outcome.value
    assert last - first < GROWTH, outcome.value
