"""``mask_former_instance``: targets are the annotated masks, transformed like the image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as coco_mask

from mask_former.config.keys import get_mask_former_cfg
from mask_former.data.mappers import MaskFormerInstanceDatasetMapper
from mask_former.registries import DATASET_MAPPER_REGISTRY

HEIGHT, WIDTH, CLASSES = 40, 60, 5
SIZE = (HEIGHT, WIDTH)
POLYGON = [[20.5, 3, 50.2, 8.7, 40, 30, 22, 25]]
CROWD = 3  # index of the crowd


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def decoded(segmentation, size=SIZE):
    """Decode a segmentation to a mask with pycocotools."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    return coco_mask.decode(segmentation).astype(bool)


def annotations():
    """Return overlapping objects: polygon, RLE, two polygons, a crowd, and one partly outside."""
    noise = np.random.default_rng(0).random(SIZE) < 0.5
    right = np.zeros(SIZE, bool)
    right[10:, 35:] = True
    segmentations = [
        POLYGON,
        rle(noise),
        [[2, 2, 9, 2, 9, 30, 2, 30], [5, 20, 30, 20, 30, 38, 5, 38]],
        rle(right),
        [[-10, -10, 12.5, -3, 8, 15]],
    ]
    return [
        {
            "id": 100 + index,
            "category_id": index,
            "segmentation": segmentation,
            "iscrowd": int(index == CROWD),
        }
        for index, segmentation in enumerate(segmentations)
    ]


@pytest.fixture
def scene(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 7,
        "annotations": annotations(),
    }


def mapper_with(*augmentations, **settings):
    return MaskFormerInstanceDatasetMapper(
        augmentations=list(augmentations),
        image_format="RGB",
        ignore_label=None,
        num_classes=CLASSES,
        **settings,
    )


def make_cfg(**settings):
    cfg = get_mask_former_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 50, 70)
    cfg.INPUT.CROP.update(ENABLED=True, TYPE="absolute", SIZE=[32, 48])
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.merge_from_list([word for pair in settings.items() for word in pair])
    return cfg


def from_config(cfg):
    return DATASET_MAPPER_REGISTRY.get("mask_former_instance")(cfg, is_train=True)


