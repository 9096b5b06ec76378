"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# The models are too small to profit from threads, which wait for each other on a busy machine.
# Set before torch is imported; commands under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg
from tests.helpers.tiny_model import write_tiny_model

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
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Function from ``KEY VALUE ...`` to the config of a seeded training of the tiny model."""
    from tests.helpers.tiny_trainer import TinyTrainer  # it loads the whole engine

    monkeypatch.setattr(TinyTrainer, "loaders", [], raising=False)
    path, weights = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    base = {
        "OUTPUT_DIR": tmp_path / "output",
        "MODEL.WEIGHTS": weights,
        "DATASETS.TEST": "()",
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
        "MODEL.MASK_FORMER.DROPOUT": 0.0,
        "MODEL.SWIN.DROP_PATH_RATE": 0.0,
        "SEED": 3,
    }

    def config(*opts: object) -> CfgNode:
        words = [str(word) for pair in base.items() for word in pair]
        (tmp_path / "output").mkdir(exist_ok=True)
        cfg = load_cfg(str(path), [*words, *map(str, opts)])
        seed_all_rng(cfg.SEED)
        return cfg

    return config


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
