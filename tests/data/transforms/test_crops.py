"""Resizing and cropping in one pass, compared with detectron2's; and class-uniform crops."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from mask_former.data.transforms.crops import ClassUniformCrop, ResizeAndCrop, ResizeCropTransform
from tests.helpers.noise_images import IGNORE, augment, noise


def crops():
    return [
        T.RandomCrop("absolute", (64, 96)),
        T.RandomCrop("relative_range", (0.5, 0.3)),
        T.RandomCrop_CategoryAreaConstraint("absolute", (48, 48), 0.75, IGNORE),
        T.RandomCrop_CategoryAreaConstraint("absolute_range", (30, 90), 1.0, IGNORE),
    ]


@pytest.mark.parametrize("crop", crops(), ids=lambda crop: f"{type(crop).__name__}")
@pytest.mark.parametrize("seed", range(6))
def test_resize_and_crop_equals_detectron2s_resize_then_crop(crop, seed):
    height, width = np.random.default_rng(seed).integers(40, 200, 2)
    image = noise(height, width, seed)
    labels = image[..., 0] // 64
    resize = T.ResizeShortestEdge((30, 250), 300, "range")
    expected, _, _ = augment([resize, crop], image, labels, seed)
    found, _, _ = augment([ResizeAndCrop(resize, crop)], image, labels, seed)
    assert found.shape == expected.shape and found.dtype == np.uint8
    # PIL rounds to 8 bits after rows and after columns; ties may be rounded either way.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_resize_without_a_crop_equals_detectron2s_resize():
    resize = T.ResizeShortestEdge([37, 111], 130, "choice")
    for seed in range(4):
        expected, _, _ = augment([resize], noise(50, 70), seed=seed)
        found, _, _ = augment([ResizeAndCrop(resize)], noise(50, 70), seed=seed)
        assert (found == expected).all()


def test_a_shortest_edge_of_0_keeps_the_size():
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
def test_a_resized_label_is_that_at_the_new_pixels_centre(dtype, values, new):
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


def test_coordinates_are_transformed_like_detectron2s():
    points = np.array([[0.0, 0.0], [10.0, 5.0], [31.0, 29.0]])
    both = T.TransformList([T.ResizeTransform(29, 31, 58, 93), T.CropTransform(7, 5, 20, 20)])
    one = ResizeCropTransform(29, 31, 58, 93, x0=7, y0=5, crop_w=20, crop_h=20)
    assert np.allclose(one.apply_coords(points.copy()), both.apply_coords(points.copy()))


def rare_class():
    """Return 80×120 labels: class 0, one pixel of class 1, a corner of class 2, an ignored row."""
    labels = np.zeros((80, 120), np.uint8)
    labels[50, 7] = 1
    labels[70:, 100:] = 2
    labels[0] = IGNORE
    return labels


def class_uniform_crop(probability):
    return ClassUniformCrop(T.RandomCrop("absolute", (20, 30)), probability, IGNORE)


def windows(crop, labels, number=600):
    np.random.seed(0)
    drawn = [crop(T.AugInput(noise(*labels.shape), sem_seg=labels)) for _ in range(number)]
    return drawn, [labels[w.y0 : w.y0 + w.h, w.x0 : w.x0 + w.w] for w in drawn]


def test_each_of_three_classes_is_the_target_of_a_third_of_the_windows():
    drawn, cut = windows(class_uniform_crop(1.0), rare_class())
    assert all(part.shape == (20, 30) for part in cut)
    assert 0.28 < np.mean([(part == 1).any() for part in cut]) < 0.40
    assert 0.28 < np.mean([(part == 2).any() for part in cut]) < 0.40
    # The pixel is anywhere in the window that the image's border allows.
    found = [w for w, part in zip(drawn, cut, strict=True) if (part == 1).any()]
    assert {50 - w.y0 for w in found} == set(range(20))
    assert {7 - w.x0 for w in found} == set(range(8))


def test_the_target_pixel_is_in_every_window():
    labels = np.full((80, 120), IGNORE, np.uint8)
    labels[50, 7] = 1
    _, cut = windows(class_uniform_crop(1.0), labels)
    assert all((part == 1).any() for part in cut)


def test_every_pixel_of_a_class_may_be_the_target():
    labels = np.full((80, 120), IGNORE, np.uint8)
    labels[10, 10] = labels[60, 100] = 1
    drawn, _ = windows(class_uniform_crop(1.0), labels, number=100)
    assert 30 < sum(w.x0 > 60 for w in drawn) < 70


def test_the_share_of_class_uniform_windows_is_the_probability():
    def share(probability):
        return np.mean(
            [
                (part == 1).any()
                for part in windows(class_uniform_crop(probability), rare_class())[1]
            ]
        )

    assert share(0.0) < 0.12
    assert abs(share(0.5) - (share(0.0) + share(1.0)) / 2) < 0.05


@pytest.mark.parametrize("labels", [np.full((80, 120), IGNORE, np.uint8), None])
def test_without_labelled_pixels_the_plain_crop_is_used(labels):
    crop = class_uniform_crop(1.0)
    for seed in range(5):
        np.random.seed(seed)
        expected = crop.crop(T.AugInput(noise(80, 120)))
        np.random.seed(seed)
        found = crop(T.AugInput(noise(80, 120), sem_seg=labels))
        assert (found.x0, found.y0) == (expected.x0, expected.y0)


def test_class_uniform_crops_work_on_the_resized_image():
    labels = rare_class()
    steps = [ResizeAndCrop(T.ResizeShortestEdge(160), class_uniform_crop(1.0))]
    cut = [augment(steps, noise(80, 120), labels, seed)[1] for seed in range(60)]
    assert all(part.shape == (20, 30) for part in cut)
    assert np.mean([(part == 1).any() for part in cut]) > 0.2  # plain crops: about 1/30


def test_an_image_smaller_than_the_window_is_not_cropped():
    labels = rare_class()[:10, :10]
    _, cut = windows(class_uniform_crop(1.0), labels, number=5)
    assert all(part.shape == (10, 10) for part in cut)


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_out_of_range_is_an_error_that_names_its_key(probability):
    with pytest.raises(ValueError, match=r"INPUT.CROP.CLASS_UNIFORM is .*0 to 1"):
        class_uniform_crop(probability)
