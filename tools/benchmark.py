#!/usr/bin/env python3
"""Measure time and memory of inference and training, stage by stage.

python tools/benchmark.py --config-file configs/ade20k-150/maskformer_R50_bs16_160k.yaml
python tools/benchmark.py --config-file F --mode train --batch 2 --targets 12 --precision bf16
python tools/benchmark.py --config-file F --compare 'MODEL.COMPILE True'
python tools/benchmark.py --config-file F --peer textbook transformers --json figures.json

Images and targets are random, and so are the weights unless --trained is given. Each round runs a
step of every model and its network alone (backbone and head; in training with their backward pass),
so that a drift of the machine's speed affects all of them; ratios are the median over the rounds.
Peak memory is measured in a separate process.

--compare adds another config, or the same one with other values. --peer textbook is the model with
the paper's formulas in their plainest form, as in the published code; --peer transformers is
Hugging Face's MaskFormer. Peers have the same weights and compute in --peer-precision.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from profiling import (
    ModelSpec,
    Workload,
    build_models,
    matrix_product_rate,
    measure,
    measure_data,
    measure_memory,
)

from mask_former.cli.command import add_plugin_argument, make_parser
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg, resolve_device
from mask_former.registries import load_plugins
from mask_former.utils.atomic_files import replace_text
from mask_former.utils.errors import message_of

PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
MODES = {"inference": [False], "train": [True], "all": [False, True]}


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command; the help of :func:`parse_arguments` explains them."""

    config_file: str
    mode: str
    size: Sequence[int]
    output_size: Sequence[int] | None
    batch: int
    targets: int
    segments: int | None
    iterations: int
    warmup: int
    precision: str | None
    peer_precision: str
    compare: Sequence[str]
    peer: Sequence[str]
    trained: bool
    data: bool
    no_memory: bool
    matrix: int
    threads: int
    device: str | None
    json: Path | None
    plugins: Sequence[str]
    opts: Sequence[str]

    @property
    def workload(self) -> Workload:
        """Input of a step."""
        output = self.output_size
        return Workload(
            size=(self.size[0], self.size[-1]),
            output_size=(output[0], output[-1]) if output else None,
            images=self.batch,
            targets=self.targets,
            segments=self.segments,
        )


def benchmark(args: Arguments) -> dict[str, Any]:
    """Run all measurements and return them as plain data for the JSON file."""
    torch.set_num_threads(args.threads)
    specs = model_specs(args)
    models = build_models(specs, args.workload)
    content = description(args, specs[0])
    for training in MODES[args.mode]:
        results = measure(models, training, iterations=args.iterations, warmup=args.warmup)
        if args.data:
            results[0]["data"] = measure_data(specs[0].cfg, training, args.batch, args.iterations)
        if not args.no_memory:
            peaks = measure_memory(specs, args.workload, training)
            results = [{**one, **peak} for one, peak in zip(results, peaks, strict=True)]
        content["results"] += results
    return content


