"""Cityscapes' official evaluation runs, and gives a perfect prediction 100."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import id2label
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from mask_former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from tests.helpers.miniature_datasets import cityscapes

DATASET = "test_cityscapes_evaluation"
THINGS = list(MetadataCatalog.get("cityscapes_fine_sem_seg_val").thing_classes)


@pytest.fixture
def folder(tmp_path):
    """The folder of a miniature validation split."""
    cityscapes(tmp_path, np.random.default_rng(0))
    folder = tmp_path / "cityscapes"
    MetadataCatalog.get(DATASET).set(gt_dir=str(folder / "gtFine" / "val"), thing_classes=THINGS)
    yield folder
    MetadataCatalog.remove(DATASET)


def evaluate(evaluator, folder, predict):
    """Return the metrics of ``predict(H×W map of instance ids) -> output`` on the split."""
    evaluator.reset()
    images = sorted((folder / "leftImg8bit" / "val").rglob("*.png"))
    assert len(images) == 3
    for image in images:
        annotation = str(image).replace("leftImg8bit/", "gtFine/")
        path = Path(annotation.replace("leftImg8bit.png", "gtFine_instanceIds.png"))
        ids = np.array(Image.open(path)).astype(int)
        evaluator.process([{"file_name": str(image)}], [predict(ids)])
    return evaluator.evaluate()


def semantic(ids):
    """Return 19×H×W scores: 1 for the labelled class, all 0 where there is none."""
    labels = np.where(ids >= 1000, ids // 1000, ids)
    train_ids = np.vectorize(lambda i: id2label[i].trainId)(labels)
    return {"sem_seg": torch.from_numpy(np.arange(19)[:, None, None] == train_ids).float()}


def instances(ids):
    names = {i: id2label[i // 1000].name for i in np.unique(ids) if i >= 1000}
    found = {i: THINGS.index(name) for i, name in names.items() if name in THINGS}
    result = Instances(ids.shape)
    result.pred_masks = torch.from_numpy(np.stack([ids == i for i in found]))
    result.pred_classes = torch.tensor(list(found.values()))
    result.scores = torch.ones(len(found))
    return {"instances": result}


def test_correct_classes_score_100(folder):
    metrics = evaluate(CityscapesSemSegEvaluator(DATASET), folder, semantic)["sem_seg"]
    assert metrics == dict.fromkeys(("IoU", "iIoU", "IoU_sup", "iIoU_sup"), 100.0)


def test_correct_instances_score_100_and_no_file_is_left(folder, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    metrics = evaluate(CityscapesInstanceEvaluator(DATASET), folder, instances)["segm"]
    assert metrics == dict.fromkeys(("AP", "AP50"), 100.0)
    assert list(here.iterdir()) == []


def test_wrong_classes_score_0(folder):
    def rolled(ids):
        return {"sem_seg": semantic(ids)["sem_seg"].roll(1, dims=0)}

    assert evaluate(CityscapesSemSegEvaluator(DATASET), folder, rolled)["sem_seg"]["IoU"] == 0


def test_numpy_is_not_modified(folder):
    before = dir(np)
    evaluate(CityscapesSemSegEvaluator(DATASET), folder, semantic)
    assert dir(np) == before
