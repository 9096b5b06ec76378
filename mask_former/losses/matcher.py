"""Bipartite matching of queries and targets (paper, section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mask_former.ops.mask_sums import MaskTerm
from mask_former.ops.pairwise_sums import pairwise_mask_sums
from mask_former.registries import MATCHER_REGISTRY
from mask_former.structures import Match, Prediction, Target

from .mask_losses import mask_losses
from .mask_terms import FocalTerm
from .nonfinite import ON_NONFINITE, NonFiniteError, sanitize_costs
from .point_sampling import PointRule, random_points, read_pixels

__all__ = ["HungarianMatcher", "resize_targets"]


def resize_targets(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bool masks N×H×W to ``size`` (nearest): N×h×w, bool."""
    if not len(masks):
        return masks.new_zeros((0, *size))
    # interpolate does not accept bool; a uint8 view of the same bytes needs no copy
    small = F.interpolate(masks[:, None].view(torch.uint8), size=size, mode="nearest")[:, 0]
    return small.view(torch.bool)


@MATCHER_REGISTRY.register()
class HungarianMatcher(nn.Module):
    """Assign the targets to different queries, with the lowest total cost.

    The cost of a pair is ``-class_weight · p(class) + mask_weight · mask term + dice_weight ·
    dice``. If an image has more targets than queries, the surplus targets stay unmatched.
    """

    @configurable
    def __init__(
        self,
        class_weight: float = 1.0,
        mask_weight: float = 1.0,
        dice_weight: float = 1.0,
        *,
        mask_term: MaskTerm | None = None,
        point_rule: PointRule | None = None,
        on_nonfinite: str = "raise",
    ) -> None:
        """Set the terms of the cost and the points at which masks are compared.

        Args:
            class_weight, mask_weight, dice_weight: weight of each term of the cost.
            mask_term: per-pixel cost of masks; None: focal.
            point_rule: compare masks at ``num_points`` random points, the same for all queries,
                layers and targets of an image. None: at all pixels of the prediction.
            on_nonfinite: "raise" an error if a cost is NaN or infinite, or "sanitize" it: replace
                it by a high cost. ``num_sanitized`` counts the replaced costs.

        Raises:
            ValueError: if all weights are 0, because all assignments would cost the same, or if
                ``on_nonfinite`` is unknown.
        """
        super().__init__()
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(
                f"MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is {on_nonfinite!r}; it must be in "
                f"{list(ON_NONFINITE)}."
            )
        if not (class_weight or mask_weight or dice_weight):
            raise ValueError(
                "All matching weights are 0, so all assignments would cost the same: set "
                "CLASS_WEIGHT, MASK_WEIGHT or DICE_WEIGHT of MODEL.MASK_FORMER above 0."
            )
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.mask_term = mask_term or FocalTerm()
        self.point_rule = point_rule
        self.fixed_points: Tensor | None = None
        """P×2 points in [0, 1]² that replace the random points; None: random."""
        self.on_nonfinite = on_nonfinite
        self.num_sanitized = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            "class_weight": node.CLASS_WEIGHT,
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "on_nonfinite": node.MATCHER.ON_NONFINITE,
        }

    def forward(self, outputs: Prediction, targets: Sequence[Target]) -> list[Match]:
        """Match the prediction of one layer. Returns a match for each image."""
        return self.match_layers([outputs], targets)[0]

    @torch.no_grad()
    def match_layers(
        self, layers: Sequence[Prediction], targets: Sequence[Target]
    ) -> list[list[Match]]:
        """Match each layer separately, but share the common work.

        Targets are resized to the size of the predictions once, all layers of an image share one
        matrix product, and all costs are copied to the CPU together.

        Args:
            layers: L predictions.
            targets: one dict for each of the B images.

        Returns:
            L lists of B matches.

        Raises:
            ValueError: if a label is not a class.
            NonFiniteError: if a cost is not finite, unless costs are sanitized.
        """
        costs = [self._image_costs(layers, index, target) for index, target in enumerate(targets)]
        parts = [
            target["labels"].to(cost.device) for target, cost in zip(targets, costs, strict=True)
        ]
        # Labels are copied with the costs, because checking them on a GPU would synchronise again.
        flat = torch.cat([part.flatten() for part in parts + costs]).cpu()
        labels_and_costs = flat.split([part.numel() for part in parts + costs])
        _check_labels(labels_and_costs[: len(targets)], layers[0]["pred_logits"].shape[-1] - 1)
        matrices = [
            values.view(cost.shape).numpy()
            for values, cost in zip(labels_and_costs[len(targets) :], costs, strict=True)
        ]
        for image, matrix in enumerate(matrices):
            if not np.isfinite(matrix).all():
                self._handle_nonfinite(matrix, layers, image, targets[image])
        return [[self.assign(matrix[index]) for matrix in matrices] for index in range(len(layers))]

    def assign(self, cost: np.ndarray) -> Match:
        """Find the cheapest assignment of a Q×N cost matrix."""
        queries, targets = linear_sum_assignment(cost)
        return Match(torch.as_tensor(queries), torch.as_tensor(targets))

    def _handle_nonfinite(
        self, costs: np.ndarray, layers: Sequence[Prediction], image: int, target: Target
    ) -> None:
        """Sanitize the costs of an image, L×Q×N, or raise an error that names the broken terms."""
        count = (~np.isfinite(costs)).sum((1, 2))
        layer = int(count.argmax())
        which = (
            f"Image {image} of the batch, decoder layer {layer + 1} of {len(layers)}: "
            f"{count[layer]} of {costs[layer].size} matching costs are NaN or infinite"
        )
        if self.on_nonfinite == "raise":
            terms = self._cost_terms([layers[layer]], image, target)
            broken = [name for name, term in terms.items() if not term.isfinite().all()]
            raise NonFiniteError(
                f"{which} (terms: {', '.join(broken) or 'their sum'}). The predictions are broken, "
                "which usually means that training diverged: lower SOLVER.BASE_LR, or look for "
                "broken images. MODEL.MASK_FORMER.MATCHER.ON_NONFINITE 'sanitize' replaces such "
                "costs and continues.",
                image=image,
            )
        before = self.num_sanitized
        self.num_sanitized += sanitize_costs(costs)
        if self.num_sanitized.bit_length() > before.bit_length():  # whenever it has doubled
            logging.getLogger(__name__).warning(
                f"{which}. They were replaced by a high cost, because MODEL.MASK_FORMER.MATCHER."
                f"ON_NONFINITE is 'sanitize'; {self.num_sanitized} were replaced so far."
            )

    def _image_costs(self, layers: Sequence[Prediction], index: int, target: Target) -> Tensor:
        """Compute the costs of all queries of all layers for the targets of an image: L×Q×N."""
        terms = self._cost_terms(layers, index, target)
        return terms["class"] + (terms["mask"] + terms["dice"])

    def _cost_terms(
        self, layers: Sequence[Prediction], index: int, target: Target
    ) -> dict[str, Tensor]:
        """Compute the weighted terms of the cost, each L×Q×N."""
        logits = torch.stack([layer["pred_logits"][index] for layer in layers]).float()
        # _check_labels reports wrong labels later; as an index they would crash a GPU's kernel.
        labels = target["labels"].to(logits.device).clamp(0, logits.shape[-1] - 1)
        classes = -self.class_weight * logits.softmax(-1)[..., labels]
        with torch.autocast(logits.device.type, enabled=False):
            mask, dice = self._mask_costs([layer["pred_masks"][index] for layer in layers], target)
        return {
            "class": classes,
            "mask": (self.mask_weight * mask).view_as(classes),
            "dice": (self.dice_weight * dice).view_as(classes),
        }

    def _mask_costs(self, maps: Sequence[Tensor], target: Target) -> tuple[Tensor, Tensor]:
        """Compare L maps Q×h×w with an image's targets: mask term and dice loss, each (L·Q)×N."""
        device = maps[0].device
        masks, valid = target["masks"].to(device), target.get("valid")
        if valid is not None:
            valid = valid.to(device)[None]
        if self.point_rule is None:
            size = (maps[0].shape[-2], maps[0].shape[-1])
            rows = [layer.flatten(1) for layer in maps]
            masks = resize_targets(masks, size).flatten(1)
            valid = None if valid is None else resize_targets(valid, size).flatten()
        else:
            points = self.fixed_points
            if points is None:
                points = random_points(self.point_rule.num_points, device)
            points = points.to(device)
            rows = [self.point_rule.read_logits(layer, points) for layer in maps]
            masks = self.point_rule.mask_reader(masks)(points)
            valid = None if valid is None else read_pixels(valid, points)[0]
        return mask_losses(pairwise_mask_sums(self.mask_term, rows, masks, valid))


def _check_labels(labels: Sequence[Tensor], num_classes: int) -> None:
    # The label K would silently be trained as "no object".
    for image, image_labels in enumerate(labels):
        wrong = {int(label) for label in image_labels.tolist() if not 0 <= label < num_classes}
        if wrong:
            raise ValueError(
                f"The targets of image {image} of the batch have the labels {sorted(wrong)}, "
                f"but class ids are 0 … {num_classes - 1}; set "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES to the dataset's number of classes, or correct the "
                "labels."
            )
