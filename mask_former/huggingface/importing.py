"""Import a checkpoint of ``transformers``, without that library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mask_former.utils.bounded_files import read_json
from mask_former.utils.errors import short
from mask_former.utils.weight_files import as_tensors, read_checkpoint

from . import tables
from .families import TITLES, family_of_config
from .family import Family
from .names import from_huggingface_names
from .tables import RESNET_DEPTHS, check, get, nest, supported

__all__ = ["ConvertedCheckpoint", "read_huggingface_folder", "settings_from_huggingface"]

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_MOST_CLASSES = 65_536

# Defaults of both image processors; the mean and standard deviation are ImageNet's.
_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ConvertedCheckpoint(NamedTuple):
    """A transformers checkpoint, converted to this project's settings and names."""

    settings: dict[str, Any]  # content of a config file, without MODEL.WEIGHTS
    weights: dict[str, Tensor]
    class_names: list[str]  # by contiguous id


def read_huggingface_folder(folder: str | Path) -> ConvertedCheckpoint:
    """Read a folder that ``save_pretrained`` of a MaskFormer or Mask2Former wrote.

    Args:
        folder: Folder with ``config.json``, ``preprocessor_config.json``, and ``model.safetensors``
            or ``pytorch_model.bin``, which is read without running code.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or has settings or weights that are not supported.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    processor = _read_json(folder / "preprocessor_config.json")
    try:
        settings = settings_from_huggingface(config, processor)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{folder}: config.json or preprocessor_config.json has a value of the wrong type "
            f"({short(str(error), 200)}): restore the files as save_pretrained wrote them."
        ) from error
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has neither {' nor '.join(WEIGHTS_FILES)}. Weights in several files "
            "(*.index.json) must be saved as one: save_pretrained(…, max_shard_size='100GB')."
        )
    try:
        weights = as_tensors(read_checkpoint(path)["model"], path)
        weights = from_huggingface_names(weights, family_of_config(config))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error
    return ConvertedCheckpoint(settings, weights, class_names(config))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}: expected the folder of a transformers {TITLES}, written by "
            "save_pretrained of the model and of its image processor."
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def settings_from_huggingface(
    config: Mapping[str, Any], processor: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert the two JSON files to the content of a config file of this project.

    The batch norms of a ResNet are frozen, which gives the same results. Settings that the files
    lack, such as the panoptic thresholds, are those of the published configs.

    Args:
        config: Content of ``config.json``; missing keys have transformers' defaults.
        processor: Content of ``preprocessor_config.json``, with the same defaults.

    Returns:
        Nested plain values of every key that the two files decide.

    Raises:
        ValueError: If this project does not support a setting.
    """
    family = family_of_config(config)
    _check(config, family.theirs_needed, family)
    kind = get(config, "backbone_config.model_type")
    if kind is None:
        raise ValueError("config.json: backbone_config has no model_type, such as 'swin'.")
    backbone = (_resnet_settings if kind == "resnet" else _swin_settings)(config, family)
    return nest(
        {
            "VERSION": 2,
            **supported(family.ours_needed),
            **_input_settings(processor),
            **backbone,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(class_names(config)),
            **_values(config, family.values),
            **family.our_settings,
        }
    )


def _check(config: Mapping[str, Any], needs: tuple[tables.Need, ...], family: Family) -> None:
    check(config, needs, "config.json: ", f"this {family.name}")


