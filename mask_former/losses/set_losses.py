"""The losses of a matched set (paper, section 3.2), each registered by name.

A set loss is a function of a :class:`MatchedBatch`. It handles all supervised layers at once and
returns its unweighted terms by name, each a tensor of L values, one a layer. A new one needs a
file beside this one and its name in ``MODEL.MASK_FORMER.LOSSES``; a term that the configuration
has no weight for weighs 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registries import LOSS_REGISTRY
from ..structures import Match, Prediction, Target
from .mask_losses import dense_mask_losses

__all__ = ["MatchedBatch", "classification_loss", "mask_loss"]


@dataclass(frozen=True)
class MatchedBatch:
    """The predictions of all layers, the targets, and who answers for whom."""

    layers: Sequence[Prediction]
    """L predictions, first layer to last."""
    targets: Sequence[Target]
    """B targets; their masks share one size H×W."""
    matches: Sequence[Sequence[Match]]
    """L lists of B matches."""
    num_targets: Tensor
    """Scalar: targets of the whole batch averaged over all ranks, at least 1."""
    class_weight: Tensor
    """K+1: the weight of each class in the cross-entropy."""

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The M matched pairs of all layers: their layer, image, query and target index.

        The target index counts through the batch: the targets of image 0, then of image 1, …
        """
        offset = 0
        offsets = []
        for target in self.targets:
            offsets.append(offset)
            offset += len(target["labels"])
        columns: tuple[list[Tensor], ...] = ([], [], [], [])
        for layer, of_layer in enumerate(self.matches):
            for image, (queries, targets) in enumerate(of_layer):
                values = (
                    torch.full_like(queries, layer),
                    torch.full_like(queries, image),
                    queries,
                    targets + offsets[image],
                )
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        device = self.layers[0]["pred_logits"].device
        table = torch.stack([torch.cat(column) for column in columns]).to(device)
        return table[0], table[1], table[2], table[3]

    def sum_by_layer(self, values: Tensor) -> Tensor:
        """Sum M values, one a pair, over the pairs of each layer. Returns L sums."""
        layer = self.pairs[0]
        return values.new_zeros(len(self.layers)).index_add(0, layer, values)


@LOSS_REGISTRY.register(name="labels")
def classification_loss(batch: MatchedBatch) -> dict[str, Tensor]:
    """Cross-entropy over all queries; those without a target have to say "no object".

    A weighted mean: the sum of weighted terms over the sum of weights, in each rank's own batch.
    """
    logits = torch.stack([layer["pred_logits"] for layer in batch.layers]).float()
    layer, image, query, target = batch.pairs
    labels = torch.cat([target["labels"] for target in batch.targets]).to(logits.device)
    no_object = logits.shape[-1] - 1
    truth = torch.full(logits.shape[:-1], no_object, dtype=torch.int64, device=logits.device)
    truth[layer, image, query] = labels[target]
    terms = F.cross_entropy(
        logits.flatten(0, -2), truth.flatten(), weight=batch.class_weight, reduction="none"
    )
    weights = batch.class_weight[truth].flatten(1).sum(1)
    return {"loss_ce": terms.view(len(truth), -1).sum(1) / weights}


@LOSS_REGISTRY.register(name="masks")
def mask_loss(batch: MatchedBatch) -> dict[str, Tensor]:
    """Focal and dice of the matched pairs, the predictions enlarged to the targets' size.

    Both are summed over pairs and divided by ``num_targets``.
    """
    layer, image, query, target = batch.pairs
    logits = torch.cat(
        [
            prediction["pred_masks"][image[layer == index], query[layer == index]]
            for index, prediction in enumerate(batch.layers)
        ]
    ).float()
    masks = torch.cat([target["masks"] for target in batch.targets]).to(logits.device)
    focal, dice = dense_mask_losses(logits, masks, target)
    terms = {"loss_mask": focal, "loss_dice": dice}
    return {name: batch.sum_by_layer(pairs) / batch.num_targets for name, pairs in terms.items()}
