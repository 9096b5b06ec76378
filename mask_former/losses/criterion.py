"""Matching, then the losses of the matched set, for every supervised layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mask_former.registries import LOSS_REGISTRY, lookup
from mask_former.structures import Outputs, Target, layer_predictions

from .matcher import HungarianMatcher
from .point_sampling import PointSampling
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
        sampling: PointSampling | None = None,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            matcher: solves the assignment of each layer.
            no_object_weight: weight of "no object" in the cross-entropy; the classes weigh 1.
            losses: registered names of the set losses.
            sampling: the points of the mask losses. None: all pixels.

        Raises:
            KeyError: for an unknown loss.
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.sampling = sampling
        self.losses = {
            name: lookup(LOSS_REGISTRY, name, "MODEL.MASK_FORMER.LOSSES") for name in losses
        }
        # A buffer of this name is part of the published weights.
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight)
        self._whole_batch: Sequence[int] | None = None
        self._said_surplus = False

    @contextmanager
    def part_of(self, counts: Sequence[int]) -> Iterator[None]:
        """Within it, a batch is a part of a larger one, and its losses are normalised over that.

        The losses of the parts then add up to those of the whole.

        Args:
            counts: targets of each image of the whole batch of this rank.
        """
        self._whole_batch = counts
        try:
            yield
        finally:
            self._whole_batch = None

    def forward(self, outputs: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The unweighted losses.

        Args:
            outputs: the head's output.
            targets: one for each image; their masks share one size. An image may have none.

        Returns:
            Scalars by name: the last layer's under the term's own name (``loss_ce``,
            ``loss_mask``, ``loss_dice``), those of earlier layers with ``_0 … _{L-2}`` behind it.

        Raises:
            ValueError: if a label, the number of targets or the pixels that count do not fit.
            NonFiniteError: where a matching cost is not finite; see the matcher.
        """
        self._check(outputs, targets)
        self._warn_of_surplus(outputs["pred_logits"].shape[1], targets)
        layers = layer_predictions(outputs)
        batch = MatchedBatch(
            layers=layers,
            targets=targets,
            matches=self.matcher.match_layers(layers, targets),
            num_targets=self._average_num_targets(targets),
            class_weight=self.empty_weight,
            total_weight=self._total_weight(outputs),
            sampling=self.sampling,
        )
        suffixes = [*(f"_{index}" for index in range(len(layers) - 1)), ""]
        with torch.autocast(self.empty_weight.device.type, enabled=False):
            terms = {k: v for loss in self.losses.values() for k, v in loss(batch).items()}
        return {
            name + suffix: value
            for name, values in terms.items()
            for suffix, value in zip(suffixes, values.unbind(), strict=True)
        }

    def _warn_of_surplus(self, queries: int, targets: Sequence[Target]) -> None:
        """Say once that an image has more targets than there are queries to predict them."""
        most = max((len(target["labels"]) for target in targets), default=0)
        if most > queries and not self._said_surplus:
            self._said_surplus = True
            logging.getLogger(__name__).warning(
                f"An image has {most} targets, and MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
                f"{queries}: {most - queries} of them are left out of the losses, and no result "
                f"could have them all. Set it to {most} or more. (This is said once.)"
            )

    def _average_num_targets(self, targets: Sequence[Target]) -> Tensor:
        """Targets a rank has on average, at least 1: so ranks with few targets weigh no more.

        In eval mode those of this rank alone: in validation ranks may have no batch in common.
        """
        own = [len(target["labels"]) for target in targets]
        # full, not tensor: a GPU fills it in without waiting
        count = self.empty_weight.new_full((), sum(self._whole_batch or own))
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _total_weight(self, outputs: Outputs) -> Tensor | None:
        """The weights in the cross-entropy of the whole batch that this one is a part of."""
        if self._whole_batch is None:
            return None
        queries = outputs["pred_logits"].shape[1]
        matched = sum(min(count, queries) for count in self._whole_batch)
        unmatched = queries * len(self._whole_batch) - matched
        return matched + self.empty_weight[-1] * unmatched  # classes weigh 1

    def _check(self, outputs: Outputs, targets: Sequence[Target]) -> None:
        images = len(outputs["pred_logits"])
        if len(targets) != images:
            raise ValueError(
                f"{images} images were predicted, but there are {len(targets)} targets"
            )
        sizes = {tuple(target["masks"].shape[-2:]) for target in targets}
        if len(sizes) > 1:
            raise ValueError(f"All target masks of a batch must have one size, got {sorted(sizes)}")
        self._check_valid(targets)
        classes = outputs["pred_logits"].shape[-1] - 1
        if classes != self.num_classes:
            raise ValueError(
                f"The predictor has {classes} classes and the criterion {self.num_classes}; both "
                "come from MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )

    def _check_valid(self, targets: Sequence[Target]) -> None:
        if not any("valid" in target for target in targets):
            return
        for index, target in enumerate(targets):
            if "valid" not in target:
                raise ValueError(
                    f"Target {index} has no 'valid' map, but others have; give it to all targets "
                    "of a batch or to none."
                )
            found, size = tuple(target["valid"].shape), tuple(target["masks"].shape[-2:])
            if found != size:
                raise ValueError(
                    f"The 'valid' map of target {index} is {found}, and its masks are {size}; both "
                    "must have one size."
                )
