"""Images are preprocessed as in evaluation, and only complete models are loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image

from mask_former.config.loading import load_cfg
from mask_former.data.transforms.inference import InferencePreprocessing
from mask_former.predictor.trained_model import load_trained_model
from tests.helpers.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Paths of a config and of its weights."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), PANOPTIC_ON=True, INSTANCE_ON=True)


def config(tiny, *opts):
    return load_cfg(str(tiny[0]), ["MODEL.WEIGHTS", str(tiny[1]), *opts])


def change_weights(tiny, folder, change):
    """Return a config whose weights are a copy that ``change`` has modified."""
    content = torch.load(tiny[1], weights_only=True)
    change(content["model"])
    torch.save(content, folder / "changed.pth")
    return config(tiny, "MODEL.WEIGHTS", str(folder / "changed.pth"))


def image_of(height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("min_size", [64, 0])
def test_the_input_of_the_model_equals_that_of_evaluation(tiny, tmp_path, image_format, min_size):
    cfg = config(tiny, "INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", str(min_size))
    image = image_of(40, 70)
    Image.fromarray(image).save(tmp_path / "x.png")
    found = InferencePreprocessing(cfg)(image)
    expected = DatasetMapper(cfg, is_train=False)({"file_name": str(tmp_path / "x.png")})
    assert torch.equal(found["image"], expected["image"])
    assert found["image"].shape == ((3, 64, 112) if min_size else (3, 40, 70))
    assert (found["height"], found["width"]) == (40, 70)


def test_the_model_has_the_checkpoints_weights_and_is_in_evaluation_mode(tiny):
    model = load_trained_model(config(tiny))
    saved = torch.load(tiny[1], weights_only=True)["model"]
    assert not model.training
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_missing_weights_are_an_error(tiny):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is not set"):
        load_trained_model(config(tiny, "MODEL.WEIGHTS", ""))


@pytest.mark.parametrize("weights", ["none.pth", "none.pkl?matching_heuristics=True"])
def test_the_error_for_a_missing_checkpoint_names_it(tiny, weights):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint none\.p.*MODEL\.WEIGHTS"):
        load_trained_model(config(tiny, "MODEL.WEIGHTS", weights))


def test_the_error_for_an_unreadable_url_names_it(tiny):
    with pytest.raises(OSError, match=r"MODEL\.WEIGHTS nowhere://x\.pth cannot be read"):
        load_trained_model(config(tiny, "MODEL.WEIGHTS", "nowhere://x.pth"))


def test_a_checkpoint_that_lacks_a_single_weight_is_refused(tiny, tmp_path):
    name = "sem_seg_head.predictor.query_embed.weight"
    cfg = change_weights(tiny, tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"changed\.pth does not fit.* 1 of \d+ .*{name} is miss"):
        load_trained_model(cfg)


def test_a_backbone_alone_is_refused(tiny, tmp_path):
    def keep_the_backbone(weights):
        for name in [name for name in weights if not name.startswith("backbone.")]:
            del weights[name]

    with pytest.raises(ValueError, match="must be a checkpoint of the whole model"):
        load_trained_model(change_weights(tiny, tmp_path, keep_the_backbone))


def test_the_error_for_a_weight_of_another_shape_names_both_shapes(tiny):
    with pytest.raises(
        ValueError, match=r"class_embed.weight has shape \(5, 16\).*expects \(8, 16\)"
    ):
        load_trained_model(config(tiny, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"))


def test_tensors_determined_by_the_config_may_be_missing(tiny, tmp_path):
    def drop(weights):
        for name in list(weights):
            if "criterion." in name or name.endswith("relative_position_index"):
                del weights[name]

    assert load_trained_model(change_weights(tiny, tmp_path, drop)) is not None


def test_an_image_too_thin_to_resize_is_refused(tiny):
    with pytest.raises(ValueError, match=r"9000×1 pixels \(width×height\) is too thin"):
        InferencePreprocessing(config(tiny))(image_of(1, 9000))


def test_an_unknown_channel_order_is_refused(tiny):
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L'"):
        InferencePreprocessing(config(tiny, "INPUT.FORMAT", "L"))


def test_weights_in_memory_replace_a_file_and_must_be_complete_too(tiny):
    weights = torch.load(tiny[1], weights_only=True)["model"]
    cfg = config(tiny, "MODEL.WEIGHTS", "other_folder")
    model = load_trained_model(cfg, weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    del weights["sem_seg_head.predictor.query_embed.weight"]
    with pytest.raises(ValueError, match="other_folder does not fit the model"):
        load_trained_model(cfg, weights)