def class_names(config: Mapping[str, Any]) -> list[str]:
    """Return the class names of ``config.json`` by id.

    Raises:
        ValueError: If the ids are not 0, 1, 2, ….
    """
    count = config.get("num_labels") or 2  # transformers' default
    if type(count) is not int or not 1 <= count <= _MOST_CLASSES:
        raise ValueError(
            f"config.json: num_labels is {short(count)}; expected 1 … {_MOST_CLASSES}, the number "
            "of classes."
        )
    labels = config.get("id2label") or {index: f"LABEL_{index}" for index in range(count)}
    if not isinstance(labels, Mapping) or not all(
        re.fullmatch(r"\d{1,9}", str(i)) and isinstance(name, str | int | float)
        for i, name in labels.items()
    ):
        raise ValueError(
            f"config.json: id2label is {short(labels)}; expected an id and a name for each class."
        )
    by_id = {int(index): str(name) for index, name in labels.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(
            f"config.json: id2label has {len(by_id)} classes with ids {min(by_id)} … {max(by_id)}; "
            f"expected 0 … {len(by_id) - 1}."
        )
    return [by_id[index] for index in range(len(by_id))]


def _values(config: Mapping[str, Any], rows: tuple[tables.Value, ...]) -> dict[str, Any]:
    return {ours: _value(config, theirs, default) for ours, theirs, default in rows}


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return a value of ``config.json`` in the type of ``default``."""
    value = get(config, key, default)
    if isinstance(value, list) and not isinstance(default, list):  # height and width
        if not value or value != value[:1] * len(value):
            raise ValueError(
                f"config.json: {key} is {short(value)}; expected one number for all sides."
            )
        value = value[0]
    kind = (int, float) if type(default) is float else type(default)
    if not isinstance(value, kind) or (type(default) is int and isinstance(value, bool)):
        raise ValueError(
            f"config.json: {key} is {short(value)}; expected {type(default).__name__}, such as "
            f"{default}."
        )
    return type(default)(value)


def _swin_settings(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    _check(config, family.their_swin_needed, family)
    values = _values(config, tables.SWIN_VALUES)
    for key in ("DEPTHS", "NUM_HEADS"):
        if len(values[f"MODEL.SWIN.{key}"]) != 4:
            raise ValueError(
                f"config.json: backbone_config.{key.lower()} is "
                f"{short(values[f'MODEL.SWIN.{key}'])}; this {family.name} has four stages."
            )
    return {
        **supported(family.our_swin_needed),
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        **values,
    }


def _resnet_settings(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    _check(config, tables.THEIR_RESNET_NEEDED, family)
    backbone = config["backbone_config"]
    layers = (backbone.get("layer_type", "bottleneck"), backbone.get("depths", [3, 4, 6, 3]))
    depth = next((depth for depth, known in RESNET_DEPTHS.items() if known == layers), None)
    if depth is None:
        raise ValueError(
            f"config.json: backbone_config has {short(layers[0])} layers and depths "
            f"{short(layers[1])}; detectron2's ResNets have one of {list(RESNET_DEPTHS.values())}."
        )
    widths = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    bottleneck = layers[0] == "bottleneck"
    first = widths[0]
    if widths != [first, 2 * first, 4 * first, 8 * first] or (not bottleneck and first != 64):
        expected = "each stage twice as wide as the one before"
        raise ValueError(
            f"config.json: backbone_config.hidden_sizes is {short(widths)}; detectron2's ResNet "
            f"has {expected if bottleneck else f'64 channels first and {expected}'}."
        )
    return {
        **supported(tables.OUR_RESNET_NEEDED),
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": first,
        "MODEL.RESNETS.WIDTH_PER_GROUP": first // 4 if bottleneck else 64,
        **_values(config, tables.RESNET_VALUES),
    }


def _input_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the image settings; the mean and deviation become those of images in 0 … 255."""
    rescale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if not isinstance(rescale, int | float) or not rescale > 0:
        raise ValueError(
            f"preprocessor_config.json: rescale_factor is {short(rescale)}; expected a number "
            "above 0, such as 1/255."
        )
    normalize = processor.get("do_normalize", True)
    mean = processor.get("image_mean", _MEAN) if normalize else [0, 0, 0]
    std = processor.get("image_std", _STD) if normalize else [1, 1, 1]
    size = processor.get("size", _SIZE)
    if isinstance(size, int):  # files of 2022
        size = {"shortest_edge": size, "longest_edge": processor.get("max_size", 1333)}
    if processor.get("do_resize", True) is False:
        size = {"shortest_edge": 0, "longest_edge": _SIZE["longest_edge"]}  # 0: do not resize
    elif not size.get("shortest_edge") or not size.get("longest_edge"):
        raise ValueError(
            f"preprocessor_config.json: size is {short(size)}; this project keeps the aspect ratio "
            "of images and needs shortest_edge and longest_edge: give the sizes that the model was "
            f"trained with, such as {short(_SIZE)}."
        )
    divisor = processor.get("size_divisor", processor.get("size_divisibility", 32))
    return {
        "MODEL.PIXEL_MEAN": [round(value / rescale, 6) for value in mean],
        "MODEL.PIXEL_STD": [round(value / rescale, 6) for value in std],
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": divisor,
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": size["shortest_edge"],
        "INPUT.MAX_SIZE_TEST": size["longest_edge"],
    }
