"""Mistakes in the data stop training before its first step; valid data are left unchanged."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image

from mask_former.config.loading import load_cfg
from mask_former.engine import Trainer
from mask_former.engine import dataset_checks as file_checks
from mask_former.engine.dataset_checks import checked_training_set
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.tiny_model import NAMES, write_tiny_model

SIZE, COUNT = 64, 50
SETS = ("file_checks_train", "file_checks_val")


@pytest.fixture
def records(tmp_path):
    """50 images with label maps, registered for training and for testing."""
    files = []
    for number in range(COUNT):
        one = {key: str(tmp_path / f"{key}_{number:02d}.png") for key in ("image", "label")}
        Image.new("RGB", (SIZE, SIZE), (90, number, 0)).save(one["image"])
        Image.fromarray(np.full((SIZE, SIZE), number % 4, np.uint8)).save(one["label"])
        files.append({"file_name": one["image"], "sem_seg_file_name": one["label"]})
    for name in SETS:
        DatasetCatalog.register(name, lambda: files)
        MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=255)
        MetadataCatalog.get(name).set(evaluator_type="sem_seg")
    yield files
    for name in SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config(tmp_path):
    path, weights = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    base = ["DATASETS.TRAIN", f"('{SETS[0]}',)", "DATASETS.TEST", f"('{SETS[1]}',)"]
    base += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "1"]
    base += ["SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    base += ["INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MAX_SIZE_TRAIN", str(SIZE)]

    def config(*opts):
        return load_cfg(str(path), [*base, *map(str, opts)])

    return config


def check(cfg):
    mapper = DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)
    return checked_training_set(cfg, mapper(cfg, is_train=True))


def test_valid_data_are_returned_unchanged_and_the_checks_are_logged(records, config, caplog):
    with caplog.at_level(logging.INFO, file_checks.__name__):
        assert check(config()) == records
    assert "DATASETS.TRAIN: the files of 50 images exist; the 20 checked images" in caplog.text


def test_checking_draws_no_random_number(records, config):
    cfg = config()
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    check(cfg)
    assert np.random.rand() == expected


@pytest.mark.parametrize("number", range(0, COUNT, 7))
def test_every_missing_file_is_found(records, config, number):
    Path(records[number]["sem_seg_file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"TRAIN: 1 files .*label_{number:02d}\.png"):
        check(config())


def test_files_of_a_missing_folder_are_reported_as_missing(records, config):
    records[3]["file_name"] = "/nowhere/a.png"
    with pytest.raises(FileNotFoundError, match=r"/nowhere/a\.png"):
        check(config())


def test_remote_files_are_not_checked(records):
    remote = [{"file_name": "s3://bucket/a.png"}]
    assert list(file_checks._missing_files(records + remote)) == []


def write_invalid_labels(record):
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(record["sem_seg_file_name"])


def test_wrong_labels_stop_training_with_the_mappers_message(records, config):
    for record in records[:25]:
        write_invalid_labels(record)
    expected = (
        r"TRAIN: 10 of the 20 checked images .*label_00\.png: found the class ids \[9\], expected"
    )
    with pytest.raises(ValueError, match=expected):
        check(config())


def test_the_test_set_is_checked_before_training_too(records, config):
    write_invalid_labels(records[-1])
    DatasetCatalog.remove(SETS[0])
    DatasetCatalog.register(SETS[0], lambda: records[:-1])
    with pytest.raises(ValueError, match=rf"TEST, '{SETS[1]}': 1 of the 20 .*label_49\.png.*\[9\]"):
        check(config())


def test_a_mapper_that_does_not_fit_the_dataset_is_refused(records, config):
    cfg = config("INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic")
    with pytest.raises(ValueError, match=r"needs .*pan_seg_file_name.*mask_former_semantic"):
        check(cfg)


def test_of_a_test_set_without_classes_only_the_existence_of_files_is_checked(
    records, config, caplog
):
    write_invalid_labels(records[-1])
    del MetadataCatalog.get(SETS[1]).stuff_classes
    DatasetCatalog.remove(SETS[0])
    DatasetCatalog.register(SETS[0], lambda: records[:-1])
    assert check(config()) == records[:-1]
    assert "The annotations are not checked: The metadata of" in caplog.text
    Path(records[-1]["file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match="TEST"):
        check(config())


def test_an_unknown_value_of_the_key_is_an_error(records, config):
    with pytest.raises(ValueError, match=r"DATASETS\.CHECK is 'full', expected 'quick' or 'off'"):
        check(config("DATASETS.CHECK", "full"))


def test_off_reads_no_file(records, config):
    for record in records:
        Path(record["file_name"]).unlink()
    assert check(config("DATASETS.CHECK", "off")) is None


# The trainer


def test_the_trainer_checks_before_its_first_step(records, config):
    for record in records:
        write_invalid_labels(record)
    with pytest.raises(ValueError, match=r"found the class ids \[9\].*tools/check_dataset\.py"):
        Trainer(config())
    Trainer(config("DATASETS.CHECK", "off"))


@pytest.mark.parametrize("seed", [1, 2])
def test_training_sees_the_same_images_with_and_without_the_check(records, config, seed):
    seen = []
    for value in ("quick", "off"):
        seed_all_rng(seed)
        trainer = Trainer(config("DATASETS.CHECK", value, "SEED", seed))
        loader = iter(trainer._trainer.data_loader)
        seen.append([next(loader)[0]["file_name"] for _ in range(5)])
    assert seen[0] == seen[1]
