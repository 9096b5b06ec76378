"""Matching, then the losses of the matched set, for every supervised layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..registries import LOSS_REGISTRY, lookup
from ..structures import Outputs, Target, layer_predictions
from .matcher import HungarianMatcher
from .set_losses import MatchedBatch

__all__ = ["SetCriterion"]

DEFAULT_LOSSES = ("labels", "masks")


class SetCriterion(nn.Module):
    """The training objective of the paper (section 3.2), with deep supervision."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        no_object_weight: float,
        losses: Sequence[str] = DEFAULT_LOSSES,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            matcher: solves the assignment of each layer.
            no_object_weight: weight of "no object" in the cross-entropy; the classes weigh 1.
            losses: registered names of the set losses.

        Raises:
            KeyError: for an unknown loss.
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.losses = {
            name: lookup(LOSS_REGISTRY, name, "MODEL.MASK_FORMER.LOSSES") for name in losses
        }
        # A buffer of this name is part of the published weights.
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight)

    def forward(self, outputs: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The unweighted losses.

        Args:
            outputs: the head's output.
            targets: one for each image; their masks share one size. An image may have none.

        Returns:
            Scalars by name: the last layer's under the term's own name (``loss_ce``,
            ``loss_mask``, ``loss_dice``), those of earlier layers with ``_0 … _{L-2}`` behind it.

        Raises:
            ValueError: if a label or the number of targets does not fit the model.
        """
        self._check(outputs, targets)
        layers = layer_predictions(outputs)
        batch = MatchedBatch(
            layers=layers,
            targets=targets,
            matches=self.matcher.match_layers(layers, targets),
            num_targets=self._average_num_targets(targets),
            class_weight=self.empty_weight,
        )
        suffixes = [*(f"_{index}" for index in range(len(layers) - 1)), ""]
        with torch.autocast(self.empty_weight.device.type, enabled=False):
            terms = {k: v for loss in self.losses.values() for k, v in loss(batch).items()}
        return {
            name + suffix: value
            for name, values in terms.items()
            for suffix, value in zip(suffixes, values.unbind(), strict=True)
        }

    def _average_num_targets(self, targets: Sequence[Target]) -> Tensor:
        """Targets a rank has on average, at least 1: so ranks with few targets weigh no more."""
        count = self.empty_weight.new_tensor(float(sum(len(t["labels"]) for t in targets)))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _check(self, outputs: Outputs, targets: Sequence[Target]) -> None:
        images = len(outputs["pred_logits"])
        if len(targets) != images:
            raise ValueError(
                f"{images} images were predicted, but there are {len(targets)} targets"
            )
        sizes = {tuple(target["masks"].shape[-2:]) for target in targets}
        if len(sizes) > 1:
            raise ValueError(f"All target masks of a batch must have one size, got {sorted(sizes)}")
        classes = outputs["pred_logits"].shape[-1] - 1
        if classes != self.num_classes:
            raise ValueError(
                f"The predictor has {classes} classes and the criterion {self.num_classes}; both "
                "come from MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )
        self._check_labels([target["labels"] for target in targets])

    def _check_labels(self, labels: Sequence[Tensor]) -> None:
        # K would quietly train as "no object", and a larger label bring a GPU to a halt.
        flat = torch.cat(list(labels))
        if not ((flat < 0) | (flat >= self.num_classes)).any():
            return
        for image, of_image in enumerate(labels):
            wrong = {label for label in of_image.tolist() if not 0 <= label < self.num_classes}
            if wrong:
                raise ValueError(
                    f"The targets of image {image} of the batch have the labels {sorted(wrong)}, "
                    f"but class ids are 0 … {self.num_classes - 1}; set "
                    "MODEL.SEM_SEG_HEAD.NUM_CLASSES to the data's classes, or mend the data."
                )
