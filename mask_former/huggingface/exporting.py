"""Export a model's config to the files of ``transformers``, without that library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from . import tables
from .families import family_of_cfg
from .family import Family
from .tables import RESNET_DEPTHS, check, get, nest, supported

__all__ = ["to_huggingface_config", "to_huggingface_processor"]


def to_huggingface_config(cfg: CfgNode, class_names: Sequence[str]) -> dict[str, Any]:
    """Build the ``config.json`` of a transformers MaskFormer or Mask2Former.

    Args:
        cfg: Config of the model.
        class_names: Names of the ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` classes, by contiguous id.

    Raises:
        ValueError: If transformers does not support a setting, or the number of names is wrong.
    """
    family = family_of_cfg(cfg)
    _check(cfg, family.ours_needed, family)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(class_names) != classes:
        raise ValueError(
            f"There are {len(class_names)} class names, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{classes}: give one for each class."
        )
    backbone = _swin_config(cfg, family) if _has_swin(cfg) else _resnet_config(cfg, family)
    _check_input_projection(cfg, family)
    return nest(
        {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            **supported(family.theirs_needed),
            **backbone,
            **{theirs: get(cfg, ours) for theirs, ours in family.copies.items()},
            **family.their_settings,
            **_values(cfg, family.values),
            "id2label": {str(index): name for index, name in enumerate(class_names)},
            "label2id": {name: index for index, name in enumerate(class_names)},
        }
    )


def _has_swin(cfg: CfgNode) -> bool:
    return cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"


def _check(cfg: CfgNode, needs: tuple[tables.Need, ...], family: Family) -> None:
    check(cfg, needs, "", f"transformers' {family.name}")


def _values(cfg: CfgNode, rows: tuple[tables.Value, ...]) -> dict[str, Any]:
    values = {theirs: get(cfg, ours) for ours, theirs, _ in rows}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _swin_config(cfg: CfgNode, family: Family) -> dict[str, Any]:
    _check(cfg, family.our_swin_needed, family)
    return {
        **supported(family.their_swin_needed),
        "backbone_config.model_type": "swin",
        **_values(cfg, tables.SWIN_VALUES),
    }


def _resnet_config(cfg: CfgNode, family: Family) -> dict[str, Any]:
    _check(cfg, tables.OUR_RESNET_NEEDED, family)
    resnet = cfg.MODEL.RESNETS
    layer_type, depths = RESNET_DEPTHS[resnet.DEPTH]
    first = resnet.RES2_OUT_CHANNELS
    if layer_type == "bottleneck" and first != 4 * resnet.WIDTH_PER_GROUP:
        raise ValueError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {first} and WIDTH_PER_GROUP "
            f"{resnet.WIDTH_PER_GROUP}; transformers' {family.name} supports only "
            "RES2_OUT_CHANNELS / 4."
        )
    return {
        **supported(tables.THEIR_RESNET_NEEDED),
        "backbone_config.model_type": "resnet",
        "backbone_config.layer_type": layer_type,
        "backbone_config.depths": depths,
        "backbone_config.hidden_sizes": [first * 2**stage for stage in range(4)],
        **_values(cfg, tables.RESNET_VALUES),
    }


def _check_input_projection(cfg: CfgNode, family: Family) -> None:
    key = "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ"
    if any(value.ours == key for value in family.values):
        return
    last = 8 * (cfg.MODEL.SWIN.EMBED_DIM if _has_swin(cfg) else cfg.MODEL.RESNETS.RES2_OUT_CHANNELS)
    if get(cfg, key) and last == cfg.MODEL.MASK_FORMER.HIDDEN_DIM:
        raise ValueError(
            f"{key} is True and HIDDEN_DIM {last}, the width of the backbone's last map; "
            f"transformers' {family.name} has a projection only if the two differ."
        )


def to_huggingface_processor(cfg: CfgNode) -> dict[str, Any]:
    """Build the ``preprocessor_config.json`` of the model's image processor.

    transformers resizes images to a multiple of ``size_divisor``; this project pads them.
    """
    divisor = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
    if divisor < 0:  # the backbone decides
        divisor = 32 if _has_swin(cfg) else 0
    resize = cfg.INPUT.MIN_SIZE_TEST > 0
    shortest = cfg.INPUT.MIN_SIZE_TEST or 800
    return {
        "image_processor_type": f"{family_of_cfg(cfg).name}ImageProcessor",
        "do_resize": resize,
        "size": {"shortest_edge": shortest, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": divisor,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        # enough digits to restore six decimals of MODEL.PIXEL_MEAN and PIXEL_STD
        "image_mean": [round(value / 255, 9) for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [round(value / 255, 9) for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }
