"""COCO's panoptic evaluation, computed from id maps in memory."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import detectron2.evaluation as d2
import numpy as np
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from mask_former.data.formats.coco_json import located_errors, read_json
from mask_former.data.formats.readers import read_segment_map
from mask_former.data.targets import index_segments
from mask_former.utils.atomic_files import replace_text

from .panoptic_quality import (
    METRICS,
    Matches,
    PanopticQuality,
    TrueSegments,
    match_segments,
    pair_counts,
)

__all__ = ["COCOPanopticEvaluator"]

_EXPECTED = "COCO panoptic format"


class Annotation(NamedTuple):
    """Ground truth of one image."""

    file_name: str
    """Path of its PNG."""
    ids: list[int]
    """Ids of its segments, ascending."""
    segments: TrueSegments
    """Its segments, in the order of ``ids``."""


class COCOPanopticEvaluator(d2.COCOPanopticEvaluator):
    """detectron2's PQ, SQ and RQ of all, thing and stuff classes, identical to the last digit.

    detectron2 writes each prediction as a PNG, which panopticapi reads again and counts by sorting
    64-bit pairs of ids. Here each image is counted as soon as it is predicted, by the rank that
    predicted it, and only the counts are gathered. ``predictions.json`` is the same.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """Load the ground truth.

        Args:
            dataset_name: A registered dataset with ``panoptic_json`` and ``panoptic_root`` in its
                metadata.
            output_dir: Folder for ``predictions.json``; None writes no file.

        Raises:
            FileNotFoundError: If the ``panoptic_json`` is missing.
            ValueError: If a segment in it lacks a key, or its category is not listed.
        """
        super().__init__(dataset_name, output_dir)
        content = self._read_json()
        with located_errors(Path(self._metadata.panoptic_json), _EXPECTED):
            categories = {category["id"]: category for category in content["categories"]}
            self._classes = {category: index for index, category in enumerate(categories)}
            self._is_thing = np.array([c["isthing"] == 1 for c in categories.values()])
            self._annotations = {a["image_id"]: self._read(a) for a in content["annotations"]}

    def _read(self, annotation: Mapping[str, Any]) -> Annotation:
        try:
            return _annotation(annotation, self._classes, self._metadata.panoptic_root)
        except KeyError as error:
            raise ValueError(
                f"{self._metadata.panoptic_json}: a segment of {annotation['file_name']} has no "
                f"key or category {error}; expected id, category_id (one of "
                f"{sorted(self._classes)}), area and iscrowd."
            ) from error

    def _read_json(self) -> dict[str, Any]:
        path = PathManager.get_local_path(self._metadata.panoptic_json)
        return read_json(Path(path), _EXPECTED)

    def reset(self) -> None:
        """Remove the counts and predictions of all images."""
        self._matches: dict[Any, Matches] = {}
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the segments of images.

        Args:
            inputs: One dict for each image, with ``file_name`` and ``image_id``.
            outputs: One dict for each image, with ``panoptic_seg``: segment ids H×W, 0 for pixels
                without a segment, and one dict for each segment with ``id``, ``category_id`` and
                ``isthing``.

        Raises:
            FileNotFoundError, ValueError: If a PNG of the ground truth is missing or damaged, or
                if an output has another size, ids that its dicts lack, or an unknown category.
        """
        for example, output in zip(inputs, outputs, strict=True):
            ids, infos = output["panoptic_seg"]
            image_id, file_name = example["image_id"], example["file_name"]
            if infos is None:
                raise ValueError(
                    f"{file_name}: the model's panoptic_seg has no segments_info; expected an id "
                    "map and one dict for each segment."
                )
            infos = [self._with_dataset_category(info, file_name) for info in infos]
            self._matches[image_id] = self._match(image_id, file_name, ids, infos)
            if self._output_dir is not None:
                stem = os.path.splitext(os.path.basename(file_name))[0]
                annotation = {"image_id": image_id, "file_name": f"{stem}.png"}
                self._predictions.append(annotation | {"segments_info": infos})

    def _with_dataset_category(self, info: Mapping[str, Any], file_name: str) -> dict[str, Any]:
        """Copy a segment's dict, with the dataset's ``category_id``."""
        try:
            converted = self._convert_category_id(dict(info))
            self._classes[converted["category_id"]]
        except KeyError as error:
            raise ValueError(
                f"{file_name}: a predicted segment has the category_id {info['category_id']} "
                f"(isthing {info.get('isthing')}), which is not a category of "
                f"{self._metadata.panoptic_json}: was the model trained on other classes?"
            ) from error
        return converted

    def _match(
        self, image_id: Any, file_name: str, ids: Tensor, infos: Sequence[Mapping[str, Any]]
    ) -> Matches:
        if image_id not in self._annotations:
            raise ValueError(
                f"{file_name}: {self._metadata.panoptic_json} has no annotation of the image_id "
                f"{image_id!r}; it must be the file that the dataset was loaded from."
            )
        png, true_ids, segments = self._annotations[image_id]
        rows = read_segment_map(png, true_ids, may_be_absent=True)
        columns = _index_prediction(ids.cpu().numpy(), [info["id"] for info in infos], file_name)
        if rows.shape != columns.shape:
            raise ValueError(
                f"{file_name}: the prediction is {columns.shape} (H, W), its annotation {png} is "
                f"{rows.shape}; they must have the same size."
            )
        common = pair_counts(rows, columns, (len(true_ids) + 1, len(infos) + 1))
        classes = [self._classes[info["category_id"]] for info in infos]
        return match_segments(common, segments, np.array(classes, dtype=np.int64))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Gather the counts of all ranks and compute the metrics.

        Returns:
            ``panoptic_seg``: PQ, SQ and RQ in percent; the names end in ``_th`` for things and in
            ``_st`` for stuff. A value is NaN if no class of its group has a segment. None on all
            ranks except the first.

        Raises:
            ValueError: If an image of the dataset has no prediction.
        """
        comm.synchronize()
        gathered = comm.gather((self._matches, self._predictions))
        if not comm.is_main_process():
            return None
        matches = {image: found for part, _ in gathered for image, found in part.items()}
        missing = [image for image in self._annotations if image not in matches]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._annotations)} images of "
                f"{self._metadata.panoptic_json} have no prediction, such as image_id "
                f"{missing[0]!r}: evaluate on the whole dataset."
            )
        if self._output_dir is not None:
            content = self._read_json()
            content["annotations"] = [image for _, part in gathered for image in part]
            replace_text(Path(self._output_dir) / "predictions.json", json.dumps(content))
        in_order = [matches[image] for image in self._annotations]
        return self._results(PanopticQuality.of(in_order, len(self._classes)))

    def _results(self, quality: PanopticQuality) -> OrderedDict[str, dict[str, float]]:
        groups = {"": None, "_th": self._is_thing, "_st": ~self._is_thing}
        results: dict[str, float] = {}
        rows = []
        for name, (suffix, flags) in zip(("All", "Things", "Stuff"), groups.items(), strict=True):
            means, count = quality.mean(flags)
            percent = [100 * float(mean) for mean in means]
            results |= {f"{m}{suffix}": v for m, v in zip(METRICS, percent, strict=True)}
            rows.append([name, *percent, count])
        table = tabulate(rows, ["", *METRICS, "#categories"], tablefmt="pipe", floatfmt=".3f")
        logging.getLogger(__name__).info("Panoptic evaluation:\n%s", table)
        return OrderedDict(panoptic_seg=results)


