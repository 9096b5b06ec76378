#!/usr/bin/env python3
"""Make of a training checkpoint the file to give away: halved weights, and what inference needs.

    python tools/publish_weights.py output/camvid_semantic/model_final.pth weights.safetensors

MaskFormerPredictor.from_pretrained takes the result as it is, every tool as MODEL.WEIGHTS; the
model still computes in fp32. What inference needs (class names and colours, input size, …) is taken
from the checkpoint; --config-file takes it from a config instead, as for an older checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mask_former.checkpoint.inference_data import inference_data, read_inference_data
from mask_former.config.loading import load_cfg
from mask_former.utils.errors import message_of
from mask_former.utils.weight_files import (
    CLASS_NAMES,
    INFERENCE,
    as_tensors,
    averaged_weights,
    read_checkpoint,
    write_weights,
)


def half(name: str, value: torch.Tensor) -> torch.Tensor:
    """A float tensor in half precision; others as they are.

    Raises:
        ValueError: if a value does not fit half precision.
    """
    if not value.is_floating_point():
        return value.contiguous()
    small = value.to(torch.float16).contiguous()
    if not small.isfinite().all():
        raise ValueError(f"{name} has values that half precision cannot hold; use --keep-precision")
    return small


def find_inference_data(
    content: dict[str, Any], checkpoint: Path, config_file: Path | None
) -> tuple[dict[str, Any] | None, list[str] | None]:
    """What inference needs, and the classes' names: of the config, else of the checkpoint.

    Raises:
        KeyError, OSError, ValueError: if the config, or what the checkpoint carries, is broken.
    """
    if config_file is not None:
        data = inference_data(load_cfg(str(config_file), ["MODEL.DEVICE", "cpu"]))
        return data, [entry["name"] for entry in data["classes"]]
    read_inference_data(content, str(checkpoint))  # what is given away is whole
    return content.get(INFERENCE), content.get(CLASS_NAMES)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="a .safetensors file")
    parser.add_argument("--keep-precision", action="store_true", help="do not halve")
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights (MODEL.EMA) instead"
    )
    parser.add_argument("--config-file", type=Path, help="the config that it was trained with")
    args = parser.parse_args(argv)
    try:
        if args.output.suffix != ".safetensors":
            raise ValueError(f"{args.output}: the output must end in .safetensors")
        content = read_checkpoint(args.checkpoint)
        if args.ema:
            weights = averaged_weights(content, args.checkpoint)
        else:
            weights = as_tensors(content["model"], args.checkpoint)
        if not args.keep_precision:
            weights = {name: half(name, value) for name, value in weights.items()}
        inference, names = find_inference_data(content, args.checkpoint, args.config_file)
        write_weights(weights, args.output, names, inference)
    except (KeyError, ValueError, OSError) as error:
        print(f"publish_weights: {message_of(error)}", file=sys.stderr)
        return 1
    megabytes = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(weights)} tensors, {megabytes:.1f} MB")
    if inference is None:
        print("It carries no config: give the one that it was trained with as --config-file.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
