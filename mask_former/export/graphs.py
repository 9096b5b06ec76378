"""What is exported: modules from a batch of images to logits, and to a map of classes.

A graph takes B×3×H×W, float, values 0 … 255 in the channel order of ``INPUT.FORMAT``; H and W are
multiples of :data:`STRIDE`. It normalises, so what pads an image to such a size is the mean colour.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask_former.ops.symbolic_sizes import plain_size

__all__ = ["LIMIT", "STRIDE", "ClassMap", "Logits", "PixelClassMap", "graphs_of"]

STRIDE = 32
"""Sides of images are multiples of it, in pixels."""
LIMIT = 256
"""The longest side, in strides, of a graph whose sizes are open: 8192 pixels."""


class _Graph(nn.Module):
    """Backbone and head behind a normalisation."""

    outputs: tuple[str, ...]
    """Their names, in order."""
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        """Args: ``model``: a ``MaskFormer`` or ``SemanticSegmentor``; it stays as it is."""
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.head = copy.deepcopy(model.sem_seg_head)
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        _pad_statically(self)
        self.eval().requires_grad_(False)

    def network(self, image: Tensor) -> Any:
        """What the head says."""
        return self.head(self.backbone((_with_plain_sizes(image) - self.mean) / self.std))


class Logits(_Graph):
    """A set of masks: class logits B×Q×(K+1), the last being "no object", and mask logits
    B×Q×H/4×W/4."""

    outputs: tuple[str, ...] = ("class_logits", "mask_logits")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(image)
        return outputs["pred_logits"], outputs["pred_masks"]


class ClassMap(Logits):
    """The best class of each pixel, B×H×W, int64: the semantic result at the input's size."""

    outputs = ("class_map",)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        class_logits, mask_logits = super().forward(image)
        size = image.shape[-2:]
        masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
        probability = class_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", probability, masks.sigmoid()).argmax(1)


class PixelClassMap(_Graph):
    """The same of a per-pixel baseline, whose head gives B×K×H×W."""

    outputs = ("class_map",)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0].argmax(1)


def graphs_of(model: Any) -> dict[str, _Graph]:
    """The graphs of a model by name: ``mask_former`` (:class:`Logits`) and ``class_map``.

    A per-pixel baseline predicts no masks: it has a ``class_map`` alone.

    Raises:
        ValueError: if the model is neither.
    """
    kind = type(model).__name__
    if kind == "SemanticSegmentor":
        return {"class_map": PixelClassMap(model)}
    if kind != "MaskFormer":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {kind!r}; what can be exported is 'MaskFormer', and "
            "'SemanticSegmentor' with a per-pixel head."
        )
    return {"mask_former": Logits(model), "class_map": ClassMap(model)}


def _with_plain_sizes(image: Tensor) -> Tensor:
    """The same image; where ``torch.export`` leaves its sizes open, their symbols are plain.

    A side s would go through the network as s // 4, (s // 4 + 1) // 2 …; as 32·n, all is a
    multiple of n.
    """
    for axis in (2, 3):
        if isinstance(image.shape[axis], torch.SymInt):
            strides = plain_size(image.shape[axis] // STRIDE)
            torch._check(strides <= LIMIT)
            pixels = torch.arange(STRIDE * strides, device=image.device)
            image = image.index_select(axis, pixels)
    return image


class _StaticSameConv(nn.Module):
    """timm's ``Conv2dSame`` on a map whose sides its stride divides, which fixes the padding.

    timm's own computes the padding from the sizes, and an exporter takes minutes to simplify it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the parameters of ``conv``."""
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            total = max(reach - conv.stride[axis], 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_statically(network: nn.Module) -> None:
    """Sides are multiples of 32, so the strides of a backbone of stride 32 divide all of them."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":
                setattr(module, name, _StaticSameConv(child))
