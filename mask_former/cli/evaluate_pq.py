#!/usr/bin/env python3
"""The panoptic quality of a semantic segmentation: PQ^st of the MaskFormer paper, section 4.

python tools/evaluate_pq_for_semantic_segmentation.py --dataset ade20k_sem_seg_val \\
    --predictions output/inference/sem_seg_predictions.json --json pq.json

Every class is stuff: its pixels in an image are one segment, in the labels as in the prediction.
--predictions is the file that an evaluation with TEST.SAVE_PREDICTIONS writes, or a folder with one
PNG of contiguous class ids for each image, of the image's stem.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

import mask_former  # noqa: F401  (registers the datasets)
from mask_former.data.formats.readers import read_class_map
from mask_former.evaluation.build import write_results
from mask_former.evaluation.panoptic_quality import METRICS, PanopticQuality, match_classes
from mask_former.utils.errors import message_of

LabelMap = NDArray[np.int64]  # H×W: 0 … K-1, and K where a pixel has no class
Segment = tuple[int, dict[str, Any]]  # category_id and COCO's run-length encoding


class Classes(NamedTuple):
    """What a dataset's metadata says of its K classes."""

    names: Sequence[str]
    ignore_label: int
    contiguous_ids: dict[int, int]  # of the ids in sem_seg_predictions.json

    @classmethod
    def of(cls, dataset: str) -> Classes:
        """
        Raises:
            KeyError: if there is no such dataset.
            ValueError: if its metadata does not describe semantic labels.
        """
        if dataset not in DatasetCatalog:
            raise KeyError(f"There is no dataset {dataset!r}; known are {sorted(DatasetCatalog)}.")
        metadata = MetadataCatalog.get(dataset)
        names, ignored = metadata.get("stuff_classes"), metadata.get("ignore_label")
        if names is None or ignored is None:
            raise ValueError(
                f"The dataset {dataset!r} has no semantic labels: its metadata needs "
                "`stuff_classes` and `ignore_label`."
            )
        own = {i: i for i in range(len(names))}
        return cls(names, ignored, metadata.get("stuff_dataset_id_to_contiguous_id", own))


def read_labels(
    path: str | Path, classes: Classes, label_map: Mapping[int, int] | None = None
) -> LabelMap:
    """A file of contiguous class ids, or of pixel values to which `label_map` gives them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no label map, or has a label that is neither class nor ignore label.
    """
    labels = read_class_map(str(path), label_map).astype(np.int64)
    known = len(classes.names)
    is_void = labels == classes.ignore_label
    wrong = np.unique(labels[~is_void & ((labels < 0) | (labels >= known))])
    if len(wrong):
        raise ValueError(
            f"{path} has the labels {wrong[:10].tolist()}; expected 0 … {known - 1}, and "
            f"{classes.ignore_label} where a pixel has no class."
        )
    labels[is_void] = known
    return labels


def read_segments(path: Path, classes: Classes) -> Callable[[str], LabelMap]:
    """``sem_seg_predictions.json``, as a function from an image's ``file_name`` to its prediction.

    Raises:
        ValueError: if the file is none of its kind. The function: for a class that the dataset
            lacks, or masks that overlap or differ in size.
        KeyError: the function, for an image without a prediction.
    """
    by_image: dict[str, list[Segment]] = defaultdict(list)
    try:
        for segment in json.loads(path.read_text(encoding="utf-8")):
            content = segment["category_id"], segment["segmentation"]
            by_image[segment["file_name"]].append(content)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no list of segments with `file_name`, `category_id` and `segmentation`, "
            f"as detectron2's SemSegEvaluator writes it: {error!r}"
        ) from error

    def prediction(file_name: str) -> LabelMap:
        if file_name not in by_image:
            raise KeyError(
                f"{path} has no prediction for {file_name}, but {len(by_image)} for others, such "
                f"as {next(iter(by_image), None)}: it must be of this dataset, at this place."
            )
        try:
            return _paint(by_image[file_name], classes)
        except ValueError as error:
            raise ValueError(f"{path}: {file_name}: {error}") from error

    return prediction


