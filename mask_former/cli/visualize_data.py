"""Draw the examples that a config's mapper makes for training, or the annotations of a dataset.

python tools/visualize_data.py --config-file F --output drawn --num 20 --sheet
python tools/visualize_data.py --config-file F --output drawn --source annotation --split test

Each drawing shows the image, the image with its targets, and a list of the targets by class: their
number, how many became empty by augmentation, and their share of the pixels. Pixels without a
target are hatched in grey, padding in black. With --source mapper the image is the model's input
(augmented; the model normalises it and pads the batch); with --source annotation it is the image
file. The images are spread evenly over the dataset.

Exit code: 0; 1 if the command could not start, or if some images could not be drawn.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.utils.env import seed_all_rng
from PIL import Image, ImageDraw
from tqdm import tqdm

from mask_former.config.loading import load_cfg
from mask_former.data.checking import evenly_spaced
from mask_former.data.datasets.classes import Classes
from mask_former.registries import load_plugins
from mask_former.results.files import save_image
from mask_former.structures import Record
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
from mask_former.visualization.examples import Example, ModelInputs, annotated_example
from mask_former.visualization.labels import font
from mask_former.visualization.legend import LegendRow, draw_legend

from .command import FAILURES, add_plugin_argument, exit_code, make_parser
from .output_files import DRAWN_IMAGE_SUFFIXES, plan_outputs

__all__ = ["VisualizeArguments", "main", "parse"]

MIN_SIDE, MAX_SIDE = 600, 960
"""Sides in pixels. Smaller images are upsampled by an integer factor, larger ones downsampled."""


@dataclass(frozen=True)
class VisualizeArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    config_file: str
    source: str
    output: str
    num: int
    split: str
    sheet: bool
    seed: int
    plugins: Sequence[str]
    opts: Sequence[str]


def parse(argv: Sequence[str] | None) -> VisualizeArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a YAML config")
    add("--source", choices=["annotation", "mapper"], default="mapper", help="default: mapper")
    add("--output", required=True, metavar="DIR", help="the folder of the drawings, NAME.png")
    add("--num", type=int, default=16, metavar="N", help="number of images (default: 16)")
    add("--split", choices=["train", "test"], default="train", help="default: train")
    add("--sheet", action="store_true", help="also write contact_sheet.png with all, smaller")
    add("--seed", type=int, default=0, help="random seed of the augmentation (default: 0)")
    add_plugin_argument(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values")
    arguments = VisualizeArguments(**vars(parser.parse_args(argv)))
    if arguments.num < 1:
        parser.error(f"--num is {arguments.num}, expected 1 or more")
    return arguments


def page_factor(height: int, width: int) -> float:
    """Return the factor by which an image is resized for its drawing."""
    small, large = min(height, width), max(height, width)
    if large > MAX_SIDE:
        return MAX_SIDE / large
    return max(1, min(math.ceil(MIN_SIDE / small), MAX_SIDE // large))


def legend_rows(example: Example, classes: Classes) -> list[LegendRow]:
    """List the classes of the targets by their share of the pixels, then pixels without target."""
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
    """Return the file name, the size, and the number of targets."""
    height, width = example.padding.shape
    count, empty = len(example.areas), example.areas.count(0)
    targets = f"{count} target{'s' * (count != 1)}" + (f", {empty} of them empty" if empty else "")
    if not example.has_targets:
        targets = "a test image, without targets"
    return f"{Path(record['file_name']).name}: {width}×{height}, {targets}"


def draw_page(example: Example, record: Record, classes: Classes) -> Image.Image:
    """Draw an example: headline, image, image with targets, legend."""
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
    """Return a split's first dataset, and ``num`` records spread evenly over all its datasets.

    Raises:
        ValueError: If the config does not name a dataset.
    """
    names = cfg.DATASETS.TRAIN if split == "train" else cfg.DATASETS.TEST
    if not names:
        raise ValueError(f"DATASETS.{split.upper()} is empty: set it, or use the other --split.")
    keep_all = split == "test" or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = get_detection_dataset_dicts(names, filter_empty=not keep_all)
    return names[0], evenly_spaced(records, num)


def run(arguments: VisualizeArguments) -> int:
    """Draw the images, print how many, and return the exit code."""
    load_plugins(arguments.plugins)
    cfg = load_cfg(arguments.config_file, arguments.opts)
    split, output = arguments.split, arguments.output
    dataset, records = read_records(cfg, split, arguments.num)
    classes = Classes.from_metadata(
        MetadataCatalog.get(dataset), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    )
    make: Callable[[Record], Example]
    if arguments.source == "mapper":
        make = ModelInputs(cfg, classes, is_train=split == "train")
    else:
        make = partial(annotated_example, classes=classes, dataset=dataset)
    inputs = [Path(record["file_name"]) for record in records]
    plan = plan_outputs([*inputs, Path("contact_sheet")], ["png"], output, DRAWN_IMAGE_SUFFIXES)
    seed_all_rng(arguments.seed)
    cells, failed = [], 0
    *names, sheet = plan.names
    for record, name in zip(tqdm(records, unit="image"), names, strict=True):
        try:
            example = make(record)
        except FAILURES as error:
            failed += 1
            tqdm.write(f"visualize_data: {one_line(error)}", file=sys.stderr)
            continue
        save_image(draw_page(example, record, classes), plan.files(name)["png"])
        if arguments.sheet:
            cells.append((name, sheet_cell(example)))
    if cells:
        save_image(draw_sheet(cells), plan.files(sheet)["png"])
    print(f"{output}: {len(records) - failed} of {len(records)} images drawn")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("visualize_data", lambda: run(arguments))
