"""The meta-architecture: wiring only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former.inference import (
    ImageLogits,
    InferenceSettings,
    SegmentationLogits,
    WindowLogits,
)
from mask_former.losses import build_criterion
from mask_former.ops import reference_ops
from mask_former.structures import Outputs, Size, Target

from .activation_checkpointing import checkpoint_activations, wants_checkpoints
from .batch_targets import prepare_targets
from .deep_supervision import last_prediction
from .inference_settings import inference_settings

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
        criterion: nn.Module,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        thing_ids: Iterable[int],
        inference: InferenceSettings,
        mask_ignore: bool = False,
        reference_ops: bool = False,
    ) -> None:
        """Connect the parts.

        Args:
            backbone: computes feature maps by name.
            sem_seg_head: turns backbone maps into :class:`~mask_former.structures.Outputs`; has
                ``num_classes``.
            criterion: computes unweighted losses from outputs and targets; has ``loss_weights``.
                See :func:`~mask_former.losses.build_criterion`.
            size_divisibility: images are padded to a multiple of it; negative: the backbone's.
            pixel_mean, pixel_std: mean and standard deviation of each channel, in 0 … 255.
            thing_ids: contiguous ids of the thing classes.
            inference: which results to return, and how to compute them.
            mask_ignore: exclude unlabelled pixels and padding from the mask losses; the ``valid``
                map of an example marks the labelled pixels.
            reference_ops: run the reference versions of losses and inference: see
                :mod:`mask_former.ops.reference`.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head: Any = sem_seg_head
        self.criterion: Any = criterion
        self.size_divisibility = (
            backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.thing_ids = frozenset(thing_ids)
        self.inference = inference
        self.mask_ignore = mask_ignore
        self.reference_ops = reference_ops

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone, head = _build_network(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": build_criterion(cfg),
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "thing_ids": _thing_ids(cfg),
            "inference": inference_settings(cfg),
            "mask_ignore": cfg.MODEL.MASK_FORMER.MASK_IGNORE,
            "reference_ops": cfg.MODEL.REFERENCE_OPS,
        }

    @property
    def device(self) -> torch.device:
        """The device that the model runs on."""
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """K, without "no object"."""
        return self.sem_seg_head.num_classes

    def forward(
        self, batched_inputs: list[dict[str, Any]], batch_counts: Sequence[int] | None = None
    ) -> Any:
        """Compute losses in training, results otherwise.

        Args:
            batched_inputs: one dict for each image: ``image`` 3×H×W, values 0 … 255 in the channel
                order of ``INPUT.FORMAT``; in training ``instances`` with ``gt_classes`` and
                ``gt_masks`` (bool N×H×W or ``BitMasks``), and ``valid`` (bool H×W) with
                ``mask_ignore``; for inference optionally ``height`` and ``width`` of the output.
            batch_counts: see :meth:`losses`.

        Returns:
            In training the weighted losses by name. Otherwise one dict for each image with the
            enabled results: ``sem_seg`` (scores K×H×W), ``panoptic_seg`` (ids H×W, segments_info)
            and ``instances``.
        """
        if self.training:
            return self.losses(batched_inputs, batch_counts)
        return [self._results(logits) for logits in self.predict(batched_inputs)]

    def losses(
        self, batched_inputs: list[dict[str, Any]], batch_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses by name, in training or evaluation mode.

        Args:
            batched_inputs: as :meth:`forward` takes them in training.
            batch_counts: with accumulated gradients, the number of targets of each image in the
                whole batch, of which this is a part; None if this is the whole batch.
        """
        images = self.preprocess(batched_inputs)
        outputs = self.network(images.tensor)
        targets = self.prepare_targets(batched_inputs, images)
        with reference_ops(self.reference_ops):
            losses = self.criterion(outputs, targets, batch_counts=batch_counts)
        return {name: self._weight(name) * value for name, value in losses.items()}

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[SegmentationLogits]:
        """Run the network and return logits, from which any result can be computed.

        Args:
            batched_inputs: as :meth:`forward` takes them for inference.

        Returns:
            With a sliding window, :class:`WindowLogits` for each image larger than the window;
            :class:`ImageLogits` for all others, which are run as one batch.

        Raises:
            ValueError: in training mode.
        """
        whole = iter(self._run([example for example in batched_inputs if self._is_whole(example)]))
        return [
            next(whole) if self._is_whole(example) else self._windows(example)
            for example in batched_inputs
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise images and pad them to one size: B×3×H×W on the model's device.

        A backbone for a single ``input_size`` gets images padded to it with black.

        Raises:
            ValueError: if an image is larger than ``input_size``.
        """
        images = [example["image"].to(self.device) for example in batched_inputs]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        size = getattr(self.backbone, "input_size", None)
        if size is not None:
            images = [_pad_black(image, size) for image in images]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        batch.image_sizes = sizes
        if self.device.type == "cpu":  # channels_last is faster there, and convolutions keep it
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def network(self, images: Tensor) -> Outputs:
        """Run backbone and head on B×3×H×W in the precision of the caller's autocast."""
        with last_prediction(self.sem_seg_head):
            return self.sem_seg_head(self.backbone(images))

    def inference_precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context of ``TEST.AMP``; without it, the caller's stays active."""
        dtype = self.inference.dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def prepare_targets(
        self, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> list[Target]:
        """Pad the ground truth of each image to the size of the batch."""
        size = images.tensor.shape[-2:]
        return prepare_targets(batched_inputs, size, self.device, self.mask_ignore)

    def _weight(self, name: str) -> float:
        """Return the weight of a loss of any layer: ``loss_ce_0`` has that of ``loss_ce``."""
        term, _, layer = name.rpartition("_")
        return self.criterion.loss_weights.get(term if layer.isdigit() else name, 1.0)

    def _is_whole(self, example: dict[str, Any]) -> bool:
        window = self.inference.sliding_window
        return window is None or window.covers(example["image"].shape[-2:])

    def _run(self, examples: list[dict[str, Any]]) -> list[ImageLogits]:
        """Run the network on a batch of whole images, or of parts of one."""
        if self.training:
            raise ValueError("The model is in training mode: call .eval() on it before .predict().")
        if not examples:
            return []
        images = self.preprocess(examples)
        with self.inference_precision():
            outputs = self.network(images.tensor)
        height, width = images.tensor.shape[-2:]
        per_image = outputs["pred_logits"], outputs["pred_masks"], images.image_sizes, examples
        return [
            ImageLogits(
                mask_cls,
                mask_pred,
                padded_size=(height, width),
                image_size=size,
                output_size=_output_size(example),
                resize_before_inference=self.inference.resize_before_inference,
                segment_within_mask=self.inference.segment_within_mask,
                reference_ops=self.reference_ops,
            )
            for mask_cls, mask_pred, size, example in zip(*per_image, strict=True)
        ]

    def _windows(self, example: dict[str, Any]) -> WindowLogits:
        window = self.inference.sliding_window
        assert window is not None
        return WindowLogits(
            example["image"],
            window,
            run=lambda parts: self._run([{"image": part} for part in parts]),
            output_size=_output_size(example),
            num_classes=self.num_classes,
            device=self.device,
            reference_ops=self.reference_ops,
        )

    def _results(self, logits: SegmentationLogits) -> dict[str, Any]:
        """Compute the enabled results of one image."""
        settings = self.inference
        result: dict[str, Any] = {}
        if settings.semantic_on:
            result["sem_seg"] = logits.semantic_scores()
        if settings.panoptic_on:
            result["panoptic_seg"] = logits.panoptic(
                thing_ids=self.thing_ids,
                object_mask_threshold=settings.object_mask_threshold,
                overlap_threshold=settings.overlap_threshold,
            )
        if settings.instance_on:
            result["instances"] = logits.instances(
                topk=settings.topk, thing_ids=self.thing_ids or None
            )
        return result


def _output_size(example: dict[str, Any]) -> tuple[int, int]:
    """Return (H, W) of the results of an image; by default its own size."""
    height, width = example["image"].shape[-2:]
    return example.get("height", height), example.get("width", width)


def _pad_black(image: Tensor, size: Size) -> Tensor:
    """Pad 3×h×w at the right and bottom to 3×``size``."""
    right, bottom = size[1] - image.shape[-1], size[0] - image.shape[-2]
    if min(right, bottom) < 0:
        raise ValueError(
            f"An image has {image.shape[-2]}×{image.shape[-1]} pixels (height×width), but the "
            f"network is built for {size[0]}×{size[1]}: set TEST.RESIZE to 'fit' or 'cover', which "
            "the predictor and the evaluation apply, or MODEL.EOMT.IMAGE_SIZE to a larger size; in "
            "training, set INPUT.IMAGE_SIZE to the same size."
        )
    return F.pad(image, (0, right, 0, bottom))


def _build_network(cfg: CfgNode) -> tuple[Backbone, nn.Module]:
    backbone = build_backbone(_with_norms_of_device(cfg))
    head = build_sem_seg_head(cfg, backbone.output_shape())
    if wants_checkpoints(cfg, backbone):
        checkpoint_activations(backbone)
        if hasattr(head, "blocks_above"):  # it has the last blocks of a ViT
            checkpoint_activations(head)
    if cfg.MODEL.COMPILE:  # in place, which keeps the names of parameters
        for module in (backbone, head):
            module.compile(dynamic=False)  # compiling Swin with dynamic shapes does not terminate
    return backbone, head


def _with_norms_of_device(cfg: CfgNode) -> CfgNode:
    """Replace "SyncBN", which only GPUs can train, by "BN" on a CPU: the same in one process."""
    if cfg.MODEL.RESNETS.NORM != "SyncBN" or cfg.MODEL.DEVICE != "cpu":
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


def _thing_ids(cfg: CfgNode) -> list[int]:
    """Return the contiguous ids of the training data's thing classes; empty without metadata."""
    if not cfg.DATASETS.TRAIN:
        return []
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    return sorted(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
