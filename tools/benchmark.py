#!/usr/bin/env python3
"""Time and memory of inference and training, stage by stage.

python tools/benchmark.py --config-file configs/ade20k-150/maskformer_R50_bs16_160k.yaml
python tools/benchmark.py --config-file F --mode train --batch 2 --targets 12 --precision bf16
python tools/benchmark.py --config-file F --compare 'MODEL.COMPILE True'
python tools/benchmark.py --config-file F --peer textbook transformers --json figures.json

Images and targets are random, and so are the weights unless --trained. Every turn does a step of
each model and its network alone (backbone and head; in training with their backward pass), so that
a drift of the machine meets all of them; ratios are the median over the turns. Peak memory is
measured in a process of its own.

--compare sets another config, or other values, beside the config. --peer textbook is the model with
the paper's formulas written plainly, as published code does the work; --peer transformers is
Hugging Face's MaskFormer. Peers have the same weights and compute in --peer-precision.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from profiling import (
    Spec,
    Work,
    build_contenders,
    matrix_product_rate,
    measure,
    measure_data,
    measure_memory,
)

from mask_former.cli.command import add_plugin_argument
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg, resolve_device
from mask_former.registries import load_plugins
from mask_former.utils.errors import message_of

PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
MODES = {"inference": [False], "train": [True], "all": [False, True]}


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they go into the JSON."""
    torch.set_num_threads(args.threads)
    specs = contestants(args)
    work = Work(
        size=(args.size[0], args.size[-1]),
        output_size=(args.output_size[0], args.output_size[-1]) if args.output_size else None,
        images=args.batch,
        targets=args.targets,
        segments=args.segments,
    )
    contenders = build_contenders(specs, work)
    content = description(args, specs[0], work)
    for training in MODES[args.mode]:
        results = measure(contenders, training, iterations=args.iterations, warmup=args.warmup)
        if args.data:
            results[0]["data"] = measure_data(specs[0].cfg, training, args.batch, args.iterations)
        if not args.no_memory:
            peaks = measure_memory(specs, work, training)
            results = [{**one, **peak} for one, peak in zip(results, peaks, strict=True)]
        content["results"] += results
    return content


