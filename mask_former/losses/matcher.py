"""Bipartite matching of queries and targets (paper, section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mask_former.structures import Match, Prediction, Target

from .mask_losses import pairwise_mask_costs
from .nonfinite import ON_NONFINITE, NonFiniteError, mend_costs
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
        on_nonfinite: str = "raise",
    ) -> None:
        """
        Args:
            class_weight, mask_weight, dice_weight: the weight of each term of the cost.
            sampling: compare masks at that many random points, the same for everything in an
                image. None: at all pixels of the prediction.
            on_nonfinite: "raise" an error where a cost is NaN or infinite, or "sanitize": replace
                it by a high one. `mended` counts those.

        Raises:
            ValueError: if all weights are 0, for then every assignment costs the same, or for
                another ``on_nonfinite``.
        """
        super().__init__()
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(
                f"MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is {on_nonfinite!r}; it must be in "
                f"{list(ON_NONFINITE)}."
            )
        if not (class_weight or mask_weight or dice_weight):
            raise ValueError("All matching weights are 0: nothing would decide the assignment.")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.sampling = sampling
        self.on_nonfinite = on_nonfinite
        self.mended = 0

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
            ValueError: if a label is no class.
            NonFiniteError: where a cost is not finite, unless costs are sanitized.
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
        for image, matrix in enumerate(matrices):
            if not np.isfinite(matrix).all():
                self._handle_nonfinite(matrix, layers, image, targets[image])
        return [[_assign(matrix[index]) for matrix in matrices] for index in range(len(layers))]

    def _handle_nonfinite(
        self, costs: np.ndarray, layers: Sequence[Prediction], image: int, target: Target
    ) -> None:
        """Mend the costs of an image, L×Q×N, or raise an error that says which are broken."""
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
                "broken images. MODEL.MASK_FORMER.MATCHER.ON_NONFINITE 'sanitize' matches all the "
                "same.",
                image=image,
            )
        before = self.mended
        self.mended += mend_costs(costs)
        if self.mended.bit_length() > before.bit_length():  # each time the number has doubled
            logging.getLogger(__name__).warning(
                f"{which}; replaced by a high cost, as MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is "
                f"'sanitize'. {self.mended} were mended so far."
            )

    def _image_costs(self, layers: Sequence[Prediction], index: int, target: Target) -> Tensor:
        """L×Q×N, fp32: what each query of each layer would cost for each target of one image."""
        terms = self._cost_terms(layers, index, target)
        return terms["class"] + (terms["focal"] + terms["dice"])

    def _cost_terms(
        self, layers: Sequence[Prediction], index: int, target: Target
    ) -> dict[str, Tensor]:
        """What the cost is the sum of, each term weighted and of the cost's shape."""
        logits = torch.stack([layer["pred_logits"][index] for layer in layers]).float()
        # A label that is no class is found later on; here it must not bring a GPU to a halt.
        labels = target["labels"].to(logits.device).clamp(0, logits.shape[-1] - 1)
        classes = -self.class_weight * logits.softmax(-1)[..., labels]
        with torch.autocast(logits.device.type, enabled=False):
            focal, dice = self._mask_costs([layer["pred_masks"][index] for layer in layers], target)
        return {
            "class": classes,
            "focal": (self.mask_weight * focal).view_as(classes),
            "dice": (self.dice_weight * dice).view_as(classes),
        }

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
    """The cheapest assignment of a Q×N cost matrix."""
    queries, targets = linear_sum_assignment(cost)
    return Match(torch.as_tensor(queries), torch.as_tensor(targets))
