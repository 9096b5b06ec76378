r"""Evaluate the panoptic quality of a semantic segmentation (PQ^st, section 4 of the paper).

python tools/evaluate_pq_for_semantic_segmentation.py --dataset ade20k_sem_seg_val \
    --predictions output/inference/sem_seg_predictions.json --json pq.json

Every class is treated as stuff: its pixels in an image are one segment.
--predictions is the file that an evaluation with TEST.SAVE_PREDICTIONS writes, or a folder with one
PNG of contiguous class ids for each image, named after the image's stem.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mask_former.data.datasets.catalog import check_dataset_exists
from mask_former.data.formats.readers import read_class_map
from mask_former.evaluation.build import write_results
from mask_former.evaluation.panoptic_quality import METRICS, PanopticQuality, match_label_maps
from mask_former.registries import load_plugins
from mask_former.utils.bounded_files import DATASET_BYTES, UnreadableFile, read_json

from .command import add_plugin_argument, exit_code, make_parser

__all__ = ["EvaluatePQArguments", "main", "parse"]

LabelMap = NDArray[np.int64]  # H×W: 0 … K-1, and K where a pixel has no class
Segment = tuple[int, dict[str, Any]]  # category_id and COCO's run-length encoding


@dataclass(frozen=True)
class EvaluatePQArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    dataset: str
    predictions: Path
    json: Path | None
    plugins: Sequence[str]


def parse(argv: Sequence[str] | None) -> EvaluatePQArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", required=True, help="a registered semantic dataset")
    add("--predictions", required=True, type=Path, help="a JSON file or a folder")
    add("--json", type=Path, help="also write the result of each class to this file")
    add_plugin_argument(parser)
    return EvaluatePQArguments(**vars(parser.parse_args(argv)))


class Classes(NamedTuple):
    """The K classes of a dataset, from its metadata."""

    names: Sequence[str]
    ignore_label: int
    contiguous_ids: dict[int, int]  # by category_id in sem_seg_predictions.json

    @classmethod
    def of(cls, dataset: str) -> Classes:
        """Read the metadata of a registered dataset.

        Raises:
            KeyError: If the dataset is unknown.
            ValueError: If its metadata does not describe semantic labels.
        """
        check_dataset_exists(dataset)
        metadata = MetadataCatalog.get(dataset)
        names, ignored = metadata.get("stuff_classes"), metadata.get("ignore_label")
        if names is None or ignored is None:
            raise ValueError(
                f"The dataset {dataset!r} has no semantic labels: its metadata needs "
                "`stuff_classes` and `ignore_label`."
            )
        same = {i: i for i in range(len(names))}
        return cls(names, ignored, metadata.get("stuff_dataset_id_to_contiguous_id", same))


def read_labels(
    path: str | Path, classes: Classes, label_map: Mapping[int, int] | None = None
) -> LabelMap:
    """Read a label map, H×W: 0 … K-1, and K where a pixel has no class.

    Args:
        path: A file of contiguous class ids, or of the pixel values that ``label_map`` maps.
        classes: The dataset's classes.
        label_map: Contiguous class ids by pixel value.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not a label map, or a label is neither a class nor the ignore label.
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
    """Read ``sem_seg_predictions.json``; return a function from ``file_name`` to prediction, H×W.

    The function raises ``KeyError`` for an image without a prediction, and ``ValueError`` for a
    class that the dataset lacks and for masks that overlap or differ in size.

    Raises:
        ValueError: If the file is not one that detectron2's ``SemSegEvaluator`` writes.
    """
    by_image: dict[str, list[Segment]] = defaultdict(list)
    try:
        for segment in read_json(path, DATASET_BYTES):
            content = segment["category_id"], segment["segmentation"]
            by_image[segment["file_name"]].append(content)
    except (TypeError, KeyError, UnreadableFile) as error:
        raise ValueError(
            f"{path} is not a list of segments with `file_name`, `category_id` and `segmentation`, "
            f"as detectron2's SemSegEvaluator writes it: {error!r}"
        ) from error

    def prediction(file_name: str) -> LabelMap:
        """Read and paint the segments of an image into a label map."""
        if file_name not in by_image:
            raise KeyError(
                f"{path} has no prediction for {file_name}, but {len(by_image)} for others, such "
                f"as {next(iter(by_image), None)}: evaluate a model on this dataset, with the "
                "images in this folder, to write the file."
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
            found = f"masks of {list(labels.shape)} and of {mask['size']} (H, W)"
            raise ValueError(f"{found}; all must have the same size.")
        pixels = coco_mask.decode(mask).astype(bool)
        if (labels[pixels] != void).any():
            raise ValueError(f"the mask of category_id {category} overlaps another.")
        labels[pixels] = classes.contiguous_ids[category]
    return labels


def read_folder(path: Path, classes: Classes) -> Callable[[str], LabelMap]:
    """Return a function from an image's ``file_name`` to its prediction in a folder of PNGs."""
    return lambda file_name: read_labels(path / f"{Path(file_name).stem}.png", classes)


def pairs(dataset: str, predictions: Path, classes: Classes) -> Iterator[tuple[LabelMap, LabelMap]]:
    """Yield the labels and the prediction of each image of a dataset.

    Raises:
        FileNotFoundError, KeyError, ValueError: See the readers; also if the sizes differ.
    """
    read = read_folder if predictions.is_dir() else read_segments
    prediction_of = read(predictions, classes)
    for example in tqdm(DatasetCatalog.get(dataset), unit="image", disable=None):
        if "sem_seg_file_name" not in example:
            raise ValueError(f"{dataset!r}: {example['file_name']} has no `sem_seg_file_name`.")
        labels = read_labels(example["sem_seg_file_name"], classes, example.get("label_map"))
        prediction = prediction_of(example["file_name"])
        if labels.shape != prediction.shape:
            raise ValueError(
                f"{example['file_name']}: the prediction is {prediction.shape} (H, W), the labels "
                f"{example['sem_seg_file_name']} are {labels.shape}; the sizes must be equal."
            )
        yield labels, prediction


def evaluate(images: Iterable[tuple[LabelMap, LabelMap]], names: Sequence[str]) -> dict[str, float]:
    """Evaluate pairs of labels and prediction.

    Returns:
        PQ, SQ and RQ in percent, averaged over the classes that occur in labels or predictions;
        ``PQ-NAME``, ``SQ-NAME`` and ``RQ-NAME`` of each of them; ``classes``, their number.

    Raises:
        ValueError: If no pixel has a class.
    """
    quality = PanopticQuality(len(names))
    for labels, prediction in images:
        quality.add(match_label_maps(labels, prediction, len(names)))
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
    """Format the means as a table."""
    head = "".join(f"{name:>7}" for name in METRICS)
    means = "".join(f"{result[name]:7.2f}" for name in METRICS)
    return f"{head}  classes\n{means}{result['classes']:9.0f}"


def run(arguments: EvaluatePQArguments) -> int:
    """Evaluate, print the table, and return the exit code."""
    load_plugins(arguments.plugins)
    dataset = arguments.dataset
    classes = Classes.of(dataset)
    result = evaluate(pairs(dataset, arguments.predictions, classes), classes.names)
    if arguments.json is not None:
        write_results(arguments.json, {dataset: {"semantic_pq": result}})
    print(table(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("evaluate_pq_for_semantic_segmentation", lambda: run(arguments))
