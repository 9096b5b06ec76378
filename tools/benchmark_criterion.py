# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Time and memory of the criterion (matching, losses, backward pass), for numbers of targets.

    python tools/benchmark_criterion.py                            # the curve: 10 … 500 targets
    python tools/benchmark_criterion.py --targets 12 --textbook    # beside a plain version
    python tools/benchmark_criterion.py --points 12544             # losses at sampled points

The data are random blobs, so that nothing but the criterion is measured. The plain version follows
the paper's formulas a layer at a time, enlarges every matched mask to full size and leaves the
gradient to autograd; both take turns. Memory is what a step needs at its peak beside predictions
and targets, the gradients of the predictions included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from profiling import TextbookCriterion, peak_memory
from torch import Tensor
from tqdm import tqdm

from mask_former.losses import HungarianMatcher, PointRule, SetCriterion
from mask_former.structures import Outputs, Prediction, Target, layer_predictions

CLASSES, NO_OBJECT = 150, 0.1
WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    args = parse(argv)
    try:
        point_rule = PointRule(args.points) if args.points else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    criteria = {"ours": build(point_rule).to(device)}
    if args.textbook:
        criteria["textbook"] = build(None, TextbookCriterion).to(device)
    rows = []
    for count in tqdm(args.targets, desc="numbers of targets", disable=None):
        outputs, targets = random_batch(count, args, device)
        rows.append({"targets": count} | measure(criteria, outputs, targets, args))
    print_table(rows, args)
    if args.json:
        args.json.write_text(json.dumps({"settings": settings(args), "rows": rows}, indent=1))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--targets", type=int, nargs="+", default=[10, 50, 200, 500], help="an image")
    add("--queries", type=int, default=100)
    add("--images", type=int, default=2)
    add("--layers", type=int, default=6, help="that are supervised")
    add("--size", type=int, default=512, help="side of an image in pixels, a multiple of 4")
    add("--points", type=int, default=0, help="MODEL.MASK_FORMER.TRAIN_NUM_POINTS")
    add("--textbook", action="store_true", help="beside a plain version; needs much memory")
    add("--rounds", type=int, default=5, help="steps that count, after one that does not")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of all threads together")
    add("--device", default="cpu")
    add("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(argv)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    kept = ("queries", "images", "layers", "size", "points", "threads", "clock", "device")
    return {name: getattr(args, name) for name in kept} | {"torch": torch.__version__}


def build(point_rule: PointRule | None, kind: type[SetCriterion] = SetCriterion) -> SetCriterion:
    """A criterion with the published weights."""
    matcher = HungarianMatcher(*WEIGHTS.values(), point_rule=point_rule)
    return kind(CLASSES, matcher, no_object_weight=NO_OBJECT, point_rule=point_rule)


def random_batch(
    count: int, args: argparse.Namespace, device: torch.device
) -> tuple[Outputs, list[Target]]:
    """Predictions that want gradients, and ``count`` targets an image that cover it once."""
    generator = torch.Generator().manual_seed(0)

    def blobs(number: int, side: int) -> Tensor:
        coarse = 4 * torch.randn(1, number, 8, 8, generator=generator)
        return F.interpolate(coarse, size=(side, side), mode="bilinear")[0]

    def layer() -> Prediction:
        shape = (args.images, args.queries)
        logits = torch.randn(*shape, CLASSES + 1, generator=generator)
        masks = blobs(args.images * args.queries, args.size // 4).view(
            *shape, *[args.size // 4] * 2
        )
        return {
            "pred_logits": logits.to(device).requires_grad_(),
            "pred_masks": masks.to(device).requires_grad_(),
        }

    def target() -> Target:
        segments = blobs(count, args.size).argmax(0)
        masks = torch.stack([segments == number for number in range(count)])
        labels = torch.randint(CLASSES, (count,), generator=generator)
        return {"labels": labels.to(device), "masks": masks.to(device)}

    layers = [layer() for _ in range(args.layers)]
    outputs: Outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    return outputs, [target() for _ in range(args.images)]


# Measuring


def measure(
    criteria: dict[str, SetCriterion],
    outputs: Outputs,
    targets: Sequence[Target],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds (least, median) and MiB of a step of each criterion, which take turns."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    memory = {name: peak(criterion, outputs, targets) for name, criterion in criteria.items()}
    seconds: dict[str, list[float]] = {name: [] for name in criteria}
    for _ in range(args.rounds):
        for name, criterion in criteria.items():
            clear_gradients(outputs)
            start = clock()
            step(criterion, outputs, targets)
            seconds[name].append(clock() - start)
    return {
        name: {
            "least_s": min(seconds[name]),
            "median_s": statistics.median(seconds[name]),
            "peak_mib": memory[name],
        }
        for name in criteria
    }


def step(criterion: SetCriterion, outputs: Outputs, targets: Sequence[Target]) -> None:
    """Forward and backward pass."""
    losses = criterion(outputs, targets)
    total = sum(WEIGHTS["_".join(name.split("_")[:2])] * value for name, value in losses.items())
    assert isinstance(total, Tensor)
    total.backward()
    if total.is_cuda:
        torch.cuda.synchronize()


def clear_gradients(outputs: Outputs) -> None:
    for layer in layer_predictions(outputs):
        layer["pred_logits"].grad = layer["pred_masks"].grad = None


def peak(criterion: SetCriterion, outputs: Outputs, targets: Sequence[Target]) -> float | None:
    """MiB that a step needs; None where the system does not say."""
    step(criterion, outputs, targets)  # what is made once
    clear_gradients(outputs)
    device = outputs["pred_masks"].device
    return peak_memory(lambda: step(criterion, outputs, targets), device).step


def print_table(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    names = [name for name in ("ours", "textbook") if name in rows[0]]
    titles = ["targets"]
    for name in names:
        titles += [f"{name}: s, least", "s, median", "MiB"]
    titles += ["times as fast"] * (len(names) > 1)
    lines = [titles]
    for row in rows:
        line = [str(row["targets"])]
        for name in names:
            figures = row[name]
            memory = figures["peak_mib"]
            line += [f"{figures['least_s']:.3f}", f"{figures['median_s']:.3f}"]
            line += ["?" if memory is None else f"{memory:.0f}"]
        if len(names) > 1:
            line.append(f"{row['textbook']['least_s'] / row['ours']['least_s']:.2f}")
        lines.append(line)
    print(", ".join(f"{name} {value}" for name, value in settings(args).items()))
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
