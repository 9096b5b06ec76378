"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# The models are too small to profit from threads, which wait for each other on a busy machine.
# Set before torch is imported; commands under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# With xdist, the process that only distributes the tests loads this file too: it needs no torch.
if TYPE_CHECKING:
    from detectron2.config import CfgNode

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Optional folder of reference data next to the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the optional folder ../shared is missing")
    return SHARED


@pytest.fixture
def cfg() -> CfgNode:
    """Default config on the CPU, without weights."""
    from mask_former.config.keys import get_mask_former_cfg

    cfg = get_mask_former_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Function from ``KEY VALUE ...`` to the config of a seeded training of the tiny model."""
    from tests.helpers.tiny_trainer import TinyTrainer, tiny_configs

    monkeypatch.setattr(TinyTrainer, "loaders", [])
    return tiny_configs(tmp_path)


@pytest.fixture
def restored_catalogs() -> Iterator[None]:
    """Remove the datasets that the test registers."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run the module's tests on one thread of torch, whatever ``OMP_NUM_THREADS`` is."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
