"""Steps run interleaved, and only the rounds after the warm-up are collected."""

from __future__ import annotations

import time

import pytest
import torch

from mask_former.utils.timing import interleave, timed


def test_steps_are_interleaved_and_the_warm_up_is_not_collected() -> None:
    calls: list[str] = []

    def step(name: str) -> str:
        calls.append(name)
        return f"{name}{calls.count(name)}"

    values = interleave(
        [lambda: step("a"), lambda: step("b")],
        rounds=2,
        warmup=2,
        after_round=lambda: calls.append("|"),
    )
    assert calls == ["a", "b", "|"] * 4
    assert values == [["a3", "a4"], ["b3", "b4"]]


def test_without_rounds_or_steps_there_are_no_values() -> None:
    assert interleave([], rounds=3) == []
    assert interleave([lambda: 1], rounds=0) == [[]]


def test_a_timed_step_runs_and_returns_its_seconds() -> None:
    ran: list[int] = []
    seconds = timed(lambda: (time.sleep(0.02), ran.append(1)))()
    assert ran == [1] and 0.02 <= seconds < 10


def test_the_clock_can_be_replaced() -> None:
    ticks = iter([3.0, 10.5])
    assert timed(lambda: None, clock=lambda: next(ticks))() == 7.5


def test_a_gpu_is_synchronized_before_and_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    timed(lambda: events.append("step"), device="cuda")()
    assert events == ["wait", "step", "wait"]
