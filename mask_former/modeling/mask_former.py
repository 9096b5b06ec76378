"""The meta-architecture: wiring only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.structures import BitMasks, ImageList, Instances
from torch import Tensor, nn

from ..inference import instance_inference, panoptic_inference, semantic_inference
from ..layers import LazyMasks
from ..losses import HungarianMatcher, PointSampling, SetCriterion
from ..precision import amp_dtype
from ..structures import Outputs, Target
from .activation_checkpointing import checkpoint_activations

__all__ = ["MaskFormer"]


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for semantic, instance and panoptic segmentation (arXiv 2107.06278)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        loss_weights: dict[str, float],
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        thing_ids: Iterable[int],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        topk_per_image: int,
        resize_before_inference: bool,
        inference_dtype: torch.dtype | None = None,
        mask_ignore: bool = False,
    ) -> None:
        """
        Args:
            backbone: gives maps by name.
            sem_seg_head: backbone maps to :class:`~mask_former.structures.Outputs`.
            criterion: outputs and targets to unweighted losses.
            loss_weights: weight of each loss term; terms that are not named weigh 1.
            size_divisibility: images are padded to a multiple of it; negative: the backbone's.
            pixel_mean, pixel_std: of each channel, in 0 … 255.
            thing_ids: contiguous ids of the thing classes.
            semantic_on, panoptic_on, instance_on: which results to give, in any combination.
            object_mask_threshold, overlap_threshold: of the panoptic result, in [0, 1].
            topk_per_image: pairs that the instance result starts from.
            resize_before_inference: bring mask logits to the output size before the semantic
                result is computed instead of resizing the result. Always so where a panoptic or
                instance result is given.
            inference_dtype: of the network's mixed precision in inference; None for fp32.
            mask_ignore: leave pixels that have no label, and padding, out of the mask losses; an
                example's ``valid`` says which do have one.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.loss_weights = loss_weights
        self.size_divisibility = (
            backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.thing_ids = frozenset(thing_ids)
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.topk_per_image = topk_per_image
        self.resize_before_inference = resize_before_inference or panoptic_on or instance_on
        self.inference_dtype = inference_dtype
        self.mask_ignore = mask_ignore

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone, head = _build_network(cfg)
        mask_former = cfg.MODEL.MASK_FORMER
        weights = {
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        }
        sampling = None
        if mask_former.TRAIN_NUM_POINTS:
            sampling = PointSampling(
                mask_former.TRAIN_NUM_POINTS,
                mask_former.OVERSAMPLE_RATIO,
                mask_former.IMPORTANCE_SAMPLE_RATIO,
            )
        criterion = SetCriterion(
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            HungarianMatcher(
                *weights.values(),
                sampling=sampling,
                on_nonfinite=mask_former.MATCHER.ON_NONFINITE,
            ),
            no_object_weight=mask_former.NO_OBJECT_WEIGHT,
            losses=mask_former.LOSSES,
            sampling=sampling,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": criterion,
            "loss_weights": weights,
            "size_divisibility": mask_former.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "thing_ids": _thing_ids(cfg),
            "semantic_on": mask_former.TEST.SEMANTIC_ON,
            "panoptic_on": mask_former.TEST.PANOPTIC_ON,
            "instance_on": mask_former.TEST.INSTANCE_ON,
            "object_mask_threshold": mask_former.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": mask_former.TEST.OVERLAP_THRESHOLD,
            "topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "resize_before_inference": mask_former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "inference_dtype": amp_dtype(cfg.TEST.AMP, "TEST.AMP"),
            "mask_ignore": mask_former.MASK_IGNORE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, results otherwise.

        Args:
            batched_inputs: one dict an image: ``image`` 3×H×W, values 0 … 255 in the channel order
                of ``INPUT.FORMAT``; in training ``instances`` with ``gt_classes`` and ``gt_masks``
                (bool N×H×W or ``BitMasks``), and ``valid`` (bool H×W) with ``mask_ignore``; for
                inference optionally the output's ``height`` and ``width``.

        Returns:
            In training the weighted losses by name. Otherwise one dict an image with, as switched
            on, ``sem_seg`` (K×H×W), ``panoptic_seg`` (ids H×W, segments_info) and ``instances``.
        """
        images = self._preprocess(batched_inputs)
        outputs = self._network(images.tensor)
        if self.training:
            targets = self._prepare_targets(batched_inputs, images)
            losses = self.criterion(outputs, targets)
            return {name: self._weight(name) * value for name, value in losses.items()}

        padded = tuple(images.tensor.shape[-2:])
        with torch.autocast(self.device.type, enabled=False):  # a caller's own, too
            return [
                self._infer(
                    mask_cls,
                    mask_pred,
                    padded=padded,
                    image=image,
                    output=(example.get("height", image[0]), example.get("width", image[1])),
                )
                for mask_cls, mask_pred, example, image in zip(
                    outputs["pred_logits"],
                    outputs["pred_masks"],
                    batched_inputs,
                    images.image_sizes,
                    strict=True,
                )
            ]

    def _network(self, images: Tensor) -> Outputs:
        """Backbone and head; training's precision is the training loop's."""
        with ExitStack() as stack:
            if not self.training and self.inference_dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, self.inference_dtype))
            return self.sem_seg_head(self.backbone(images))

    def _weight(self, name: str) -> float:
        """The weight of a loss, whichever layer it is of: ``loss_ce_0`` weighs as ``loss_ce``."""
        term, _, layer = name.rpartition("_")
        return self.loss_weights.get(term if layer.isdigit() else name, 1.0)

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [
            (example["image"].to(self.device) - self.pixel_mean) / self.pixel_std
            for example in batched_inputs
        ]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        if self.device.type == "cpu":  # convolutions run faster on it, and hand it on
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def _prepare_targets(
        self, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> list[Target]:
        """The instances of each image, their masks padded to the batch's size."""
        height, width = images.tensor.shape[-2:]
        targets = []
        for example in batched_inputs:
            instances: Instances = example["instances"].to(self.device)
            masks = instances.gt_masks
            masks = masks.tensor if isinstance(masks, BitMasks) else masks
            padding = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
            if min(padding) < 0:
                raise ValueError(
                    f"{example.get('file_name', 'An image')}: its gt_masks are "
                    f"{tuple(masks.shape[-2:])} (height, width), larger than the batch's images "
                    f"{(height, width)}; the mapper must transform both alike."
                )
            target = Target(labels=instances.gt_classes, masks=F.pad(masks.bool(), padding))
            if self.mask_ignore:
                target["valid"] = F.pad(self._valid(example, masks), padding)
            targets.append(target)
        return targets

    def _valid(self, example: dict[str, Any], masks: Tensor) -> Tensor:
        """Which pixels count in the mask losses: H×W, bool, of the size of N×H×W ``masks``."""
        valid, size = example.get("valid"), tuple(masks.shape[-2:])
        if valid is None or tuple(valid.shape) != size:
            found = "there is none" if valid is None else f"its size is {tuple(valid.shape)}"
            raise ValueError(
                f"{example.get('file_name', 'An image')}: MODEL.MASK_FORMER.MASK_IGNORE needs a "
                f"'valid' map of size {size} (height, width) in the training example, and {found}. "
                "The project's mappers make it where that key is True; add it to your own, or set "
                "the key to False."
            )
        return valid.to(self.device).bool()

    def _infer(
        self,
        mask_cls: Tensor,
        mask_pred: Tensor,
        *,
        padded: tuple[int, ...],
        image: tuple[int, int],
        output: tuple[int, int],
    ) -> dict[str, Any]:
        """The results of one image from its class logits Q×(K+1) and mask logits Q×h×w.

        The masks are enlarged to the ``padded`` input, cropped to the ``image``, brought to the
        ``output`` size: before inference or (semantic alone) after it.
        """
        masks = LazyMasks.of(mask_pred).resize((padded[0], padded[1])).crop(image)
        if self.resize_before_inference:
            masks = masks.resize(output)
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_inference(mask_cls, masks, result_size=output)
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                mask_cls,
                masks,
                thing_ids=self.thing_ids,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            result["instances"] = instance_inference(
                mask_cls, masks, topk=self.topk_per_image, thing_ids=self.thing_ids or None
            )
        return result


def _build_network(cfg: CfgNode) -> tuple[Backbone, nn.Module]:
    backbone = build_backbone(cfg)
    head = build_sem_seg_head(cfg, backbone.output_shape())
    if cfg.MODEL.ACTIVATION_CHECKPOINTING:
        checkpoint_activations(backbone)
    if cfg.MODEL.COMPILE:  # in place: the names of parameters stay
        for module in (backbone, head):
            module.compile(dynamic=False)  # Swin with sizes left open does not come to an end
    return backbone, head


def _thing_ids(cfg: CfgNode) -> list[int]:
    """The thing classes of the training data; none where its metadata names none."""
    if not cfg.DATASETS.TRAIN:
        return []
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    return sorted(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