def description(args: argparse.Namespace, spec: Spec, work: Work) -> dict[str, Any]:
    """What the figures depend on, the speed of the machine included."""
    device = torch.device(spec.cfg.MODEL.DEVICE)
    return {
        "config_file": args.config_file,
        "settings": args.opts,
        "compared": dict(zip(ascii_uppercase[1:], args.compare, strict=False)),
        "work": asdict(work),
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


def contestants(args: argparse.Namespace) -> list[Spec]:
    """The config first, then what it is compared with."""
    device = ["MODEL.DEVICE", args.device] if args.device else []
    own = [*args.opts, *device, *precision(args.precision)]
    cfg = resolve_device(load_cfg(args.config_file, own))
    specs = [Spec("ours", cfg, trained=args.trained)]
    for name, other in zip(ascii_uppercase[1:], args.compare, strict=False):
        if other.endswith((".yaml", ".yml")):
            compared = resolve_device(load_cfg(other, own))
        else:
            words = [*own, *shlex.split(other)]
            compared = resolve_device(load_cfg(args.config_file, words))
        specs.append(Spec(name, compared, trained=args.trained))
    for peer in args.peer:
        words = [*own, *precision(args.peer_precision)]
        peer_cfg = resolve_device(load_cfg(args.config_file, words))
        specs.append(Spec(peer, peer_cfg, kind=peer, trained=args.trained))
    return specs


def precision(name: str | None) -> list[str]:
    """The config's values of a number format; None: as the config has it."""
    if name is None:
        return []
    dtype = PRECISIONS[name]
    values = []
    for key in ("TEST.AMP", "SOLVER.AMP"):
        values += [f"{key}.ENABLED", str(dtype is not None)]
        values += [f"{key}.DTYPE", dtype] if dtype else []
    return values


# What is shown


def report(content: Mapping[str, Any]) -> str:
    work, rates = content["work"], content["matrix_product_gflops"]
    size = "×".join(map(str, work["size"]))
    lines = [
        f"{work['images']} × {size} pixels (height×width), {content['weights']} weights; "
        f"{content['device']}, {content['threads']} threads, torch {content['torch']}; "
        f"{content['iterations']} turns",
        "matrix products: "
        + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()),
    ]
    lines += [f"{name}: {other}" for name, other in content["compared"].items()]
    for mode in dict.fromkeys(result["mode"] for result in content["results"]):
        lines.append("")
        lines += table([result for result in content["results"] if result["mode"] == mode])
    return "\n".join(lines)


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One mode: a line a figure, a column a contender."""
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
        ("times_the_first", "total, × the first's"),
        ("network_times_the_first", "network alone, × the first's"),
        ("criterion_times_the_first", "criterion, × the first's"),
        ("largest_difference", "largest difference of a logit"),
    ):
        pattern = "{:.1e}" if key == "largest_difference" else "{:.2f}"
        add(label, [result[key] for result in results], pattern)
    peaks = [result.get("peak_mib", {}) for result in results]
    add("peak of a step, MiB", [peak.get("step") for peak in peaks], "{:.0f}")
    add("peak of the process, MiB", [peak.get("process") for peak in peaks], "{:.0f}")
    ratios = [result.get("memory_times_the_first", {}) for result in results]
    add("peak of the process, × the first's", [ratio.get("process") for ratio in ratios], "{:.2f}")
    widths = [max(len(row[1][i]) for row in rows) for i in range(len(results))]
    left = max(len(label) for label, _ in rows)
    return [
        "  ".join([label.ljust(left), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for label, cells in rows
    ]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    pixels: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "PIXELS"}
    add("--config-file", required=True, metavar="FILE", help="the model's YAML config")
    add("--mode", choices=list(MODES), default="inference", help="default: %(default)s")
    add("--size", **pixels, default=[512], help="of the images: a side, or height and width")
    add("--output-size", **pixels, help="of the results (default: the images')")
    add("--batch", type=int, default=1, metavar="N", help="images (default: %(default)s)")
    add("--targets", type=int, default=12, metavar="N", help="an image (default: %(default)s)")
    add(
        "--segments",
        type=int,
        metavar="N",
        help='inference: N queries are sure of a class and the others of "no object", as in a '
        "trained model",
    )
    add("--iterations", type=int, default=10, metavar="N", help="turns (default: %(default)s)")
    add("--warmup", type=int, default=2, metavar="N", help="turns before (default: %(default)s)")
    add("--precision", choices=list(PRECISIONS), help="default: the config's")
    add("--peer-precision", choices=list(PRECISIONS), default="fp32", help="default: %(default)s")
    add("--compare", action="append", default=[], metavar="'KEY VALUE …' | FILE.yaml")
    add("--peer", nargs="+", choices=["textbook", "transformers"], default=[])
    add("--trained", action="store_true", help="load MODEL.WEIGHTS, a whole model's")
    add("--data", action="store_true", help="also time the config's dataset and mapper")
    add("--no-memory", action="store_true", help="leave peak memory out")
    add("--matrix", type=int, default=2048, metavar="N", help="side of the matrices of the rate")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    add("--device", help="MODEL.DEVICE")
    add("--json", type=Path, metavar="FILE", help="write the figures to it")
    add_plugin_argument(parser)
    add("opts", nargs="*", metavar="KEY VALUE", help="config values")
    words = list(sys.argv[1:] if argv is None else argv)
    # Options that take several values would take the keys, too.
    groups = get_mask_former_cfg()
    keys = (word.split(".")[0] in groups and " " not in word for word in words)  # not --compare's
    first = next((i for i, is_key in enumerate(keys) if is_key), len(words))
    args = parser.parse_args([*words[:first], "--", *words[first:]])
    for name in ("size", "output_size"):
        found = getattr(args, name)
        if found and (len(found) > 2 or min(found) < 1):
            parser.error(f"--{name.replace('_', '-')} takes one or two numbers of pixels: {found}")
    for name in ("batch", "iterations", "threads", "matrix"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parse_arguments(argv)
    try:
        load_plugins(args.plugins)
        content = benchmark(args)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f"benchmark: {message_of(error)}", file=sys.stderr)
        return 1
    print(report(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
