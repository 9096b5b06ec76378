"""Modules to export: from a batch of images to logits, and to class maps.

A graph takes images B×3×H×W, float, in 0 … 255, in the channel order of ``INPUT.FORMAT``; H and W
are multiples of :data:`STRIDE`. It normalises images itself, so pad them with the mean colour.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask_former.modeling import last_prediction
from mask_former.ops.symbolic_sizes import plain_size

__all__ = ["LIMIT", "STRIDE", "ClassMap", "Logits", "PixelClassMap", "graphs_of"]

STRIDE = 32
"""The sides of images must be multiples of this number of pixels."""
LIMIT = 256
"""Longest side that a graph with dynamic sizes accepts, in strides: 8192 pixels."""


class _Graph(nn.Module):
    """Graph of normalisation, backbone and head.

    Args:
        model: A ``MaskFormer`` or ``SemanticSegmentor``; it is copied, not changed.
    """

    outputs: tuple[str, ...]
    """Names of the outputs, in order."""
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.head = copy.deepcopy(model.sem_seg_head)
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        _pad_statically(self)
        self.eval().requires_grad_(False)

    def network(self, image: Tensor) -> Any:
        """Return the output of the head, without the predictions of its earlier layers."""
        with last_prediction(self.head):
            return self.head(self.backbone((_with_plain_sizes(image) - self.mean) / self.std))


class Logits(_Graph):
    """Graph that returns class logits B×Q×(K+1) and mask logits B×Q×H/4×W/4 of Q queries.

    The last class is "no object".
    """

    outputs: tuple[str, ...] = ("class_logits", "mask_logits")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(image)
        return outputs["pred_logits"], outputs["pred_masks"]


class ClassMap(Logits):
    """Graph that returns the best class of each pixel of the input, B×H×W, int64."""

    outputs = ("class_map",)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        class_logits, mask_logits = super().forward(image)
        size = image.shape[-2:]
        masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
        probability = class_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", probability, masks.sigmoid()).argmax(1)


class PixelClassMap(_Graph):
    """:class:`ClassMap` of a per-pixel model, whose head returns class scores B×K×H×W."""

    outputs = ("class_map",)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0].argmax(1)


def graphs_of(model: Any) -> dict[str, _Graph]:
    """Return the graphs of a model by name: ``mask_former`` (:class:`Logits`) and ``class_map``.

    A per-pixel model predicts no masks and has only a ``class_map``.

    Raises:
        ValueError: If the model does not consist of a backbone and a ``sem_seg_head``.
    """
    if not (hasattr(model, "backbone") and hasattr(model, "sem_seg_head")):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__!r}; expected a model with a "
            "backbone and a sem_seg_head to export, such as 'MaskFormer' or 'SemanticSegmentor'."
        )
    if not hasattr(model, "predict"):  # only models that predict masks have it
        return {"class_map": PixelClassMap(model)}
    return {"mask_former": Logits(model), "class_map": ClassMap(model)}


def _with_plain_sizes(image: Tensor) -> Tensor:
    """Return the same image, with each dynamic side expressed as 32·n for a symbol n.

    ``torch.export`` would derive sizes s // 4, (s // 4 + 1) // 2, … from a side s; those from 32·n
    are 8·n, 4·n, ….
    """
    for axis in (2, 3):
        if isinstance(image.shape[axis], torch.SymInt):
            strides = plain_size(image.shape[axis] // STRIDE)
            torch._check(strides <= LIMIT)
            pixels = torch.arange(STRIDE * strides, device=image.device)
            image = image.index_select(axis, pixels)
    return image


class _StaticSameConv(nn.Module):
    """timm's ``Conv2dSame`` for maps whose sides are multiples of its stride.

    For such maps, the padding is constant. ``Conv2dSame`` computes it from their size, which
    exporters need minutes to analyse.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.padding: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last axis
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            total = max(reach - conv.stride[axis], 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        conv, x = self.conv, F.pad(x, self.padding)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _pad_statically(network: nn.Module) -> None:
    """Wrap each ``Conv2dSame``; sides are multiples of 32 and so of the strides of all layers."""
    for name, module in list(network.named_modules()):
        if type(module).__name__ == "Conv2dSame":
            network.set_submodule(name, _StaticSameConv(module))
