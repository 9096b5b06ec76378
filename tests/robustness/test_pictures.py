"""Odd pictures are read as what they are, by the predictor and by every training mapper."""

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
from tests.robustness.pictures import ODD_PICTURES, write_bomb, write_too_deep
from tests.robustness.samples import instance_mapper, panoptic_mapper, semantic_mapper

each_picture = pytest.mark.parametrize("picture", ODD_PICTURES, ids=lambda p: p.name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"), SEMANTIC_ON=True)
    return str(config), str(weights)


@pytest.fixture(scope="module")
def predictor(model):
    config, weights = model
    return mask_former.MaskFormerPredictor.from_pretrained(weights, config_file=config)


def same(found, picture):
    difference = np.abs(np.asarray(found).astype(int) - picture.expected)
    return found.shape == picture.expected.shape and difference.max() <= picture.tolerance


@each_picture
def test_an_odd_picture_is_read_as_what_it_is(picture, tmp_path):
    path = tmp_path / picture.name
    picture.write(path)
    assert same(load_image(path).pixels, picture)


@each_picture
def test_the_predictor_gives_a_result_of_the_pictures_size_or_says_that_it_is_too_thin(
    picture, tmp_path, predictor
):
    path = tmp_path / picture.name
    picture.write(path)
    height, width = picture.expected.shape[:2]
    if max(height, width) > 1000:
        with pytest.raises(
            ValueError, match=rf"{width}×{height} pixels \(width×height\) is too thin"
        ):
            predictor(path)
        return
    result = predictor(path)
    assert result.semantic.shape == (height, width)
    assert result.semantic.max() < 4 and np.isfinite(result.semantic_scores).all()


def records(folder, picture):
    """The picture with an annotation for each mapper."""
    path = folder / picture.name
    picture.write(path)
    height, width = picture.expected.shape[:2]
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


@each_picture
def test_the_mappers_train_on_what_is_in_the_picture(picture, tmp_path):
    record = records(tmp_path, picture)
    for mapper in (semantic_mapper(), panoptic_mapper(), instance_mapper()):
        example = mapper(record)
        assert same(example["image"].permute(1, 2, 0).numpy(), picture)
        assert example["instances"].gt_masks.all() and len(example["instances"]) == 1


@each_picture
def test_evaluation_sees_what_is_in_the_picture(picture, tmp_path, model):
    cfg = load_cfg(model[0], ["INPUT.MIN_SIZE_TEST", "0"])
    example = InferenceMapper(cfg)(records(tmp_path, picture))
    assert same(example["image"].permute(1, 2, 0).numpy(), picture)


@each_picture
@pytest.mark.parametrize(
    "name",
    ["mask_former_semantic", "mask_former_panoptic", "detr_panoptic", "mask_former_instance"],
)
def test_augmentation_takes_an_odd_picture_or_names_it(picture, name, tmp_path, model):
    MetadataCatalog.get("odd_pictures").set(ignore_label=255)
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MAX_SIZE_TRAIN", "96"]
    cfg = load_cfg(model[0], [*sizes, "DATASETS.TRAIN", "('odd_pictures',)"])
    mapper = DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True)
    record = records(tmp_path, picture)
    for seed in range(4):
        np.random.seed(seed)
        try:
            example = mapper(record)
        except ValueError as error:
            assert max(picture.expected.shape) > 1000 and picture.name in str(error)
            assert "too thin" in str(error)
        else:
            assert min(example["image"].shape) > 0
            assert example["instances"].gt_masks.shape[1:] == example["image"].shape[1:]


def read_all(path):
    """The errors of all that read pictures."""
    errors = []
    readers = [load_image, semantic_mapper(), panoptic_mapper(), instance_mapper()]
    for read in readers:
        try:
            read(path if read is load_image else {"file_name": str(path)})
        except ValueError as error:
            errors.append(str(error))
    return errors


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_head(tmp_path):
    write_bomb(tmp_path / "bomb.png")
    outcome = isolated(read_all, tmp_path / "bomb.png", timeout=10)
    errors = outcome.value
    assert len(errors) == 4 and all("bomb.png" in e and "decompression bomb" in e for e in errors)


def test_a_picture_of_32_bit_is_refused_by_name_and_not_read_as_a_black_one(tmp_path, model):
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
