"""The paper's per-pixel baselines (section 4.2), for detectron2's ``SemanticSegmentor``."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former.structures import ParameterRows, layer_predictions

from ..pixel_decoder import PixelDecoder, build_pixel_decoder
from .mask_former_head import DecoderPair, prefixed

__all__ = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead", "segmentor_losses"]


class _PerPixelHead(nn.Module):
    """The part that both baselines share: class logits at stride 4, upsampled, cross-entropy."""

    ignore_value: int
    """The label of pixels that are left out."""
    loss_weight: float
    """The weight of the cross-entropy."""
    common_stride: int
    """The stride of the class logits, which are upsampled by it."""
    num_classes: int

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Compute the class logits B×K×h×w of all supervised layers; the last is the result."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Compute logits or losses as ``SemanticSegmentor`` expects.

        Args:
            features: backbone maps by name.
            targets: in training, class ids B×H×W.

        Returns:
            In training ``(None, weighted losses)``, else ``(class logits B×K×H×W, {})``.
        """
        if self.training:
            assert targets is not None, "training needs `sem_seg` in the examples"
            return None, self.losses(features, targets)
        return self._upsample(self.layer_logits(features)[-1]), {}

    def losses(self, features: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Compute the weighted losses by name, one for each supervised layer, in either mode.

        Args:
            features: backbone maps by name.
            targets: class ids B×H×W.
        """
        losses = {}
        layers = self.layer_logits(features)
        for index, logits in enumerate(layers):
            name = "loss_sem_seg" if index == len(layers) - 1 else f"loss_sem_seg_{index}"
            full = self._upsample(logits.float())
            loss = F.cross_entropy(full, targets, ignore_index=self.ignore_value)
            losses[name] = self.loss_weight * loss
        return losses

    def _upsample(self, logits: Tensor) -> Tensor:
        return F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """Read the attributes of :class:`_PerPixelHead` from a config."""
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
        "num_classes": head.NUM_CLASSES,
        "ignore_value": head.IGNORE_VALUE,
        "loss_weight": head.LOSS_WEIGHT,
        "common_stride": head.COMMON_STRIDE,
    }


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(_PerPixelHead):
    """A 1×1 convolution on the per-pixel embeddings: "PerPixelBaseline"."""

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: PixelDecoder,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        common_stride: int,
    ) -> None:
        """
        Args:
            pixel_decoder: computes the per-pixel embeddings.
            num_classes, ignore_value, loss_weight, common_stride: see the attributes.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        mask_dim = pixel_decoder.output_shape()["mask_features"].channels
        self.predictor = Conv2d(mask_dim, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {"pixel_decoder": build_pixel_decoder(cfg, input_shape), **_settings(cfg)}

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [self.predictor(self.pixel_decoder.forward_features(features)[0])]

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class, relative to the head."""
        return ParameterRows({"predictor.weight": 0, "predictor.bias": 0})


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(DecoderPair, _PerPixelHead):
    """MaskFormer's network with one fixed query for each class: "PerPixelBaseline+"."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        common_stride: int,
        **decoders: Any,
    ) -> None:
        """
        Args:
            num_classes, ignore_value, loss_weight, common_stride: see the attributes.
            decoders: see :class:`~.mask_former_head.DecoderPair`.
        """
        super().__init__(**decoders)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"PerPixelBaselinePlusHead has one query for each class, but "
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries} and "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {classes}: set both to the number of classes."
            )
        return {**cls.parts_of(cfg, input_shape, mask_classification=False), **_settings(cfg)}

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [layer["pred_masks"] for layer in layer_predictions(self.predict_masks(features))]

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class, which is its query."""
        rows = prefixed("predictor.", self.predictor.parameter_rows())
        return ParameterRows({**rows.classes, **dict.fromkeys(rows.queries, 0)}, rows.queries)


def segmentor_losses(
    model: SemanticSegmentor, batched_inputs: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """Compute the weighted losses of a ``SemanticSegmentor`` in training or evaluation mode.

    detectron2's own ``forward`` computes them in training mode only.

    Args:
        model: its head is one of the two above.
        batched_inputs: one dict for each image, with ``image`` 3×H×W and ``sem_seg`` H×W.
    """
    head: Any = model.sem_seg_head
    backbone = model.backbone
    divisibility, constraints = backbone.size_divisibility, backbone.padding_constraints
    images = [
        (example["image"].to(model.device) - model.pixel_mean) / model.pixel_std
        for example in batched_inputs
    ]
    labels = [example["sem_seg"].to(model.device) for example in batched_inputs]
    batch = ImageList.from_tensors(images, divisibility, padding_constraints=constraints)
    targets = ImageList.from_tensors(labels, divisibility, head.ignore_value, constraints)
    return head.losses(backbone(batch.tensor), targets.tensor)
