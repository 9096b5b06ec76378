"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from detectron2.utils.env import seed_all_rng

from mask_former.config.loading import load_cfg
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.tiny_trainer import TinyTrainer


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A function that gives the tiny model's config with ``KEY VALUE …``."""
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

    def config(*opts):
        words = [str(word) for pair in base.items() for word in pair]
        (tmp_path / "output").mkdir(exist_ok=True)
        cfg = load_cfg(str(path), [*words, *map(str, opts)])
        seed_all_rng(cfg.SEED)
        return cfg

    return config
