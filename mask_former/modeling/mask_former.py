"""The meta-architecture: wiring only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former.inference import ImageLogits, SlidingWindow, WindowLogits
from mask_former.losses import HungarianMatcher, PointSampling, SetCriterion
from mask_former.ops import reference_ops
from mask_former.structures import Outputs, Target
from mask_former.utils.precision import amp_dtype

from .activation_checkpointing import checkpoint_activations
from .batch_targets import prepare_targets

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
        window_size: int = 0,
        window_stride: int = 0,
        reference_ops: bool = False,
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
            window_size, window_stride: run images that are larger than a window in overlapping
                windows: see :class:`~mask_former.inference.SlidingWindow`. 0: run them whole.
            reference_ops: run the reference versions of losses and inference: see
                :mod:`mask_former.ops.reference`.
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
        self.reference_ops = reference_ops
        self.sliding_window = SlidingWindow.of(
            window_size, window_stride, panoptic_on=panoptic_on, instance_on=instance_on
        )

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
            "window_size": cfg.TEST.SLIDING_WINDOW.SIZE,
            "window_stride": cfg.TEST.SLIDING_WINDOW.STRIDE,
            "reference_ops": cfg.MODEL.REFERENCE_OPS,
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
        if self.training:
            images = self._preprocess(batched_inputs)
            outputs = self._network(images.tensor)
            targets = self._prepare_targets(batched_inputs, images)
            with reference_ops(self.reference_ops):
                losses = self.criterion(outputs, targets)
            return {name: self._weight(name) * value for name, value in losses.items()}
        return [self._infer(logits) for logits in self.predict(batched_inputs)]

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[ImageLogits | WindowLogits]:
        """What the network says of each image, before a result is made of it.

        Args:
            batched_inputs: as :meth:`forward` takes them for inference.

        Returns:
            Where there is a sliding window, :class:`WindowLogits` of each image larger than it;
            :class:`ImageLogits` of all others, which are run as one batch.

        Raises:
            ValueError: in training mode.
        """
        whole = iter(self._run([example for example in batched_inputs if self._is_whole(example)]))
        return [
            next(whole) if self._is_whole(example) else self._windows(example)
            for example in batched_inputs
        ]

    def _is_whole(self, example: dict[str, Any]) -> bool:
        window = self.sliding_window
        return window is None or window.covers(example["image"].shape[-2:])

    def _run(self, examples: list[dict[str, Any]]) -> list[ImageLogits]:
        """The network on a batch of whole images, or of parts of one."""
        if self.training:
            raise ValueError("The model is in training mode: call .eval() on it before .predict().")
        if not examples:
            return []
        images = self._preprocess(examples)
        outputs = self._network(images.tensor)
        height, width = images.tensor.shape[-2:]
        of_each = outputs["pred_logits"], outputs["pred_masks"], images.image_sizes, examples
        return [
            ImageLogits(
                mask_cls,
                mask_pred,
                padded_size=(height, width),
                image_size=size,
                output_size=_output_size(example),
                resize_before_inference=self.resize_before_inference,
            )
            for mask_cls, mask_pred, size, example in zip(*of_each, strict=True)
        ]

    def _windows(self, example: dict[str, Any]) -> WindowLogits:
        assert self.sliding_window is not None
        return WindowLogits(
            example["image"],
            self.sliding_window,
            run=lambda parts: self._run([{"image": part} for part in parts]),
            output_size=_output_size(example),
            num_classes=self.criterion.num_classes,
            device=self.device,
        )

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

    def _prepare_targets(self, examples: list[dict[str, Any]], images: ImageList) -> list[Target]:
        size = images.tensor.shape[-2:]
        return prepare_targets(examples, size, self.device, self.mask_ignore)

    def _infer(self, logits: ImageLogits | WindowLogits) -> dict[str, Any]:
        """The results of one image, as switched on."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = logits.semantic_scores()
        if self.panoptic_on:
            result["panoptic_seg"] = logits.panoptic(
                thing_ids=self.thing_ids,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            result["instances"] = logits.instances(
                topk=self.topk_per_image, thing_ids=self.thing_ids or None
            )
        return result


def _output_size(example: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of an image's results; by default its own."""
    height, width = example["image"].shape[-2:]
    return example.get("height", height), example.get("width", width)


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
