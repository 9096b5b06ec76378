#!/usr/bin/env python3
"""Make of a trained model graphs that run without this package.

    python tools/export.py --config-file model_zoo/camvid_semantic.yaml --format onnx --dynamic \\
        --verify --output camvid_onnx

writes two graphs from images (N×3×H×W, 0 … 255, in the config's channel order; normalisation is
inside): mask_former.onnx to class and mask logits, class_map.onnx to class ids N×H×W; and
mask_former.json with the classes and the input's size. --verify runs both beside the model.
docs/export.md says more.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from tqdm import tqdm

from mask_former.config.loading import load_cfg
from mask_former.export import FORMATS, LIMIT, STRIDE, compare, describe, graphs_of, measure
from mask_former.export.formats import OPSET, Runner
from mask_former.export.verification import TOLERANCE, reference
from mask_former.predictor.inference_pipeline import load_trained_model

LOG = logging.getLogger("export")
ROUNDS = 5


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--output", required=True, type=Path, help="a folder; made if need be")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="pixels, multiples of 32; default: INPUT.MIN_SIZE_TEST, rounded up, and square",
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="leave batch and size open; else 1 image of --size"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare with the model, and time both"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="without MODEL.WEIGHTS, to try an export"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys: KEY VALUE …")
    return parser


def prepare_cfg(args: argparse.Namespace) -> CfgNode:
    """The config, without what a graph does not take along; the log names that."""
    cfg = load_cfg(args.config_file, args.opts).clone()
    cfg.defrost()
    left_out = {
        "TEST.SLIDING_WINDOW": cfg.TEST.SLIDING_WINDOW.SIZE > 0,
        "TEST.AUG (test-time augmentation)": cfg.TEST.AUG.ENABLED,
        "TEST.AMP (graphs are fp32)": cfg.TEST.AMP.ENABLED,
        "MODEL.COMPILE": cfg.MODEL.COMPILE,
    }
    for name in (name for name, is_on in left_out.items() if is_on):
        LOG.warning("%s is not exported: the graph is of one plain pass of the network.", name)
    cfg.TEST.SLIDING_WINDOW.SIZE = 0
    cfg.TEST.AUG.ENABLED = cfg.TEST.AMP.ENABLED = cfg.MODEL.COMPILE = False
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    if args.random_weights:
        cfg.MODEL.WEIGHTS = ""
    return cfg


def load_model(cfg: CfgNode, random_weights: bool) -> nn.Module:
    """
    Raises:
        OSError, ValueError: see ``load_trained_model``.
    """
    if not random_weights:
        return load_trained_model(cfg)
    LOG.warning("RANDOM WEIGHTS (--random-weights): what these graphs say means nothing.")
    torch.manual_seed(0)
    return build_model(cfg).eval()


def size_of(args: argparse.Namespace, cfg: CfgNode) -> tuple[int, int]:
    """(H, W) in pixels.

    Raises:
        ValueError: if ``--size`` is no positive multiple of 32.
    """
    side = -(-cfg.INPUT.MIN_SIZE_TEST // STRIDE) * STRIDE or 512
    height, width = args.size or (side, side)
    if min(height, width) < 2 * STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError(
            f"--size {height} {width}: sides must be multiples of {STRIDE} from {2 * STRIDE} on; "
            f"pad the images, such as to {max(-(-height // STRIDE), 2) * STRIDE} × "
            f"{max(-(-width // STRIDE), 2) * STRIDE}."
        )
    return height, width


def make_images(model: Any, batch: int, size: tuple[int, int]) -> Tensor:
    """Noise that is as coarse as pictures are, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    noise = torch.rand(batch, 3, size[0] // 16, size[1] // 16, generator=generator)
    image = nn.functional.interpolate(noise, size=size, mode="bilinear") * 255
    return image.to(model.pixel_mean.device)


def write(args: argparse.Namespace, cfg: CfgNode, model: Any, size: tuple[int, int]) -> list[Path]:
    """Write the graphs and their description. Returns the graphs' paths."""
    format_, paths = FORMATS[args.format], []
    graphs = graphs_of(model)
    args.output.mkdir(parents=True, exist_ok=True)
    # two images, for a batch of one could not be told from a fixed one
    example = make_images(model, 2 if args.dynamic else 1, size)
    with tqdm(total=len(graphs), desc="exporting", unit="graph") as progress:
        for name, graph in graphs.items():
            progress.set_postfix_str(name)
            paths.append(args.output / (name + format_.suffix))
            format_.write(graph, example, paths[-1], args.dynamic)
            progress.update()
    open_size = args.dynamic or args.format == "torchscript"
    description = describe(cfg, graphs, format_name=args.format, size=None if open_size else size)
    text = json.dumps(description, indent=2, ensure_ascii=False)
    (args.output / "mask_former.json").write_text(text + "\n", encoding="utf-8")
    return paths


def shapes_to_check(size: tuple[int, int], dynamic: bool) -> list[tuple[int, tuple[int, int]]]:
    """Two batch sizes and two sizes where they are open, else what the graph is of."""
    if not dynamic:
        return [(1, size)]
    other = (min(size[0] + STRIDE, LIMIT * STRIDE), max(size[1] - 2 * STRIDE, 2 * STRIDE))
    return [(1, size), (2, other)]


def verify(args: argparse.Namespace, model: Any, paths: list[Path], size: tuple[int, int]) -> bool:
    """Print how close the graphs are to the model, and how fast. Returns whether all agree."""
    shapes = shapes_to_check(size, args.dynamic)
    runners: dict[str, tuple[Runner, Runner]] = {
        path.stem: (reference(model, path.stem), FORMATS[args.format].read(path)) for path in paths
    }
    good, rows, times = True, [], []
    total = len(runners) * (len(shapes) + ROUNDS + 1)
    with tqdm(total=total, desc="verifying", unit="run") as progress:
        for name, (eager, exported) in runners.items():
            for batch, one in shapes:
                parity = compare(eager, exported, make_images(model, batch, one))
                good = good and parity.holds
                rows.append(
                    f"{name:12} {batch:5} {one[0]:5}×{one[1]:<5} {parity.difference:11.1e} "
                    f"{'ok' if parity.holds else 'NOT THE SAME'}"
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
    print(f"\nLatency in ms (median of {ROUNDS}, in turns, {torch.get_num_threads()} threads):")
    print(f"{'graph':12} batch        size    model exported    ratio", *times, sep="\n")
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(format="export: %(message)s", stream=sys.stderr)
    try:
        FORMATS[args.format].check_packages()
        cfg = prepare_cfg(args)
        size = size_of(args, cfg)
        model = load_model(cfg, args.random_weights)
        paths = write(args, cfg, model, size)
        for path in paths:
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        opset = f", opset {OPSET}" if args.format == "onnx" else ""
        print(f"{args.format}{opset}, torch {torch.__version__}")
        if args.verify and not verify(args, model, paths, size):
            print("export: the graphs do not say what the model says; see above", file=sys.stderr)
            return 1
    except (ImportError, KeyError, OSError, ValueError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"export: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
