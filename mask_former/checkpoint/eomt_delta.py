"""Add published EoMT weights for a DINOv3, which are differences, to the weights of DINOv3."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .eomt_names import OFFICIAL_VIT, is_difference

__all__ = ["add_base_weights"]

_PROBABILITIES = "network.attn_mask_probs"
# The names of transformers' DINOv3, by the names in the published EoMT.
_BASE_NAMES = (("patch_embed.", "embeddings."), ("blocks.", "layer."), ("norm.", "norm."))


def add_base_weights(
    differences: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the published checkpoint with whole weights instead of differences.

    The attention is no longer masked in a finished model, so the probabilities are 0; the file's
    own are meaningless.

    Args:
        differences: a published checkpoint, ``network.…``.
        base: the weights of DINOv3, with the names of transformers (``layer.0.…``).

    Raises:
        ValueError: if the checkpoint is not one for a DINOv3, or if a weight of DINOv3 is missing
            or has another shape.
    """
    if not is_difference(differences) or _PROBABILITIES not in differences:
        raise ValueError(
            "The checkpoint is not a published EoMT for a DINOv3: it needs the weights "
            f"{OFFICIAL_VIT}patch_embed.cls_token and {_PROBABILITIES}. Only those are differences."
        )
    base = {name.removeprefix("model."): value for name, value in base.items()}
    result = {}
    for name, value in differences.items():
        if name.startswith(OFFICIAL_VIT):
            base_name = _base_name(name.removeprefix(OFFICIAL_VIT))
            found = base.get(base_name)
            if found is None or found.shape != value.shape:
                shape = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                raise ValueError(
                    f"The base weights do not fit: {base_name} {shape}, expected "
                    f"{tuple(value.shape)}. Give those of the DINOv3 that it was trained from."
                )
            value = value + found
        result[name] = value
    result[_PROBABILITIES] = torch.zeros_like(differences[_PROBABILITIES])
    return result


def _base_name(name: str) -> str:
    for official, base in _BASE_NAMES:
        if name.startswith(official):
            return base + name.removeprefix(official)
    return name
