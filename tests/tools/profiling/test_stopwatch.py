"""Stages, memory and the machine's rate."""

import time
from types import SimpleNamespace

import pytest
import torch
from profiling.stopwatch import Stopwatch, matrix_product_rate, peak_memory

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances on request."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_laps_of_one_name_are_added_and_a_start_resets_them(clock):
    watch = Stopwatch(CPU)
    for _ in range(2):
        watch.start()
        for stage, seconds in (("a", 1.0), ("b", 2.0), ("a", 4.0)):
            clock.now += seconds
            watch.lap(stage)
    assert watch.read() == {"a": 5.0, "b": 2.0}


def test_a_stopped_watch_ignores_laps(clock):
    watch = Stopwatch(CPU)
    watch.lap("before")
    watch.start()
    clock.now += 1.0
    watch.lap("a")
    assert watch.is_running and watch.read() == {"a": 1.0} and not watch.is_running
    watch.lap("after")
    assert watch.read() == {}


def test_the_peak_is_that_of_the_step_alone():
    mebibytes = 64
    kept = torch.ones(mebibytes << 18)

    def step():
        torch.ones(2 * mebibytes << 18).sum()

    step()
    found = peak_memory(step, CPU)
    if found.step is None:
        pytest.skip("this system does not report the peak memory of a process")
    assert 2 * mebibytes == pytest.approx(found.step, rel=0.1)
    assert found.process > 3 * mebibytes and len(kept)


def test_the_rate_counts_two_operations_per_multiply_add(monkeypatch):
    rate = matrix_product_rate(CPU, torch.float32, size=256, rounds=3)
    assert 0.01 < rate < 1e6
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert matrix_product_rate(CPU, torch.float32, size=10) == 2 * 10**3 / 1e9
