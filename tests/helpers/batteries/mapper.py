"""Tests that every training mapper passes."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks

from mask_former.data import register_instances, register_panoptic, register_semantic
from mask_former.registries import DATASET_MAPPER_REGISTRY, lookup
from tests.helpers import own_data

DATASET = "mapper_battery"


def register(kind: str, folder: Path) -> None:
    """Register a dataset of two classes with annotations of one kind; see `MapperBattery.kind`."""
    if kind == "semantic":
        own_data.write_semantic_folder(folder, (0, 1))
        register_semantic(DATASET, folder / "i", folder / "l", ["ground", "dog"])
    elif kind == "instance":
        register_instances(DATASET, *own_data.write_instances(folder))
    else:
        register_panoptic(DATASET, *own_data.write_panoptic(folder))


class MapperBattery:
    """The contract of a training mapper: from a dataset dict to a training example."""

    name: str
    kind: str
    """The annotations that it reads: "semantic", "panoptic" or "instance"."""
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""

    @pytest.fixture
    def record(self, tmp_path: Path) -> Any:
        register(self.kind, tmp_path)
        yield DatasetCatalog.get(DATASET)[0]
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)

    def build(self, cfg: CfgNode) -> Any:
        cfg.DATASETS.TRAIN = (DATASET,)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
        cfg.INPUT.MIN_SIZE_TRAIN = (40, 56)
        for key, value in self.options.items():
            cfg.merge_from_list([key, value])
        key = "INPUT.DATASET_MAPPER_NAME"
        return lookup(DATASET_MAPPER_REGISTRY, self.name, key)(cfg, is_train=True)

    @staticmethod
    def masks_of(example: dict[str, Any]) -> torch.Tensor:
        masks = example["instances"].gt_masks
        return masks.tensor if isinstance(masks, BitMasks) else masks

    def test_an_example_has_an_image_classes_and_masks_of_one_size(
        self, cfg: CfgNode, record: dict[str, Any]
    ) -> None:
        example = self.build(cfg)(record)
        image, classes = example["image"], example["instances"].gt_classes
        masks = self.masks_of(example)
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert classes.dtype == torch.int64 and set(classes.tolist()) <= {0, 1}
        assert masks.dtype == torch.bool
        assert tuple(masks.shape) == (len(classes), *image.shape[1:])

    def test_the_dataset_dict_is_not_changed(self, cfg: CfgNode, record: dict[str, Any]) -> None:
        before = copy.deepcopy(record)
        self.build(cfg)(record)
        assert record == before

    def test_a_seed_determines_the_example_even_in_a_worker(
        self, cfg: CfgNode, record: dict[str, Any]
    ) -> None:
        mapper = self.build(cfg)
        examples = []
        for one in (mapper, pickle.loads(pickle.dumps(mapper))):
            np.random.seed(3)
            random.seed(3)
            torch.manual_seed(3)
            examples.append(one(record))
        assert torch.equal(examples[0]["image"], examples[1]["image"])
        assert torch.equal(*(self.masks_of(example) for example in examples))
