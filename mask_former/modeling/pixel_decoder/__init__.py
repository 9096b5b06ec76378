"""Pixel decoders: backbone maps in, per-pixel embeddings at stride 4 out (paper, section 3.3)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from mask_former.registries import lookup

__all__ = ["build_pixel_decoder"]


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The pixel decoder that ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names.

    Its contract: ``forward_features(features) -> (mask_features, encoder_features or None)``, the
    first B×MASK_DIM×H/4×W/4, the second B×CONVS_DIM on the coarsest grid.

    Raises:
        KeyError: for an unknown name.
        TypeError: if what is registered under it does not keep the contract.
    """
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    decoder = lookup(SEM_SEG_HEADS_REGISTRY, name, key)(cfg, input_shape)
    if not callable(getattr(decoder, "forward_features", None)):
        raise TypeError(f"{key} is {name!r}, which has no forward_features(): no pixel decoder.")
    return decoder
