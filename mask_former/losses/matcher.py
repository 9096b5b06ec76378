"""Bipartite matching of queries and targets (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..structures import Match, Prediction, Target
from .mask_losses import pairwise_dice_cost, pairwise_focal_cost

__all__ = ["HungarianMatcher", "resize_targets"]


def resize_targets(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool masks N×H×W brought to ``size`` (nearest), as float N×h×w."""
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.float32)
    # uint8 is the smallest type that nearest sampling takes: the full masks never become float.
    small = F.interpolate(masks[:, None].to(torch.uint8), size=size, mode="nearest")[:, 0]
    return small.float()


class HungarianMatcher(nn.Module):
    """Gives each target the query that suits it best, one query to one target.

    The cost of a pair is ``-p(class) + mask_weight · focal + dice_weight · dice``. Where an image
    has more targets than queries, the cheapest assignment leaves the surplus targets out.
    """

    def __init__(
        self, class_weight: float = 1.0, mask_weight: float = 1.0, dice_weight: float = 1.0
    ) -> None:
        """Args: the weight of each term of the cost.

        Raises:
            ValueError: if all are 0, for then every assignment costs the same.
        """
        super().__init__()
        if not (class_weight or mask_weight or dice_weight):
            raise ValueError("All matching weights are 0: nothing would decide the assignment.")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

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
        """
        costs = [self._image_costs(layers, index, target) for index, target in enumerate(targets)]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        matches: list[list[Match]] = [[] for _ in layers]
        start = 0
        for cost in costs:
            for of_layer, matrix in zip(
                matches, flat[start : start + cost.numel()].reshape(cost.shape), strict=True
            ):
                of_layer.append(_assign(matrix))
            start += cost.numel()
        return matches

    def _image_costs(self, layers: Sequence[Prediction], index: int, target: Target) -> Tensor:
        """L×Q×N, fp32: what each query of each layer would cost for each target of one image."""
        logits = torch.stack([layer["pred_logits"][index] for layer in layers]).float()
        masks = torch.stack([layer["pred_masks"][index] for layer in layers]).float()
        height, width = masks.shape[-2:]
        small = resize_targets(target["masks"].to(masks.device), (height, width)).flatten(1)
        cost = -self.class_weight * logits.softmax(-1)[..., target["labels"]]
        with torch.autocast(masks.device.type, enabled=False):
            rows = masks.flatten(0, 1).flatten(1)
            mask_cost = self.mask_weight * pairwise_focal_cost(rows, small)
            mask_cost += self.dice_weight * pairwise_dice_cost(rows, small)
        return cost + mask_cost.view_as(cost)


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
