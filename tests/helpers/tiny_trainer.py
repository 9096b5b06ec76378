"""A trainer of the tiny model on images of noise, for tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils.env import seed_all_rng

from mask_former.config.loading import load_cfg
from mask_former.engine import Trainer
from tests.helpers.tiny_model import write_tiny_model

SIZE = 64  # pixels: group norms need more than one pixel in the coarsest feature map


def make_example(seed):
    """Return a training example of noise with two targets."""
    g = torch.Generator().manual_seed(seed)
    instances = Instances((SIZE, SIZE))
    instances.gt_classes = torch.randint(4, (2,), generator=g)
    instances.gt_masks = torch.rand(2, SIZE, SIZE, generator=g) > 0.5
    image = torch.randint(256, (3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": SIZE, "width": SIZE}


class Loader:
    """Yields the same two images forever; ``drawn`` is a random number from its construction."""

    def __init__(self):
        self.drawn = np.random.randint(2**31)

    def __iter__(self):
        while True:
            yield [make_example(0), make_example(1)]


class TinyTrainer(Trainer):
    """The trainer, with made-up data."""

    loaders: ClassVar[list[Loader]] = []
    """The training loaders that were built."""

    @classmethod
    def build_train_loader(cls, cfg):
        cls.loaders.append(Loader())
        return cls.loaders[-1]

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[make_example(2)], [make_example(3)]]


def tiny_configs(folder: Path) -> Callable[..., CfgNode]:
    """Write the tiny model; return a function from ``KEY VALUE ...`` to a config of its training.

    The function also creates the folder ``output``, and seeds all random generators.
    """
    path, weights = write_tiny_model(folder, SEMANTIC_ON=True)
    base = {
        "OUTPUT_DIR": folder / "output",
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
        (folder / "output").mkdir(exist_ok=True)
        cfg = load_cfg(str(path), [*words, *map(str, opts)])
        seed_all_rng(cfg.SEED)
        return cfg

    return config


def train(cfg, resume=False, hook=None):
    """Train to the end, or resume, and return the trainer."""
    made = TinyTrainer(cfg)
    made.resume_or_load(resume)
    if hook is not None:
        made.register_hooks([hook])
    made.train()
    return made


class Kill(HookBase):
    """Ends the run before iteration ``at`` like a kill: nothing more is written."""

    def __init__(self, at):
        self.at = at

    def before_step(self):
        if self.trainer.iter == self.at:
            self.trainer.after_train = lambda: None
            raise KeyboardInterrupt
