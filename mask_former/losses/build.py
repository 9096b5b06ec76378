"""Build the criterion and its parts, which are registered by name, from a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from detectron2.config import CfgNode
from torch import Tensor, nn

from mask_former.ops.mask_sums import MaskTerm
from mask_former.registries import CRITERION_REGISTRY, LOSS_REGISTRY, MATCHER_REGISTRY, lookup

from .mask_terms import MASK_TERMS
from .point_sampling import PointRule

__all__ = [
    "Loss",
    "build_criterion",
    "build_losses",
    "build_mask_term",
    "build_matcher",
    "build_point_rule",
]


class Loss(Protocol):
    """A set loss: see :mod:`mask_former.losses.set_losses`."""

    weights: Mapping[str, float]
    """Weight of each term in the total loss, by name."""

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Compute the unweighted terms, L values each, of a :class:`~.set_losses.MatchedBatch`."""


def build_criterion(cfg: CfgNode) -> nn.Module:
    """Build the criterion that ``MODEL.MASK_FORMER.CRITERION_NAME`` names.

    ``criterion(outputs, targets, *, batch_counts=None)`` returns unweighted losses by name, and
    ``criterion.loss_weights`` holds their weights.

    Raises:
        KeyError: if the name is not registered.
    """
    name = cfg.MODEL.MASK_FORMER.CRITERION_NAME
    return lookup(CRITERION_REGISTRY, name, "MODEL.MASK_FORMER.CRITERION_NAME")(cfg)


def build_matcher(cfg: CfgNode, **shared: Any) -> nn.Module:
    """Build the matcher that ``MODEL.MASK_FORMER.MATCHER.NAME`` names.

    ``matcher(prediction, targets)`` returns a :class:`~mask_former.structures.Match` for each
    image; ``matcher.match_layers(predictions, targets)`` returns such a list for each layer.

    Args:
        cfg: the config.
        shared: ``mask_term`` and ``point_rule``, which the losses use too.

    Raises:
        KeyError: if the name is not registered.
    """
    name = cfg.MODEL.MASK_FORMER.MATCHER.NAME
    return lookup(MATCHER_REGISTRY, name, "MODEL.MASK_FORMER.MATCHER.NAME")(cfg, **shared)


def build_losses(cfg: CfgNode) -> dict[str, Loss | Callable[[Any], dict[str, Tensor]]]:
    """Build the set losses that ``MODEL.MASK_FORMER.LOSSES`` names, by name.

    A registered class is instantiated from the config; a registered function is used as is.

    Raises:
        KeyError: if a name is not registered.
    """
    entries = {
        name: lookup(LOSS_REGISTRY, name, "MODEL.MASK_FORMER.LOSSES")
        for name in cfg.MODEL.MASK_FORMER.LOSSES
    }
    return {
        name: entry(cfg) if isinstance(entry, type) else entry for name, entry in entries.items()
    }


def build_mask_term(cfg: CfgNode) -> MaskTerm:
    """Build the mask term that ``MODEL.MASK_FORMER.MASK_TERM`` names.

    Raises:
        ValueError: if the name is unknown, or if targets are interpolated, for which the focal
            term is not defined.
    """
    node = cfg.MODEL.MASK_FORMER
    if node.MASK_TERM not in MASK_TERMS:
        raise ValueError(
            f"MODEL.MASK_FORMER.MASK_TERM is {node.MASK_TERM!r}, expected one of "
            f"{list(MASK_TERMS)}."
        )
    if node.MASK_TERM == "focal" and node.TRAIN_NUM_POINTS and node.POINT_TARGETS == "bilinear":
        raise ValueError(
            "MODEL.MASK_FORMER.MASK_TERM is 'focal', which needs targets of 0 and 1, but "
            "POINT_TARGETS is 'bilinear', which gives fractions: set MASK_TERM to 'cross_entropy' "
            "or POINT_TARGETS to 'nearest'."
        )
    return MASK_TERMS[node.MASK_TERM]()


def build_point_rule(cfg: CfgNode) -> PointRule | None:
    """Build the point rule, or None for all pixels (``MODEL.MASK_FORMER.TRAIN_NUM_POINTS`` 0).

    Raises:
        ValueError: if a value is out of range; the message names its key.
    """
    node = cfg.MODEL.MASK_FORMER
    if not node.TRAIN_NUM_POINTS:
        return None
    return PointRule(
        node.TRAIN_NUM_POINTS,
        node.OVERSAMPLE_RATIO,
        node.IMPORTANCE_SAMPLE_RATIO,
        node.POINT_PADDING,
        node.POINT_TARGETS,
    )
