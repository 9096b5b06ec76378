"""Creation of timm's plain ViTs, which EoMT and the simple feature pyramid are built on."""

from __future__ import annotations

from typing import Any

from torch import nn

from .timm_backbone import check_known

__all__ = ["create_vit", "is_plain_vit"]

_MODULES = ("timm.models.deit", "timm.models.eva", "timm.models.vision_transformer")
_ROPE_RESCALE = 2.0
"""In training, DINOv3 multiplies rotary coordinates by a random factor in [1/2, 2]."""


def create_vit(name: str, key: str, **options: Any) -> Any:
    """Create a ViT of timm with random weights, without a classifier and its pooling.

    Args:
        name: timm's name of the ViT.
        key: config key with the name, for error messages.
        options: timm's own.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no such model, or if it is not a plain ViT.
    """
    if not is_plain_vit(name, key):
        raise ValueError(
            f"{key} is {name!r}, which is not a plain ViT; expected a VisionTransformer or Eva of "
            "timm, such as 'vit_small_patch14_reg4_dinov2' or 'vit_small_patch16_dinov3_qkvb'."
        )
    import timm

    if "dinov3" in name:
        options["rope_rescale_coords"] = _ROPE_RESCALE
    # Without pooling, timm puts the norm behind the last block instead of the pooling.
    vit = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
    vit.fc_norm = nn.Identity()
    return vit


def is_plain_vit(name: str, key: str) -> bool:
    """Return True if a model of timm is a VisionTransformer or an Eva with a patch embedding.

    Args:
        name: timm's name of the model.
        key: config key with the name, for error messages.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no such model.
    """
    check_known(name, key)
    import timm

    module = timm.model_entrypoint(name).__module__
    return module in _MODULES and "distilled" not in name  # those have a second class token
