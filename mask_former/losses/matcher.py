"""Bipartite matching of queries and targets (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..structures import Match, Prediction, Target
from .mask_losses import pairwise_mask_costs
from .point_sampling import PointSampling, random_points, read_logits, read_masks

__all__ = ["HungarianMatcher", "resize_targets"]


def resize_targets(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool masks N×H×W brought to ``size`` (nearest): N×h×w, bool."""
    if not len(masks):
        return masks.new_zeros((0, *size))
    # uint8 is the smallest type that nearest sampling takes, and the same bytes: nothing is copied.
    small = F.interpolate(masks[:, None].view(torch.uint8), size=size, mode="nearest")[:, 0]
    return small.view(torch.bool)


class HungarianMatcher(nn.Module):
    """Gives each target the query that suits it best, one query to one target.

    The cost of a pair is ``-p(class) + mask_weight · focal + dice_weight · dice``. Where an image
    has more targets than queries, the cheapest assignment leaves the surplus targets out.
    """

    def __init__(
        self,
        class_weight: float = 1.0,
        mask_weight: float = 1.0,
        dice_weight: float = 1.0,
        *,
        sampling: PointSampling | None = None,
    ) -> None:
        """
        Args:
            class_weight, mask_weight, dice_weight: the weight of each term of the cost.
            sampling: compare masks at that many random points, the same for everything in an
                image. None: at all pixels of the prediction.

        Raises:
            ValueError: if all weights are 0, for then every assignment costs the same.
        """
        super().__init__()
        if not (class_weight or mask_weight or dice_weight):
            raise ValueError("All matching weights are 0: nothing would decide the assignment.")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.sampling = sampling

    def forward(self, outputs: Prediction, targets: Sequence[Target]) -> list[Match]:
        """Match one layer's prediction. Returns a match for each image."""
        return self.match_layers([outputs], targets)[0]

    @torch.no_grad()
    def match_layers(
        self, layers: Sequence[Prediction], targets: Sequence[Target]
    ) -> list[list[Match]]:
        """Match each layer on its own, sharing what they have in common.

        Targets are brought to the size of the predictions once, all layers of an image share
        one product, and all costs travel to the CPU together.

        Args:
            layers: L predictions.
            targets: one for each of the B images.

        Returns:
            L lists of B matches.

        Raises:
            ValueError: if a label is no class, or where a cost is not finite.
        """
        costs = [self._image_costs(layers, index, target) for index, target in enumerate(targets)]
        parts = [
            target["labels"].to(cost.device) for target, cost in zip(targets, costs, strict=True)
        ]
        # The labels come along: looking at them on a GPU would be one more wait for it.
        flat = torch.cat([part.flatten() for part in parts + costs]).cpu()
        labels_and_costs = flat.split([part.numel() for part in parts + costs])
        _check_labels(labels_and_costs[: len(targets)], layers[0]["pred_logits"].shape[-1] - 1)
        matrices = [
            values.view(cost.shape).numpy()
            for values, cost in zip(labels_and_costs[len(targets) :], costs, strict=True)
        ]
        return [[_assign(matrix[index]) for matrix in matrices] for index in range(len(layers))]

    def _image_costs(self, layers: Sequence[Prediction], index: int, target: Target) -> Tensor:
        """L×Q×N, fp32: what each query of each layer would cost for each target of one image."""
        logits = torch.stack([layer["pred_logits"][index] for layer in layers]).float()
        # A label that is no class is found later on; here it must not bring a GPU to a halt.
        labels = target["labels"].to(logits.device).clamp(0, logits.shape[-1] - 1)
        cost = -self.class_weight * logits.softmax(-1)[..., labels]
        with torch.autocast(logits.device.type, enabled=False):
            focal, dice = self._mask_costs([layer["pred_masks"][index] for layer in layers], target)
        mask_cost = self.mask_weight * focal + self.dice_weight * dice
        return cost + mask_cost.view_as(cost)

    def _mask_costs(self, maps: Sequence[Tensor], target: Target) -> tuple[Tensor, Tensor]:
        """Focal and dice, LQ×N, of L maps Q×h×w with the targets of one image."""
        device = maps[0].device
        masks, valid = target["masks"].to(device), target.get("valid")
        if valid is not None:
            valid = valid.to(device)[None]
        if self.sampling is None:
            size = (maps[0].shape[-2], maps[0].shape[-1])
            rows = [layer.flatten(1) for layer in maps]
            masks = resize_targets(masks, size).flatten(1)
            valid = None if valid is None else resize_targets(valid, size).flatten()
        else:
            points = random_points(self.sampling.num_points, device)
            rows = [read_logits(layer, points) for layer in maps]
            masks = read_masks(masks, points)
            valid = None if valid is None else read_masks(valid, points)[0]
        return pairwise_mask_costs(rows, masks, valid)


def _check_labels(labels: Sequence[Tensor], num_classes: int) -> None:
    # K would quietly train as "no object".
    for image, of_image in enumerate(labels):
        wrong = {int(label) for label in of_image.tolist() if not 0 <= label < num_classes}
        if wrong:
            raise ValueError(
                f"The targets of image {image} of the batch have the labels {sorted(wrong)}, "
                f"but class ids are 0 … {num_classes - 1}; set "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES to the data's classes, or mend the data."
            )


def _assign(cost: np.ndarray) -> Match:
    """The cheapest assignment of a Q×N cost matrix.

    Raises:
        ValueError: where a cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError(
            f"{int((~np.isfinite(cost)).sum())} of {cost.size} matching costs are NaN or infinite: "
            "the predictions are broken, which usually means that training diverged. Lower "
            "SOLVER.BASE_LR, or look for broken images."
        )
    queries, targets = linear_sum_assignment(cost)
    return Match(torch.as_tensor(queries), torch.as_tensor(targets))
