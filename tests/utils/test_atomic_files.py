"""Files are replaced atomically, and errors name the right file."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mask_former.utils.atomic_files import replace_file, save_torch
from tests.robustness.isolation import isolated
from tests.robustness.trainings import _limit_files


def save_with_size_limit(path, limit):
    _limit_files((limit, limit))
    replace_file(path, lambda part: save_torch({"a": torch.zeros(100_000)}, part))


@pytest.mark.parametrize("limit", [0, 100, 200_000])
def test_a_full_disk_is_an_error_with_file_and_cause_and_keeps_the_old_file(tmp_path, limit):
    path = tmp_path / "x.pth"
    path.write_text("old")
    outcome = isolated(save_with_size_limit, path, limit)
    assert isinstance(outcome.error, OSError)
    assert "File too large; nothing was changed" in str(outcome.error)
    assert str(path) in str(outcome.error)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"] and path.read_text() == "old"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_file_permissions_follow_the_umask(tmp_path, umask, mode):
    path = tmp_path / "x.safetensors"
    before = os.umask(umask)
    try:
        replace_file(path, lambda part: save_file({"a": torch.zeros(3)}, part))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_errors_about_other_files_are_raised_unchanged(tmp_path):
    source = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as info:
        replace_file(tmp_path / "x", lambda part: shutil.copyfile(source, part))
    assert info.value.filename == str(source) and info.value.errno == errno.ENOENT


def test_errors_that_are_not_about_files_are_raised_unchanged(tmp_path):
    def fail(part):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"^broken$"):
        replace_file(tmp_path / "x", fail)
