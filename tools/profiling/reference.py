"""The model with the paper's formulas in their plainest form, a reference for speed and memory.

It stands in for the published code and does the same work: each matched mask is upsampled to full
size and compared there, layers and images are matched one after another, the masks of all queries
are upsampled before any query is dropped, every decoder layer predicts in inference, Swin is
detectron2's, and the memory layout is that of the images. Pixel decoder and transformer decoder are
this package's. The results are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask_former.inference import ImageLogits, SegmentationLogits
from mask_former.losses import HungarianMatcher, SetCriterion
from mask_former.modeling import all_predictions
from mask_former.modeling.mask_former import MaskFormer
from mask_former.structures import (
    Match,
    Outputs,
    Prediction,
    SegmentInfo,
    Target,
    layer_predictions,
)

__all__ = [
    "ReferenceCriterion",
    "ReferenceMaskFormer",
    "ReferenceMatcher",
    "build_reference_model",
]

_FOCAL = {"alpha": 0.25, "gamma": 2.0}


class ReferenceMatcher(HungarianMatcher):
    """Matcher that processes one layer and one image after another."""

    @torch.no_grad()
    def match_layers(
        self, layers: Sequence[Prediction], targets: Sequence[Target]
    ) -> list[list[Match]]:
        """Match each image of each layer."""
        return [
            [
                self._match(layer["pred_logits"][image], layer["pred_masks"][image], target)
                for image, target in enumerate(targets)
            ]
            for layer in layers
        ]

    def _match(self, logits: Tensor, masks: Tensor, target: Target) -> Match:
        """Match Q×(K+1) class logits and Q×h×w mask logits to the targets of one image."""
        ground_truth = F.interpolate(
            target["masks"][:, None].float(), size=masks.shape[-2:]
        ).flatten(1)
        rows = masks.flatten(1).float()
        inside = sigmoid_focal_loss(rows, torch.ones_like(rows), **_FOCAL)
        outside = sigmoid_focal_loss(rows, torch.zeros_like(rows), **_FOCAL)
        focal = (inside @ ground_truth.T + outside @ (1 - ground_truth).T) / rows.shape[1]
        probability = rows.sigmoid()
        area = probability.sum(1, keepdim=True) + ground_truth.sum(1)
        dice = 1 - (2 * probability @ ground_truth.T + 1) / (area + 1)
        cost = self.mask_weight * focal + self.dice_weight * dice
        cost = cost - self.class_weight * logits.softmax(-1)[:, target["labels"]]
        return Match(*map(torch.as_tensor, linear_sum_assignment(cost.float().cpu())))


class ReferenceCriterion(SetCriterion):
    """Criterion that computes one layer after another; its gradients come from autograd."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "matcher": ReferenceMatcher(cfg)}

    def forward(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        *,
        batch_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the same losses as :class:`SetCriterion` does in one process."""
        layers = layer_predictions(outputs)
        matches = self.matcher.match_layers(layers, targets)
        count = max(1, sum(batch_counts or [len(target["labels"]) for target in targets]))
        suffixes = [*(f"_{index}" for index in range(len(layers) - 1)), ""]
        return {
            name + suffix: value
            for suffix, layer, matched in zip(suffixes, layers, matches, strict=True)
            for name, value in self._layer_losses(layer, targets, matched, count).items()
        }

    def _layer_losses(
        self, layer: Prediction, targets: Sequence[Target], matches: Sequence[Match], count: int
    ) -> dict[str, Tensor]:
        logits, maps = layer["pred_logits"], layer["pred_masks"]
        labels = torch.full_like(logits[..., 0], self.num_classes, dtype=torch.int64)
        for image, (queries, numbers) in enumerate(matches):
            labels[image, queries] = targets[image]["labels"][numbers]
        chosen = torch.cat([maps[image, match.queries] for image, match in enumerate(matches)])
        masks = [
            target["masks"][match.targets] for target, match in zip(targets, matches, strict=True)
        ]
        size = targets[0]["masks"].shape[-2:]
        rows = F.interpolate(chosen[:, None], size=size, mode="bilinear").flatten(1).float()
        ground_truth, probability = torch.cat(masks).flatten(1).float(), rows.sigmoid()
        area = probability.sum(1) + ground_truth.sum(1)
        dice = 1 - (2 * (probability * ground_truth).sum(1) + 1) / (area + 1)
        focal = sigmoid_focal_loss(rows, ground_truth, **_FOCAL).mean(1)
        return {
            "loss_ce": F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight),
            "loss_mask": focal.sum() / count,
            "loss_dice": dice.sum() / count,
        }


class ReferenceLogits(ImageLogits):
    """Logits of an image whose results are computed from the upsampled masks of all queries."""

    @cached_property
    def masks(self) -> Tensor:
        """Mask logits, Q×H×W, upsampled to the padded input or resized to the output."""
        masks = F.interpolate(self.mask_pred[None].float(), self.padded_size, mode="bilinear")[0]
        if not self.resize_before_inference:
            return masks
        return sem_seg_postprocess(masks, self.image_size, *self.output_size)

    def semantic_scores(self) -> Tensor:
        scores = semantic_inference(self.mask_cls.float(), self.masks)
        if self.resize_before_inference:
            return scores
        return sem_seg_postprocess(scores, self.image_size, *self.output_size)

    def panoptic(
        self,
        *,
        thing_ids: Iterable[int],
        object_mask_threshold: float,
        overlap_threshold: float,
        label_ids_to_fuse: Iterable[int] | None = None,
    ) -> tuple[Tensor, list[SegmentInfo]]:
        things = set(thing_ids)
        stuff = set(range(self.num_classes)) - things
        return panoptic_inference(
            self.mask_cls.float(),
            self.masks,
            things,
            stuff if label_ids_to_fuse is None else set(label_ids_to_fuse),
            object_mask_threshold,
            overlap_threshold,
        )

    def instances(self, *, topk: int, thing_ids: Iterable[int] | None = None) -> Instances:
        return instance_inference(self.mask_cls.float(), self.masks, topk, thing_ids or ())


def semantic_inference(mask_cls: Tensor, masks: Tensor) -> Tensor:
    """Convert Q×(K+1) class and Q×H×W mask logits to class scores, K×H×W."""
    return torch.einsum("qk,qhw->khw", mask_cls.softmax(-1)[:, :-1], masks.sigmoid())


def panoptic_inference(
    mask_cls: Tensor,
    masks: Tensor,
    things: set[int],
    fuse: set[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Compute the H×W map of segment ids and the segments, one query after another."""
    scores, labels = mask_cls.softmax(-1).max(-1)
    keep = (labels < mask_cls.shape[-1] - 1) & (scores > object_mask_threshold)
    scores, labels, probability = scores[keep], labels[keep], masks.sigmoid()[keep]
    ids = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    segments: dict[Any, SegmentInfo] = {}
    if not len(scores):
        return ids, []
    winner = (scores[:, None, None] * probability).argmax(0)
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        won, own = winner == query, probability[query] >= 0.5
        if won.sum() == 0 or own.sum() == 0 or won.sum() / own.sum() < overlap_threshold:
            continue
        new_id, thing = len(segments) + 1, label in things
        segment = segments.setdefault(
            ("class", label) if label in fuse else ("query", query),
            SegmentInfo(id=new_id, isthing=thing, category_id=label, score=score),
        )
        segment["score"] = max(segment["score"], score)
        ids[won] = segment["id"]
    return ids, list(segments.values())


def instance_inference(
    mask_cls: Tensor, masks: Tensor, topk: int, thing_ids: Iterable[int]
) -> Instances:
    """Choose the best ``topk`` (query, class) pairs; keep only things if any class is a thing."""
    probability = mask_cls.softmax(-1)[:, :-1]
    scores, pairs = probability.flatten().topk(min(topk, probability.numel()), sorted=False)
    labels = pairs % probability.shape[1]
    if thing_ids:
        of_things = torch.isin(labels, torch.tensor(sorted(thing_ids), device=labels.device))
        scores, pairs, labels = scores[of_things], pairs[of_things], labels[of_things]
    masks = masks[pairs // probability.shape[1]]
    inside = (masks > 0).float()
    quality = (masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    result = Instances(masks.shape[-2:])
    result.pred_masks = masks > 0
    result.pred_boxes = BitMasks(masks > 0).get_bounding_boxes()
    result.scores = scores * quality
    result.pred_classes = labels
    return result


class ReferenceMaskFormer(MaskFormer):
    """:class:`MaskFormer` whose parts are in their plainest form, except for its two decoders."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "criterion": ReferenceCriterion(cfg)}

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        batch = super().preprocess(batched_inputs)
        batch.tensor = batch.tensor.contiguous()
        return batch

    def network(self, images: Tensor) -> Outputs:
        with all_predictions(self):  # also in inference, as in the published code
            return super().network(images)

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[SegmentationLogits]:
        """Return the logits of whole images.

        Raises:
            ValueError: if an image is larger than a sliding window.
        """
        return [self._reference_logits(logits) for logits in super().predict(batched_inputs)]

    def _reference_logits(self, logits: SegmentationLogits) -> ReferenceLogits:
        if not isinstance(logits, ImageLogits):
            raise ValueError(
                "The textbook version runs only on whole images: set TEST.SLIDING_WINDOW.SIZE to 0."
            )
        return ReferenceLogits(**{f.name: getattr(logits, f.name) for f in fields(logits)})


def build_reference_model(cfg: CfgNode) -> MaskFormer:
    """Build the reference version of a config's model; parameters have the same names.

    Raises:
        ValueError: if the config uses losses that the reference does not have.
    """
    node = cfg.MODEL.MASK_FORMER
    for key, value in {"TRAIN_NUM_POINTS": 0, "MASK_IGNORE": False, "MASK_TERM": "focal"}.items():
        if node[key] != value:
            raise ValueError(
                f"MODEL.MASK_FORMER.{key} is {node[key]}, but the textbook version compares whole "
                f"masks with the focal loss: set it to {value}."
            )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.COMPILE = cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    cfg.MODEL.REFERENCE_OPS = True  # detectron2's own Swin
    return ReferenceMaskFormer(cfg).to(cfg.MODEL.DEVICE)
