"""Training images of EoMT: the large-scale jitter of torchvision, with the published config."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from mask_former.config.keys import get_mask_former_cfg
from mask_former.data.transforms.augmentation import ResizeScaleFloor, build_lsj_augmentation
from mask_former.data.transforms.color_jitter import ColorAugTorchvision
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.noise_images import noise
from tests.helpers.paths import GOLDEN, ROOT

HEIGHT, WIDTH, SIDE, IGNORE = 40, 60, 64, 255
DATASET = "eomt_training_images"
each_seed = pytest.mark.parametrize("seed", range(6))


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get(DATASET).ignore_label = IGNORE
    yield
    MetadataCatalog.remove(DATASET)


def published(**settings):
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "eomt" / "Base-Semantic.yaml"))
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.INPUT.IMAGE_SIZE = SIDE
    cfg.INPUT.COLOR_AUG_SSD = False
    for key, value in settings.items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


def make(cfg, name="mask_former_semantic_lsj"):
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True)


def run(mapper, record, seed):
    np.random.seed(seed)
    random.seed(seed)
    return mapper(record)


@pytest.fixture
def record(tmp_path):
    """One image whose label map has the classes 1 and, in a corner, 3, and ignored pixels.

    The segments of the panoptic annotation are those of the label map; the ignored one is a crowd.
    """
    labels = np.full((HEIGHT, WIDTH), 1, np.uint8)
    labels[:12, :12] = 3
    labels[30:, 20:30] = IGNORE
    Image.fromarray(noise(HEIGHT, WIDTH)).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.stack([labels, 0 * labels, 0 * labels], -1)).save(tmp_path / "ids.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [
            {"id": 1, "category_id": 1, "iscrowd": 1},
            {"id": 3, "category_id": 3, "iscrowd": 0},
            {"id": IGNORE, "category_id": 0, "iscrowd": 1},
        ],
    }


def test_sizes_are_those_of_torchvisions_scale_jitter(monkeypatch):
    for side, (low, high), (height, width), u, size in json.loads(
        (GOLDEN / "eomt_scale_jitter.json").read_text()
    )["rows"]:
        cfg = published(IMAGE_SIZE=side, MIN_SCALE=low, MAX_SCALE=high)
        monkeypatch.setattr(np.random, "uniform", lambda a, b, u=u: a + u * (b - a))
        transform = build_lsj_augmentation(cfg)[-1].resize.get_transform(np.empty((height, width)))
        assert [transform.new_h, transform.new_w] == size


@each_seed
def test_images_are_flipped_scaled_cropped_anywhere_and_padded_with_black(seed, record):
    np.random.seed(seed)
    image = T.AugInput(noise(HEIGHT, WIDTH))
    T.RandomFlip()(image)
    factor = min(SIDE / HEIGHT, SIDE / WIDTH) * np.random.uniform(0.5, 2.0)
    new = int(HEIGHT * factor), int(WIDTH * factor)
    image.transform(T.ResizeTransform(HEIGHT, WIDTH, *new))
    T.RandomCrop("absolute", (SIDE, SIDE))(image)  # the window is drawn for each axis
    expected = np.zeros((SIDE, SIDE, 3), int)
    expected[: image.image.shape[0], : image.image.shape[1]] = image.image

    found = run(make(published()), record, seed)["image"].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 2  # cropping before resizing rounds differently


@each_seed
def test_semantic_targets_are_the_classes_that_the_crop_keeps(seed, record):
    example = run(make(published()), record, seed)
    labels, instances = example["sem_seg"].numpy(), example["instances"]
    assert labels.shape == (SIDE, SIDE)
    assert instances.gt_classes.tolist() == sorted(set(labels.ravel().tolist()) - {IGNORE})
    for label, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        assert (mask.numpy() == (labels == label.item())).all()
    black = example["image"].numpy().max(axis=0) == 0
    assert (labels[black.all(1)] == IGNORE).all() and (labels[:, black.all(0)] == IGNORE).all()


def test_an_image_that_lost_its_targets_is_augmented_again(record):
    cfg, name = published(MIN_SCALE=1.9), "coco_panoptic_lsj"
    once, again = make(published(MIN_SCALE=1.9, MAX_TRIES=1), name), make(cfg, name)
    examples = [run(once, record, seed)["instances"] for seed in range(8)]
    assert {len(instances) for instances in examples} == {0, 1}
    for seed, first in enumerate(examples):
        found = run(again, record, seed)["instances"]
        assert found.gt_classes.tolist() == [3] and found.gt_masks.any()
        if len(first):
            assert (found.gt_masks == first.gt_masks).all()


def test_an_image_with_crowds_only_is_an_example_without_targets(record, monkeypatch):
    draws, draw = [], ResizeScaleFloor.get_transform
    monkeypatch.setattr(
        ResizeScaleFloor, "get_transform", lambda *args: draws.append(1) or draw(*args)
    )
    record["segments_info"][1]["iscrowd"] = 1
    example = run(make(published(), "coco_panoptic_lsj"), record, 0)
    assert len(example["instances"]) == 0 and example["instances"].gt_masks.shape[1:] == (64, 64)
    assert len(draws) == 10


def test_colours_are_jittered_first_if_configured():
    steps = build_lsj_augmentation(published(COLOR_AUG_SSD=True))
    assert isinstance(steps[0], ColorAugTorchvision) and len(steps) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LSJ_RULE": "torch"}, "INPUT.LSJ_RULE is 'torch', expected one of .*'torchvision'"),
        ({"PAD_VALUE": 256}, "INPUT.PAD_VALUE is 256, expected 0 to 255"),
        ({"MAX_TRIES": 0}, "INPUT.MAX_TRIES is 0, expected 1 or more"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_its_key(settings, message):
    with pytest.raises(ValueError, match=message):
        make(published(**settings))
