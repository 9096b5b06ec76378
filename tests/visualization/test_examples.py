"""Drawn examples equal the annotations on disk, and the mapper's examples, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, BoxMode, Instances
from PIL import Image

from mask_former.config.keys import get_mask_former_cfg
from mask_former.data.datasets.classes import Classes
from mask_former.registries import DATASET_MAPPER_REGISTRY
from mask_former.visualization import examples
from mask_former.visualization.examples import ModelInputs, annotated_example

HEIGHT, WIDTH, IGNORE, SIDE = 40, 60, 255, 64
NAMES = ["sky", "road", "car", "person"]
CLASSES = Classes(
    NAMES,
    [(200, 30, 40), (10, 120, 220), (30, 200, 90), (240, 200, 20)],
    [True, False, True, False],
)
DATASET = "examples_scene"
# id of a segment: (class, crowd)
SEGMENTS = {7: (0, 0), 300: (2, 0), 65536: (2, 0), 9: (3, 1)}


def segment_ids():
    """Return the H×W map of segment ids; 0 is void."""
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[:, 8:] = 7
    ids[20:36, 10:30] = 300
    ids[4:18, 12:30] = 65536
    ids[5:25, 44:56] = 9
    return ids


def label_map():
    labels = np.full((HEIGHT, WIDTH), IGNORE, np.uint8)
    for segment, (class_id, _) in SEGMENTS.items():
        labels[segment_ids() == segment] = class_id
    return labels


@pytest.fixture
def scene(tmp_path):
    ids = segment_ids()
    arrays = {
        "file_name": np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)),
        "sem_seg_file_name": label_map(),
        "pan_seg_file_name": np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1),
    }
    record = {}
    for key, array in arrays.items():
        record[key] = str(tmp_path / f"{key}.png")
        Image.fromarray(array.astype(np.uint8)).save(record[key])
    record["segments_info"] = [
        {"id": segment, "category_id": class_id, "isthing": class_id > 1, "iscrowd": crowd}
        for segment, (class_id, crowd) in SEGMENTS.items()
    ]
    return record


@pytest.fixture(autouse=True)
def metadata():
    MetadataCatalog.get(DATASET).set(ignore_label=IGNORE)
    yield
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def cfg():
    cfg = get_mask_former_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(NAMES)
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.INPUT.FORMAT = "BGR"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.SIZE_DIVISIBILITY = SIDE
    return cfg


def pixels_of(record):
    return np.asarray(Image.open(record["file_name"]))


def region_at(example, y, x):
    index = example.overlay.ids[y, x]
    return example.overlay.regions[index - 1].label if index else None


# Annotations


def test_a_label_map_has_a_target_per_class_and_ignored_pixels_have_none(scene):
    example = annotated_example(
        {key: scene[key] for key in ("file_name", "sem_seg_file_name")}, CLASSES, DATASET
    )
    assert (example.image == pixels_of(scene)).all()
    labels = label_map()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            expected = None if labels[y, x] == IGNORE else NAMES[labels[y, x]]
            assert region_at(example, y, x) == expected
    assert example.class_ids == [0, 2, 3]
    assert example.areas == [(labels == class_id).sum() for class_id in example.class_ids]
    assert (example.void == (labels == IGNORE)).all() and not example.padding.any()


def test_an_ignore_label_of_0_is_not_painted(scene):
    MetadataCatalog.remove(DATASET)
    MetadataCatalog.get(DATASET).set(ignore_label=0)
    labels = label_map()
    labels[labels == IGNORE] = 1
    Image.fromarray(labels).save(scene["sem_seg_file_name"])
    del scene["pan_seg_file_name"]
    example = annotated_example(scene, CLASSES, DATASET)
    assert (example.void == (labels == 0)).all() and example.class_ids == [1, 2, 3]


def test_a_panoptic_annotation_has_a_target_per_segment_and_crowds_are_labelled(scene):
    example = annotated_example(scene, CLASSES, DATASET)
    ids = segment_ids()
    for index, (segment, (class_id, crowd)) in enumerate(SEGMENTS.items()):
        assert (example.overlay.ids == index + 1)[ids == segment].all()
        assert example.areas[index] == (ids == segment).sum()
        label = example.overlay.regions[index].label
        assert label == NAMES[class_id] + (" (crowd)" if crowd else "")
    assert example.class_ids == [0, 2, 2, 3]
    assert (example.void == (ids == 0)).all()
    colors = [region.color for region in example.overlay.regions]
    assert len(set(colors)) == 4 and colors[0] == CLASSES.colors[0]


def box(x, y, width, height, category, **more):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "bbox": [x, y, width, height],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "segmentation": [polygon],
        **more,
    }


def test_polygons_are_filled_and_small_instances_cover_large_ones(scene):
    annotations = [box(0, 0, 40, 30, 2), box(10, 10, 8, 6, 3, iscrowd=1)]
    record = {"file_name": scene["file_name"], "annotations": annotations}
    example = annotated_example(record, CLASSES, DATASET)
    expected = np.zeros((HEIGHT, WIDTH))
    expected[:30, :40] = 1
    expected[10:16, 10:18] = 2
    assert (example.overlay.ids == expected).all()
    assert [region.label for region in example.overlay.regions] == ["car", "person (crowd)"]


def test_an_image_without_instances_has_no_targets_and_is_void(scene):
    example = annotated_example({**scene_image(scene), "annotations": []}, CLASSES, DATASET)
    assert example.class_ids == [] and example.void.all()


def scene_image(scene):
    return {"file_name": scene["file_name"]}


def test_missing_and_invalid_annotations_are_errors(scene):
    with pytest.raises(KeyError, match=r"expected one of .*'annotations'.* found \['file_name'\]"):
        annotated_example(scene_image(scene), CLASSES, DATASET)
    few = Classes(NAMES[:2], CLASSES.colors[:2], [True, False])
    for keys in ({"annotations": [box(0, 0, 9, 9, 3)]}, scene):
        with pytest.raises(ValueError, match=r"class ids \[.*3\], expected 0..1"):
            annotated_example({**scene_image(scene), **keys}, few, DATASET)


# Inputs of the model


each_mapper = pytest.mark.parametrize(
    "name", ["mask_former_semantic", "mask_former_panoptic", "detr_panoptic"]
)


@each_mapper
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_an_example_equals_the_mappers_in_rgb(cfg, scene, name, image_format):
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.FORMAT = name, image_format
    cfg.INPUT.RANDOM_FLIP = "none"
    np.random.seed(3)
    expected = DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True)(scene)
    np.random.seed(3)
    example = ModelInputs(cfg, CLASSES, is_train=True)(scene)
    assert (example.image[:HEIGHT, :WIDTH] == pixels_of(scene)).all()
    assert example.class_ids == expected["instances"].gt_classes.tolist()
    masks = expected["instances"].gt_masks.numpy()
    assert example.areas == masks.sum((1, 2)).tolist()
    for index, mask in enumerate(masks):
        assert ((example.overlay.ids == index + 1) == mask).all()


@each_mapper
def test_padding_is_what_the_mapper_added_and_void_is_unlabelled(cfg, scene, name):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.RANDOM_FLIP = "none"
    example = ModelInputs(cfg, CLASSES, is_train=True)(scene)
    shape = (HEIGHT, WIDTH) if name.startswith("detr") else (SIDE, SIDE)
    padding = np.ones(shape, bool)
    padding[:HEIGHT, :WIDTH] = False
    assert (example.padding == padding).all()
    unlabelled = label_map() == IGNORE
    if "panoptic" in name:
        unlabelled |= segment_ids() == 9  # the crowd
    assert (example.void[:HEIGHT, :WIDTH] == unlabelled).all()
    assert not (example.void & padding).any()


def test_padding_is_found_for_images_of_any_size(cfg, scene):
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 30, 40)
    inputs = ModelInputs(cfg, CLASSES, is_train=True)
    np.random.seed(0)
    heights = set()
    for _ in range(12):
        example = inputs(scene)
        inside = ~example.padding
        height, width = inside.any(1).sum(), inside.any(0).sum()
        heights.add(height)
        assert width == height * WIDTH // HEIGHT and inside.sum() == height * width
        # The mapper pads with gray, while the random image is not entirely gray.
        assert (example.image[example.padding] == 128).all()
        assert (example.image[inside] != 128).any()
    assert heights == {20, 30, 40}


def test_targets_emptied_by_a_crop_are_kept_like_in_the_mapper(cfg, scene):
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [8, 8]
    np.random.seed(0)
    inputs = ModelInputs(cfg, CLASSES, is_train=True)
    assert any(0 in inputs(scene).areas for _ in range(5))


def test_a_test_image_has_no_targets(cfg, scene):
    cfg.INPUT.MIN_SIZE_TEST = 80
    example = ModelInputs(cfg, CLASSES, is_train=False)(scene)
    assert example.image.shape == (80, 120, 3) and not example.has_targets
    assert example.class_ids == [] and not example.void.any() and not example.padding.any()
    resized = Image.fromarray(pixels_of(scene)).resize((120, 80), Image.Resampling.BILINEAR)
    assert (example.image == np.asarray(resized)).all()


class FixedMapper:
    """A custom mapper that returns the entries ``given``."""

    given: dict

    def __init__(self, cfg, is_train):
        pass

    def __call__(self, record):
        return {"image": torch.zeros(3, 4, 6, dtype=torch.uint8), **self.given}


@pytest.mark.parametrize("kind", ["bit masks", "label map"])
def test_other_mappers_may_return_bit_masks_or_only_a_label_map(cfg, kind, monkeypatch):
    labels = torch.full((4, 6), IGNORE)
    labels[:2, :3] = 1
    labels[3] = 3
    masks = torch.stack([labels == 1, labels == 3])
    given = {"sem_seg": labels}
    if kind == "bit masks":
        targets = Instances((4, 6), gt_classes=torch.tensor([1, 3]), gt_masks=BitMasks(masks))
        given = {"instances": targets}
    monkeypatch.setattr(FixedMapper, "given", given, raising=False)
    monkeypatch.setattr(examples, "lookup", lambda *_: FixedMapper)
    example = ModelInputs(cfg, CLASSES, is_train=True)({})
    assert example.class_ids == [1, 3] and example.areas == [6, 6]
    assert (example.overlay.ids == masks[0].numpy() + 2 * masks[1].numpy()).all()
    assert (example.void == (labels == IGNORE).numpy()).all()


def test_the_error_for_an_unknown_mapper_names_it(cfg):
    cfg.INPUT.DATASET_MAPPER_NAME = "no_mapper"
    with pytest.raises(KeyError, match=r"INPUT\.DATASET_MAPPER_NAME is 'no_mapper'"):
        ModelInputs(cfg, CLASSES, is_train=True)