def _paint(segments: Sequence[Segment], classes: Classes) -> LabelMap:
    void = len(classes.names)
    labels = np.full(segments[0][1]["size"], void, np.int64)
    for category, mask in segments:
        if category not in classes.contiguous_ids:
            raise ValueError(f"the dataset has no category_id {category}.")
        if list(labels.shape) != mask["size"]:
            raise ValueError(f"masks of {list(labels.shape)} and of {mask['size']} (H, W).")
        pixels = coco_mask.decode(mask).astype(bool)
        if (labels[pixels] != void).any():
            raise ValueError(f"the mask of category_id {category} overlaps another.")
        labels[pixels] = classes.contiguous_ids[category]
    return labels


def read_folder(path: Path, classes: Classes) -> Callable[[str], LabelMap]:
    """A folder of PNGs, as a function from an image's ``file_name`` to its prediction."""
    return lambda file_name: read_labels(path / f"{Path(file_name).stem}.png", classes)


def pairs(dataset: str, predictions: Path, classes: Classes) -> Iterator[tuple[LabelMap, LabelMap]]:
    """Labels and prediction of each image of a dataset.

    Raises:
        FileNotFoundError, KeyError, ValueError: as reading does, and for sizes that differ.
    """
    read = read_folder if predictions.is_dir() else read_segments
    prediction_of = read(predictions, classes)
    for example in tqdm(DatasetCatalog.get(dataset), unit="image", disable=None):
        if "sem_seg_file_name" not in example:
            raise ValueError(f"{dataset!r}: {example['file_name']} has no `sem_seg_file_name`.")
        truth = read_labels(example["sem_seg_file_name"], classes, example.get("label_map"))
        prediction = prediction_of(example["file_name"])
        if truth.shape != prediction.shape:
            raise ValueError(
                f"{example['file_name']}: the prediction is {prediction.shape} (H, W), the labels "
                f"{example['sem_seg_file_name']} are {truth.shape}; they must have one size."
            )
        yield truth, prediction


def evaluate(images: Iterable[tuple[LabelMap, LabelMap]], names: Sequence[str]) -> dict[str, float]:
    """Count over pairs of labels and prediction.

    Returns:
        PQ, SQ and RQ in percent: means over the classes that occur in labels or predictions;
        ``PQ-…`` and so on of each of them; ``classes``: how many there are.

    Raises:
        ValueError: if no pixel has a class.
    """
    quality = PanopticQuality(len(names))
    for truth, prediction in images:
        quality.add(match_classes(truth, prediction, len(names)))
    means, count = quality.mean()
    if not count:
        raise ValueError("There is no labelled pixel in the dataset: nothing to evaluate.")
    values, present = quality.by_class()
    result = {name: 100 * float(mean) for name, mean in zip(METRICS, means, strict=True)}
    result["classes"] = count
    for index in np.flatnonzero(present).tolist():
        for metric, value in zip(METRICS, values[:, index], strict=True):
            result[f"{metric}-{names[index]}"] = 100 * float(value)
    return result


def table(result: dict[str, float]) -> str:
    """The means, as a table."""
    head = "".join(f"{name:>7}" for name in METRICS)
    means = "".join(f"{result[name]:7.2f}" for name in METRICS)
    return f"{head}  classes\n{means}{result['classes']:9.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="a registered semantic dataset")
    parser.add_argument("--predictions", required=True, type=Path, help="a JSON file or a folder")
    parser.add_argument("--json", type=Path, help="write the result of each class there, too")
    args = parser.parse_args(argv)
    try:
        classes = Classes.of(args.dataset)
        images = pairs(args.dataset, args.predictions, classes)
        result = evaluate(images, classes.names)
        if args.json is not None:
            write_results(args.json, {args.dataset: {"semantic_pq": result}})
    except (KeyError, OSError, ValueError) as error:
        print(f"{parser.prog}: {message_of(error)}", file=sys.stderr)
        return 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
