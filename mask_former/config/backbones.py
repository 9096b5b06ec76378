"""Checks of the keys that backbones read; detectron2's errors name none of them."""

from __future__ import annotations

from importlib.util import find_spec

from detectron2.config import CfgNode

from mask_former.utils.norms import build_norm

__all__ = ["check_backbone"]

_DEPTHS = (18, 34, 50, 101, 152)
_BASIC = (18, 34)
"""Depths of the ResNets without bottlenecks, which have fewer options."""
_STAGES = ("res2", "res3", "res4", "res5")
_MOST_CHANNELS = 65_536


def check_backbone(cfg: CfgNode) -> None:
    """Check the keys of a ResNet of detectron2, if it is the backbone, and those of Swin.

    Raises:
        ValueError: if a value is impossible, or contradicts another one; the message names the key.
    """
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        _check_resnet(cfg.MODEL.RESNETS)
    if cfg.MODEL.BACKBONE.NAME == "build_eomt_vit_backbone":
        _check_eomt_sizes(cfg)
    _check_swin(cfg.MODEL.SWIN)


def _check_resnet(node: CfgNode) -> None:
    maps = ("stem", *_STAGES)
    deformed = list(node.DEFORM_ON_PER_STAGE)
    expected = [
        ("DEPTH", node.DEPTH in _DEPTHS, f"one of {_DEPTHS}"),
        ("RES5_DILATION", node.RES5_DILATION in (1, 2), "1 or 2"),
        ("OUT_FEATURES", {*node.OUT_FEATURES} <= {*maps}, f"one or more of {maps}"),
        ("DEFORM_ON_PER_STAGE", len(deformed) == len(_STAGES), "a value for each of four stages"),
        (
            "DEFORM_ON_PER_STAGE",
            not any(deformed) or find_spec("detectron2._C") is not None,
            "no True, because this detectron2 has no compiled operators",
        ),
    ]
    if node.DEPTH in _BASIC:
        expected += [
            (key, node[key] == value, f"{value} with MODEL.RESNETS.DEPTH {node.DEPTH}")
            for key, value in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1))
        ]
        expected.append(("DEFORM_ON_PER_STAGE", not any(deformed), f"no True with {node.DEPTH}"))
    for key, fits, what in expected:
        if not fits:
            raise ValueError(f"MODEL.RESNETS.{key} is {str(node[key])[:80]}; expected {what}.")
    width = node.NUM_GROUPS * node.WIDTH_PER_GROUP
    if width > _MOST_CHANNELS:
        raise ValueError(
            f"MODEL.RESNETS.NUM_GROUPS × WIDTH_PER_GROUP is {width}; expected at most "
            f"{_MOST_CHANNELS} channels: no memory holds such a model."
        )
    for channels in (node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS, width):
        build_norm(node.NORM, channels, "MODEL.RESNETS.NORM")


def _check_swin(node: CfgNode) -> None:
    for key in ("DEPTHS", "NUM_HEADS"):
        if [type(number) for number in node[key]] != [int] * len(_STAGES):
            raise ValueError(
                f"MODEL.SWIN.{key} is {str(node[key])[:80]}; expected an integer for each of the "
                "four stages."
            )
    for stage, heads in enumerate(node.NUM_HEADS):
        channels = node.EMBED_DIM * 2**stage
        if channels % heads:
            raise ValueError(
                f"MODEL.SWIN.NUM_HEADS is {node.NUM_HEADS}, but the {channels} channels of stage "
                f"{stage} (MODEL.SWIN.EMBED_DIM is {node.EMBED_DIM}) cannot be split into {heads} "
                "heads: set it to a divisor."
            )


def _check_eomt_sizes(cfg: CfgNode) -> None:
    """Refuse sizes of crops and windows that the network, which is built for one size, lacks."""
    size = list(cfg.MODEL.EOMT.IMAGE_SIZE)
    window, mapper = cfg.TEST.SLIDING_WINDOW.SIZE, cfg.INPUT.DATASET_MAPPER_NAME
    others = {"TEST.SLIDING_WINDOW.SIZE": window} if window else {}
    if mapper.endswith("_lsj"):
        others["INPUT.IMAGE_SIZE"] = cfg.INPUT.IMAGE_SIZE
    for key, side in others.items():
        if size != [side, side]:
            raise ValueError(
                f"MODEL.EOMT.IMAGE_SIZE is {size}, but {key} is {side}: set both to the same size, "
                "because EoMT runs on images of one size only."
            )
