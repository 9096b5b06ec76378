r"""Export a trained model as graphs that run without this package.

    python tools/export.py --config-file model_zoo/camvid_semantic.yaml --format onnx --dynamic \
        --verify --output camvid_onnx

This command writes two graphs that take images (N×3×H×W, 0 … 255, in the config's channel order;
the graphs normalise them): mask_former.onnx returns class and mask logits, class_map.onnx class ids
N×H×W. It also writes mask_former.json with the classes and the input size. --verify compares both
graphs with the model. See docs/export.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from tqdm import tqdm

from mask_former.config.loading import load_cfg, resolve_device
from mask_former.export import FORMATS, LIMIT, STRIDE, compare, describe, graphs_of, measure
from mask_former.export.formats import OPSET, Runner
from mask_former.export.verification import TOLERANCE, reference
from mask_former.predictor.trained_model import load_trained_model
from mask_former.registries import load_plugins
from mask_former.utils.atomic_files import remove_parts, replace_files

from .command import add_plugin_argument, exit_code, make_parser

__all__ = ["ExportArguments", "main", "parse"]

LOG = logging.getLogger("export")
ROUNDS = 5


@dataclass(frozen=True)
class ExportArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    config_file: str
    output: Path
    format: str
    size: Sequence[int] | None
    dynamic: bool
    verify: bool
    random_weights: bool
    plugins: Sequence[str]
    opts: Sequence[str]


def parse(argv: Sequence[str] | None) -> ExportArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True)
    add("--format", choices=FORMATS, default="onnx")
    add("--output", required=True, type=Path, help="a folder, created if needed")
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="pixels, multiples of 32; default: a square of INPUT.MIN_SIZE_TEST, rounded up",
    )
    add("--dynamic", action="store_true", help="any batch and image size, not one image of --size")
    add("--verify", action="store_true", help="compare with the model, and time both")
    add("--random-weights", action="store_true", help="ignore MODEL.WEIGHTS, to try an export")
    add_plugin_argument(parser)
    add("opts", nargs=argparse.REMAINDER, help="config keys: KEY VALUE …")
    return ExportArguments(**vars(parser.parse_args(argv)))


def prepare_cfg(arguments: ExportArguments) -> CfgNode:
    """Read the config and turn off what a graph cannot contain, with a warning for each."""
    cfg = resolve_device(load_cfg(arguments.config_file, arguments.opts)).clone()
    cfg.defrost()
    left_out = {
        "TEST.SLIDING_WINDOW": cfg.TEST.SLIDING_WINDOW.SIZE > 0,
        "TEST.AUG (test-time augmentation)": cfg.TEST.AUG.ENABLED,
        "TEST.AMP (graphs are fp32)": cfg.TEST.AMP.ENABLED,
        "MODEL.COMPILE": cfg.MODEL.COMPILE,
    }
    for name in (name for name, is_on in left_out.items() if is_on):
        LOG.warning("%s is not exported: the graph is one plain forward pass.", name)
    cfg.TEST.SLIDING_WINDOW.SIZE = 0
    cfg.TEST.AUG.ENABLED = cfg.TEST.AMP.ENABLED = cfg.MODEL.COMPILE = False
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    if arguments.random_weights:
        cfg.MODEL.WEIGHTS = ""
    return cfg


def load_model(cfg: CfgNode, random_weights: bool) -> nn.Module:
    """Build the model with its trained weights, or with random ones.

    Raises:
        OSError, ValueError: See ``load_trained_model``.
    """
    if not random_weights:
        return load_trained_model(cfg)
    LOG.warning("RANDOM WEIGHTS (--random-weights): the outputs of these graphs are meaningless.")
    torch.manual_seed(0)
    return build_model(cfg).eval()


def size_of(size: Sequence[int] | None, cfg: CfgNode) -> tuple[int, int]:
    """Return the input size (H, W) in pixels: ``size``, or a square of ``INPUT.MIN_SIZE_TEST``.

    Raises:
        ValueError: If a side of ``size`` is not a multiple of 32, or is less than 64.
    """
    side = -(-cfg.INPUT.MIN_SIZE_TEST // STRIDE) * STRIDE or 512
    height, width = size or (side, side)
    if min(height, width) < 2 * STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError(
            f"--size {height} {width}: sides must be multiples of {STRIDE}, at least {2 * STRIDE}; "
            f"pad the images, for example to {max(-(-height // STRIDE), 2) * STRIDE} × "
            f"{max(-(-width // STRIDE), 2) * STRIDE}."
        )
    return height, width


def make_images(model: Any, batch: int, size: tuple[int, int]) -> Tensor:
    """Generate smooth noise, B×3×H×W in 0 … 255, the same in each call."""
    generator = torch.Generator().manual_seed(batch)
    noise = torch.rand(batch, 3, size[0] // 16, size[1] // 16, generator=generator)
    image = nn.functional.interpolate(noise, size=size, mode="bilinear") * 255
    return image.to(model.pixel_mean.device)


def write(
    arguments: ExportArguments, cfg: CfgNode, model: Any, size: tuple[int, int]
) -> list[Path]:
    """Write the graphs and their description, and return the paths of the graphs.

    An earlier export in the folder is replaced at once, and only when all files are complete.
    """
    output, dynamic = arguments.output, arguments.dynamic
    format_ = FORMATS[arguments.format]
    graphs = graphs_of(model)
    output.mkdir(parents=True, exist_ok=True)
    remove_parts(output)
    # Two images, because tracing cannot distinguish a batch of one from a fixed batch size.
    example = make_images(model, 2 if dynamic else 1, size)
    any_size = dynamic or arguments.format == "torchscript"
    description = describe(
        cfg, graphs, format_name=arguments.format, size=None if any_size else size
    )
    text = json.dumps(description, indent=2, ensure_ascii=False)
    files = {output / f"{name}{format_.suffix}": graph for name, graph in graphs.items()}
    with tqdm(total=len(graphs), desc="exporting", unit="graph") as progress:

        def write_graph(graph: Any, part: Path) -> None:
            part.write_bytes(format_.encode(graph, example, dynamic))
            progress.update()

        writers: dict[Path, Callable[[Path], Any]] = {
            path: partial(write_graph, graph) for path, graph in files.items()
        }
        writers[output / "mask_former.json"] = lambda part: part.write_text(
            f"{text}\n", encoding="utf-8"
        )
        replace_files(writers)
    return list(files)


def shapes_to_check(size: tuple[int, int], dynamic: bool) -> list[tuple[int, tuple[int, int]]]:
    """Return the batch and image sizes to verify: two if they are dynamic, else the fixed one."""
    if not dynamic:
        return [(1, size)]
    other = (min(size[0] + STRIDE, LIMIT * STRIDE), max(size[1] - 2 * STRIDE, 2 * STRIDE))
    return [(1, size), (2, other)]


def verify(
    arguments: ExportArguments, model: Any, paths: list[Path], size: tuple[int, int]
) -> bool:
    """Print the graphs' difference from the model and their speed; return whether all agree."""
    shapes = shapes_to_check(size, arguments.dynamic)
    format_ = FORMATS[arguments.format]
    runners: dict[str, tuple[Runner, Runner]] = {
        path.stem: (reference(model, path.stem), format_.read(path)) for path in paths
    }
    agree, rows, times = True, [], []
    total = len(runners) * (len(shapes) + ROUNDS + 1)
    with tqdm(total=total, desc="verifying", unit="run") as progress:
        for name, (eager, exported) in runners.items():
            for batch, (height, width) in shapes:
                parity = compare(eager, exported, make_images(model, batch, (height, width)))
                agree = agree and parity.holds
                rows.append(
                    f"{name:12} {batch:5} {height:5}×{width:<5} {parity.difference:11.1e} "
                    f"{'ok' if parity.holds else 'DIFFERENT'}"
                )
                progress.update()
            image = make_images(model, 1, size)
            timing = measure(eager, exported, image, ROUNDS, progress.update)
            times.append(
                f"{name:12} {1:5} {size[0]:5}×{size[1]:<5} {timing.eager * 1e3:8.0f} "
                f"{timing.exported * 1e3:8.0f} {timing.exported / timing.eager:8.2f}"
            )
    print("\nParity with the model (logits: largest difference; class map: share of pixels that")
    print(f"differ; at most {TOLERANCE:g}):\n{'graph':12} batch        size  difference")
    print(*rows, sep="\n")
    print(f"\nLatency in ms (median of {ROUNDS}, interleaved, {torch.get_num_threads()} threads):")
    print(f"{'graph':12} batch        size    model exported    ratio", *times, sep="\n")
    return agree


def run(arguments: ExportArguments) -> int:
    """Export the model, print the files and what --verify finds, and return the exit code."""
    load_plugins(arguments.plugins)
    FORMATS[arguments.format].check_packages()
    cfg = prepare_cfg(arguments)
    size = size_of(arguments.size, cfg)
    model = load_model(cfg, arguments.random_weights)
    paths = write(arguments, cfg, model, size)
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    opset = f", opset {OPSET}" if arguments.format == "onnx" else ""
    print(f"{arguments.format}{opset}, torch {torch.__version__}")
    if arguments.verify and not verify(arguments, model, paths, size):
        print("export: the graphs differ from the model; see above", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    logging.basicConfig(format="export: %(message)s", stream=sys.stderr)
    return exit_code("export", lambda: run(arguments))
