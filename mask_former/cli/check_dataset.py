#!/usr/bin/env python3
"""Check a dataset before training on it: every file, and what all of them together say.

python tools/check_dataset.py --images A --labels B --classes classes.txt      # label maps
python tools/check_dataset.py --images A --json instances.json                 # COCO instances
python tools/check_dataset.py --images A --json panoptic.json --panoptic-root P
python tools/check_dataset.py --dataset camvid_sem_seg_train --sheet sheet.png # a registered one

It prints what was found, a line each: errors, and notes, which may well be meant so (an image in
which nothing is labelled, a class that never occurs). Then how often each class occurs, and the
config lines that fit the data. Sizes are (width×height) pixels, with any EXIF rotation applied.

Exit code: 0; 1 where there is an error, or nothing could be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.data import MetadataCatalog
from tqdm import tqdm

import mask_former  # noqa: F401  (registers everything)
from mask_former.data.checking import (
    ClassTable,
    Finding,
    Source,
    Summary,
    check_image,
    fitting_config,
    from_coco_json,
    from_folders,
    from_registered,
    summarize,
)
from mask_former.data.datasets.classes import Classes
from mask_former.data.datasets.custom import Annotated, semantic_table
from mask_former.data.preparation.command import parallel_map
from mask_former.utils.atomic_files import replace_file
from mask_former.utils.errors import one_line
from mask_former.visualization.contact_sheet import draw_sheet, sheet_cell
from mask_former.visualization.examples import annotated_example

FAILURES = (ImportError, KeyError, OSError, ValueError)
"""What a wrong option or file raises."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="the images")
    add("--labels", type=Path, metavar="DIR", help="their label maps, of the same names")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="of --labels: a class a line (docs/own_data.md)",
    )
    add("--ignore-label", type=int, metavar="N", help="of --labels: the value that is no class")
    add("--json", type=Path, metavar="FILE", help="COCO's instance or panoptic format")
    add("--panoptic-root", type=Path, metavar="DIR", help="the PNGs of a panoptic --json")
    add("--dataset", metavar="NAME", help="a registered dataset")
    add("--sheet", type=Path, metavar="PNG", help="draw images with their annotations there")
    add("--sheet-num", type=int, default=16, metavar="N", help="how many (default: 16)")
    add("--json-report", type=Path, metavar="FILE", help="write all findings and counts there")
    add("--show", type=int, default=50, metavar="N", help="print N findings at most (default: 50)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    given = {
        key
        for key in ("images", "labels", "classes", "json", "panoptic_root", "dataset")
        if getattr(args, key) is not None
    }
    if given not in _FORMS:
        parser.error(
            "give --images, --labels and --classes; or --images and --json (and --panoptic-root); "
            f"or --dataset; found {sorted(given) or 'none of them'}"
        )
    if args.ignore_label is not None and "labels" not in given:
        parser.error("--ignore-label goes with --labels")
    for key in ("workers", "sheet_num", "show"):
        if getattr(args, key) < 1:
            parser.error(f"--{key.replace('_', '-')} is {getattr(args, key)}, expected 1 or more")
    return args


_FORMS = (
    {"images", "labels", "classes"},
    {"images", "json"},
    {"images", "json", "panoptic_root"},
    {"dataset"},
)
"""The options that go together."""


def read_source(args: argparse.Namespace) -> Source:
    """What the options name; the errors are those of the readers."""
    if args.dataset is not None:
        return from_registered(args.dataset)
    if args.json is not None:
        return from_coco_json(args.json, args.images, args.panoptic_root)
    data = {"": Annotated(args.images, labels=args.labels)}
    table = semantic_table(data, args.classes, ignore_label=args.ignore_label)
    classes = ClassTable(table.names, table.ignored)
    return from_folders(args.images, args.labels, classes, table.label_map)


def finding_lines(findings: Sequence[Finding], show: int) -> Iterator[str]:
    """Errors first; at most `show` of them."""
    ordered = sorted(findings, key=lambda finding: not finding.is_error)
    for finding in ordered[:show]:
        # the readers' messages begin with the file themselves
        named = "" if finding.message.startswith(finding.file) else f"{finding.file}: "
        yield f"{'error' if finding.is_error else 'note'}: {named}{finding.message}"
    if len(ordered) > show:
        yield f"… and {len(ordered) - show} more (--show, --json-report)"


