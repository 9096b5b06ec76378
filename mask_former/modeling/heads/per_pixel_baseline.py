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
    """Base of both baselines: upsampling of class logits from stride 4, and cross-entropy."""

    ignore_value: int
    """Label of the pixels that the loss ignores."""
    loss_weight: float
    """Weight of the cross-entropy."""
    common_stride: int
    """Stride of the class logits, and the factor by which they are upsampled."""
    num_classes: int

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Compute the class logits B×K×h×w of all supervised layers; the last is the output."""
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
        """Compute the weighted loss of each supervised layer, in training or evaluation mode.

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


def _settings(cfg: CfgNode, decoder: PixelDecoder) -> dict[str, Any]:
    """Read the attributes of :class:`_PerPixelHead` from a config and the pixel decoder."""
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
        "num_classes": head.NUM_CLASSES,
        "ignore_value": head.IGNORE_VALUE,
        "loss_weight": head.LOSS_WEIGHT,
        "common_stride": decoder.output_shape()["mask_features"].stride,
    }


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(_PerPixelHead):
    """The paper's "PerPixelBaseline": a 1×1 convolution on the per-pixel embeddings."""

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
        """Create the classifier.

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
        decoder = build_pixel_decoder(cfg, input_shape)
        return {"pixel_decoder": decoder, **_settings(cfg, decoder)}

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [self.predictor(self.pixel_decoder.forward_features(features)[0])]

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class, relative to the head."""
        return ParameterRows({"predictor.weight": 0, "predictor.bias": 0})


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(DecoderPair, _PerPixelHead):
    """The paper's "PerPixelBaseline+": MaskFormer's network with one query for each class."""

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
        """Connect both decoders.

        Args:
            num_classes, ignore_value, loss_weight, common_stride: see the attributes.
            decoders: arguments of :class:`~.mask_former_head.DecoderPair`.
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
        parts = cls.parts_of(cfg, input_shape, mask_classification=False)
        return {**parts, **_settings(cfg, parts["pixel_decoder"])}

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [layer["pred_masks"] for layer in layer_predictions(self.predict_masks(features))]

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class, those of the queries included."""
        rows = prefixed("predictor.", self.predictor.parameter_rows())
        return ParameterRows({**rows.classes, **dict.fromkeys(rows.queries, 0)}, rows.queries)


def segmentor_losses(
    model: SemanticSegmentor, batched_inputs: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """Compute the weighted losses of a ``SemanticSegmentor`` in training or evaluation mode.

    detectron2's own ``forward`` computes them in training mode only.

    Args:
        model: a model with one of the heads above.
        batched_inputs: one dict for each image: ``image`` 3×H×W, values 0 … 255, and ``sem_seg``
            H×W, class ids.
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
