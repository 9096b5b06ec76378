"""Convert a published EoMT checkpoint into a file for MODEL.WEIGHTS, or back.

python tools/convert_eomt.py pytorch_model.bin --base dinov3.safetensors --output eomt.safetensors
python tools/convert_eomt.py model_final.pth --to official --output pytorch_model.bin

Published checkpoints for DINOv2 can be used as MODEL.WEIGHTS without a conversion. Those for DINOv3
are differences: --base names the weights of DINOv3, as transformers stores them (model.safetensors
of facebook/dinov3-vits16-pretrain-lvd1689m, for example; accept their licence first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mask_former.checkpoint.eomt_delta import add_base_weights
from mask_former.checkpoint.eomt_names import (
    from_any,
    is_difference,
    to_official,
    to_transformers,
)
from mask_former.utils.atomic_files import replace_file, save_torch
from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights

from .command import exit_code, make_parser

__all__ = ["ConvertEoMTArguments", "main", "parse"]

_WRITERS = {"official": to_official, "transformers": to_transformers}


@dataclass(frozen=True)
class ConvertEoMTArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    checkpoint: Path
    base: Path | None
    whole: bool
    to: str
    output: Path


def parse(argv: Sequence[str] | None) -> ConvertEoMTArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="the file to convert")
    parser.add_argument("--base", type=Path, help="weights of DINOv3 to add to differences")
    parser.add_argument(
        "--whole", action="store_true", help="weights for DINOv3 that are whole, not differences"
    )
    parser.add_argument(
        "--to",
        choices=["ours", *_WRITERS],
        default="ours",
        help="the names of the result (default: ours)",
    )
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    return ConvertEoMTArguments(**vars(parser.parse_args(argv)))


def run(arguments: ConvertEoMTArguments) -> int:
    """Convert the file and return the exit code."""
    weights = _read(arguments.checkpoint)
    if arguments.base is not None:
        weights = add_base_weights(weights, _read(arguments.base))
    elif is_difference(weights) and not arguments.whole:
        raise ValueError(
            f"{arguments.checkpoint} is an EoMT for DINOv3, whose published weights are "
            "differences: name those of DINOv3 with --base, or say --whole if they are whole, as "
            "those that --to official writes."
        )
    weights = from_any(weights)
    if "sem_seg_head.attn_mask_probs" not in weights:
        raise ValueError(
            f"{arguments.checkpoint} is not an EoMT: it has neither the published names "
            "(network.…), nor those of transformers (query.weight), nor ours (sem_seg_head.…)."
        )
    if arguments.to in _WRITERS:
        weights = _WRITERS[arguments.to](weights)
    _write(weights, arguments.output)
    print(f"{arguments.output}: {len(weights)} tensors, names: {arguments.to}")
    return 0


def _write(weights: dict[str, Tensor], path: Path) -> None:
    """Write a file for ``MODEL.WEIGHTS``, or a ``.bin`` of the tensors alone, as published ones."""
    if path.suffix != ".bin":
        write_weights(weights, path)
        return
    tensors = {name: value.contiguous() for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: save_torch(tensors, part))


def _read(path: Path) -> dict[str, Tensor]:
    return as_tensors(read_checkpoint(path)["model"], path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("convert_eomt", lambda: run(arguments))
