"""The paper's per-pixel baselines (section 4.2), for detectron2's ``SemanticSegmentor``."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.structures import layer_predictions

from ..pixel_decoder import build_pixel_decoder
from .mask_former_head import MaskFormerHead

__all__ = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"]


class _PerPixelHead(nn.Module):
    """What both baselines share: class logits at stride 4, enlarged, and cross-entropy."""

    ignore_value: int
    loss_weight: float
    common_stride: int

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The class logits B×K×h×w of every supervised layer, the last being the result."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """As ``SemanticSegmentor`` asks for it.

        Args:
            features: backbone maps by name.
            targets: in training, class ids B×H×W.

        Returns:
            In training ``(None, losses)``, else ``(class logits B×K×H×W, {})``.
        """
        layers = self.layer_logits(features)
        if not self.training:
            return self._enlarge(layers[-1]), {}
        assert targets is not None, "training needs `sem_seg` in the examples"
        losses = {}
        for index, logits in enumerate(layers):
            name = "loss_sem_seg" if index == len(layers) - 1 else f"loss_sem_seg_{index}"
            full = self._enlarge(logits.float())
            loss = F.cross_entropy(full, targets, ignore_index=self.ignore_value)
            losses[name] = self.loss_weight * loss
        return None, losses

    def _enlarge(self, logits: Tensor) -> Tensor:
        return F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )


def _loss_settings(cfg: CfgNode) -> dict[str, Any]:
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
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
        pixel_decoder: Any,
        mask_dim: int,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        common_stride: int,
    ) -> None:
        """
        Args:
            pixel_decoder: gives the per-pixel embeddings, of ``mask_dim`` channels.
            ignore_value: the label of pixels that are left out.
            loss_weight: of the cross-entropy.
            common_stride: of the embeddings; the logits are enlarged by it.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = Conv2d(mask_dim, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            **_loss_settings(cfg),
        }

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [self.predictor(self.pixel_decoder.forward_features(features)[0])]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(_PerPixelHead, MaskFormerHead):  # type: ignore[misc]
    """MaskFormer's network with one fixed query a class: "PerPixelBaseline+"."""

    mask_classification = False

    @configurable
    def __init__(
        self, *, ignore_value: int, loss_weight: float, common_stride: int, **mask_former: Any
    ) -> None:
        """Args: as for the two it is made of."""
        super().__init__(**mask_former)
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"PerPixelBaselinePlusHead has one query a class, but "
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries} and "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {classes}: set both to the number of classes."
            )
        return {**super().from_config(cfg, input_shape), **_loss_settings(cfg)}

    def layer_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [layer["pred_masks"] for layer in layer_predictions(self.predict(features))]
