"""Checkpoints record their provenance as plain data, with git and without it."""

from __future__ import annotations

import subprocess

import pytest
import torch

from mask_former.checkpoint.provenance import git_state
from tests.helpers.tiny_trainer import train


def git(folder, *words):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    command = ["git", *identity, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def package(folder):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    return folder / "package"


@pytest.mark.subprocess
def test_git_state_has_the_commit_and_whether_the_code_differs_from_it(tmp_path):
    folder = package(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "m")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert git_state(folder) == {"commit": commit, "dirty": False}
    (folder / "__init__.py").write_text("changed")
    assert git_state(folder) == {"commit": commit, "dirty": True}


@pytest.mark.subprocess
def test_an_untracked_package_in_a_repository_has_no_git_state(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "m")
    assert git_state(package(tmp_path)) is None


def test_without_a_repository_and_without_git_there_is_no_state(tmp_path, monkeypatch):
    folder = package(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state(folder) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(folder) is None


def test_every_checkpoint_holds_seeds_and_versions(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no git
    train(config("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1))
    for name in ("model_0000000", "model_final"):
        content = torch.load(tmp_path / "output" / f"{name}.pth", weights_only=True)
        found = content["metadata"]
        assert found["seed"] == 3 and found["initial_seed"] == 3 and found["world_size"] == 1
        assert found["device"] == "cpu" and found["git"] is None
        assert found["versions"]["torch"] in torch.__version__
        assert {"python", "detectron2", "numpy"} < found["versions"].keys()


def test_a_random_seed_is_recorded_too(config, tmp_path):
    cfg = config("SOLVER.MAX_ITER", 1)
    cfg.defrost()
    cfg.SEED = -1
    torch.manual_seed(1234)  # stands in for detectron2's random seed
    train(cfg)
    content = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert content["metadata"]["seed"] == -1 and content["metadata"]["initial_seed"] == 1234