def _annotation(
    annotation: Mapping[str, Any], classes: Mapping[int, int], folder: str
) -> Annotation:
    infos = annotation["segments_info"]
    # If a class has several crowds, panopticapi uses the last.
    crowds = {classes[info["category_id"]]: info["id"] for info in infos if info.get("iscrowd")}
    infos = sorted(infos, key=lambda info: info["id"])
    ids = [info["id"] for info in infos]
    segments = TrueSegments(
        classes=np.array([classes[info["category_id"]] for info in infos], dtype=np.int64),
        areas=np.array([info["area"] for info in infos], dtype=np.int64),
        is_crowd=np.array([info.get("iscrowd", 0) for info in infos], dtype=bool),
        crowd_of={index: ids.index(crowd) for index, crowd in crowds.items()},
    )
    return Annotation(os.path.join(folder, annotation["file_name"]), ids, segments)


def _index_prediction(ids: NDArray[Any], segment_ids: list[int], file_name: str) -> NDArray[Any]:
    """Replace segment ids (H×W) by their indices in ``segment_ids``, from 1; 0 stays 0."""
    index_map, present = index_segments(ids, segment_ids)
    found = set(present.tolist()) - {0}
    if found != set(segment_ids) or len(found) != len(segment_ids):
        raise ValueError(
            f"{file_name}: the predicted ids are {sorted(found)}, those of its segments_info "
            f"{segment_ids}; they must be the same, and each must occur once."
        )
    return index_map
