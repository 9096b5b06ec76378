"""Large-scale jitter: the mappers equal detectron2's augmentations, applied one after the other."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools import mask as coco_mask

from mask_former.config.keys import get_mask_former_cfg
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.noise_images import noise
from tests.helpers.paths import ROOT

PANOPTIC, INSTANCE = "coco_panoptic_lsj", "coco_instance_lsj"
HEIGHT, WIDTH, SIDE = 40, 60, 64
SHARED = ROOT.parent / "shared"
each_mapper = pytest.mark.parametrize("name", [PANOPTIC, INSTANCE])
each_seed = pytest.mark.parametrize("seed", range(8))
POLYGONS = [[4.0, 3, 30, 5.5, 22, 30], [40.0, 10, 59, 12, 50, 39.5], [1.0, 35, 6, 35, 6, 39]]


def make(name, **settings):
    cfg = get_mask_former_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = SIDE
    cfg.INPUT.MIN_SCALE = 0.5
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True)


def run(mapper, record, seed):
    np.random.seed(seed)
    random.seed(seed)
    return mapper(record)


def detectron2s(image, seed, side=SIDE, low=0.5):
    """Return the padded image and the transforms of detectron2's augmentations."""
    np.random.seed(seed)
    steps = [T.RandomFlip(), T.ResizeScale(low, 2.0, side, side), T.FixedSizeCrop((side, side))]
    inputs = T.AugInput(image)
    transforms = T.AugmentationList(steps)(inputs)
    return inputs.image, transforms


@pytest.fixture
def record(tmp_path):
    """One image with segments of the ids 7, 300 (a crowd) and 9, and three polygons."""
    Image.fromarray(noise(HEIGHT, WIDTH)).save(tmp_path / "image.png")
    ids = np.zeros((HEIGHT, WIDTH), int)
    ids[:, 8:] = 7
    ids[:20, 20:40] = 300
    ids[35:, :4] = 9
    rgb = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "ids.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [
            {"id": 7, "category_id": 3, "iscrowd": 0},
            {"id": 300, "category_id": 1, "iscrowd": 1},
            {"id": 9, "category_id": 0, "iscrowd": 0},
        ],
        "annotations": [
            {"category_id": label, "segmentation": [polygon], "iscrowd": 0}
            for label, polygon in enumerate(POLYGONS)
        ],
    }


@each_seed
@each_mapper
def test_the_image_is_that_of_detectron2s_augmentations(name, seed, record):
    found = run(make(name), record, seed)["image"]
    expected, _ = detectron2s(noise(HEIGHT, WIDTH), seed)
    difference = found.permute(1, 2, 0).numpy().astype(int) - expected
    assert found.shape == (3, SIDE, SIDE) and found.dtype == torch.uint8
    assert np.abs(difference).max() <= 1  # cropping before resizing rounds differently


@each_seed
def test_segments_are_those_of_detectron2s_augmentations_and_crowds_are_dropped(seed, record):
    found = run(make(PANOPTIC), record, seed)["instances"]
    _, transforms = detectron2s(noise(HEIGHT, WIDTH), seed)
    rgb = np.array(Image.open(record["pan_seg_file_name"]))
    rgb = transforms.apply_segmentation(rgb).astype(int)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
    assert found.gt_classes.tolist() == [3, 0]
    for mask, segment in zip(found.gt_masks.numpy(), (7, 9), strict=True):
        assert (mask == (ids == segment)).all()


@each_seed
def test_polygons_are_transformed_and_those_outside_the_crop_are_dropped(seed, record):
    found = run(make(INSTANCE), record, seed)["instances"]
    _, transforms = detectron2s(noise(HEIGHT, WIDTH), seed)
    expected = {}
    for label, polygon in enumerate(POLYGONS):
        points = transforms.apply_coords(np.array(polygon).reshape(-1, 2)).ravel().tolist()
        rle = coco_mask.merge(coco_mask.frPyObjects([points], SIDE, SIDE))
        expected[label] = coco_mask.decode(rle)
    present = [label for label, mask in expected.items() if mask.any()]
    assert found.gt_classes.tolist() == present
    for label, mask in zip(present, found.gt_masks.numpy(), strict=True):
        # pycocotools clips polygons itself, but rounds the corners of clipped edges differently
        assert np.count_nonzero(mask != expected[label]) <= 12


