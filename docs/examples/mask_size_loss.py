"""A custom loss: penalise large masks.

Put it into mask_former/losses/, or anywhere else and pass ``--plugin mask_size_loss.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from mask_former.losses import MatchedBatch
from mask_former.registries import LOSS_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Add the key ``MODEL.MASK_FORMER.MASK_SIZE_WEIGHT``."""
    cfg.MODEL.MASK_FORMER.MASK_SIZE_WEIGHT = 1.0  # weight of the loss


@LOSS_REGISTRY.register(name="mask_size")
class MaskSizeLoss:
    """Loss that is the mean mask probability of all queries."""

    @configurable
    def __init__(self, *, weight: float) -> None:
        self.weights = {"loss_mask_size": weight}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"weight": cfg.MODEL.MASK_FORMER.MASK_SIZE_WEIGHT}

    def __call__(self, batch: MatchedBatch) -> dict[str, Tensor]:
        """Compute L values in [0, 1], one for each supervised layer."""
        means = [layer["pred_masks"].sigmoid().mean() for layer in batch.layers]
        return {"loss_mask_size": torch.stack(means)}
