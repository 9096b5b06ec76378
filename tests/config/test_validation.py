"""Valid configs, datasets and metadata pass the checks; those of docs/troubleshooting.md do not."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from detectron2.data import MetadataCatalog

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.validation import validate
from mask_former.engine.dataset_checks import check_classes, check_registered
from tests.helpers import planting as p
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"


def published(file):
    return json.loads(gzip.decompress((GOLDEN / file).read_bytes()))["configs"]


PUBLISHED = {
    *published("published_configs.json.gz"),
    *(f"mask2former/{name}" for name in published("mask2former_configs.json.gz")),
}
COMPLETE = sorted(f for f in CONFIGS.rglob("*.yaml") if not f.name.startswith("Base-"))

pytestmark = pytest.mark.usefixtures("restored_catalogs")


def resolve(file):
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(file))
    return cfg


def name_below_configs(file):
    return str(file.relative_to(CONFIGS))


@pytest.mark.parametrize("file", COMPLETE, ids=name_below_configs)
def test_every_config_passes_and_fits_its_datasets(file):
    cfg = resolve(file)
    with p.warnings() as found:
        validate(cfg)
        check_classes(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    assert found == []
    if cfg.DATASETS.TRAIN:
        check_registered(cfg)


UNPUBLISHED = [file for file in COMPLETE if name_below_configs(file) not in PUBLISHED]


@pytest.mark.parametrize("file", UNPUBLISHED, ids=name_below_configs)
def test_unpublished_configs_drop_masks_emptied_by_the_crop(file):
    assert resolve(file).INPUT.MIN_MASK_AREA >= 1


def test_keys_of_box_heads_are_accepted_where_they_are_used(cfg):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "PanopticFPN", "SemSegFPNHead"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    validate(cfg)
    MetadataCatalog.get(p.DATASET).set(stuff_classes=["a"], thing_classes=["b"])
    check_classes(cfg, [p.DATASET])


def test_metadata_without_classes_is_accepted(tmp_path):
    cfg = p.config(tmp_path)
    check_classes(cfg, ["planted_and_never_described"])
    MetadataCatalog.pop("planted_and_never_described")


@pytest.mark.parametrize("rate, optimizer", [(1e-3, "ADAMW"), (0.1, "SGD")])
def test_usual_learning_rates_give_no_warning(tmp_path, rate, optimizer):
    with p.warnings() as found:
        p.config(tmp_path, "SOLVER.BASE_LR", rate, "SOLVER.OPTIMIZER", optimizer)
    assert found == []


def test_evaluation_without_training_checks_the_classes_too(tmp_path):
    cfg = p.config(tmp_path, "DATASETS.TEST", "('camvid_sem_seg_val',)")
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 4, but .* has 11 stuff_classes"):
        p.Trainer.test(cfg, torch.nn.Identity())
