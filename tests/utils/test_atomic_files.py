"""Files are replaced atomically, and errors name the right file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file

from mask_former.utils.atomic_files import (
    remove_parts,
    replace_file,
    replace_files,
    replace_text,
    replacing,
    save_torch,
)
from tests.robustness.isolation import isolated
from tests.robustness.trainings import limit_files


def save_with_size_limit(path, limit):
    limit_files(limit)
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


# Links and names


def test_a_link_that_waits_for_the_temporary_file_is_not_written_through(tmp_path, monkeypatch):
    victim, target = tmp_path / "victim", tmp_path / "x.json"
    victim.write_text("precious")
    (tmp_path / f".x.json.{os.getpid()}.part").symlink_to(victim)
    replace_text(target, "new")
    assert target.read_text() == "new" and not target.is_symlink()
    # Even one whose name is right:
    monkeypatch.setattr(secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".x.json.guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"x\.json.*|.*nothing was changed"):
        replace_text(target, "newer")
    assert target.read_text() == "new" and victim.read_text() == "precious"


def test_two_writers_of_a_file_never_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "x") as one, replacing(tmp_path / "x") as other:
        assert one != other
        other.write_text("other")
        one.write_text("one")
    assert (tmp_path / "x").read_text() == "one"  # the last one that ended


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "é" * 120 + ".json"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    replace_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_temporary_file_keeps_the_suffix_that_its_writer_asks_for(tmp_path):
    with replacing(tmp_path / "x.avi", ".avi") as part:
        assert part.suffix == ".avi"
        part.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["x.avi"]


def test_the_parts_of_killed_writers_are_removed_and_those_of_running_ones_are_not(tmp_path):
    (tmp_path / ".x.pth.17.part").write_text("half")
    (tmp_path / ".x.avi.17.part.avi").write_text("half")
    (tmp_path / ".link.17.part").symlink_to(tmp_path / "nowhere")
    with replacing(tmp_path / "y.pth") as part:
        part.write_text("new")
        remove_parts(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [part.name]
    assert [file.name for file in tmp_path.iterdir()] == ["y.pth"]


# Files that belong together


def earlier(folder):
    files = [folder / name for name in ("a.onnx", "b.onnx", "about.json")]
    for file in files:
        file.write_text("old")
    return files


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_an_error_in_the_last_of_several_files_leaves_all_of_them(tmp_path):
    def fail(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    files = earlier(tmp_path)
    writers = {file: lambda part: part.write_text("new") for file in files[:2]}
    with pytest.raises(OSError, match=r"No space left on device; nothing was changed.*about\.json"):
        replace_files({**writers, files[2]: fail})
    assert contents(tmp_path) == dict.fromkeys(("a.onnx", "b.onnx", "about.json"), "old")


def test_a_description_never_stands_next_to_other_files_than_it_describes(tmp_path, monkeypatch):
    files, seen = earlier(tmp_path), []
    replace = os.replace

    def watch(*paths):
        seen.append(contents(tmp_path).get("about.json"))  # what a kill would leave
        replace(*paths)

    monkeypatch.setattr(os, "replace", watch)
    replace_files({file: lambda part: part.write_text("new") for file in files})
    assert seen == [None] * 3 and set(contents(tmp_path).values()) == {"new"}


def test_a_signal_that_ends_the_process_waits_until_all_files_are_renamed(tmp_path, monkeypatch):
    files, caught = earlier(tmp_path), []
    replace = os.replace
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(contents(tmp_path)))

    def interrupted(*paths):
        signal.raise_signal(signal.SIGTERM)
        replace(*paths)

    try:
        monkeypatch.setattr(os, "replace", interrupted)
        replace_files({file: lambda part: part.write_text("new") for file in files})
        assert caught == [dict.fromkeys(("a.onnx", "b.onnx", "about.json"), "new")] * 3
        assert signal.getsignal(signal.SIGTERM) is not None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)

    def swap(part):
        part.unlink()
        part.symlink_to(victim)

    with pytest.raises(OSError, match=r"x\.txt"):
        replace_file(tmp_path / "x.txt", swap)
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_folder_with_the_name_of_a_temporary_file_stays(tmp_path):
    (tmp_path / ".a.b.part").mkdir()
    remove_parts(tmp_path)
    assert (tmp_path / ".a.b.part").is_dir()
