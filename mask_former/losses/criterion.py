"""Match predictions and targets, then compute the losses of the matched set, layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from mask_former.ops.mask_sums import MaskTerm
from mask_former.registries import CRITERION_REGISTRY
from mask_former.structures import Outputs, Target, layer_predictions

from .build import build_losses, build_mask_term, build_matcher, build_point_rule
from .mask_terms import FocalTerm
from .point_sampling import PointRule
from .set_losses import ClassificationLoss, MaskLoss, MatchedBatch

__all__ = ["SetCriterion"]


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """The training objective of the paper (section 3.2), with deep supervision."""

    empty_weight: Tensor

    @configurable
    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        *,
        no_object_weight: float,
        losses: Mapping[str, Callable[[MatchedBatch], dict[str, Tensor]]] | None = None,
        mask_term: MaskTerm | None = None,
        point_rule: PointRule | None = None,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            matcher: solves the assignment of each layer; see
                :func:`~mask_former.losses.build.build_matcher`.
            no_object_weight: weight of "no object" in the cross-entropy; the classes weigh 1.
            losses: set losses by name; None: classification and masks.
            mask_term: the loss of a pixel; None: focal.
            point_rule: the points of the mask losses; None: all pixels.
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher: Any = matcher
        self.mask_term = mask_term or FocalTerm()
        self.point_rule = point_rule
        self.fixed_points: Tensor | None = None
        """P×2 points in [0, 1]², used for every mask in place of random ones if not None."""
        if losses is None:
            losses = {"labels": ClassificationLoss(), "masks": MaskLoss()}
        self.losses = dict(losses)
        self.loss_weights = {
            name: weight
            for loss in self.losses.values()
            for name, weight in getattr(loss, "weights", {}).items()
        }
        """The weight of each term by its name without a layer's suffix; others weigh 1."""
        # A buffer of this name is part of the published weights.
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight)
        self._warned_of_surplus = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        shared = {"mask_term": build_mask_term(cfg), "point_rule": build_point_rule(cfg)}
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": build_matcher(cfg, **shared),
            "no_object_weight": cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT,
            "losses": build_losses(cfg),
            **shared,
        }

    def forward(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        *,
        batch_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the unweighted losses.

        Args:
            outputs: the head's output.
            targets: one for each image; their masks share one size. An image may have none.
            batch_counts: the number of targets of each image of a larger batch on this rank that
                this batch is a part of: losses are normalised over the larger batch, so those of
                its parts add up to those of the whole. None: this batch is the whole.

        Returns:
            Scalars by name: the last layer's under the term's own name (``loss_ce``,
            ``loss_mask``, ``loss_dice``), those of earlier layers with the suffix ``_0 … _{L-2}``.

        Raises:
            ValueError: if a label, the number of targets or the map of pixels that count does not
                fit.
            NonFiniteError: if a matching cost is not finite; see the matcher.
        """
        self._check(outputs, targets)
        self._warn_of_surplus(outputs["pred_logits"].shape[1], targets)
        layers = layer_predictions(outputs)
        batch = MatchedBatch(
            layers=layers,
            targets=targets,
            matches=self.matcher.match_layers(layers, targets),
            num_targets=self._average_num_targets(batch_counts or _counts(targets)),
            class_weight=self.empty_weight,
            mask_term=self.mask_term,
            point_rule=self.point_rule,
            total_weight=self._total_weight(outputs, batch_counts),
            fixed_points=self.fixed_points,
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
        """Warn once that an image has more targets than there are queries to predict them."""
        most = max(_counts(targets), default=0)
        if most > queries and not self._warned_of_surplus:
            self._warned_of_surplus = True
            logging.getLogger(__name__).warning(
                f"An image has {most} targets, and MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
                f"{queries}: {most - queries} of them are left out of the losses, and no result "
                f"could contain them all. Set it to {most} or more. (This is logged once.)"
            )

    def _average_num_targets(self, counts: Sequence[int]) -> Tensor:
        """Average the number of targets over the ranks, at least 1.

        So images on ranks with few targets weigh no more than others. In evaluation mode only
        this rank counts: ranks may have different numbers of validation batches.
        """
        # full, not tensor: a GPU fills it in without waiting
        count = self.empty_weight.new_full((), sum(counts))
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _total_weight(self, outputs: Outputs, batch_counts: Sequence[int] | None) -> Tensor | None:
        """Sum the cross-entropy's weights over the larger batch that this one is a part of."""
        if batch_counts is None:
            return None
        queries = outputs["pred_logits"].shape[1]
        matched = sum(min(count, queries) for count in batch_counts)
        unmatched = queries * len(batch_counts) - matched
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


def _counts(targets: Sequence[Target]) -> list[int]:
    return [len(target["labels"]) for target in targets]
