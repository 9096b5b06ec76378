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

from mask_former.registries import LOSS_REGISTRY
from mask_former.structures import Match, Prediction, Target

from .matcher import resize_targets
from .pair_losses import Section, dense_mask_losses, point_mask_losses
from .point_sampling import PointSampling, read_logits, read_masks, uncertain_points

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
    total_weight: Tensor | None = None
    """Scalar: what the cross-entropy is divided by; None: the sum of this batch's weights."""
    sampling: PointSampling | None = None
    """The points of the mask losses; None: all pixels."""

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The M matched pairs of all layers: their layer, image, query and target index.

        The target index counts through the batch: the targets of image 0, then of image 1, …
        Layers come one after the other, and the images of a layer too.
        """
        offset = 0
        offsets = []
        for target in self.targets:
            offsets.append(offset)
            offset += len(target["labels"])
        columns = [
            torch.stack(
                [
                    torch.full_like(queries, layer),
                    torch.full_like(queries, image),
                    queries,
                    targets + offsets[image],
                ]
            )
            for layer, of_layer in enumerate(self.matches)
            for image, (queries, targets) in enumerate(of_layer)
        ]
        # One transfer, which nobody waits for.
        table = torch.cat(columns, dim=1).to(self.device, non_blocking=True)
        return table[0], table[1], table[2], table[3]

    @property
    def device(self) -> torch.device:
        return self.layers[0]["pred_logits"].device

    @property
    def pairs_per_layer(self) -> list[int]:
        """How many of the M pairs each layer has."""
        return [sum(len(queries) for queries, _ in of_layer) for of_layer in self.matches]

    @cached_property
    def sections(self) -> list[Section]:
        """The pairs again, those of one layer and image together, targets by image."""
        _, _, query, target = self.pairs
        sections = []
        start = 0
        for layer, of_layer in enumerate(self.matches):
            offset = 0
            for image, (queries, _) in enumerate(of_layer):
                section = slice(start, start + len(queries))
                sections.append(Section(layer, image, query[section], target[section] - offset))
                start = section.stop
                offset += len(self.targets[image]["labels"])
        return sections

    @cached_property
    def masks(self) -> list[Tensor]:
        """B tensors N×H×W, bool, where the predictions are."""
        return [target["masks"].to(self.device) for target in self.targets]

    @cached_property
    def valid(self) -> list[Tensor] | None:
        """B tensors H×W, bool: the pixels that count; None: all do."""
        if not any("valid" in target for target in self.targets):
            return None
        return [target["valid"].to(self.device) for target in self.targets]

    def sum_by_layer(self, values: Tensor) -> Tensor:
        """Sum M values, one a pair, over the pairs of each layer. Returns L sums."""
        return torch.stack([part.sum() for part in values.split(self.pairs_per_layer)])


@LOSS_REGISTRY.register(name="labels")
def classification_loss(batch: MatchedBatch) -> dict[str, Tensor]:
    """Cross-entropy over all queries; those without a target have to say "no object".

    A weighted mean: the sum of weighted terms over the sum of weights, in each rank's own batch
    (all that one step adds up).
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
    if batch.total_weight is not None:
        weights = batch.total_weight.expand_as(weights)
    # All weigh nothing, where nothing is there and "no object" weighs 0: a loss of 0, not NaN.
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return {"loss_ce": terms.view(len(truth), -1).sum(1) / weights}


@LOSS_REGISTRY.register(name="masks")
def mask_loss(batch: MatchedBatch) -> dict[str, Tensor]:
    """Focal and dice of the matched pairs, at all pixels of the targets or at sampled points.

    Both are summed over pairs and divided by ``num_targets``.
    """
    if batch.sampling is None:
        logits = [prediction["pred_masks"] for prediction in batch.layers]
        focal, dice = dense_mask_losses(logits, batch.masks, batch.sections, batch.valid)
    else:
        focal, dice = _sampled_mask_losses(batch, batch.sampling)
    terms = {"loss_mask": focal, "loss_dice": dice}
    return {name: batch.sum_by_layer(pairs) / batch.num_targets for name, pairs in terms.items()}


def _sampled_mask_losses(batch: MatchedBatch, sampling: PointSampling) -> tuple[Tensor, Tensor]:
    """Focal and dice of the M pairs, each at points of its own."""
    _, image, query, _ = batch.pairs
    maps = torch.cat(
        [
            prediction["pred_masks"][images, queries]
            for prediction, images, queries in zip(
                batch.layers,
                image.split(batch.pairs_per_layer),
                query.split(batch.pairs_per_layer),
                strict=True,
            )
        ]
    ).float()
    cells = None
    if batch.valid is not None:
        size = (maps.shape[-2], maps.shape[-1])
        cells = resize_targets(torch.stack(batch.valid), size)[image]
    points = uncertain_points(maps, sampling, cells)
    counts = [len(section.queries) for section in batch.sections]
    truth = torch.cat(
        [
            read_masks(batch.masks[section.image], of_section, section.targets)
            for section, of_section in zip(batch.sections, points.split(counts), strict=True)
        ]
    )
    valid = None
    if batch.valid is not None:
        valid = read_masks(torch.stack(batch.valid), points, image)
    return point_mask_losses(read_logits(maps, points), truth, valid)
