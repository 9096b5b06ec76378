"""The model with the paper's formulas written plainly: what speed and memory are compared with.

It stands in for the published code, which does the same work: every matched mask enlarged to full
size and compared there, layers and images matched one after the other, masks of all queries
enlarged before anything is decided, every decoder layer predicting in inference, detectron2's own
Swin, and the memory layout that images come in. Pixel decoder and predictor are ours. The results
are ours, too, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from mask_former.losses import SetCriterion, dice_loss
from mask_former.losses.mask_losses import dice_of_sums
from mask_former.modeling.mask_former import MaskFormer
from mask_former.structures import Outputs, Prediction, SegmentInfo, Target, layer_predictions

__all__ = ["TextbookCriterion", "TextbookMaskFormer", "build_textbook_model"]


class TextbookCriterion(SetCriterion):
    """Matching and losses, one layer and one image after the other; gradients by autograd."""

    def forward(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        *,
        batch_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`SetCriterion.forward`."""
        losses = {}
        layers = layer_predictions(outputs)
        for index, prediction in enumerate(layers):
            suffix = "" if index == len(layers) - 1 else f"_{index}"
            for name, value in self._layer_losses(prediction, targets).items():
                losses[name + suffix] = value
        return losses

    def _layer_losses(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        logits, maps = prediction["pred_logits"], prediction["pred_masks"]
        truth = torch.full_like(logits[..., 0], self.num_classes, dtype=torch.int64)
        chosen, masks = [], []
        for image, target in enumerate(targets):
            queries, numbers = self.match(logits[image], maps[image], target)
            truth[image, queries] = target["labels"][numbers]
            chosen.append(maps[image, queries])
            masks.append(target["masks"][numbers])
        num_targets = self._average_num_targets([len(target["labels"]) for target in targets])
        size = targets[0]["masks"].shape[-2:]
        enlarged = F.interpolate(torch.cat(chosen)[:, None], size=size, mode="bilinear").flatten(1)
        truths = torch.cat(masks).flatten(1).float()
        return {
            "loss_ce": F.cross_entropy(logits.transpose(1, 2), truth, self.empty_weight),
            "loss_mask": sigmoid_focal_loss(enlarged, truths, 0.25, 2).mean(1).sum() / num_targets,
            "loss_dice": dice_loss(enlarged, truths).sum() / num_targets,
        }

    @torch.no_grad()
    def match(self, logits: Tensor, masks: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Which queries (logits Q×(K+1), masks Q×h×w) answer for which targets of one image."""
        truth = F.interpolate(target["masks"][:, None].float(), size=masks.shape[-2:]).flatten(1)
        rows = masks.flatten(1)
        probability = rows.sigmoid()
        inside = 0.25 * (1 - probability) ** 2 * F.softplus(-rows)
        outside = 0.75 * probability**2 * F.softplus(rows)
        focal = torch.einsum("qp,np->qn", inside, truth)
        focal = (focal + torch.einsum("qp,np->qn", outside, 1 - truth)) / rows.shape[1]
        cost = self.matcher.mask_weight * focal
        predicted = probability.sum(1, keepdim=True)
        dice = dice_of_sums(probability @ truth.T, predicted, truth.sum(1))
        cost = cost + self.matcher.dice_weight * dice
        cost = cost - self.matcher.class_weight * logits.softmax(-1)[:, target["labels"]]
        queries, numbers = map(torch.as_tensor, linear_sum_assignment(cost.float().cpu()))
        return queries, numbers


def semantic_inference(mask_cls: Tensor, masks: Tensor) -> Tensor:
    """Q×(K+1) and Q×H×W logits to K×H×W."""
    return torch.einsum("qk,qhw->khw", mask_cls.softmax(-1)[:, :-1], masks.sigmoid())


def panoptic_inference(
    mask_cls: Tensor,
    masks: Tensor,
    thing_ids: Iterable[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Ids H×W and their segments, a query at a time."""
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
        thing = label in thing_ids
        segment = segments.setdefault(
            ("thing", query) if thing else ("stuff", label),
            SegmentInfo(id=len(segments) + 1, isthing=thing, category_id=label, score=score),
        )
        segment["score"] = max(segment["score"], score)
        ids[won] = segment["id"]
    return ids, list(segments.values())


def instance_inference(
    mask_cls: Tensor, masks: Tensor, topk: int, thing_ids: Iterable[int]
) -> Instances:
    """The best (query, class) pairs; of things alone where there are any."""
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


class TextbookMaskFormer(MaskFormer):
    """:class:`MaskFormer`, with what surrounds pixel decoder and predictor written plainly."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "criterion": TextbookCriterion(cfg)}

    def train(self, mode: bool = True) -> TextbookMaskFormer:
        super().train(mode)
        self.sem_seg_head.predictor.predict_all_in_evaluation = True  # as published code does
        return self

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        batch = super().preprocess(batched_inputs)
        batch.tensor = batch.tensor.contiguous()
        return batch

    def _results(self, logits: SegmentationLogits) -> dict[str, Any]:
        if not isinstance(logits, ImageLogits):
            raise ValueError(
                "The textbook version runs images whole: set TEST.SLIDING_WINDOW.SIZE to 0."
            )
        mask_cls, image, output = logits.mask_cls.float(), logits.image_size, logits.output_size
        mask_pred = logits.mask_pred[None].float()
        masks = F.interpolate(mask_pred, logits.padded_size, mode="bilinear")[0]
        if self.inference.resize_before_inference:
            masks = sem_seg_postprocess(masks, image, *output)
        result: dict[str, Any] = {}
        if self.inference.semantic_on:
            semantic = semantic_inference(mask_cls, masks)
            if not self.inference.resize_before_inference:
                semantic = sem_seg_postprocess(semantic, image, *output)
            result["sem_seg"] = semantic
        if self.inference.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                mask_cls,
                masks,
                self.thing_ids,
                self.inference.object_mask_threshold,
                self.inference.overlap_threshold,
            )
        if self.inference.instance_on:
            result["instances"] = instance_inference(
                mask_cls, masks, self.inference.topk, self.thing_ids
            )
        return result


def build_textbook_model(cfg: CfgNode) -> MaskFormer:
    """The model of a config in its plain version; parameters have the same names.

    Raises:
        ValueError: if the config asks for losses that the plain version does not have.
    """
    node = cfg.MODEL.MASK_FORMER
    asked = [key for key in ("TRAIN_NUM_POINTS", "MASK_IGNORE") if node[key]]
    if asked:
        raise ValueError(
            f"MODEL.MASK_FORMER.{asked[0]} is {node[asked[0]]}, but the textbook version compares "
            f"whole masks: set it to {type(node[asked[0]])(0)}."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.COMPILE = cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    cfg.MODEL.REFERENCE_OPS = True  # detectron2's own Swin
    return TextbookMaskFormer(cfg).to(cfg.MODEL.DEVICE)
