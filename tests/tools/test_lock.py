"""tools/lock.py without uv: the parts of a resolution, and the bounds of the other locks."""

from __future__ import annotations

import subprocess

import pytest

from tests.helpers.scripts import load_script

lock = load_script("tools/lock.py")

RESOLVED = """\
numpy==2.2.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
nvidia-cublas==13.1 ; sys_platform == 'linux' \\
    --hash=sha256:cc
old==1 ; python_full_version >= '3.14' \\
    --hash=sha256:dd
old==2 ; python_full_version < '3.14' \\
    --hash=sha256:ee
triton==3.8.0 \\
    --hash=sha256:ff
tritonclient==1
"""


def names(text):
    return [line.split(" ")[0] for line in text.splitlines() if "==" in line and line[0] != " "]


def test_torchs_cuda_packages_are_split_off_with_their_hashes():
    own, cuda = lock.split(RESOLVED, "3.11")
    assert names(own) == ["numpy==2.2.6", "old==1", "old==2", "tritonclient==1"]
    assert names(cuda) == ["nvidia-cublas==13.1", "triton==3.8.0"]
    assert "--hash=sha256:bb\n" in own and cuda.endswith("--hash=sha256:ff\n")


def test_the_lock_of_python_3_10_has_nothing_for_newer_ones():
    own, _ = lock.split(RESOLVED, "3.10")
    assert names(own) == ["numpy==2.2.6", "old==2", "tritonclient==1"] and "sha256:dd" not in own


def test_page_and_site_are_bound_to_the_main_locks_except_for_what_they_pin():
    locks = {"lock-py310": "numpy==2.2.6 \\\n", "lock-py311": "numpy==2.4.6\npillow==13.0.0\n"}
    assert lock.constraints(locks, "pillow==12.3.0\n").splitlines() == [
        'numpy==2.2.6 ; python_version < "3.11"',
        'numpy==2.4.6 ; python_version >= "3.11"',
    ]


def test_a_resolution_that_fails_leaves_the_locks_and_is_an_error(monkeypatch, tmp_path, capsys):
    for name in ("lock-py310", "lock-py311", "lock-cuda"):
        (tmp_path / f"{name}.txt").write_text("numpy==1\n")
    monkeypatch.setattr(lock, "REQUIREMENTS", tmp_path)

    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(lock.subprocess, "run", fail)
    assert lock.main([]) == 1
    assert capsys.readouterr().err.startswith("lock: ")
    assert (tmp_path / "lock-py310.txt").read_text() == "numpy==1\n"


@pytest.mark.parametrize("name", ["lock-py310", "app", "docs", "no-deps"])
def test_a_written_lock_names_its_source(name):
    first = (lock.REQUIREMENTS / f"{name}.txt").read_text().splitlines()[0]
    assert first == f"# Written by `python tools/lock.py` from {name}.in: change that, not this."
