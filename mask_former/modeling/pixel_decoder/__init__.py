"""Pixel decoders, which turn backbone maps into per-pixel embeddings (paper, section 3.3)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from mask_former.registries import lookup

from .base import PixelDecoder

__all__ = ["PixelDecoder", "build_pixel_decoder"]

_DEFAULT_STRIDE = 4
"""detectron2's default of ``COMMON_STRIDE``, which stands in configs with coarser maps, too."""


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> PixelDecoder:
    """Build the pixel decoder that ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names.

    Raises:
        KeyError: for an unknown decoder, or an unknown map in ``IN_FEATURES``.
        TypeError: if the registered class lacks a method of :class:`PixelDecoder`.
        ValueError: if ``COMMON_STRIDE`` is not the stride of the mask features.
    """
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    entry = lookup(SEM_SEG_HEADS_REGISTRY, name, key)
    head = cfg.MODEL.SEM_SEG_HEAD
    unknown = [name for name in head.IN_FEATURES if name not in input_shape]
    if unknown:
        raise KeyError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {unknown}; the maps of the backbone are "
            f"{sorted(input_shape)}."
        )
    decoder = entry(cfg, input_shape)
    for method in ("forward_features", "output_shape"):
        if not callable(getattr(decoder, method, None)):
            raise TypeError(f"{key} is {name!r}, which is not a pixel decoder: add {method}().")
    stride = decoder.output_shape()["mask_features"].stride
    if head.COMMON_STRIDE not in (stride, _DEFAULT_STRIDE):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE}, but the mask features of "
            f"{name} have stride {stride}: set the key to {stride}."
        )
    return decoder
