"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# The tests' models are too small to gain from threads, which on a busy machine wait for each other.
# Set before torch is imported; commands under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.config.keys import get_mask_former_cfg

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
    cfg = get_mask_former_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


@pytest.fixture
def restored_catalogs() -> Iterator[None]:
    """Remove the datasets that the test registers."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run the module's tests on one thread of torch, whatever ``OMP_NUM_THREADS`` is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
