#!/usr/bin/env python3
"""Count a model's parameters, multiply-adds and activations, module by module.

python tools/analyze_model.py --config-file configs/ade20k-150/maskformer_R50_bs16_160k.yaml
python tools/analyze_model.py --config-file F --tasks flop speed --size 800 1333 MODEL.DEVICE cpu
python tools/analyze_model.py --config-file F --num-images 20 --json counts.json

Only the network is counted: backbone and head, for one image, without the post-processing of its
outputs. Neither weights nor data are needed; --num-images uses the sizes of the test set's images.

Counts follow fvcore's rules: a multiply-add counts once; batch norms cost nothing, because they
can be folded into the convolutions before them; activations are the outputs of convolutions and
matrix products. Every supervised decoder layer predicts, as in training and in published counts;
--inference counts only the last layer's prediction, which is all that inference computes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from profiling.analysis import DEFAULT_TASKS, TASKS, Report, analyze
from tqdm import tqdm

from mask_former.cli.command import add_plugin_argument, make_parser
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg, resolve_device
from mask_former.registries import load_plugins
from mask_former.structures import Size
from mask_former.utils.atomic_files import replace_text
from mask_former.utils.errors import message_of


def sizes_of_test_images(cfg: CfgNode, num_images: int) -> list[Size]:
    """Return the unpadded sizes of the first images of ``DATASETS.TEST`` in evaluation.

    Raises:
        FileNotFoundError: if the dataset or an image is missing.
        KeyError, ValueError: if the dataset is not registered, or the config names none.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("--num-images needs a test set, but DATASETS.TEST is empty.")
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:num_images]
    mapper = DatasetMapper(cfg, is_train=False)
    images = (mapper(record)["image"] for record in tqdm(records, unit="image"))
    return [(image.shape[1], image.shape[2]) for image in images]


def tables(report: Report, depth: int) -> str:
    """Format the counts by module, down to ``depth`` (1: the network's parts), and by operator."""
    modules: dict[str, dict[str, float]] = {}
    operators: dict[str, dict[str, float]] = {}
    if report.parameters is not None:
        modules["parameters (M)"] = {name: n / 1e6 for name, n in report.parameters.items()}
    for title, counts, unit in (
        ("multiply-adds (G)", report.flops, 1e9),
        ("activations (M)", report.activations, 1e6),
    ):
        if counts is not None:
            modules[title] = {name: sum(ops.values()) / unit for name, ops in counts.items()}
            operators[title] = {name: n / unit for name, n in counts[""].items()}
    shown = {
        title: {_label(name): n for name, n in column.items() if _depth(name) <= depth}
        for title, column in modules.items()
    }
    return "\n\n".join(_table(columns) for columns in (shown, operators) if columns)


def _depth(module: str) -> int:
    return module.count(".") + 1 if module else 0


def _label(module: str) -> str:
    return "  " * _depth(module) + (module or "network")


def _table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Format one line per name, without names that are 0 in every column."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    width = max(map(len, names), default=0)
    lines = ["  ".join([" " * width, *columns])]
    for name in names:
        values = {title: column.get(name, 0) for title, column in columns.items()}
        if any(values.values()):
            cells = [f"{value:{len(title)}.2f}" for title, value in values.items()]
            lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Summarise the input, and the operators that are not counted."""
    sizes = sorted(set(report.input_sizes))
    lines = [f"input: {', '.join(f'{height}×{width}' for height, width in sizes)} (height×width)"]
    if len(report.input_sizes) > 1:
        lines[0] += f", counts are the mean of {len(report.input_sizes)} images"
    if report.parameters is not None:
        millions = report.trained_parameters / 1e6 if report.trained_parameters else 0
        lines.append(f"trained parameters: {millions:.2f} M")
    if report.flops is not None or report.activations is not None:
        which = "the last decoder layer" if report.inference else "every supervised decoder layer"
        lines.append(f"predictions: {which}")
    if report.skipped:
        operators = (f"{name.split('::')[-1]} ×{n}" for name, n in report.skipped.items())
        lines.append(f"not in the multiply-adds: {', '.join(operators)}")
    if report.seconds is not None:
        lines.append(f"time: {1000 * report.seconds:.1f} ms per image ({report.device}, fp32)")
    return "\n".join(lines)


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command; the help of :func:`parse_arguments` explains them."""

    config_file: str
    tasks: Sequence[str]
    size: Sequence[int]
    num_images: int | None
    depth: int
    inference: bool
    json: Path | None
    plugins: Sequence[str]
    opts: Sequence[str]


def parse_arguments(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line; exit with a message if it is invalid."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's YAML config")
    add(
        "--tasks",
        nargs="+",
        choices=[*TASKS, "structure"],
        default=list(DEFAULT_TASKS),
        help="default: %(default)s; structure prints the modules, speed runs on MODEL.DEVICE",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--size",
        nargs="+",
        type=int,
        default=[512],
        metavar="PIXELS",
        help="size of the image: side of a square, or height and width (default: 512)",
    )
    source.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="use the sizes of the first N images of DATASETS.TEST",
    )
    add("--depth", type=int, default=2, help="depth of the listed modules (default: 2)")
    add("--inference", action="store_true", help="only the last decoder layer predicts")
    add("--json", type=Path, metavar="FILE", help="write all counts to this file")
    add_plugin_argument(parser)
    add("opts", nargs="*", metavar="KEY VALUE", help="config values")
    words = list(sys.argv[1:] if argv is None else argv)
    # Options with several values would consume the config keys, too.
    groups = get_mask_former_cfg()
    first = next((i for i, word in enumerate(words) if word.split(".")[0] in groups), len(words))
    args = Arguments(**vars(parser.parse_args([*words[:first], "--", *words[first:]])))
    if len(args.size) > 2 or min(args.size) < 1:
        parser.error(f"--size takes one or two numbers of pixels, found {args.size}")
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images is {args.num_images}, expected 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    try:
        load_plugins(args.plugins)
        cfg = resolve_device(load_cfg(args.config_file, args.opts))
        sizes: list[Size] = [(args.size[0], args.size[-1])]
        if args.num_images:
            sizes = sizes_of_test_images(cfg, args.num_images)
        report, network = analyze(cfg, args.tasks, sizes, inference=args.inference)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"config_file": args.config_file, **asdict(report)}
            replace_text(args.json, json.dumps(content, indent=1))
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f"analyze_model: {message_of(error)}", file=sys.stderr)
        return 1
    parts = [str(network) if "structure" in args.tasks else "", tables(report, args.depth)]
    print("\n\n".join([*filter(None, parts), summary(report)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
