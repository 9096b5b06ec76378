"""Check a dataset before training on it: every file, and the dataset as a whole.

python tools/check_dataset.py --images A --labels B --classes classes.txt      # label maps
python tools/check_dataset.py --images A --json instances.json                 # COCO instances
python tools/check_dataset.py --images A --json panoptic.json --panoptic-root P
python tools/check_dataset.py --dataset camvid_sem_seg_train --sheet sheet.png # a registered one

The command prints one line for each finding, either an error or a note on something that may be
intended (an image without labels, a class that never occurs), then how often each class occurs,
and the config lines that fit the data. Sizes are width×height in pixels, with any EXIF rotation
applied.

Exit code: 0; 1 if there is an error, or if nothing could be checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from mask_former.data.checking import (
    ClassTable,
    Finding,
    Source,
    Summary,
    check_image,
    evenly_spaced,
    fitting_config,
    from_coco_json,
    from_folders,
    from_registered,
    summarize,
)
from mask_former.data.datasets.classes import Classes
from mask_former.data.datasets.custom import Annotated, semantic_table
from mask_former.data.preparation.command import parallel_map
from mask_former.registries import load_plugins
from mask_former.utils.atomic_files import replace_file, replace_text
from mask_former.utils.errors import printable
from mask_former.visualization.contact_sheet import draw_sheet, sheet_cell
from mask_former.visualization.examples import annotated_example

from .command import FAILURES, add_plugin_argument, exit_code, make_parser

__all__ = ["CheckArguments", "main", "parse"]


@dataclass(frozen=True)
class CheckArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    images: Path | None
    labels: Path | None
    classes: Path | None
    ignore_label: int | None
    json: Path | None
    panoptic_root: Path | None
    dataset: str | None
    sheet: Path | None
    sheet_num: int
    json_report: Path | None
    show: int
    workers: int
    plugins: Sequence[str]


_FORMS = (
    {"images", "labels", "classes"},
    {"images", "json"},
    {"images", "json", "panoptic_root"},
    {"dataset"},
)
"""Combinations of arguments that name a dataset."""


def parse(argv: Sequence[str] | None) -> CheckArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of images")
    add("--labels", type=Path, metavar="DIR", help="folder of label maps with the images' names")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="with --labels: a file with one class per line (docs/own_data.md)",
    )
    add("--ignore-label", type=int, metavar="N", help="with --labels: pixel value without a class")
    add("--json", type=Path, metavar="FILE", help="COCO instance or panoptic annotations")
    add("--panoptic-root", type=Path, metavar="DIR", help="folder of the PNGs of a panoptic --json")
    add("--dataset", metavar="NAME", help="a registered dataset")
    add("--sheet", type=Path, metavar="PNG", help="draw images with their annotations to this file")
    add("--sheet-num", type=int, default=16, metavar="N", help="number of images (default: 16)")
    add("--json-report", type=Path, metavar="FILE", help="also write findings and counts as JSON")
    add("--show", type=int, default=50, metavar="N", help="print N findings at most (default: 50)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per CPU)")
    add_plugin_argument(parser)
    arguments = CheckArguments(**vars(parser.parse_args(argv)))
    given = {key for key in set().union(*_FORMS) if getattr(arguments, key) is not None}
    if given not in _FORMS:
        parser.error(
            "give --images, --labels and --classes; or --images and --json (and --panoptic-root); "
            f"or --dataset; found {sorted(given) or 'none of them'}"
        )
    if arguments.ignore_label is not None and "labels" not in given:
        parser.error("--ignore-label needs --labels")
    for key in ("workers", "sheet_num", "show"):
        if getattr(arguments, key) < 1:
            name = key.replace("_", "-")
            parser.error(f"--{name} is {getattr(arguments, key)}, expected 1 or more")
    return arguments


def read_source(arguments: CheckArguments) -> Source:
    """Read the dataset that the arguments name; see the called functions for errors."""
    if arguments.dataset is not None:
        return from_registered(arguments.dataset)
    images, labels = arguments.images, arguments.labels
    assert images is not None
    if arguments.json is not None:
        return from_coco_json(arguments.json, images, arguments.panoptic_root)
    assert labels is not None and arguments.classes is not None
    data = {"": Annotated(images, labels=labels)}
    table = semantic_table(data, arguments.classes, ignore_label=arguments.ignore_label)
    classes = ClassTable(table.names, table.ignored)
    return from_folders(images, labels, classes, table.label_map)


def finding_lines(findings: Sequence[Finding], show: int) -> Iterator[str]:
    """Yield a line for each finding, errors first, at most ``show`` of them."""
    ordered = sorted(findings, key=lambda finding: not finding.is_error)
    for finding in ordered[:show]:
        # Messages of the readers already begin with the file.
        named = "" if finding.message.startswith(finding.file) else f"{finding.file}: "
        yield f"{'error' if finding.is_error else 'note'}: {named}{finding.message}"
    if len(ordered) > show:
        yield f"… and {len(ordered) - show} more (--show, --json-report)"


def class_lines(classes: ClassTable, summary: Summary) -> Iterator[str]:
    """Yield a line for each class and for each other label."""
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
    """Return a line with the range of image sizes and the largest number of targets."""
    if not summary.sizes:
        return "no image could be read"
    heights, widths = zip(*summary.sizes, strict=True)
    return (
        f"{len(set(summary.sizes))} image size(s): width {min(widths)}..{max(widths)}, height "
        f"{min(heights)}..{max(heights)}; at most {summary.most_targets} targets per image"
    )


def drawn_classes(source: Source, summary: Summary) -> tuple[str, Classes]:
    """Name the classes for drawing, including labels that are not classes.

    Returns:
        The name of a temporary dataset, whose metadata has the ignore label, and the classes.
    """
    names, ignored = list(source.classes.names), source.classes.ignore_label
    labels = [value for value in summary.pixels if value != ignored]
    names += [f"{value} (no class)" for value in range(len(names), max(labels, default=0) + 1)]
    name = "check_dataset"
    if name in MetadataCatalog:  # from an earlier call
        MetadataCatalog.remove(name)
    metadata = MetadataCatalog.get(name)
    metadata.set(stuff_classes=names, ignore_label=ignored)
    return name, Classes.from_metadata(metadata, len(names))


def write_sheet(source: Source, summary: Summary, path: Path, num: int) -> int:
    """Draw images spread evenly over the dataset, and return how many could be drawn."""
    name, classes = drawn_classes(source, summary)
    cells = []
    for record in tqdm(evenly_spaced(source.records, num), desc="sheet", unit="image"):
        try:
            example = annotated_example(record, classes, name)
        except (*FAILURES, TypeError):  # already among the findings
            continue
        cells.append((Path(record["file_name"]).stem, sheet_cell(example)))
    if cells:
        sheet = draw_sheet(cells)
        replace_file(path, lambda part: sheet.save(part, format="PNG"))
    return len(cells)


def report(source: Source, summary: Summary) -> dict[str, Any]:
    """Return the content of --json-report."""
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


def run(arguments: CheckArguments) -> int:
    """Check the dataset, print the findings, and return the exit code."""
    load_plugins(arguments.plugins)
    source = read_source(arguments)
    check = partial(check_image, classes=source.classes)
    checks = parallel_map(check, source.records, workers=arguments.workers, description="check")
    summary = summarize(source, checks)
    lines = list(finding_lines(summary.findings, arguments.show))
    lines += finding_lines(summary.overall, arguments.show)
    lines += ["", *class_lines(source.classes, summary), "", size_line(summary)]
    if arguments.sheet is not None:
        drawn = write_sheet(source, summary, arguments.sheet, arguments.sheet_num)
        lines += ["", f"{arguments.sheet}: {drawn} images drawn"]
    print("\n".join(map(printable, lines)))
    if arguments.json_report is not None:
        text = json.dumps(report(source, summary), indent=1)
        replace_text(arguments.json_report, text)
    config = yaml.safe_dump(
        fitting_config(source, summary), sort_keys=False, default_flow_style=None
    )
    print(f"\nConfig lines that fit the data:\n{config}")
    counts = f"{summary.num_errors} errors, {summary.num_notes} notes"
    print(f"{summary.num_images} images: {counts}")
    return 1 if summary.num_errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("check_dataset", lambda: run(arguments))
