"""Match predictions to targets, then compute the losses of the matched pairs of each layer."""

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
        divide_by_matched: bool = False,
    ) -> None:
        """Combine a matcher with losses.

        Args:
            num_classes: K, without "no object".
            matcher: solves the assignment of each layer; see
                :func:`~mask_former.losses.build.build_matcher`.
            no_object_weight: weight of "no object" in the cross-entropy; that of the classes is 1.
            losses: set losses by name; None: classification and masks.
            mask_term: per-pixel loss of masks; None: focal.
            point_rule: the points of the mask losses; None: all pixels.
            divide_by_matched: divide the mask losses by the number of matched pairs, not of
                targets, which is larger if an image has more targets than queries.
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher: Any = matcher
        self.mask_term = mask_term or FocalTerm()
        self.point_rule = point_rule
        self.divide_by_matched = divide_by_matched
        self.fixed_points: Tensor | None = None
        """P×2 points in [0, 1]² that replace the random points of every mask; None: random."""
        if losses is None:
            losses = {"labels": ClassificationLoss(), "masks": MaskLoss()}
        self.losses = dict(losses)
        self.loss_weights = {
            name: weight
            for loss in self.losses.values()
            for name, weight in getattr(loss, "weights", {}).items()
        }
        """Weight of each term by its name without a layer's suffix; that of other terms is 1."""
        # The published weights contain a buffer of this name.
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
            "divide_by_matched": _divides_by_matched(cfg),
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
            outputs: output of the head.
            targets: one dict per image, with masks of one size; N may be 0.
            batch_counts: if this batch is a part of a larger one on this rank, the number of
                targets of each image of the larger batch. Losses are then normalised over the
                larger batch, so that the losses of its parts add up to its own. None: this is the
                whole batch.

        Returns:
            Scalars by name: ``loss_ce``, ``loss_mask`` and ``loss_dice`` of the last layer, and
            those of earlier layers with the suffixes ``_0 … _{L-2}``.

        Raises:
            ValueError: if outputs and targets contradict each other: in the number of images or
                classes, in a label, or in the shape or type of targets.
            NonFiniteError: if a matching cost is not finite; see the matcher.
        """
        self._check(outputs, targets)
        queries = outputs["pred_logits"].shape[1]
        self._warn_of_surplus(queries, targets)
        counts = batch_counts or _counts(targets)
        if self.divide_by_matched:
            counts = [min(count, queries) for count in counts]
        layers = layer_predictions(outputs)
        batch = MatchedBatch(
            layers=layers,
            targets=targets,
            matches=self.matcher.match_layers(layers, targets),
            num_targets=self._average_num_targets(counts),
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
                f"An image has {most} targets, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
                f"{queries}: {most - queries} of them are left out of the losses, and no "
                f"prediction can contain them all. Set the key to {most} or more. (This is logged "
                "once.)"
            )

    def _average_num_targets(self, counts: Sequence[int]) -> Tensor:
        """Average the number of targets over the ranks, at least 1.

        Targets thus have the same weight on all ranks. In evaluation mode, use the number of this
        rank, because ranks may have different numbers of validation batches.
        """
        # new_full, unlike new_tensor, does not synchronise with a GPU
        count = self.empty_weight.new_full((), sum(counts))
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _total_weight(self, outputs: Outputs, batch_counts: Sequence[int] | None) -> Tensor | None:
        """Sum the weights of the cross-entropy over the larger batch; None without one."""
        if batch_counts is None:
            return None
        queries = outputs["pred_logits"].shape[1]
        matched = sum(min(count, queries) for count in batch_counts)
        unmatched = queries * len(batch_counts) - matched
        return matched + self.empty_weight[-1] * unmatched  # the weight of a class is 1

    def _check(self, outputs: Outputs, targets: Sequence[Target]) -> None:
        images = len(outputs["pred_logits"])
        if len(targets) != images:
            raise ValueError(
                f"The outputs are for {images} images, but there are targets for {len(targets)}; "
                "give one dict for each image."
            )
        sizes = {tuple(target["masks"].shape[-2:]) for target in targets}
        if len(sizes) > 1:
            raise ValueError(f"Masks of a batch must have one size, got {sorted(sizes)} (H, W).")
        for index, target in enumerate(targets):
            _check_target(index, target)
        self._check_valid(targets)
        classes = outputs["pred_logits"].shape[-1] - 1
        if classes != self.num_classes:
            raise ValueError(
                f"The predictor has {classes} classes and the criterion {self.num_classes}; build "
                "both with the same MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )

    def _check_valid(self, targets: Sequence[Target]) -> None:
        if not any("valid" in target for target in targets):
            return
        for index, target in enumerate(targets):
            if "valid" not in target:
                raise ValueError(
                    f"Target {index} has no 'valid' map, but others of the batch have one; give "
                    "it to all targets of a batch or to none."
                )
            found, size = tuple(target["valid"].shape), tuple(target["masks"].shape[-2:])
            if found != size:
                raise ValueError(
                    f"The 'valid' map of target {index} is {found}, but its masks are {size} "
                    "(H, W); both must have the same size."
                )


def _check_target(index: int, target: Target) -> None:
    labels, masks = target["labels"], target["masks"]
    found = [(tuple(part.shape), part.dtype) for part in (labels, masks)]
    if found != [((len(masks),), torch.int64), ((len(masks), *masks.shape[-2:]), torch.bool)]:
        raise ValueError(
            f"Target {index} of the batch has labels of shape {found[0][0]} and {found[0][1]} and "
            f"masks of shape {found[1][0]} and {found[1][1]}; expected N labels, torch.int64, and "
            "N×H×W masks, torch.bool."
        )


def _divides_by_matched(cfg: CfgNode) -> bool:
    divisor = cfg.MODEL.MASK_FORMER.MASK_LOSS_DIVISOR
    if divisor not in ("targets", "matched"):
        raise ValueError(
            f"MODEL.MASK_FORMER.MASK_LOSS_DIVISOR is {divisor!r}, expected 'targets' or 'matched'."
        )
    return divisor == "matched"


def _counts(targets: Sequence[Target]) -> list[int]:
    return [len(target["labels"]) for target in targets]
