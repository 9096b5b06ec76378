"""COCO's instance evaluation, of panoptic datasets as well."""

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

__all__ = ["COCOEvaluator"]

TASKS = ("bbox", "segm")  # detectron2 would leave out "segm" where nothing at all was found


class COCOEvaluator(d2.COCOEvaluator):
    """detectron2's AP of boxes and masks, with the classes and truth of panoptic datasets, too.

    The truth is the metadata's ``json_file``; where there is none, the things of its
    ``panoptic_json``; where there is neither, what detectron2 makes of the dataset's dicts.
    Classes may be any of the model's, such as things 8 to 10 of 11 classes. Annotations may lack
    ``iscrowd``, ``area`` and ``bbox``, and have the id 0, which COCO's code takes for "no match".
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its metadata may have ``thing_dataset_id_to_contiguous_id``; else classes
                are the categories of the truth by ascending id.
            output_dir: where predictions go.

        Raises:
            FileNotFoundError: if there is no such JSON or PNG.
            ValueError: if the truth is broken or has other categories than the metadata.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("json_file") is None and metadata.get("panoptic_json") is not None:
            self._init_from_panoptic(metadata, output_dir)
        else:
            _check_file(metadata)
            super().__init__(dataset_name, TASKS, output_dir=output_dir)
        if "annotations" in self._coco_api.dataset:  # not a test set's
            _mend(self._coco_api, f"the truth of {dataset_name}")
        self._place_of_class, self._metadata = _classes(metadata, self._coco_api)

    def _init_from_panoptic(self, metadata: Metadata, output_dir: str | None) -> None:
        """detectron2's ``__init__`` on a file and a metadata entry that last as long as it does."""
        logging.getLogger(__name__).info(
            "%s names no json_file: its instances are the things of %s.",
            metadata.name,
            metadata.panoptic_json,
        )
        panoptic = read_json(Path(metadata.panoptic_json), "COCO panoptic format")
        truth = instances_of_panoptic(panoptic, Path(metadata.panoptic_root))
        name = f"{metadata.name} (its things as instances)"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "instances.json"
            path.write_text(json.dumps(truth), encoding="utf-8")
            MetadataCatalog.get(name).set(json_file=str(path))
            try:
                super().__init__(name, TASKS, output_dir=output_dir)
            finally:
                MetadataCatalog.remove(name)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the predictions of images.

        Args:
            inputs: one dict an image, with ``image_id``.
            outputs: one dict an image, with ``instances``: ``pred_boxes``, ``scores``,
                ``pred_classes`` (contiguous ids of the model) and ``pred_masks``.

        Raises:
            ValueError: a class is no thing of the dataset.
        """
        super().process(inputs, list(map(self._of_dataset, inputs, outputs)))

    def _of_dataset(self, example: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
        """The instances, their classes the place among the dataset's."""
        found = output["instances"]
        places = [self._place_of_class.get(label) for label in found.pred_classes.tolist()]
        if None in places:
            raise ValueError(
                f"{example.get('file_name', example['image_id'])}: an instance has the class "
                f"{int(found.pred_classes[places.index(None)])}, which is no thing of "
                f"{self._metadata.name}; expected one of {sorted(self._place_of_class)}. Was the "
                "model trained on other classes?"
            )
        renamed = Instances(found.image_size, **found.get_fields())
        renamed.pred_classes = torch.tensor(places, dtype=torch.int64)
        return {"instances": renamed}


def _check_file(metadata: Metadata) -> None:
    path = metadata.get("json_file")
    if path is not None and not PathManager.isfile(path):
        raise FileNotFoundError(
            f"{path}, the json_file of {metadata.name}, is not there: instance AP is measured "
            "against it. Restore it, or set MODEL.MASK_FORMER.TEST.INSTANCE_ON to False."
        )


def _mend(coco: Any, where: str) -> None:
    """Complete the annotations in place, and count their ids from 1 where one is 0."""
    annotations, images = coco.dataset["annotations"], coco.imgs
    for place, annotation in enumerate(annotations):
        image = images.get(annotation["image_id"])
        name = f"{where}: annotation id {annotation['id']!r}"
        if image is None:
            raise ValueError(f"{name} has an image_id that is not in `images`: list the image.")
        annotations[place] = complete(annotation, (image["height"], image["width"]), name)
    if 0 in coco.anns:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    with redirect_stdout(StringIO()):
        coco.createIndex()


def _classes(metadata: Metadata, coco: Any) -> tuple[dict[int, int], Metadata]:
    """What the evaluator needs to know of the classes.

    Returns:
        contiguous id of the model -> place among the categories of the truth, by ascending id, as
        COCO's code orders them; and metadata in which the place is the contiguous id.
    """
    ids = sorted(coco.getCatIds())
    places = {category: place for place, category in enumerate(ids)}
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or places
    if set(contiguous) != set(ids):
        raise ValueError(
            f"{metadata.name}: the categories of its instance annotations have the ids {ids}, the "
            f"things of its metadata {sorted(contiguous)}; they must be the same. Is json_file "
            "another dataset's?"
        )
    things = Metadata(
        name=metadata.name,
        json_file=metadata.get("json_file"),
        thing_classes=[category["name"] for category in coco.loadCats(ids)],
        thing_dataset_id_to_contiguous_id=places,
    )
    return {contiguous[category]: place for category, place in places.items()}, things
