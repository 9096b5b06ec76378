"""A loss of one's own: masks shall be small.

As a plug-in it lies in mask_former/losses/, where it is found without another line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mask_former.losses.set_losses import MatchedBatch
from mask_former.registries import LOSS_REGISTRY


@LOSS_REGISTRY.register(name="mask_size")
def mask_size(batch: MatchedBatch) -> dict[str, Tensor]:
    """The mean mask probability of all queries: L values, one a layer, in [0, 1]."""
    means = [layer["pred_masks"].sigmoid().mean() for layer in batch.layers]
    return {"loss_mask_size": torch.stack(means)}