def description(args: Arguments, spec: ModelSpec) -> dict[str, Any]:
    """Describe the conditions of the figures, including the speed of the machine."""
    device = torch.device(spec.cfg.MODEL.DEVICE)
    return {
        "config_file": args.config_file,
        "settings": args.opts,
        "compared": dict(zip(ascii_uppercase[1:], args.compare, strict=False)),
        "work": asdict(args.workload),
        "weights": spec.cfg.MODEL.WEIGHTS if spec.trained else "random",
        "iterations": args.iterations,
        "warmup": args.warmup,
        "threads": args.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "matrix_product_gflops": {
            name: matrix_product_rate(device, dtype, args.matrix)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
        "results": [],
    }


def model_specs(args: Arguments) -> list[ModelSpec]:
    """List the models to benchmark: the config's, then those that it is compared with."""
    device = ["MODEL.DEVICE", args.device] if args.device else []
    own = [*args.opts, *device, *precision(args.precision)]
    cfg = resolve_device(load_cfg(args.config_file, own))
    specs = [ModelSpec("ours", cfg, trained=args.trained)]
    for name, other in zip(ascii_uppercase[1:], args.compare, strict=False):
        if other.endswith((".yaml", ".yml")):
            compared = resolve_device(load_cfg(other, own))
        else:
            words = [*own, *shlex.split(other)]
            compared = resolve_device(load_cfg(args.config_file, words))
        specs.append(ModelSpec(name, compared, trained=args.trained))
    for peer in args.peer:
        words = [*own, *precision(args.peer_precision)]
        peer_cfg = resolve_device(load_cfg(args.config_file, words))
        specs.append(ModelSpec(peer, peer_cfg, kind=peer, trained=args.trained))
    return specs


def precision(name: str | None) -> list[str]:
    """Return the config values that set a precision; none if the config's own is kept (None)."""
    if name is None:
        return []
    dtype = PRECISIONS[name]
    values = []
    for key in ("TEST.AMP", "SOLVER.AMP"):
        values += [f"{key}.ENABLED", str(dtype is not None)]
        values += [f"{key}.DTYPE", dtype] if dtype else []
    return values


# The report


def report(content: Mapping[str, Any]) -> str:
    """Format the figures as text."""
    work, rates = content["work"], content["matrix_product_gflops"]
    size = "×".join(map(str, work["size"]))
    lines = [
        f"{work['images']} × {size} pixels (height×width), {content['weights']} weights; "
        f"{content['device']}, {content['threads']} threads, torch {content['torch']}; "
        f"{content['iterations']} rounds",
        "matrix products: "
        + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()),
    ]
    lines += [f"{name}: {other}" for name, other in content["compared"].items()]
    for mode in dict.fromkeys(result["mode"] for result in content["results"]):
        lines.append("")
        lines += table([result for result in content["results"] if result["mode"] == mode])
    return "\n".join(lines)


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the figures of one mode, with a column for each model."""
    titles = [f"{result['name']} ({result['precision']})" for result in results]
    rows: list[tuple[str, list[str]]] = [(f"{results[0]['mode']}: ms, p50 / p95", titles)]

    def add(label: str, values: Sequence[Any], pattern: str) -> None:
        if any(value is not None for value in values):
            rows.append((label, ["-" if v is None else pattern.format(v) for v in values]))

    def add_times(label: str, values: Sequence[Mapping[str, float] | None]) -> None:
        cells = [v and f"{1000 * v['p50']:.1f} / {1000 * v['p95']:.1f}" for v in values]
        add(label, cells, "{}")

    for stage in dict.fromkeys(stage for result in results for stage in result["stages"]):
        add_times(f"  {stage}", [result["stages"].get(stage) for result in results])
    for key in ("total", "network", "semantic_map", "data"):
        label = {"network": "network alone", "data": "data, one process"}.get(key, key)
        add_times(label, [result.get(key) for result in results])
    for key, label in (
        ("total_over_network", "total / network alone"),
        ("semantic_map_total_over_network", "network with semantic_map / alone"),
        ("times_the_first", "total / first"),
        ("network_times_the_first", "network alone / first"),
        ("criterion_times_the_first", "criterion / first"),
        ("largest_difference", "largest difference of a logit"),
    ):
        pattern = "{:.1e}" if key == "largest_difference" else "{:.2f}"
        add(label, [result[key] for result in results], pattern)
    peaks = [result.get("peak_mib", {}) for result in results]
    add("peak of a step, MiB", [peak.get("step") for peak in peaks], "{:.0f}")
    add("peak of the process, MiB", [peak.get("process") for peak in peaks], "{:.0f}")
    ratios = [result.get("memory_times_the_first", {}) for result in results]
    add("peak of the process / first", [ratio.get("process") for ratio in ratios], "{:.2f}")
    widths = [max(len(row[1][i]) for row in rows) for i in range(len(results))]
    left = max(len(label) for label, _ in rows)
    return [
        "  ".join([label.ljust(left), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for label, cells in rows
    ]


def parse_arguments(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line; exit with a message if it is invalid."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    pixels: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "PIXELS"}
    add("--config-file", required=True, metavar="FILE", help="the model's YAML config")
    add("--mode", choices=list(MODES), default="inference", help="default: %(default)s")
    add("--size", **pixels, default=[512], help="image size: one side, or height and width")
    add("--output-size", **pixels, help="size of the results (default: that of the images)")
    add("--batch", type=int, default=1, metavar="N", help="images per step (default: %(default)s)")
    add("--targets", type=int, default=12, metavar="N", help="targets per image (%(default)s)")
    add(
        "--segments",
        type=int,
        metavar="N",
        help="inference: make N queries confident of a class and the others of 'no object', as "
        "in a trained model",
    )
    add("--iterations", type=int, default=10, metavar="N", help="rounds (default: %(default)s)")
    add(
        "--warmup",
        type=int,
        default=2,
        metavar="N",
        help="warm-up rounds before them (default: %(default)s)",
    )
    add("--precision", choices=list(PRECISIONS), help="default: the config's")
    add("--peer-precision", choices=list(PRECISIONS), default="fp32", help="default: %(default)s")
    add("--compare", action="append", default=[], metavar="'KEY VALUE …' | FILE.yaml")
    add("--peer", nargs="+", choices=["textbook", "transformers"], default=[])
    add("--trained", action="store_true", help="load the whole model's MODEL.WEIGHTS")
    add("--data", action="store_true", help="also time the config's dataset and mapper")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add(
        "--matrix",
        type=int,
        default=2048,
        metavar="N",
        help="side of the matrices whose product measures the machine's speed",
    )
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    add("--device", help="MODEL.DEVICE")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file")
    add_plugin_argument(parser)
    add("opts", nargs="*", metavar="KEY VALUE", help="config values")
    words = list(sys.argv[1:] if argv is None else argv)
    # Options with several values would consume the config keys, too. --compare values have spaces.
    groups = get_mask_former_cfg()
    keys = (word.split(".")[0] in groups and " " not in word for word in words)
    first = next((i for i, is_key in enumerate(keys) if is_key), len(words))
    args = Arguments(**vars(parser.parse_args([*words[:first], "--", *words[first:]])))
    for name in ("size", "output_size"):
        found = getattr(args, name)
        if found and (len(found) > 2 or min(found) < 1):
            parser.error(f"--{name.replace('_', '-')} takes one or two numbers of pixels: {found}")
    for name in ("batch", "iterations", "threads", "matrix"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    try:
        load_plugins(args.plugins)
        content = benchmark(args)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            replace_text(args.json, json.dumps(content, indent=1))
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f"benchmark: {message_of(error)}", file=sys.stderr)
        return 1
    print(report(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
