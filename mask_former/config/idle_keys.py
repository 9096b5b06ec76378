"""Keys that are set but have no effect, which hides a mistake."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, get_cfg

from .nodes import get, leaves

__all__ = ["BOX_MODEL_NODES", "OWN_ARCHITECTURES", "changed_keys", "check_idle_keys"]

OWN_ARCHITECTURES = ("MaskFormer", "SemanticSegmentor")
"""Meta-architectures of this project's models; some checks apply only to their configs."""

_MASK_FORMER_KEYS = (
    "MODEL.COMPILE",
    "MODEL.ACTIVATION_CHECKPOINTING",
    "TEST.AMP.ENABLED",
    "TEST.SLIDING_WINDOW.SIZE",
)
"""Keys that only the meta-architecture ``MaskFormer`` reads; 0 or False turns them off."""

_FIXED_KEYS = {
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
}
"""Keys that the published Mask2Former has and does not read, and their only value."""

BOX_MODEL_NODES = (
    "ANCHOR_GENERATOR",
    "PANOPTIC_FPN",
    "PROPOSAL_GENERATOR",
    "RETINANET",
    "ROI_BOX_CASCADE_HEAD",
    "ROI_BOX_HEAD",
    "ROI_HEADS",
    "ROI_KEYPOINT_HEAD",
    "ROI_MASK_HEAD",
    "RPN",
)
"""Nodes of ``MODEL`` that only detectron2's box-based models read."""


def check_idle_keys(cfg: CfgNode) -> None:
    """Refuse keys that are set but do not affect this model.

    Raises:
        ValueError: if there is one; the message names it.
    """
    for key, fixed in _FIXED_KEYS.items():
        if get(cfg, key) != fixed:
            raise ValueError(
                f"{key} is {get(cfg, key)}, but no pixel decoder reads it: leave it at {fixed}. "
                "The number of heads is MODEL.MASK_FORMER.NHEADS."
            )
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture != "MaskFormer":
        for key in _MASK_FORMER_KEYS:
            if value := get(cfg, key):
                raise ValueError(
                    f"{key} is {value}, but MODEL.META_ARCHITECTURE {architecture!r} does not read "
                    f"it, only 'MaskFormer' does. Set it to {type(value)(0)}."
                )
    if architecture in OWN_ARCHITECTURES:
        _check_box_models(cfg)


def _check_box_models(cfg: CfgNode) -> None:
    """Refuse changed keys of detectron2's box-based models."""
    architecture, defaults = cfg.MODEL.META_ARCHITECTURE, get_cfg().MODEL
    changed = [
        f"MODEL.{node}.{key}"
        for node in BOX_MODEL_NODES
        for key in changed_keys(cfg.MODEL[node], defaults[node])
    ]
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if (
        "MODEL.ROI_HEADS.NUM_CLASSES" in changed
        and classes == defaults.SEM_SEG_HEAD.NUM_CLASSES != cfg.MODEL.ROI_HEADS.NUM_CLASSES
    ):
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but "
            f"MODEL.META_ARCHITECTURE {architecture!r} does not read it, and "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is still {classes}, detectron2's default: set the "
            "latter to the number of classes."
        )
    if changed:
        raise ValueError(
            f"These keys belong to detectron2's box-based models, and MODEL.META_ARCHITECTURE "
            f"{architecture!r} does not read them: {', '.join(changed)}. Remove them."
        )


def changed_keys(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    """Return the values that differ from ``defaults``, by the full name of their key."""
    known = dict(leaves(defaults))
    return {
        key: value
        for key, value in leaves(cfg)
        if key not in known or _lists(value) != _lists(known[key])
    }


def _lists(value: Any) -> Any:
    """Replace tuples by lists, because YAML, the format of saved configs, has no tuples."""
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
