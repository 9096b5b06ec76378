"""The models that are converted, and the choice of the one that a file or a config describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from detectron2.config import CfgNode

from mask_former.utils.errors import short

from .family import Family
from .mask2former import MASK2FORMER
from .maskformer import MASKFORMER

__all__ = ["FAMILIES", "TITLES", "best_family", "family_of_cfg", "family_of_config"]

FAMILIES = (MASKFORMER, MASK2FORMER)
TITLES = " or ".join(family.name for family in FAMILIES)
"""The names of all models, for messages."""


def family_of_config(config: Mapping[str, Any]) -> Family:
    """Return the model of a ``config.json``.

    Raises:
        ValueError: If its ``model_type`` is that of another model.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    expected = " or ".join(repr(family.model_type) for family in FAMILIES)
    raise ValueError(
        f"config.json: model_type is {short(repr(model_type))}, which this project does not "
        f"convert; expected {expected}: give the folder of a transformers {TITLES}."
    )


def family_of_cfg(cfg: CfgNode) -> Family:
    """Return the model that a config describes, if only by the name of its transformer decoder."""
    decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    is_mask2former = decoder == "MultiScaleMaskedTransformerDecoder"
    return MASK2FORMER if is_mask2former else MASKFORMER


def best_family(names: Iterable[str], convert: Callable[[Family, str], Any]) -> Family:
    """Return the model whose table has the most of the names.

    Args:
        names: Names of weights; the first thousand are looked up.
        convert: A function that looks up a name in the table of a model.
    """
    names = list(islice(names, 1000))
    return max(FAMILIES, key=lambda family: sum(bool(convert(family, name)) for name in names))
