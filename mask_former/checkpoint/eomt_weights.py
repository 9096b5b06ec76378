"""Fit weights of other origin to plain ViTs and EoMT: official files, transformers', timm's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor, nn

from .eomt_names import from_official, from_timm, from_transformers

__all__ = ["fit_vit"]

_VIT = "backbone.vit."
_PROBABILITIES = "sem_seg_head.attn_mask_probs"


def fit_vit(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Rename weights to those of a model with a plain ViT, and resample those of its patches.

    Other models' weights stay as they are.

    Args:
        weights: tensors by name: ours, a whole ViT (``timm://NAME``) and, for an EoMT, the official
            ones or those of transformers.
        model: the model that they are for.
        source: origin of the weights, for the log and for errors.

    Raises:
        ValueError: if they are published DINOv3 weights of EoMT, which are differences, or if the
            position embedding cannot be resampled.
    """
    vit = getattr(getattr(model, "backbone", None), "vit", None)
    if vit is None:
        return dict(weights)
    head: Any = getattr(model, "sem_seg_head", None)
    if hasattr(head, "attn_mask_probs"):
        weights = _named_as_eomt(weights, len(head.attn_mask_probs), source)
    return _resampled(dict(weights), vit, source)


def _named_as_eomt(
    weights: Mapping[str, Tensor], num_blocks: int, source: str
) -> Mapping[str, Tensor]:
    """Rename weights of any known form; ``num_blocks`` is the number of blocks in the head."""
    weights = {name.replace("._orig_mod", ""): value for name, value in weights.items()}
    if "network.encoder.backbone.patch_embed.cls_token" in weights:
        raise ValueError(
            f"{source}: these are the published weights of an EoMT on DINOv3, which are stored as "
            "differences to the weights of DINOv3. Add both first: python tools/convert_eomt.py "
            "--help."
        )
    if any(name.startswith("network.") for name in weights):
        return from_official(weights)
    if {"query.weight", "class_predictor.weight"} <= weights.keys():
        return from_transformers(weights)
    if _PROBABILITIES not in weights and f"{_VIT}norm.weight" in weights:
        vit = {k.removeprefix(_VIT): v for k, v in weights.items() if k.startswith(_VIT)}
        return from_timm(vit, num_blocks)
    return weights


def _resampled(weights: dict[str, Tensor], vit: Any, source: str) -> dict[str, Tensor]:
    """Resample position embedding and patch kernel to a ViT's as timm does, if they differ.

    Both bicubic: the embedding with antialiasing, the kernel with the pseudo-inverse of a resizing.
    """
    name, grid = f"{_VIT}pos_embed", tuple(vit.patch_embed.grid_size)
    positions, own = weights.get(name), getattr(vit, "pos_embed", None)
    if positions is not None and own is not None and positions.shape[1] != own.shape[1]:
        from timm.layers import resample_abs_pos_embed

        extra = own.shape[1] - grid[0] * grid[1]  # tokens with a position that are not patches
        side = isqrt(positions.shape[1] - extra)
        if positions.ndim != 3 or side * side != positions.shape[1] - extra:
            raise ValueError(
                f"{source}: {name} has shape {tuple(positions.shape)}, which is not that of a "
                f"square grid of patches, so it cannot be resampled to the {grid[0]}×{grid[1]} of "
                "the model. Set the image size to that of the file."
            )
        weights[name] = resample_abs_pos_embed(
            positions, list(grid), [side, side], num_prefix_tokens=extra
        )
        logging.getLogger(__name__).info(
            f"{source}: its position embedding of {side}×{side} patches was resampled to "
            f"{grid[0]}×{grid[1]}."
        )
    name, own = f"{_VIT}patch_embed.proj.weight", vit.patch_embed.proj.weight
    kernel = weights.get(name)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2:] != own.shape[2:]:
        from timm.layers import resample_patch_embed

        weights[name] = resample_patch_embed(kernel, list(own.shape[2:]))
    return weights
