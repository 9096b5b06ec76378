"""Unusual images are read correctly by the predictor, all training mappers and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

import mask_former
from mask_former.config.loading import load_cfg
from mask_former.data.mappers import InferenceMapper
from mask_former.predictor.images import load_image
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.own_data import write_labels
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.isolation import isolated
from tests.robustness.pictures import ODD_IMAGES, write_bomb, write_too_deep
from tests.robustness.samples import instance_mapper, panoptic_mapper, semantic_mapper

each_image = pytest.mark.parametrize("image", ODD_IMAGES, ids=lambda p: p.name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"), SEMANTIC_ON=True)
    return str(config), str(weights)


@pytest.fixture(scope="module")
def predictor(model):
    config, weights = model
    return mask_former.MaskFormerPredictor.from_pretrained(weights, config_file=config)


def same(found, image):
    difference = np.abs(np.asarray(found).astype(int) - image.expected)
    return found.shape == image.expected.shape and difference.max() <= image.tolerance


@each_image
def test_an_odd_image_is_read_correctly(image, tmp_path):
    path = tmp_path / image.name
    image.write(path)
    assert same(load_image(path).pixels, image)


@each_image
def test_a_result_has_the_size_of_the_image_unless_it_is_refused_as_too_thin(
    image, tmp_path, predictor
):
    path = tmp_path / image.name
    image.write(path)
    height, width = image.expected.shape[:2]
    if max(height, width) > 1000:
        with pytest.raises(
            ValueError, match=rf"{width}×{height} pixels \(width×height\) is too thin"
        ):
            predictor(path)
        return
    result = predictor(path)
    assert result.semantic.shape == (height, width)
    assert result.semantic.max() < 4 and np.isfinite(result.semantic_scores).all()


def records(folder, image):
    """Write the image and an annotation for each mapper; return the dataset dict."""
    path = folder / image.name
    image.write(path)
    height, width = image.expected.shape[:2]
    write_labels(folder / "labels.png", np.zeros((height, width)))
    ids = np.zeros((height, width, 3), np.uint8)
    ids[..., 0] = 7
    Image.fromarray(ids).save(folder / "ids.png")
    counts = {"size": [height, width], "counts": [0, height * width]}
    return {
        "file_name": str(path),
        "sem_seg_file_name": str(folder / "labels.png"),
        "pan_seg_file_name": str(folder / "ids.png"),
        "segments_info": [{"id": 7, "category_id": 1, "iscrowd": 0}],
        "annotations": [{"category_id": 1, "iscrowd": 0, "segmentation": counts}],
    }


@each_image
def test_training_mappers_return_the_pixels_of_the_image(image, tmp_path):
    record = records(tmp_path, image)
    for mapper in (semantic_mapper(), panoptic_mapper(), instance_mapper()):
        example = mapper(record)
        assert same(example["image"].permute(1, 2, 0).numpy(), image)
        assert example["instances"].gt_masks.all() and len(example["instances"]) == 1


@each_image
def test_evaluation_uses_the_pixels_of_the_image(image, tmp_path, model):
    cfg = load_cfg(model[0], ["INPUT.MIN_SIZE_TEST", "0"])
    example = InferenceMapper(cfg)(records(tmp_path, image))
    assert same(example["image"].permute(1, 2, 0).numpy(), image)


@each_image
@pytest.mark.parametrize(
    "name",
    [
        *("mask_former_semantic", "mask_former_panoptic", "detr_panoptic", "mask_former_instance"),
        *("coco_panoptic_lsj", "coco_instance_lsj"),
    ],
)
def test_augmentation_accepts_an_odd_image_or_refuses_it_as_too_thin(image, name, tmp_path, model):
    MetadataCatalog.get("odd_images").set(ignore_label=255)
    sizes = [
        "INPUT.MIN_SIZE_TRAIN",
        "(32,)",
        "INPUT.MAX_SIZE_TRAIN",
        "96",
        "INPUT.IMAGE_SIZE",
        "64",
    ]
    cfg = load_cfg(model[0], [*sizes, "DATASETS.TRAIN", "('odd_images',)"])
    mapper = DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True)
    record = records(tmp_path, image)
    for seed in range(4):
        np.random.seed(seed)
        try:
            example = mapper(record)
        except ValueError as error:
            assert max(image.expected.shape) > 1000 and image.name in str(error)
            assert "too thin" in str(error)
        else:
            assert min(example["image"].shape) > 0
            assert example["instances"].gt_masks.shape[1:] == example["image"].shape[1:]


def read_all(path):
    """Return the errors of the predictor and of all training mappers."""
    errors = []
    readers = [load_image, semantic_mapper(), panoptic_mapper(), instance_mapper()]
    for read in readers:
        try:
            read(path if read is load_image else {"file_name": str(path)})
        except ValueError as error:
            errors.append(str(error))
    return errors


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(tmp_path):
    write_bomb(tmp_path / "bomb.png")
    outcome = isolated(read_all, tmp_path / "bomb.png", timeout=10)
    errors = outcome.value
    assert len(errors) == 4 and all("bomb.png" in e and "decompression bomb" in e for e in errors)


def test_a_32_bit_image_is_refused_by_name_instead_of_read_as_a_black_one(tmp_path, model):
    path = tmp_path / "deep.tif"
    write_too_deep(path)
    errors = read_all(path)
    assert len(errors) == 4
    with pytest.raises(ValueError) as of_evaluation:
        InferenceMapper(load_cfg(model[0]))({"file_name": str(path)})
    errors.append(str(of_evaluation.value))
    for error in errors:
        assert "deep.tif" in error and "holds int32 values" in error
        assert "32 bits each; expected 8 or 16 bits" in error and "Save it with 8 bit" in error
