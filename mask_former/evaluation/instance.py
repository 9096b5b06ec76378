"""COCO's instance evaluation, also of panoptic datasets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import detectron2.evaluation as d2
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from mask_former.data.formats.coco_instances import complete, instances_of_panoptic
from mask_former.data.formats.coco_json import read_json
from mask_former.utils.atomic_files import replace_text

__all__ = ["COCOEvaluator"]

TASKS = ("bbox", "segm")  # detectron2 leaves out "segm" if no instance was predicted at all


class COCOEvaluator(d2.COCOEvaluator):
    """detectron2's AP of boxes and masks, extended to panoptic datasets.

    The ground truth is the metadata's ``json_file``; without one, the things of its
    ``panoptic_json``; without either, the annotations in the dataset's dicts, as in detectron2.
    It may cover a subset of the model's classes, for example the things 8 to 10 of 11 classes.
    Annotations may lack ``iscrowd``, ``area`` and ``bbox``, and may have the id 0, which COCO's
    code mistakes for "no match".
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """Load the ground truth.

        Args:
            dataset_name: A registered dataset. Its classes are those of
                ``thing_dataset_id_to_contiguous_id`` in the metadata; without that, the categories
                of the ground truth by ascending id.
            output_dir: Folder for the predictions, or None.

        Raises:
            FileNotFoundError: If a JSON or PNG is missing.
            ValueError: If the ground truth is damaged or has other categories than the metadata.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("json_file") is None and metadata.get("panoptic_json") is not None:
            self._init_from_panoptic(metadata, output_dir)
        else:
            _check_file(metadata)
            super().__init__(dataset_name, TASKS, output_dir=output_dir)
        if "annotations" in self._coco_api.dataset:  # a test set has none
            _complete_annotations(self._coco_api, f"the ground truth of {dataset_name}")
        self._index_of_class, self._metadata = _classes(metadata, self._coco_api)

    def _init_from_panoptic(self, metadata: Metadata, output_dir: str | None) -> None:
        """Run detectron2's ``__init__`` on a temporary JSON and a temporary metadata entry."""
        logging.getLogger(__name__).info(
            "%s has no json_file: the instances are the things of %s.",
            metadata.name,
            metadata.panoptic_json,
        )
        panoptic = read_json(Path(metadata.panoptic_json), "COCO panoptic format")
        ground_truth = instances_of_panoptic(panoptic, Path(metadata.panoptic_root))
        name = f"{metadata.name} (its things as instances)"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "instances.json"
            replace_text(path, json.dumps(ground_truth))
            MetadataCatalog.get(name).set(json_file=str(path))
            try:
                super().__init__(name, TASKS, output_dir=output_dir)
            finally:
                MetadataCatalog.remove(name)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Store the predictions for images.

        Args:
            inputs: One dict for each image, with ``image_id``.
            outputs: One dict for each image, with ``instances``: ``pred_boxes``, ``scores``,
                ``pred_classes`` (contiguous ids of the model) and ``pred_masks``.

        Raises:
            ValueError: If a class is not a thing of the dataset.
        """
        super().process(inputs, list(map(self._with_dataset_classes, inputs, outputs)))

    def _with_dataset_classes(
        self, example: Mapping[str, Any], output: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Copy the instances, with their classes as indices of the dataset's categories."""
        found = output["instances"]
        indices = [self._index_of_class.get(label) for label in found.pred_classes.tolist()]
        if None in indices:
            raise ValueError(
                f"{example.get('file_name', example['image_id'])}: an instance has the class "
                f"{int(found.pred_classes[indices.index(None)])}, which is not a thing of "
                f"{self._metadata.name}; expected one of {sorted(self._index_of_class)}. Was the "
                "model trained on other classes?"
            )
        renamed = Instances(found.image_size, **found.get_fields())
        renamed.pred_classes = torch.tensor(indices, dtype=torch.int64)
        return {"instances": renamed}


def _check_file(metadata: Metadata) -> None:
    path = metadata.get("json_file")
    if path is not None and not PathManager.isfile(path):
        raise FileNotFoundError(
            f"{path}, the json_file of {metadata.name}, is missing: instance AP is measured "
            "against it. Restore it, or set MODEL.MASK_FORMER.TEST.INSTANCE_ON to False."
        )


def _complete_annotations(coco: Any, where: str) -> None:
    """Add missing keys to the annotations, and number them from 1 if an id is 0."""
    annotations, images = coco.dataset["annotations"], coco.imgs
    for index, annotation in enumerate(annotations):
        image = images.get(annotation["image_id"])
        name = f"{where}: annotation id {annotation['id']!r}"
        if image is None:
            raise ValueError(f"{name} has an image_id that is not in `images`: add the image.")
        annotations[index] = complete(annotation, (image["height"], image["width"]), name)
    if 0 in coco.anns:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    with redirect_stdout(StringIO()):
        coco.createIndex()


def _classes(metadata: Metadata, coco: Any) -> tuple[dict[int, int], Metadata]:
    """Map the model's classes to the categories of the ground truth.

    Returns:
        A dict from a contiguous id of the model to the index of its category in ascending order of
        category ids (as in COCO's code), and metadata in which this index is the contiguous id.
    """
    ids = sorted(coco.getCatIds())
    indices = {category: index for index, category in enumerate(ids)}
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or indices
    if set(contiguous) != set(ids):
        raise ValueError(
            f"{metadata.name}: the categories of its instance annotations have the ids {ids}, the "
            f"things of its metadata {sorted(contiguous)}; they must be the same. Does json_file "
            "belong to another dataset?"
        )
    things = Metadata(
        name=metadata.name,
        json_file=metadata.get("json_file"),
        thing_classes=[category["name"] for category in coco.loadCats(ids)],
        thing_dataset_id_to_contiguous_id=indices,
    )
    return {contiguous[category]: index for category, index in indices.items()}, things
