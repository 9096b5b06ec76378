"""Hostile files run no command, write nothing elsewhere, and are refused by name."""

from __future__ import annotations

import pickle

import pytest

from tests.robustness.isolation import isolated
from tests.robustness.malice import MARKER, hostile_files, hostile_training


def test_unpickling_carelessly_creates_the_marker(tmp_path):
    hostile_files(tmp_path)
    isolated(lambda: str(pickle.loads((tmp_path / "plain.pkl").read_bytes())))
    assert (tmp_path / MARKER).exists()


def test_no_file_runs_a_command_and_each_is_refused_by_name(tmp_path):
    for name, read in hostile_files(tmp_path).items():
        with pytest.raises((ValueError, KeyError)) as info:
            read()
        file = "tag.yaml" if name == "based.yaml" else name.partition(" ")[0]
        assert file in str(info.value), f"{name}: {info.value}"
        assert not (tmp_path / MARKER).exists(), name


def test_a_training_does_not_continue_with_an_optimizer_state_that_is_too_small(tmp_path):
    path, resume = hostile_training(tmp_path)
    outcome = isolated(resume)
    assert outcome.ended_well, f"the process ended with signal {outcome.signal}"
    assert isinstance(outcome.error, ValueError)
    assert str(path) in str(outcome.error) and "exp_avg" in str(outcome.error)
