# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Measure time and memory of the criterion (matching, losses, backward pass) by number of targets.

    python tools/benchmark_criterion.py                            # 10, 50, 200 and 500 targets
    python tools/benchmark_criterion.py --targets 12 --textbook    # compared with a plain version
    python tools/benchmark_criterion.py --points 12544             # losses at sampled points

The data are random blobs, and only the criterion is measured. The plain version follows the paper's
formulas one layer after another, upsamples every matched mask to full size and uses autograd; both
run interleaved. Memory is the peak of a step in addition to predictions and targets; it includes
the gradients of the predictions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from profiling import ReferenceCriterion, ReferenceMatcher, peak_memory
from torch import Tensor
from tqdm import tqdm

from mask_former.cli.command import make_parser
from mask_former.losses import HungarianMatcher, PointRule, SetCriterion
from mask_former.structures import Outputs, Prediction, Target, layer_predictions
from mask_former.utils.atomic_files import replace_text
from mask_former.utils.timing import interleave, timed

CLASSES, NO_OBJECT = 150, 0.1
WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
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
        criteria["textbook"] = build_reference().to(device)
    rows = []
    for count in tqdm(args.targets, desc="numbers of targets", disable=None):
        outputs, targets = random_batch(count, args, device)
        rows.append({"targets": count} | measure(criteria, outputs, targets, args))
    print_table(rows, args)
    if args.json:
        content = {"settings": settings(args), "rows": rows}
        replace_text(args.json, json.dumps(content, indent=1))
    return 0


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    targets: Sequence[int]
    queries: int
    images: int
    layers: int
    size: int
    points: int
    textbook: bool
    rounds: int
    threads: int
    clock: str
    device: str
    json: Path | None


def parse(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line; exit with a message if it is invalid."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--targets", type=int, nargs="+", default=[10, 50, 200, 500], help="targets per image")
    add("--queries", type=int, default=100)
    add("--images", type=int, default=2)
    add("--layers", type=int, default=6, help="supervised decoder layers")
    add("--size", type=int, default=512, help="side of an image in pixels, a multiple of 4")
    add("--points", type=int, default=0, help="MODEL.MASK_FORMER.TRAIN_NUM_POINTS")
    add("--textbook", action="store_true", help="compare with a plain version; needs much memory")
    add("--rounds", type=int, default=5, help="measured steps, after one for warm-up")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: sum over all threads")
    add("--device", default="cpu")
    add("--json", type=Path, help="write the figures to this file")
    return Arguments(**vars(parser.parse_args(argv)))


def settings(args: Arguments) -> dict[str, Any]:
    """Return the settings that the figures depend on."""
    kept = ("queries", "images", "layers", "size", "points", "threads", "clock", "device")
    return {name: getattr(args, name) for name in kept} | {"torch": torch.__version__}


def build(point_rule: PointRule | None) -> SetCriterion:
    """Build the criterion with the published weights."""
    matcher = HungarianMatcher(*WEIGHTS.values(), point_rule=point_rule)
    return SetCriterion(CLASSES, matcher, no_object_weight=NO_OBJECT, point_rule=point_rule)


def build_reference() -> SetCriterion:
    """Build the plain version with the published weights."""
    matcher = ReferenceMatcher(*WEIGHTS.values())
    return ReferenceCriterion(CLASSES, matcher, no_object_weight=NO_OBJECT)


def random_batch(count: int, args: Arguments, device: torch.device) -> tuple[Outputs, list[Target]]:
    """Make predictions that require gradients, and ``count`` targets per image that cover it."""
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
    args: Arguments,
) -> dict[str, Any]:
    """Measure seconds (minimum, median) and MiB of a step of each criterion, interleaved."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    memory = [
        peak(criterion, outputs, targets) for criterion in criteria.values()
    ]  # also a warm-up
    steps = [
        timed(partial(step, criterion, outputs, targets), args.device, clock)
        for criterion in criteria.values()
    ]
    seconds = interleave(steps, args.rounds, warmup=0)
    return {
        name: {"least_s": min(own), "median_s": median(own), "peak_mib": mib}
        for name, own, mib in zip(criteria, seconds, memory, strict=True)
    }


def step(criterion: SetCriterion, outputs: Outputs, targets: Sequence[Target]) -> None:
    """Run the forward and backward pass; gradients of the predictions are overwritten."""
    clear_gradients(outputs)
    losses = criterion(outputs, targets)
    total = sum(WEIGHTS["_".join(name.split("_")[:2])] * value for name, value in losses.items())
    assert isinstance(total, Tensor)
    total.backward()


def clear_gradients(outputs: Outputs) -> None:
    """Drop the gradients of all predictions."""
    for layer in layer_predictions(outputs):
        layer["pred_logits"].grad = layer["pred_masks"].grad = None


def peak(criterion: SetCriterion, outputs: Outputs, targets: Sequence[Target]) -> float | None:
    """Measure the MiB that a step needs; None if the system does not report it."""
    step(criterion, outputs, targets)  # one-time allocations
    clear_gradients(outputs)
    device = outputs["pred_masks"].device
    return peak_memory(lambda: step(criterion, outputs, targets), device).step


def print_table(rows: Sequence[dict[str, Any]], args: Arguments) -> None:
    """Print the figures, with a line for each number of targets."""
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
