"""Too little shared memory is reported before the data workers would wait for ever."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mask_former.config.keys import get_mask_former_cfg
from mask_former.engine import shared_memory
from mask_former.engine.shared_memory import check_shared_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")


def check(workers: int) -> None:
    cfg = get_mask_former_cfg()
    cfg.DATALOADER.NUM_WORKERS = workers
    check_shared_memory(cfg)


def with_space(monkeypatch: pytest.MonkeyPatch, mebibytes: float) -> None:
    usage = SimpleNamespace(free=mebibytes * 2**20, total=mebibytes * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def test_a_small_shared_memory_is_refused_with_its_size_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_space(monkeypatch, 0.0625)
    with pytest.raises(ValueError, match=r"/dev/shm has 0\.1 MiB free of 0\.1 MiB") as info:
        check(workers=2)
    assert "the 2 DataLoader workers" in str(info.value)
    assert "DATALOADER.NUM_WORKERS to 0" in str(info.value) and "--shm-size" in str(info.value)


def test_the_default_of_docker_is_enough_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    with_space(monkeypatch, 64)
    check(workers=8)


def test_without_workers_no_shared_memory_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_space(monkeypatch, 0)
    check(workers=0)


@pytest.mark.parametrize(("exists", "text"), [(True, "cannot be written"), (False, "is missing")])
def test_a_read_only_or_missing_shared_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, text: str
) -> None:
    folder = tmp_path / "shm"
    if exists:
        folder.mkdir()
    monkeypatch.setattr(shared_memory, "FOLDER", folder)
    monkeypatch.setattr(shared_memory.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=f"{folder} {text}"):
        check(workers=1)