def test_masks_equal_pycocotools_and_crowds_are_dropped(scene):
    before = copy.deepcopy(scene)
    example = mapper_with()(scene)
    instances = example["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2, 4]
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    kept = [a for a in scene["annotations"] if not a["iscrowd"]]
    for found, annotation in zip(instances.gt_masks, kept, strict=True):
        assert (found.numpy() == decoded(annotation["segmentation"])).all()
    assert instances.gt_masks.sum(0).max() > 1  # some masks overlap
    assert set(example) == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert str(scene) == str(before)


def test_masks_of_random_polygons_and_rles_equal_pycocotools(scene):
    rng = np.random.default_rng(2)
    segmentations = []
    for _ in range(20):
        corners = rng.uniform(0, 40, (rng.integers(1, 3), rng.integers(3, 9), 2))
        segmentations.append([polygon.ravel().tolist() for polygon in corners])
        segmentations.append(rle(rng.random(SIZE) < 0.2))
    segmentations = [s for s in segmentations if decoded(s).any()]
    assert len(segmentations) > 35
    scene["annotations"] = [{"category_id": 0, "segmentation": s} for s in segmentations]
    masks = mapper_with()(scene)["instances"].gt_masks.numpy()
    assert (masks == np.stack([decoded(s) for s in segmentations])).all()


@pytest.mark.parametrize(
    "transform",
    [
        T.HFlipTransform(WIDTH),
        T.VFlipTransform(HEIGHT),
        T.CropTransform(11, 5, 30, 20),
        T.ResizeTransform(HEIGHT, WIDTH, 57, 83),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_masks_equal_transformed_rles_and_masks_of_transformed_polygons(transform, scene):
    found = mapper_with(transform)(scene)["instances"]
    size = tuple(found.gt_masks.shape[1:])
    kept = [a for a in scene["annotations"] if not a["iscrowd"]]
    assert found.gt_classes.tolist() == [a["category_id"] for a in kept]
    for mask, annotation in zip(found.gt_masks.numpy(), kept, strict=True):
        shape = annotation["segmentation"]
        tolerance = 0
        if isinstance(shape, list):
            # pycocotools clips polygons itself, but rounds the corners of clipped edges differently
            tolerance = 3
            points = [np.array(p, dtype=float).reshape(-1, 2) for p in shape]
            moved = [transform.apply_coords(p).ravel().tolist() for p in points]
            expected = decoded(moved, size)
        else:
            expected = transform.apply_segmentation(decoded(shape).astype(np.uint8))
        assert np.count_nonzero(mask != expected) <= tolerance


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_transformed_like_the_image_by_the_configured_augmentations(seed, scene):
    """Each channel of the image shows one object, so the image is its own ground truth."""
    three = [scene["annotations"][0], scene["annotations"][2], scene["annotations"][4]]
    image = np.stack([decoded(a["segmentation"]) for a in three], -1).astype(np.uint8) * 255
    Image.fromarray(image).save(scene["file_name"])
    scene["annotations"] = three
    np.random.seed(seed)
    example = from_config(make_cfg())(scene)
    found = example["instances"]
    by_class = dict(zip(found.gt_classes.tolist(), found.gt_masks, strict=True))
    assert example["image"].shape == (3, 64, 64)
    padded = (example["image"] == 128).all(0)
    for channel, label in zip(example["image"], (0, 2, 4), strict=True):
        mask = by_class.get(label, torch.zeros(64, 64, dtype=torch.bool))
        assert not mask[padded].any()
        assert mask[(channel == 255) & ~padded].all()  # resizing mixes only borders
        assert not mask[channel == 0].any()
    assert "sem_seg" not in example


def test_objects_without_a_pixel_in_the_crop_are_empty_or_with_a_minimum_area_dropped(scene):
    crop = T.CropTransform(50, 32, 8, 8)
    found = mapper_with(crop)(scene)["instances"]
    assert found.gt_classes.tolist() == [0, 1, 2, 4]
    assert found.gt_masks.flatten(1).any(1).tolist() == [False, True, False, False]
    dropped = mapper_with(crop, min_mask_area=1)(scene)["instances"]
    assert dropped.gt_classes.tolist() == [1]
    subpixel = {"category_id": 0, "segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}
    tiny = mapper_with(min_mask_area=1)(scene | {"annotations": [subpixel]})["instances"]
    assert len(tiny) == 0
    large = mapper_with(min_mask_area=300)(scene)["instances"]
    assert large.gt_classes.tolist() == [0, 1, 2]


def test_an_image_without_objects_has_no_target(scene):
    example = mapper_with(T.HFlipTransform(WIDTH), mask_ignore=True)(scene | {"annotations": []})
    assert example["instances"].gt_masks.shape == (0, *SIZE)
    assert example["instances"].gt_classes.tolist() == []
    assert example["valid"].all()


def test_only_crowds_and_padding_are_invalid(scene):
    example = mapper_with(mask_ignore=True, size_divisibility=64)(scene)
    crowd = decoded(scene["annotations"][CROWD]["segmentation"])
    targets = example["instances"].gt_masks[:, :HEIGHT, :WIDTH].any(0).numpy()
    valid = example["valid"].numpy()
    assert (valid[:HEIGHT, :WIDTH] == (~crowd | targets)).all()
    assert not valid[HEIGHT:].any() and not valid[:, WIDTH:].any()
    assert (crowd & targets).any() and (crowd & ~targets).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": 5}, r"found the class ids \[5\], expected 0\.\.4 .*contiguous"),
        ({"segmentation": []}, r"its segmentation is \[\], expected a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"a polygon is \[1, 2, 3, 4\], expected"),
        ({"segmentation": rle(np.ones((4, 6)))}, r"its RLE has .*\(4, 6\).*image's, \(40, 60\)"),
    ],
)
def test_a_broken_annotation_is_an_error_that_names_file_and_annotation(change, message, scene):
    scene["annotations"][1] |= change
    with pytest.raises(ValueError, match=rf"image\.png: its annotation id 101: {message}"):
        mapper_with()(scene)
    del scene["annotations"][1]["id"]
    with pytest.raises(ValueError, match=rf"image\.png: its annotation number 1: {message}"):
        mapper_with()(scene)


def test_an_annotation_without_a_mask_is_an_error(scene):
    del scene["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match=r"id 100: its segmentation is None.*a box is not enough"):
        mapper_with()(scene)


def test_an_image_of_another_size_than_annotated_is_an_error(scene):
    with pytest.raises(ValueError, match=r"image\.png, got \(60, 40\), expect \(60, 41\)"):
        mapper_with()(scene | {"height": HEIGHT + 1, "width": WIDTH})


def test_the_error_for_a_dict_without_annotations_names_the_mapper_that_fits(scene):
    other = {"file_name": scene["file_name"], "sem_seg_file_name": "labels.png"}
    with pytest.raises(KeyError, match=r"needs \['annotations'\].*mask_former_semantic"):
        mapper_with()(other)


def test_a_crop_that_limits_categories_is_refused():
    cfg = make_cfg(**{"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.9})
    with pytest.raises(ValueError, match=r"SINGLE_CATEGORY_MAX_AREA is 0\.9.*Set it to 1\.0"):
        from_config(cfg)


def test_an_array_is_a_mask(scene):
    mask = decoded(POLYGON)
    scene["annotations"] = [{"category_id": 2, "segmentation": mask * 3}]
    flipped = mapper_with(T.HFlipTransform(WIDTH))(scene)["instances"]
    assert (flipped.gt_masks[0].numpy() == mask[:, ::-1]).all()
    scene["annotations"] = [{"category_id": 2, "segmentation": mask[1:]}]
    with pytest.raises(ValueError, match=r"an array of shape \(39, 60\).*image's.*\(40, 60\)"):
        mapper_with()(scene)


def test_metadata_is_not_needed(scene):
    cfg = make_cfg(**{"DATASETS.TRAIN": ("nobodys_instances",)})
    assert len(from_config(cfg)(scene)["instances"]) > 0
    assert "nobodys_instances" not in MetadataCatalog.list()
