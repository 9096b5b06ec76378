"""The losses of a matched set (paper, section 3.2), each registered by name.

A set loss is called with a :class:`MatchedBatch`. It handles all supervised layers at once and
returns its unweighted terms by name, each a tensor of L values, one for each layer. It is a class
that is built from the config and has the ``weights`` of its terms, or, if it needs no config and
the weight of each term is 1, a function. To add a loss, write one file and list its name in
``MODEL.MASK_FORMER.LOSSES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from mask_former.ops.dense_sums import dense_mask_sums
from mask_former.ops.mask_sums import MaskSums, MaskTerm, Section
from mask_former.ops.point_sums import point_mask_sums
from mask_former.registries import LOSS_REGISTRY
from mask_former.structures import Match, Prediction, Target

from .mask_losses import mask_losses
from .matcher import resize_targets
from .point_sampling import PointRule, read_pixels, uncertain_points

__all__ = ["ClassificationLoss", "MaskLoss", "MatchedBatch", "Pairs"]


class Pairs(NamedTuple):
    """The M matched pairs of all layers as int64 indices, sorted by layer, image and query."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    """Index in the batch: the targets of image 0 come first, then those of image 1, …"""


@dataclass(frozen=True)
class MatchedBatch:
    """Predictions of all layers, targets, and the matching between them."""

    layers: Sequence[Prediction]
    """L predictions, first layer to last."""
    targets: Sequence[Target]
    """B targets; their masks share one size H×W."""
    matches: Sequence[Sequence[Match]]
    """L lists of B matches."""
    num_targets: Tensor
    """Scalar: targets of the whole batch averaged over all ranks, at least 1."""
    class_weight: Tensor
    """K+1: weight of each class in the cross-entropy."""
    mask_term: MaskTerm
    """Per-pixel loss of masks."""
    point_rule: PointRule | None = None
    """The points of the mask losses; None: all pixels."""
    total_weight: Tensor | None = None
    """Scalar: divisor of the cross-entropy; None: the sum of this batch's weights."""
    fixed_points: Tensor | None = None
    """P×2 points that replace the random ones of the mask losses."""

    @property
    def device(self) -> torch.device:
        """The device of the predictions."""
        return self.layers[0]["pred_logits"].device

    @cached_property
    def sections(self) -> list[Section]:
        """The pairs of each layer and image."""
        flat = [match for layer_matches in self.matches for match in layer_matches]
        table = torch.cat([torch.stack(match) for match in flat], dim=1)
        table = table.to(self.device, non_blocking=True)  # one asynchronous transfer
        parts = table.split([len(match.queries) for match in flat], dim=1)
        images = len(self.targets)
        return [Section(*divmod(i, images), *part) for i, part in enumerate(parts)]

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of all layers in four tensors."""
        images = len(self.targets)
        counts = torch.tensor([len(section.queries) for section in self.sections])
        layers_and_images = torch.arange(len(counts)).repeat_interleave(counts)
        sizes = torch.tensor([0, *(len(target["labels"]) for target in self.targets)])
        image = layers_and_images % images
        table = torch.stack([layers_and_images // images, image, sizes.cumsum(0)[image]])
        layer, image, offset = table.to(self.device, non_blocking=True)
        query = torch.cat([section.queries for section in self.sections])
        target = torch.cat([section.targets for section in self.sections])
        return Pairs(layer, image, query, target + offset)

    @cached_property
    def pairs_per_layer(self) -> list[int]:
        """The number of pairs of each layer."""
        return [sum(len(match.queries) for match in matches) for matches in self.matches]

    @cached_property
    def masks(self) -> list[Tensor]:
        """B tensors N×H×W, bool, on the device of the predictions."""
        return [target["masks"].to(self.device) for target in self.targets]

    @cached_property
    def valid(self) -> list[Tensor] | None:
        """B tensors H×W, bool: the pixels to use; None: all."""
        if not any("valid" in target for target in self.targets):
            return None
        return [target["valid"].to(self.device) for target in self.targets]

    def sum_by_layer(self, values: Tensor) -> Tensor:
        """Sum M values, one for each pair, over the pairs of each layer. Returns L sums."""
        return torch.stack([part.sum() for part in values.split(self.pairs_per_layer)])


@LOSS_REGISTRY.register(name="labels")
class ClassificationLoss:
    """Cross-entropy over all queries; the class of queries without a target is "no object".

    It is a weighted mean: the sum of the weighted terms divided by the sum of the weights, over the
    batch of one rank (all micro-batches of an optimizer step together).
    """

    @configurable
    def __init__(self, *, weight: float = 1.0) -> None:
        self.weights = {"loss_ce": weight}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"weight": cfg.MODEL.MASK_FORMER.CLASS_WEIGHT}

    def __call__(self, batch: MatchedBatch) -> dict[str, Tensor]:
        logits = torch.stack([layer["pred_logits"] for layer in batch.layers]).float()
        layer, image, query, target = batch.pairs
        labels = torch.cat([target["labels"] for target in batch.targets]).to(logits.device)
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:-1], no_object, dtype=torch.int64, device=logits.device)
        classes[layer, image, query] = labels[target]
        terms = F.cross_entropy(
            logits.flatten(0, -2), classes.flatten(), weight=batch.class_weight, reduction="none"
        )
        weights = batch.class_weight[classes].flatten(1).sum(1)
        if batch.total_weight is not None:
            weights = batch.total_weight.expand_as(weights)
        # Without targets, and with a weight of 0 for "no object", the loss is 0 and not NaN.
        weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
        return {"loss_ce": terms.view(len(classes), -1).sum(1) / weights}


@LOSS_REGISTRY.register(name="masks")
class MaskLoss:
    """Mask term and dice loss of the matched pairs, over all pixels of the targets or over points.

    Both are summed over pairs and divided by ``num_targets``.
    """

    @configurable
    def __init__(self, *, mask_weight: float = 1.0, dice_weight: float = 1.0) -> None:
        self.weights = {"loss_mask": mask_weight, "loss_dice": dice_weight}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {"mask_weight": node.MASK_WEIGHT, "dice_weight": node.DICE_WEIGHT}

    def __call__(self, batch: MatchedBatch) -> dict[str, Tensor]:
        if batch.point_rule is None:
            logits = [prediction["pred_masks"] for prediction in batch.layers]
            sums = dense_mask_sums(
                batch.mask_term, logits, batch.masks, batch.sections, batch.valid
            )
        else:
            sums = _sums_at_points(batch, batch.point_rule)
        mask, dice = mask_losses(sums)
        return {
            "loss_mask": batch.sum_by_layer(mask) / batch.num_targets,
            "loss_dice": batch.sum_by_layer(dice) / batch.num_targets,
        }


def _sums_at_points(batch: MatchedBatch, rule: PointRule) -> MaskSums:
    """Sum over points of the M pairs; each pair has its own points."""
    _, image, query, _ = batch.pairs
    by_layer = zip(
        batch.layers,
        image.split(batch.pairs_per_layer),
        query.split(batch.pairs_per_layer),
        strict=True,
    )
    maps = torch.cat([layer["pred_masks"][images, queries] for layer, images, queries in by_layer])
    maps = maps.float()
    points = _points(batch, rule, maps, image)
    counts = [len(section.queries) for section in batch.sections]
    readers = [rule.mask_reader(masks) for masks in batch.masks]
    targets = torch.cat(
        [
            readers[section.image](own_points, section.targets)
            for section, own_points in zip(batch.sections, points.split(counts), strict=True)
        ]
    )
    valid = None
    if batch.valid is not None:
        valid = read_pixels(torch.stack(batch.valid), points, image)
    return point_mask_sums(batch.mask_term, rule.read_logits(maps, points), targets, valid)


def _points(batch: MatchedBatch, rule: PointRule, maps: Tensor, image: Tensor) -> Tensor:
    """Choose points for each of M maps, h×w, of the given images: M×P×2."""
    if batch.fixed_points is not None:
        return batch.fixed_points.to(maps).expand(len(maps), -1, -1)
    cells = None
    if batch.valid is not None:
        size = (maps.shape[-2], maps.shape[-1])
        cells = resize_targets(torch.stack(batch.valid), size)[image]
    return uncertain_points(maps, rule, cells)