def test_some_of_these_seeds_empty_a_segment_or_drop_an_object(record):
    examples = [run(make(PANOPTIC), record, seed)["instances"] for seed in range(8)]
    assert not all(e.gt_masks.flatten(1).any(1).all() for e in examples)
    counts = {len(run(make(INSTANCE), record, seed)["instances"]) for seed in range(8)}
    assert min(counts) < 3


@each_mapper
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"INPUT__IMAGE_SIZE": 0}, "INPUT.IMAGE_SIZE is 0.*at least 1 pixel"),
        ({"INPUT__MIN_SCALE": 0.0}, "INPUT.MIN_SCALE 0.0.*0 < MIN_SCALE <= MAX_SCALE"),
        ({"INPUT__MIN_SCALE": 3.0}, "INPUT.MIN_SCALE 3.0 and INPUT.MAX_SCALE 2.0"),
        ({"INPUT__MAX_SCALE": float("nan")}, "INPUT.MAX_SCALE nan"),
        ({"INPUT__MAX_SCALE": float("inf")}, "INPUT.MAX_SCALE inf"),
        ({"INPUT__RANDOM_FLIP": "both"}, "INPUT.RANDOM_FLIP is 'both'"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_its_key(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make(name, **settings)


@each_mapper
def test_an_image_that_is_too_thin_is_an_error_that_names_image_and_keys(name, record):
    Image.fromarray(noise(1, 400)).save(record["file_name"])
    Image.fromarray(np.full((1, 400, 3), (7, 0, 0), np.uint8)).save(record["pan_seg_file_name"])
    record |= {"segments_info": record["segments_info"][:1], "annotations": []}
    with pytest.raises(ValueError, match=r"image\.png.*too thin: INPUT.IMAGE_SIZE and INPUT.MIN_S"):
        run(make(name), record, 0)


ADE20K = {
    "INPUT__MIN_SIZE_TRAIN": tuple(int(0.1 * scale * 640) for scale in range(5, 21)),
    "INPUT__MAX_SIZE_TRAIN": 2560,
    "INPUT__CROP__ENABLED": True,
    "INPUT__CROP__TYPE": "absolute",
    "INPUT__CROP__SIZE": (640, 640),
    "INPUT__COLOR_AUG_SSD": True,
    "INPUT__SIZE_DIVISIBILITY": 640,
}
PUBLISHED = {"INPUT__IMAGE_SIZE": 1024, "INPUT__MIN_SCALE": 0.1}
GOLDEN = {PANOPTIC: PUBLISHED, INSTANCE: PUBLISHED, "mask_former_instance": ADE20K}


def test_examples_of_photos_equal_the_published_codes():
    facts = SHARED / "golden" / "mask2former" / "mappers.json"
    if not facts.exists():
        pytest.skip("needs ../shared/golden/mask2former/mappers.json")
    facts = json.loads(facts.read_text())
    for case in facts["cases"]:
        mapper = make(
            case["mapper"], MODEL__SEM_SEG_HEAD__NUM_CLASSES=133, **GOLDEN[case["mapper"]]
        )
        example = run(mapper, golden_record(case, ROOT.parent / facts["data"]), case["seed"])
        assert list(example["image"].shape) == case["image_shape"]
        blocks = example["image"].double().unfold(1, 128, 128).unfold(2, 128, 128).mean((0, 3, 4))
        np.testing.assert_allclose(blocks, np.array(case["image_block_means"]), atol=0.01)
        assert example["instances"].gt_classes.tolist() == case["classes"]
        masks = example["instances"].gt_masks
        assert masks.flatten(1).sum(1).tolist() == case["areas"]
        for mask, centre in zip(masks, case["centres"], strict=True):
            if centre is not None:
                found = torch.stack(mask.nonzero(as_tuple=True)).double().mean(1)
                np.testing.assert_allclose(found, centre, atol=0.01)


def golden_record(case, folder):
    """Return the dataset dict of a golden case."""
    table = json.loads((folder / "panoptic_examples.json").read_text())
    stem = case["image"].split(".")[0]
    entry = next(a for a in table["annotations"] if a["file_name"].split(".")[0] == stem)
    record = {"file_name": str(folder / "input_images" / case["image"])}
    if "annotations" in case:
        return record | {"annotations": case["annotations"]}
    index = {category["id"]: i for i, category in enumerate(COCO_CATEGORIES)}
    segments = [s | {"category_id": index[s["category_id"]]} for s in entry["segments_info"]]
    png = folder / "panoptic_examples" / entry["file_name"]
    return record | {"pan_seg_file_name": str(png), "segments_info": segments}
