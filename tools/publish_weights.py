#!/usr/bin/env python3
"""Make of a training checkpoint the file to give away: halved weights and the classes' names.

    python tools/publish_weights.py output/camvid_semantic/model_final.pth weights.safetensors

Every tool takes the result as MODEL.WEIGHTS; the model still computes in fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mask_former.checkpoint import (
    CLASS_NAMES,
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
        write_weights(weights, args.output, content.get(CLASS_NAMES))
    except (ValueError, OSError) as error:
        print(f"publish_weights: {error}", file=sys.stderr)
        return 1
    megabytes = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(weights)} tensors, {megabytes:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
