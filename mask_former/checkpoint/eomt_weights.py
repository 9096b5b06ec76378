"""Fit weights of other origin to plain ViTs and EoMT: official files, transformers', timm's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor, nn

from .eomt_names import from_any, from_timm, is_difference

__all__ = ["fit_vit"]

_VIT = "backbone.vit."
_PROBABILITIES = "sem_seg_head.attn_mask_probs"


def fit_vit(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Rename weights to the names of a model with a plain ViT, and fit them to its patches.

    The position embedding and the patch kernel are resampled if the sizes differ.

    Other models' weights stay as they are.

    Args:
        weights: tensors by name: ours, a whole ViT (``timm://NAME``) and, for an EoMT, the official
            ones or those of transformers.
        model: the model that they are for.
        source: origin of the weights, for the log and for errors.

    Raises:
        ValueError: if they are published DINOv3 weights of EoMT, which are differences, if their
            head has another number of blocks, if some are missing, or if the position embedding
            cannot be resampled.
    """
    vit = getattr(getattr(model, "backbone", None), "vit", None)
    if vit is None:
        return dict(weights)
    head: Any = getattr(model, "sem_seg_head", None)
    if hasattr(head, "attn_mask_probs"):
        try:
            weights = _named_as_eomt(weights, len(head.attn_mask_probs))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    return _resampled(dict(weights), vit, source)


def _named_as_eomt(weights: Mapping[str, Tensor], num_blocks: int) -> Mapping[str, Tensor]:
    """Rename weights of any known form; ``num_blocks`` is the number of blocks in the head."""
    if is_difference(weights):
        raise ValueError(
            "these are the published weights of an EoMT on DINOv3, which are differences to those "
            "of DINOv3. Add both: python tools/convert_eomt.py FILE --base DINOV3 --output OUTPUT."
        )
    weights = from_any(weights)
    if _PROBABILITIES not in weights and f"{_VIT}norm.weight" in weights:
        vit = {k.removeprefix(_VIT): v for k, v in weights.items() if k.startswith(_VIT)}
        return from_timm(vit, num_blocks)
    found = weights[_PROBABILITIES].numel() if _PROBABILITIES in weights else num_blocks
    if found != num_blocks:
        raise ValueError(
            f"it has {found} blocks in the head, but MODEL.EOMT.NUM_BLOCKS is {num_blocks}: set "
            f"the key to {found}."
        )
    return weights


def _resampled(weights: dict[str, Tensor], vit: Any, source: str) -> dict[str, Tensor]:
    """Resample position embedding and patch kernel to a ViT's as timm does, if they differ.

    Both bicubic: the embedding with antialiasing, the kernel with the pseudo-inverse of a resizing.
    """
    name, own = f"{_VIT}pos_embed", getattr(vit, "pos_embed", None)
    positions = weights.get(name)
    if positions is not None and own is not None and positions.ndim == 3:
        grid = vit.patch_embed.grid_size
        if positions.shape[1] != own.shape[1]:
            extra = own.shape[1] - grid[0] * grid[1]  # tokens with a position that are not patches
            weights[name] = _resampled_positions(positions, grid, extra, f"{source}: {name}")
    name, own = f"{_VIT}patch_embed.proj.weight", vit.patch_embed.proj.weight
    kernel = weights.get(name)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2:] != own.shape[2:]:
        from timm.layers import resample_patch_embed

        weights[name] = resample_patch_embed(kernel, list(own.shape[2:]))
    return weights


def _resampled_positions(
    positions: Tensor, grid: tuple[int, int], num_extra: int, where: str
) -> Tensor:
    """Resample the position embedding of a square grid, 1×(E+G)×C, without its first E tokens."""
    from timm.layers import resample_abs_pos_embed

    patches = max(positions.shape[1] - num_extra, 0)
    side = isqrt(patches)
    if not patches or side * side != patches:
        raise ValueError(
            f"{where} has shape {tuple(positions.shape)}, which is not that of a square grid of "
            f"patches, so it cannot be resampled to the {grid[0]}×{grid[1]} of the model. Set the "
            "image size to that of the file."
        )
    logging.getLogger(__name__).info(
        f"{where}, of {side}×{side} patches, was resampled to {grid[0]}×{grid[1]}."
    )
    return resample_abs_pos_embed(positions, list(grid), [side, side], num_prefix_tokens=num_extra)