def class_lines(classes: ClassTable, summary: Summary) -> Iterator[str]:
    """A line a class, and one for each other label."""
    total = sum(summary.pixels.values()) or 1
    width = max(5, *(len(name) for name in classes.names))
    yield f"{'id':>5}  {'class':<{width}}  {'images':>7}  {'share of pixels':>15}"
    others = sorted(summary.pixels.keys() - range(classes.num_classes))
    for value in [*range(classes.num_classes), *others]:
        if value < classes.num_classes:
            name = classes.names[value]
        else:
            name = "(ignored)" if value == classes.ignore_label else "(no class)"
        share = f"{summary.pixels[value] / total:.3%}"
        yield f"{value:>5}  {name:<{width}}  {summary.images[value]:>7}  {share:>15}"


def size_line(summary: Summary) -> str:
    """The smallest and the largest sides."""
    if not summary.sizes:
        return "no image could be read"
    heights, widths = zip(*summary.sizes, strict=True)
    return (
        f"{len(set(summary.sizes))} image size(s): width {min(widths)}..{max(widths)}, height "
        f"{min(heights)}..{max(heights)}; at most {summary.most_targets} targets an image"
    )


def drawn_classes(source: Source, summary: Summary) -> tuple[str, Classes]:
    """Classes for the drawing, with names for labels that are no class, too.

    Returns:
        the name of a dataset, whose metadata tells the drawing the ignore label, and the classes.
    """
    names, ignored = list(source.classes.names), source.classes.ignore_label
    labels = [value for value in summary.pixels if value != ignored]
    names += [f"{value} (no class)" for value in range(len(names), max(labels, default=0) + 1)]
    name = "check_dataset"
    if name in MetadataCatalog:  # another dataset's, checked before
        MetadataCatalog.remove(name)
    metadata = MetadataCatalog.get(name)
    metadata.set(stuff_classes=names, ignore_label=ignored)
    return name, Classes.from_metadata(metadata, len(names))


def write_sheet(source: Source, summary: Summary, path: Path, num: int) -> int:
    """Draw images spread evenly over all. Returns how many of them could be drawn."""
    name, classes = drawn_classes(source, summary)
    records = source.records
    chosen = np.linspace(0, len(records) - 1, min(num, len(records))).round().astype(int)
    cells = []
    for record in tqdm([records[i] for i in chosen], desc="sheet", unit="image"):
        try:
            example = annotated_example(record, classes, name)
        except (*FAILURES, TypeError):  # it is among the findings
            continue
        cells.append((Path(record["file_name"]).stem, sheet_cell(example)))
    if cells:
        sheet = draw_sheet(cells)
        replace_file(path, lambda part: sheet.save(part, format="PNG"))
    return len(cells)


def report(source: Source, summary: Summary) -> dict[str, Any]:
    """What --json-report holds."""
    return {
        "images": summary.num_images,
        "findings": [asdict(finding) for finding in summary.findings + summary.overall],
        "classes": [
            {"name": name, "images": summary.images[i], "pixels": summary.pixels[i]}
            for i, name in enumerate(source.classes.names)
        ],
        "labels": {str(value): count for value, count in sorted(summary.pixels.items())},
        "config": fitting_config(source, summary),
    }


def run(args: argparse.Namespace) -> int:
    """Check, and print. Returns the number of errors."""
    source = read_source(args)
    check = partial(check_image, classes=source.classes)
    checks = parallel_map(check, source.records, workers=args.workers, description="check")
    summary = summarize(source, checks)
    lines = list(finding_lines(summary.findings, args.show))
    lines += finding_lines(summary.overall, args.show)
    lines += ["", *class_lines(source.classes, summary), "", size_line(summary)]
    if args.sheet is not None:
        drawn = write_sheet(source, summary, args.sheet, args.sheet_num)
        lines += ["", f"{args.sheet}: {drawn} images drawn"]
    print("\n".join(lines))
    if args.json_report is not None:
        text = json.dumps(report(source, summary), indent=1)
        replace_file(args.json_report, lambda part: part.write_text(text, encoding="utf-8"))
    config = yaml.safe_dump(
        fitting_config(source, summary), sort_keys=False, default_flow_style=None
    )
    print(f"\nConfig lines that fit the data:\n{config}")
    counts = f"{summary.num_errors} errors, {summary.num_notes} notes"
    print(f"{summary.num_images} images: {counts}")
    return summary.num_errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parse_arguments(argv)
    try:
        return 1 if run(args) else 0
    except FAILURES as error:
        print(f"check_dataset: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
