#!/usr/bin/env python3
"""Draw what a model is trained on: the examples that the config's mapper makes, or the annotations.

python tools/visualize_data.py --config-file F --output drawn --num 20 --sheet
python tools/visualize_data.py --config-file F --output drawn --source annotation --split test

Each picture shows the image, the same with its targets, and a list of them by class: how many
there are, how many the augmentation has emptied, and their share of the pixels. Pixels in no target
are hatched in grey, padding in black. With --source mapper the image is what the mapper feeds the
model (augmented; the model normalises it and pads the batch); with --source annotation it is the
one on disk. The images are spread evenly over the dataset.

Exit code: 0; 1 where nothing could begin, or an image could not be drawn (the others are).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.utils.env import seed_all_rng
from PIL import Image, ImageDraw
from tqdm import tqdm

import mask_former  # noqa: F401  (registers everything)
from mask_former.cli.output_files import DRAWN_IMAGE_SUFFIXES, plan_outputs
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.classes import Classes
from mask_former.utils.errors import one_line
from mask_former.visualization.contact_sheet import (
    GAP,
    PADDING,
    TEXT,
    VOID,
    draw_sheet,
    hatch,
    paint,
    sheet_cell,
)
from mask_former.visualization.examples import Example, FedExamples, Record, annotated_example
from mask_former.visualization.labels import font
from mask_former.visualization.legend import LegendRow, draw_legend

MIN_SIDE, MAX_SIDE = 600, 960
"""Smaller images are drawn enlarged by a whole factor, larger ones reduced; in pixels."""


FAILURES = (ImportError, KeyError, OSError, ValueError)
"""What a wrong option, config or file raises."""


def page_factor(height: int, width: int) -> float:
    """How much an image is enlarged or reduced in its picture."""
    small, large = min(height, width), max(height, width)
    if large > MAX_SIDE:
        return MAX_SIDE / large
    return max(1, min(math.ceil(MIN_SIDE / small), MAX_SIDE // large))


def legend_rows(example: Example, classes: Classes) -> list[LegendRow]:
    """The classes of the targets, those of most pixels first, and the pixels in none."""
    pixels = example.padding.size
    swatch = np.full((TEXT, TEXT, 3), 128, np.uint8)
    rows = []
    for class_id in sorted(set(example.class_ids)):
        pairs = zip(example.class_ids, example.areas, strict=True)
        areas = [area for target, area in pairs if target == class_id]
        name, empty = classes.names[class_id], areas.count(0)
        name += f" ×{len(areas)}" if len(areas) > 1 else ""
        name += f" ({empty} empty)" if empty else ""
        color = np.array(classes.colors[class_id], np.uint8)
        rows.append(LegendRow(swatch * 0 + color, name, sum(areas) / pixels))
    rows.sort(key=lambda row: -row.share)
    for name, where, style in (
        ("in no target", example.void, VOID),
        ("padding", example.padding, PADDING),
    ):
        if where.any():
            hatched = swatch.copy()
            hatch(hatched, np.ones(swatch.shape[:2], bool), style)
            rows.append(LegendRow(hatched, name, float(where.mean())))
    return rows


def headline(example: Example, record: Record) -> str:
    """The file's name, the size, and how many targets there are."""
    height, width = example.padding.shape
    count, empty = len(example.areas), example.areas.count(0)
    targets = f"{count} target{'s' * (count != 1)}" + (f", {empty} of them empty" if empty else "")
    if not example.has_targets:
        targets = "a test image, fed without targets"
    return f"{Path(record['file_name']).name}: {width}×{height}, {targets}"


def draw_page(example: Example, record: Record, classes: Classes) -> Image.Image:
    """The picture of an example: headline, image, image with targets, legend."""
    plain, painted = paint(example, page_factor(*example.padding.shape))
    parts = [Image.fromarray(plain), Image.fromarray(painted)]
    parts.append(draw_legend(legend_rows(example, classes)))
    text, face, top = headline(example, record), font(TEXT), TEXT + 3 * GAP
    width = max(sum(part.width + GAP for part in parts), round(face.getlength(text)) + GAP) + GAP
    page = Image.new("RGB", (width, top + max(part.height for part in parts) + GAP), "white")
    ImageDraw.Draw(page).text((GAP, GAP), text, "black", face)
    x = GAP
    for part in parts:
        page.paste(part, (x, top))
        x += part.width + GAP
    return page


def read_records(cfg: CfgNode, split: str, num: int) -> tuple[str, list[Record]]:
    """The first dataset of the split, and ``num`` records spread evenly over all of its datasets.

    Raises:
        ValueError: the config names no dataset.
    """
    names = cfg.DATASETS.TRAIN if split == "train" else cfg.DATASETS.TEST
    if not names:
        raise ValueError(f"DATASETS.{split.upper()} is empty: set it, or take the other --split.")
    keep_all = split == "test" or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = get_detection_dataset_dicts(names, filter_empty=not keep_all)
    chosen = np.linspace(0, len(records) - 1, min(num, len(records))).round().astype(int)
    return names[0], [records[i] for i in chosen]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a YAML config")
    add("--source", choices=["annotation", "mapper"], default="mapper", help="default: mapper")
    add("--output", required=True, metavar="DIR", help="pictures are written there, NAME.png")
    add("--num", type=int, default=16, metavar="N", help="how many images (default: 16)")
    add("--split", choices=["train", "test"], default="train", help="default: train")
    add("--sheet", action="store_true", help="also write contact_sheet.png: all of them, small")
    add("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values")
    args = parser.parse_args(argv)
    if args.num < 1:
        parser.error(f"--num is {args.num}, expected 1 or more")
    return args


def run(args: argparse.Namespace) -> int:
    """Draw the pictures. Returns how many images could not be drawn."""
    cfg = load_cfg(args.config_file, args.opts)
    dataset, records = read_records(cfg, args.split, args.num)
    classes = Classes.from_metadata(
        MetadataCatalog.get(dataset), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    )
    make: Callable[[Record], Example]
    if args.source == "mapper":
        make = FedExamples(cfg, classes, is_train=args.split == "train")
    else:
        make = partial(annotated_example, classes=classes, dataset=dataset)
    inputs = [Path(record["file_name"]) for record in records]
    plan = plan_outputs(
        [*inputs, Path("contact_sheet")], ["png"], args.output, DRAWN_IMAGE_SUFFIXES
    )
    seed_all_rng(args.seed)
    cells, failed = [], 0
    *names, sheet = plan.names
    for record, name in zip(tqdm(records, unit="image"), names, strict=True):
        try:
            example = make(record)
        except FAILURES as error:
            failed += 1
            tqdm.write(f"visualize_data: {one_line(error)}", file=sys.stderr)
            continue
        draw_page(example, record, classes).save(plan.files(name)["png"])
        if args.sheet:
            cells.append((name, sheet_cell(example)))
    if cells:
        draw_sheet(cells).save(plan.files(sheet)["png"])
    print(f"{args.output}: {len(records) - failed} of {len(records)} images drawn")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parse_arguments(argv)
    try:
        return 1 if run(args) else 0
    except FAILURES as error:
        print(f"visualize_data: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
