"""Summary of a dataset's checks: its classes, likely label mistakes, and a config that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mask_former.structures import Record

from .images import Finding, ImageCheck
from .sources import Source

__all__ = ["Summary", "fitting_config", "summarize"]

_STEP = 32  # pixels: the coarsest stride of the backbones
_LARGEST_CROP = 512  # pixels: the published crop of ADE20K


@dataclass(frozen=True)
class Summary:
    """The checks of all images, combined."""

    findings: list[Finding]
    """Findings about single files."""
    overall: list[Finding]
    """Findings about the dataset as a whole."""
    pixels: Counter[int]
    """Number of pixels by class id, or by unknown label."""
    images: Counter[int]
    """Number of images in which a class id or unknown label occurs."""
    num_images: int
    sizes: list[tuple[int, int]]
    """Height and width in pixels of each readable image."""
    most_targets: int
    """The largest number of targets in an image."""

    @property
    def num_errors(self) -> int:
        """The number of findings that are errors."""
        return sum(finding.is_error for finding in self.findings + self.overall)

    @property
    def num_notes(self) -> int:
        """The number of findings that are notes."""
        return len(self.findings + self.overall) - self.num_errors


def summarize(source: Source, checks: Sequence[ImageCheck]) -> Summary:
    """Combine the checks of the source's images."""
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    findings = list(source.findings)
    for check in checks:
        findings += check.findings
        pixels += check.pixels
        images.update(value for value, count in check.pixels.items() if count)
    return Summary(
        findings,
        _overall(source, pixels),
        pixels,
        images,
        len(source.records),
        [check.size for check in checks if check.size is not None],
        max((check.num_targets for check in checks), default=0),
    )


def _overall(source: Source, pixels: Counter[int]) -> list[Finding]:
    if not source.records:
        return [Finding("dataset", "has no image with an annotation.")]
    classes, findings = source.classes, []
    ignored, count = classes.ignore_label, classes.num_classes
    if ignored is not None and ignored < count:
        message = (
            f"the ignore label is {ignored}, the id of the class {classes.names[ignored]!r} "
            f"(classes are 0..{count - 1}): choose a value that is not a class, such as 255."
        )
        findings.append(Finding("dataset", message))
    hint = _hint(set(pixels), count, ignored) if ignored is not None else None
    if hint is not None:
        findings.append(Finding("labels", hint))
    never = [name for i, name in enumerate(classes.names) if not pixels[i]]
    if never:
        listed = ", ".join(never[:20]) + (", …" if len(never) > 20 else "")
        message = f"{len(never)} of {count} never occur: {listed}."
        findings.append(Finding("classes", message, is_error=False))
    return findings


def _hint(values: set[int], count: int, ignored: int) -> str | None:
    """Guess the mistake behind unexpected values, given the values of all label maps."""
    labels = sorted(values - {ignored})
    listed = f"Over all label maps, the labels are {_ranges(sorted(values))}"
    if values and values <= {0, 255} and 255 in values and count <= 2:
        return _binary_hint(listed, values, count, ignored)
    outside = [label for label in labels if label >= count]
    if not outside:
        return None
    listed += f"; expected 0..{count - 1}, or {ignored} to be ignored. "
    if outside == [count] and 0 not in values:
        return f"{listed}They seem to start at 1: subtract 1."
    if outside == [count]:
        return (
            f"{listed}Does 0 mean 'no label', so that classes start at 1 (then map 0 to {ignored} "
            f"and subtract 1 from the others), should {count} be ignored, or is a class missing?"
        )
    if outside in ([255], [65535]):
        return f"{listed}Should {outside[0]} be ignored? Then set it as the ignore label."
    if max(labels) < 256 and len(labels) <= count:
        return f"{listed}There are {len(labels)} different ones: renumber them from 0."
    return (
        f"{listed}Are classes missing from the list, or is it a map of other ids (instances, "
        "grey values)?"
    )


def _binary_hint(listed: str, values: set[int], count: int, ignored: int) -> str | None:
    if ignored == 255 and count == 1:
        return None  # one class, and every other pixel is ignored
    return (
        f"{listed}: these seem to be binary masks. "
        + ("255 is the ignore label, so the second class is lost. " if ignored == 255 else "")
        + "Give both values a class in the file of classes: '0: background' and '255: NAME'."
    )


def _ranges(values: Sequence[int], most: int = 8) -> str:
    """Write [0, 1, 2, 7] as "0..2, 7"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], value]
        else:
            runs.append([value])
    texts = ["..".join(map(str, run)) for run in runs]
    return ", ".join(texts[:most]) + (" …" if len(texts) > most else "")


def fitting_config(source: Source, summary: Summary) -> dict[str, Any]:
    """Choose config values that fit the data, nested as in YAML.

    Sizes follow the published ADE20K configs: the crop is as large as the images' median shorter
    side (up to 512 pixels), and shorter sides are resized to 0.5 … 2 times the crop.
    """
    first: Record = source.records[0] if source.records else {}
    panoptic, instance = "pan_seg_file_name" in first, "annotations" in first
    mapper = "panoptic" if panoptic else "instance" if instance else "semantic"
    head: dict[str, Any] = {"NUM_CLASSES": source.classes.num_classes}
    if source.classes.ignore_label is not None:
        head["IGNORE_VALUE"] = source.classes.ignore_label
    test = {"SEMANTIC_ON": not instance, "PANOPTIC_ON": panoptic, "INSTANCE_ON": instance}
    mask_former: dict[str, Any] = {"TEST": test}
    if summary.most_targets > 100:
        mask_former["NUM_OBJECT_QUERIES"] = summary.most_targets
    values: dict[str, Any] = {"DATASET_MAPPER_NAME": f"mask_former_{mapper}"}
    if summary.sizes:
        values |= _fitting_sizes(summary.sizes)
    return {"MODEL": {"SEM_SEG_HEAD": head, "MASK_FORMER": mask_former}, "INPUT": values}


def _fitting_sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    shorter = round(median(min(size) for size in sizes))
    crop = max(_STEP, min(_LARGEST_CROP, shorter // _STEP * _STEP))
    return {
        "MIN_SIZE_TRAIN": [crop * step // 10 for step in range(5, 21)],
        "MAX_SIZE_TRAIN": 4 * crop,
        "MIN_SIZE_TEST": crop,
        "MAX_SIZE_TEST": 4 * crop,
        "CROP": {"ENABLED": True, "TYPE": "absolute", "SIZE": [crop, crop]},
        "SIZE_DIVISIBILITY": crop,
    }
