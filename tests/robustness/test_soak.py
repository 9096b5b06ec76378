"""The soak test stops at its time limit, and keeps the results of an earlier run if still valid."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

import pytest

from tests.robustness import soak as module
from tests.robustness.isolation import is_running
from tests.robustness.soak import Found, Unit, begin, soak

MINUTE = 60.0


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Create the folders of units below ``tmp_path``, because those with problems are kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def quick(folder):
    return Found({"files": len(list(folder.iterdir()))})


def hang(mark, folder):
    """Wait for a child process with its own session, such as torchrun starts."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(300)"]
    child = subprocess.Popen(sleeper, start_new_session=True)
    mark.write_text(str(child.pid))
    child.wait()
    return Found()


def run(units, done, seconds):
    return soak(units, done, seconds / MINUTE, lambda: None)


@pytest.mark.subprocess
def test_a_unit_at_the_time_limit_is_killed_with_its_children_and_counts_as_not_done(tmp_path):
    mark = tmp_path / "pid"
    units = [
        Unit("a", "quick", quick),
        Unit("a", "hangs", lambda folder: hang(mark, folder)),
        Unit("a", "after it", quick),
    ]
    done, began = {}, time.monotonic()
    assert run(units, done, 2) == 2
    assert time.monotonic() - began < 10
    assert list(done) == ["a: quick"] and not done["a: quick"]["problems"]
    assert not is_running(int(mark.read_text()))


def linger(folder):
    """Return while a child still runs; at its exit, Python waits for such a child."""
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,)).start()
    return Found()


def test_a_unit_that_leaves_a_child_process_stops_at_the_time_limit():
    began = time.monotonic()
    assert run([Unit("a", "lingers", linger)], {}, 1) == 1
    assert time.monotonic() - began < 10


def test_no_unit_starts_after_the_time_limit():
    done = {}
    assert run([Unit("a", "quick", quick)], done, 0) == 1
    assert not done


def fail(folder):
    raise ValueError("it broke")


def die(folder):
    os._exit(7)


@pytest.mark.parametrize("work, text", [(fail, "it broke"), (die, "signal=7")])
def test_only_units_with_problems_are_repeated(work, text):
    done = {}
    assert run([Unit("a", "1", quick), Unit("a", "2", work)], done, MINUTE) == 0
    (problem,) = done["a: 2"]["problems"]
    assert text in problem
    assert run([Unit("a", "1", fail), Unit("a", "2", quick)], done, MINUTE) == 0
    assert [found["problems"] for found in done.values()] == [[], []]


@pytest.mark.parametrize("changed", ["machine", "git_state", "code", "seed"])
def test_results_of_another_machine_code_or_seed_are_discarded(
    changed, tmp_path, monkeypatch, capsys
):
    path, seed = tmp_path / "soak.json", 0
    report = begin(path, seed)
    report["done"] = {"a: quick": {"figures": {}, "problems": [], "seconds": 0.1}}
    path.write_text(module.as_json(report))
    assert begin(path, seed) == report
    if changed == "seed":
        seed = 1
    else:
        monkeypatch.setattr(module, changed, lambda *_: {"other": "one"})
    assert begin(path, seed)["done"] == {}
    assert f"another {changed.split('_')[0]}: starting a new report" in capsys.readouterr().out
