"""The augmentations, compared with detectron2's applied one after the other."""

import random

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import ColorAugSSDTransform

from mask_former.data.transforms.augmentation import (
    RandomFlip,
    build_augmentation,
    build_detr_augmentation,
)
from mask_former.data.transforms.color_jitter import ColorAugSSD
from mask_former.data.transforms.crops import ClassUniformCrop, ResizeAndCrop, ResizeCropTransform
from tests.helpers.noise_images import IGNORE, augment, noise


def make_cfg(**settings):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.CLASS_UNIFORM = 0.0
    cfg.INPUT.FORMAT = "RGB"
    for key, value in settings.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


@pytest.mark.parametrize("img_format", ["RGB", "BGR"])
@pytest.mark.parametrize("seed", range(40))
def test_colour_jitter_equals_detectron2s_for_the_same_seed(img_format, seed):
    image = noise(24, 32, seed)
    random.seed(seed)
    found = ColorAugSSD(img_format).get_transform(image).apply_image(image)
    after = random.getstate()
    random.seed(seed)
    expected = ColorAugSSDTransform(img_format).apply_image(image)
    assert random.getstate() == after
    assert found.dtype == np.uint8 and (found == expected).all()


def test_a_colour_jitter_transform_is_deterministic_and_keeps_labels():
    image, labels = noise(24, 32), np.arange(6).reshape(2, 3)
    changed = 0
    for seed in range(8):
        random.seed(seed)
        transform = ColorAugSSD("RGB").get_transform(image)
        once = transform.apply_image(image)
        assert (transform.apply_image(image) == once).all()
        assert transform.apply_segmentation(labels) is labels
        changed += bool((once != image).any())
    assert changed > 4


def test_maskformer_resizes_crops_jitters_and_flips_in_this_order():
    cfg = make_cfg(CROP__ENABLED=True, COLOR_AUG_SSD=True)
    steps = build_augmentation(cfg, IGNORE)
    assert [type(s) for s in steps] == [ResizeAndCrop, ColorAugSSD, RandomFlip]
    assert isinstance(steps[0].crop, T.RandomCrop_CategoryAreaConstraint)
    assert steps[0].crop.ignored_category == IGNORE


def test_class_uniform_crops_are_used_if_configured():
    (resize, _) = build_augmentation(make_cfg(CROP__ENABLED=True, CROP__CLASS_UNIFORM=0.3), IGNORE)
    assert isinstance(resize.crop, ClassUniformCrop)
    assert (resize.crop.probability, resize.crop.ignore_label) == (0.3, IGNORE)
    assert isinstance(resize.crop.crop, T.RandomCrop_CategoryAreaConstraint)


def test_disabled_augmentations_are_left_out():
    (resize,) = build_augmentation(make_cfg(CROP__ENABLED=False, RANDOM_FLIP="none"), IGNORE)
    assert resize.crop is None


@pytest.mark.parametrize("direction, axis", [("horizontal", 1), ("vertical", 0)])
def test_the_flip_has_the_configured_direction(direction, axis):
    image = noise(20, 30)
    labels = image[..., 0].astype(np.uint16) + 1000
    cfg = make_cfg(MIN_SIZE_TRAIN=(20,), CROP__ENABLED=False, RANDOM_FLIP=direction)
    flipped = 0
    for seed in range(10):
        found, found_labels, _ = augment(build_augmentation(cfg, IGNORE), image, labels, seed)
        assert found_labels.dtype == np.uint16
        is_flipped = (found != image).any()
        flipped += is_flipped
        assert (found == (np.flip(image, axis) if is_flipped else image)).all()
        assert (found_labels == (np.flip(labels, axis) if is_flipped else labels)).all()
    assert 0 < flipped < 10


def test_the_horizontal_flip_equals_detectron2s_and_is_contiguous():
    image = noise(7, 9)
    maps = [image, *(image[..., 0].astype(dtype) * 200 for dtype in (np.uint8, np.uint16))]
    flipped = 0
    for seed in range(8):
        np.random.seed(seed)
        expected = T.RandomFlip().get_transform(image)
        np.random.seed(seed)
        transform = RandomFlip().get_transform(image)
        for array in maps:
            found = transform.apply_segmentation(array)
            assert found.flags.c_contiguous and found.dtype == array.dtype
            assert (found == expected.apply_segmentation(array)).all()
        assert (transform.apply_image(image) == expected.apply_image(image)).all()
        points = np.array([[1.0, 2.0]])
        assert (transform.apply_coords(points.copy()) == expected.apply_coords(points)).all()
        flipped += isinstance(transform, T.HFlipTransform)
    assert 0 < flipped < 8


def test_detr_crops_half_of_the_images_between_two_resizes():
    cfg = make_cfg(
        MIN_SIZE_TRAIN=(48, 60), CROP__ENABLED=True, CROP__TYPE="absolute", CROP__SIZE=[200, 200]
    )
    steps = build_detr_augmentation(cfg)
    cropped = 0
    for seed in range(40):
        image, _, transforms = augment(steps, noise(50, 100), seed=seed)
        resizes = [t for t in transforms.transforms if isinstance(t, ResizeCropTransform)]
        assert min(image.shape[:2]) in (48, 60)
        if len(resizes) == 2:
            cropped += 1
            assert min(resizes[0].new_h, resizes[0].new_w) in (400, 500, 600)
            assert image.shape[0] == image.shape[1]  # cropped to a square
        else:
            assert image.shape[1] == 2 * image.shape[0]
    assert 10 < cropped < 30


def test_detr_does_not_crop_if_crops_are_disabled():
    steps = build_detr_augmentation(make_cfg(CROP__ENABLED=False))
    assert [type(s) for s in steps] == [RandomFlip, ResizeAndCrop]


@pytest.mark.parametrize("build", [lambda c: build_augmentation(c, 0), build_detr_augmentation])
@pytest.mark.parametrize(
    "setting, message",
    [
        ({"RANDOM_FLIP": "both"}, "INPUT.RANDOM_FLIP is 'both', expected one of .*'vertical'"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "any"}, "INPUT.MIN_SIZE_TRAIN_SAMPLING is 'any'.*'choice'"),
        ({"CROP__TYPE": "square"}, "INPUT.CROP.TYPE is 'square', expected one of .*'absolute'"),
        (
            {"MIN_SIZE_TRAIN_SAMPLING": "range", "MIN_SIZE_TRAIN": (1, 2, 3)},
            r"INPUT.MIN_SIZE_TRAIN is \(1, 2, 3\).*two values",
        ),
    ],
)
def test_an_unknown_setting_is_an_error_that_names_its_key(build, setting, message):
    with pytest.raises(ValueError, match=message):
        build(make_cfg(CROP__ENABLED=True, **setting))
