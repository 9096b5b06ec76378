"""The augmentations, against detectron2's own done one after the other."""

from collections import deque

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import ColorAugSSDTransform, color_augmentation

from mask_former.data.augmentation import (
    ColorAugSSD,
    RandomFlip,
    ResizeAndCrop,
    ResizeCropTransform,
    build_augmentation,
    build_detr_augmentation,
)

IGNORE = 255


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def augment(augmentations, image, sem_seg=None, seed=0):
    np.random.seed(seed)
    inputs = T.AugInput(image, sem_seg=sem_seg)
    transforms = T.AugmentationList(augmentations)(inputs)
    return inputs.image, inputs.sem_seg, transforms


def make_cfg(**settings):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.FORMAT = "RGB"
    for key, value in settings.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


def crops():
    return [
        T.RandomCrop("absolute", (64, 96)),
        T.RandomCrop("relative_range", (0.5, 0.3)),
        T.RandomCrop_CategoryAreaConstraint("absolute", (48, 48), 0.75, IGNORE),
        T.RandomCrop_CategoryAreaConstraint("absolute_range", (30, 90), 1.0, IGNORE),
    ]


@pytest.mark.parametrize("crop", crops(), ids=lambda crop: f"{type(crop).__name__}")
@pytest.mark.parametrize("seed", range(6))
def test_resize_and_crop_is_detectron2s_resize_and_then_crop(crop, seed):
    height, width = np.random.default_rng(seed).integers(40, 200, 2)
    image = noise(height, width, seed)
    labels = image[..., 0] // 64
    resize = T.ResizeShortestEdge((30, 250), 300, "range")
    expected, _, _ = augment([resize, crop], image, labels, seed)
    found, _, _ = augment([ResizeAndCrop(resize, crop)], image, labels, seed)
    assert found.shape == expected.shape and found.dtype == np.uint8
    # PIL rounds to 8 bit after rows and after columns; ties may fall to either side
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_resize_without_a_crop_is_detectron2s_resize():
    resize = T.ResizeShortestEdge([37, 111], 130, "choice")
    for seed in range(4):
        expected, _, _ = augment([resize], noise(50, 70), seed=seed)
        found, _, _ = augment([ResizeAndCrop(resize)], noise(50, 70), seed=seed)
        assert (found == expected).all()


def test_a_shortest_edge_of_0_leaves_the_size():
    image = noise(50, 70)
    resized, _, _ = augment([ResizeAndCrop(T.ResizeShortestEdge(0))], image)
    assert (resized == image).all()
    cropped, _, transforms = augment(
        [ResizeAndCrop(T.ResizeShortestEdge(0), T.RandomCrop("absolute", (20, 30)))], image
    )
    window = transforms.transforms[0]
    assert (cropped == image[window.y0 : window.y0 + 20, window.x0 : window.x0 + 30]).all()


@pytest.mark.parametrize("dtype, values", [(np.uint8, 256), (np.uint16, 65536), (np.int64, 2**40)])
@pytest.mark.parametrize("new", [(31, 45), (80, 110), (20, 25)])
def test_a_label_is_the_one_under_the_new_pixels_centre(dtype, values, new):
    h, w = 20, 25
    labels = np.random.default_rng(0).integers(0, values, (h, w)).astype(dtype)
    labels[0, 0] = values - 1
    y0, x0, crop_h, crop_w = 2, 3, 15, 20
    transform = ResizeCropTransform(h, w, *new, x0=x0, y0=y0, crop_w=crop_w, crop_h=crop_h)
    found = transform.apply_segmentation(labels)
    assert found.dtype == dtype and found.flags["C_CONTIGUOUS"]
    for y in range(crop_h):
        for x in range(crop_w):
            centre_y = (y0 + y + 0.5) * h / new[0]
            centre_x = (x0 + x + 0.5) * w / new[1]
            assert found[y, x] == labels[int(centre_y + 1e-9), int(centre_x + 1e-9)]


def test_the_last_window_stays_inside_the_image_at_any_scale():
    for new in range(20, 400, 7):
        transform = ResizeCropTransform(29, 31, new, new, new - 9, new - 11, 9, 11)
        assert transform.apply_image(noise(29, 31)).shape == (11, 9, 3)
        assert transform.apply_segmentation(np.zeros((29, 31), np.uint8)).shape == (11, 9)


def test_coordinates_move_as_in_detectron2():
    points = np.array([[0.0, 0.0], [10.0, 5.0], [31.0, 29.0]])
    both = T.TransformList([T.ResizeTransform(29, 31, 58, 93), T.CropTransform(7, 5, 20, 20)])
    one = ResizeCropTransform(29, 31, 58, 93, x0=7, y0=5, crop_w=20, crop_h=20)
    assert np.allclose(one.apply_coords(points.copy()), both.apply_coords(points.copy()))


class Replay:
    """Stands in for the `random` module and returns what numpy has drawn."""

    def __init__(self, draws):
        self.draws = deque(draws)

    def _next(self, *_):
        return self.draws.popleft()

    randrange = uniform = randint = _next


@pytest.mark.parametrize("img_format", ["RGB", "BGR"])
@pytest.mark.parametrize("seed", range(40))
def test_colour_jitter_gives_detectron2s_pixels_for_the_same_draws(monkeypatch, img_format, seed):
    draws = []
    np.random.seed(seed)
    for name in ("randint", "uniform"):
        draw = getattr(np.random, name)

        def record(*args, draw=draw):
            draws.append(draw(*args))
            return draws[-1]

        monkeypatch.setattr(np.random, name, record)
    image = noise(24, 32, seed)
    found = ColorAugSSD(img_format).get_transform(image).apply_image(image)
    # detectron2 draws the order only after the brightness
    order, *rest = draws
    after = 2 if rest[0] else 1
    replay = Replay([*rest[:after], order, *rest[after:]])
    monkeypatch.setattr(color_augmentation, "random", replay)
    expected = ColorAugSSDTransform(img_format).apply_image(image)
    assert not replay.draws
    assert found.dtype == np.uint8 and (found == expected).all()


def test_colour_jitter_is_fixed_once_drawn_and_leaves_labels_alone():
    image, labels = noise(24, 32), np.arange(6).reshape(2, 3)
    changed = 0
    for seed in range(8):
        np.random.seed(seed)
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


def test_what_the_config_turns_off_is_left_out():
    (resize,) = build_augmentation(make_cfg(CROP__ENABLED=False, RANDOM_FLIP="none"), IGNORE)
    assert resize.crop is None


@pytest.mark.parametrize("direction, axis", [("horizontal", 1), ("vertical", 0)])
def test_the_flip_goes_in_the_direction_of_the_config(direction, axis):
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


def test_the_horizontal_flip_is_detectron2s_and_contiguous():
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
            assert image.shape[0] == image.shape[1]  # the square window
        else:
            assert image.shape[1] == 2 * image.shape[0]
    assert 10 < cropped < 30


def test_detr_does_not_crop_where_the_config_has_no_crop():
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
