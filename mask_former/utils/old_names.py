"""Names of parameters in checkpoints that were written before the current layout of the models."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

__all__ = ["rename_old_layout"]

T = TypeVar("T")

_OLD_PIXEL_DECODER = re.compile(
    r"^sem_seg_head\.(?=(?:adapter_\d+|layer_\d+|mask_features|input_proj|transformer)\.)"
)
_OLD_QUERIES = re.compile(r"^sem_seg_head\.predictor\.static_query\.")


def rename_old_layout(weights: Mapping[str, T], keep: Collection[str] = ()) -> dict[str, T]:
    """Return the same weights under the current parameter names; idempotent.

    Early MaskFormer checkpoints have the pixel decoder's parameters directly under
    ``sem_seg_head.``, early Mask2Former checkpoints call the queries ``static_query``, and the
    names in the checkpoint of a wrapped model start with ``module.``.

    Args:
        weights: Names to values of any type.
        keep: Names that stay unchanged, such as those of the model, because a user's head may use
            the old names.
    """
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    renamed = {}
    for name, value in weights.items():
        new = _OLD_PIXEL_DECODER.sub("sem_seg_head.pixel_decoder.", name)
        new = _OLD_QUERIES.sub("sem_seg_head.predictor.query_feat.", new)
        renamed[name if name in keep or new in weights else new] = value
    return renamed
