"""What the tools that convert a backbone's ImageNet weights share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights

__all__ = ["convert_file"]

# Of ImageNet's pixels, RGB, in 0 … 255: what torchvision and Swin Transformers are trained with.
_PIXEL_MEAN = [123.675, 116.28, 103.53]
_PIXEL_STD = [58.395, 57.12, 57.375]

Converter = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]


def convert_file(source: Path, output: Path, convert: Converter) -> str:
    """Write the backbone of ``source`` to ``output``, a file that ``MODEL.WEIGHTS`` takes.

    Args:
        convert: from the state dict in ``source`` to the weights by our names, and the keys of
            ``MODEL`` that build their backbone.

    Returns:
        What to tell: the number of entries, and the YAML of a config that uses them.

    Raises:
        FileNotFoundError: if there is no ``source``.
        ValueError: if it is not what ``convert`` takes, or ``output`` has another suffix than
            ``.safetensors``, ``.pth`` or ``.pkl``.
    """
    weights = as_tensors(read_checkpoint(source)["model"], source)
    try:
        converted, model = convert(weights)
    except ValueError as error:
        raise ValueError(f"{source} is {error}.") from error
    write_weights(converted, output)
    model = {"WEIGHTS": str(output), "PIXEL_MEAN": _PIXEL_MEAN, "PIXEL_STD": _PIXEL_STD, **model}
    config = {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    return f"{output}: {len(converted)} entries of {source}. In the config:\n\n{text}"
