#!/usr/bin/env python3
"""Create the built-in dataset, ``shapes_panoptic_train`` and ``shapes_panoptic_val``.

    python datasets/prepare_shapes.py [--output DIR] [--num-train N] [--num-val N] [--seed S]

With the default sizes, training and evaluation create the dataset themselves if it is missing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mask_former.data.datasets.catalog import datasets_root
from mask_former.data.shapes.writer import DEFAULT, Settings, generate


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        help="default: shapes_panoptic in $DETECTRON2_DATASETS, or in ./datasets",
    )
    for name in ("num-train", "num-val", "seed"):
        value = getattr(DEFAULT, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    output = args.output or datasets_root() / "shapes_panoptic"
    try:
        generate(output, Settings(args.num_train, args.num_val, args.seed))
    except ValueError as error:
        print(f"prepare_shapes: {error}", file=sys.stderr)
        return 1
    print(f"The shapes dataset is in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
