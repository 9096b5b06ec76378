"""Too little shared memory is reported, before the training or by the worker that lacks it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.common import MapDataset
from detectron2.structures import BitMasks, Boxes, Instances

from mask_former.config.keys import get_mask_former_cfg
from mask_former.engine import shared_memory
from mask_former.engine.shared_memory import SharingMapper, check_shared_memory

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
    assert "2 DataLoader workers" in str(info.value)
    assert "Set DATALOADER.NUM_WORKERS to" in str(info.value) and "--shm-size" in str(info.value)


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


# In the workers


def example(_: object) -> dict[str, Any]:
    found = Instances((4, 4))
    found.gt_masks = BitMasks(torch.ones(2, 4, 4, dtype=torch.bool))
    found.gt_boxes = Boxes(torch.zeros(2, 4))
    image = torch.from_numpy(np.zeros((3, 4, 4), np.uint8))
    return {
        "image": image,
        "instances": found,
        "file_name": "a.png",
        "more": [torch.ones(3), torch.zeros(0)],
    }


def load(mapper: Any, workers: int) -> Any:
    loader = torch.utils.data.DataLoader(
        MapDataset([0], SharingMapper(mapper)), batch_size=None, num_workers=workers
    )
    return next(iter(loader))


def tensors(loaded: dict[str, Any]) -> list[torch.Tensor]:
    return [loaded["image"], loaded["instances"].gt_masks.tensor, loaded["more"][0]]


def test_an_example_is_the_same_from_a_worker_and_from_the_main_process() -> None:
    for one, other in zip(*(tensors(load(example, n)) for n in (0, 1)), strict=True):
        assert torch.equal(one, other) and other.is_shared() and not one.is_shared()


def fill(self: torch.Tensor) -> None:
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def test_a_worker_without_room_for_its_example_ends_the_run_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "share_memory_", fill)
    with pytest.raises(OSError, match="too small for the examples of 1 DataLoader workers") as info:
        load(example, 1)
    assert "No space left on device" in str(info.value) and "--shm-size" in str(info.value)
