"""Test-time augmentation: the mean over detectron2's views, created and run one by one."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation.evaluator import inference_context
from detectron2.modeling import DatasetMapperTTA, build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from PIL import Image
from torch import nn

from mask_former import SemanticSegmentorWithTTA
from mask_former.config.loading import load_cfg, read_cfg
from mask_former.data.mappers import InferenceMapper
from mask_former.engine import Trainer, evaluate
from mask_former.modeling.test_time_augmentation import LazyDatasetMapperTTA
from mask_former.predictor.trained_model import load_trained_model
from tests.helpers.damage import flip_a_bit
from tests.helpers.tiny_model import NAMES, write_tiny_model

K = len(NAMES)
SIZES = [48, 64, 80]
VIEWS = ("TEST.AUG.MIN_SIZES", SIZES, "TEST.AUG.MAX_SIZE", 320, "TEST.AUG.FLIP", True)


def photo(height, width, seed=0):
    """Return H×W×3 coarse blobs: they survive resizing, and left differs from right."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), SEMANTIC_ON=True)


@pytest.fixture
def config(files):
    """A function that returns the tiny model's config with the options ``KEY VALUE …``."""
    path, weights = files

    def config(*opts):
        words = ["MODEL.WEIGHTS", weights, *VIEWS, *opts]
        return load_cfg(str(path), [str(word) for word in words])

    return config


@pytest.fixture
def cfg(cfg):
    """The project's defaults with small views and images read as RGB."""
    cfg.merge_from_list([*VIEWS, "INPUT.FORMAT", "RGB"])
    return cfg


def per_pixel(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    torch.manual_seed(0)
    return build_model(cfg).eval()


class Recorder(nn.Module):
    """A model that records input shapes, and how many earlier inputs and results are alive."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1)
        self.calls, self.alive = [], []
        self.inputs, self.results = [], []
        self.eval()

    def forward(self, examples):
        def living(references):
            return sum(reference() is not None for reference in references)

        self.alive.append((living(self.inputs), living(self.results)))
        self.calls.append([tuple(example["image"].shape[-2:]) for example in examples])
        self.inputs += [weakref.ref(example["image"]) for example in examples]
        batch = []
        for example in examples:
            scores = self.conv(example["image"][None] / 255)[0]
            size = scores.shape[-2:]
            scores = sem_seg_postprocess(scores, size, example["height"], example["width"])
            self.results.append(weakref.ref(scores))
            batch.append({"sem_seg": scores})
        return batch


# The mean


def mean_over_views(cfg, model, pixels, height, width, to_scores=lambda scores: scores):
    """Compute the definition: resize, flip and run each view, flip the result back, and average."""
    aug, scores = cfg.TEST.AUG, []
    for size in aug.MIN_SIZES:
        resized, _ = T.apply_transform_gens([T.ResizeShortestEdge(size, aug.MAX_SIZE)], pixels)
        for mirrored in (False, True) if aug.FLIP else (False,):
            view = resized[:, ::-1] if mirrored else resized
            example = {"image": tensor(view), "height": height, "width": width}
            result = to_scores(model([example])[0]["sem_seg"])
            scores.append(result.flip(2) if mirrored else result)
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "shape, output_size",
    [((64, 64), (64, 64)), ((56, 96), (70, 41)), ((40, 200), (40, 200)), ((200, 40), (100, 20))],
    ids=["square", "another output size", "5:1", "1:5, another output size"],
)
@torch.no_grad()
def test_the_result_is_the_mean_over_scales_and_flips(config, shape, output_size, flip):
    cfg = config("TEST.AUG.FLIP", flip)
    model = load_trained_model(cfg)
    pixels = photo(*shape)
    example = {"image": tensor(pixels), "height": output_size[0], "width": output_size[1]}
    (result,) = SemanticSegmentorWithTTA(cfg, model)([example])
    assert set(result) == {"sem_seg"} and result["sem_seg"].shape == (K, *output_size)
    expected = mean_over_views(cfg, model, pixels, *output_size)
    torch.testing.assert_close(result["sem_seg"], expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_probabilities_of_a_per_pixel_model_are_averaged(config):
    cfg = config()
    model = per_pixel(cfg)
    pixels = photo(56, 96)
    (result,) = SemanticSegmentorWithTTA(cfg, model)([{"image": tensor(pixels)}])
    expected = mean_over_views(cfg, model, pixels, 56, 96, lambda logits: logits.softmax(0))
    torch.testing.assert_close(result["sem_seg"], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(56, 96))


@pytest.mark.parametrize("flip", [True, False])
def test_the_views_equal_those_of_detectron2s_mapper(cfg, flip):
    cfg.TEST.AUG.FLIP = flip
    example = {"image": tensor(photo(40, 200)), "height": 20, "width": 100}
    expected = DatasetMapperTTA(cfg)(example)
    views = list(LazyDatasetMapperTTA(cfg)(example))
    assert len(views) == len(expected) == len(SIZES) * (2 if flip else 1)
    for view, other in zip(views, expected, strict=True):
        assert torch.equal(view["image"], other["image"])
        assert view["height"] == 20 and view["width"] == 100
        both = zip(view["transforms"].transforms, other["transforms"].transforms, strict=True)
        assert all(type(one) is type(two) and vars(one) == vars(two) for one, two in both)


@torch.no_grad()
def test_a_single_unchanged_view_gives_the_plain_result(config):
    cfg = config("TEST.AUG.MIN_SIZES", [56], "TEST.AUG.FLIP", False)
    model = load_trained_model(cfg)
    example = {"image": tensor(photo(56, 96)), "height": 28, "width": 30}
    (result,) = SemanticSegmentorWithTTA(cfg, model)([example])
    assert torch.equal(result["sem_seg"], model([example])[0]["sem_seg"])


@torch.no_grad()
def test_with_flips_a_mirrored_image_gives_the_mirrored_result(config):
    cfg = config("TEST.AUG.MIN_SIZES", [56])
    model = load_trained_model(cfg)
    image = tensor(photo(56, 96))
    plain, of_mirrored = (model([{"image": i}])[0]["sem_seg"] for i in (image, image.flip(2)))
    assert (of_mirrored.flip(2) - plain).abs().max() > 1e-3  # not symmetric itself
    results = SemanticSegmentorWithTTA(cfg, model)([{"image": image}, {"image": image.flip(2)}])
    result, of_mirrored = (result["sem_seg"] for result in results)
    torch.testing.assert_close(of_mirrored.flip(2), result, rtol=1e-5, atol=1e-7)


# Memory


@pytest.mark.parametrize("number", [1, 5])
def test_no_earlier_view_or_result_is_alive_when_the_model_runs(cfg, number):
    cfg.TEST.AUG.MIN_SIZES = [40 + 8 * i for i in range(number)]
    model = Recorder()
    SemanticSegmentorWithTTA(cfg, model)([{"image": tensor(photo(40, 64))}] * 2)
    assert model.alive == [(0, 0)] * (2 * 2 * number)


def test_no_graph_is_kept(cfg):
    model = Recorder()
    (result,) = SemanticSegmentorWithTTA(cfg, model)([{"image": tensor(photo(40, 64))}])
    assert not result["sem_seg"].requires_grad


def test_a_result_that_the_model_keeps_is_not_written_to(cfg):
    class Keeper(Recorder):
        def forward(self, examples):
            return [{"sem_seg": kept} for _ in examples]

    cfg.TEST.AUG.FLIP = False
    kept = torch.ones(K, 40, 64)
    (result,) = SemanticSegmentorWithTTA(cfg, Keeper())([{"image": tensor(photo(40, 64))}])
    assert torch.equal(kept, torch.ones(K, 40, 64)) and torch.equal(result["sem_seg"], kept)


@pytest.mark.parametrize("batch_size, expected", [(1, [1] * 6), (2, [2] * 3), (4, [2] * 3)])
def test_only_views_of_one_size_are_run_together(cfg, batch_size, expected):
    example = {"image": tensor(photo(56, 96))}
    model = Recorder()
    (result,) = SemanticSegmentorWithTTA(cfg, model, batch_size=batch_size)([example])
    assert [len(call) for call in model.calls] == expected
    assert all(len(set(call)) == 1 for call in model.calls)
    (one_by_one,) = SemanticSegmentorWithTTA(cfg, model)([example])
    torch.testing.assert_close(result, one_by_one)


# Sources of images


def save(path, pixels, orientation=None):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_a_file_and_its_tensor_give_the_same_result(config, tmp_path, image_format):
    cfg = config("INPUT.FORMAT", image_format)
    pixels = photo(56, 96)
    name = save(tmp_path / "a.png", pixels)
    image = tensor(pixels if image_format == "RGB" else pixels[:, :, ::-1])
    model = SemanticSegmentorWithTTA(cfg, load_trained_model(cfg))
    of_file, of_tensor = model([{"file_name": name}, {"image": image}])
    assert of_file["sem_seg"].shape == (K, 56, 96)
    assert torch.equal(of_file["sem_seg"], of_tensor["sem_seg"])


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_augmentation_and_plain_evaluation_see_the_same_pixels_of_a_16_bit_grey_image(
    config, tmp_path, image_format
):
    cfg = config("INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", 0)
    ramp = np.linspace(0, 65535, 56 * 96).astype(np.uint16).reshape(56, 96)
    name = save(tmp_path / "deep.png", ramp)
    seen = []

    def one_view(example):
        seen.append(example["image"])
        yield {**example, "transforms": T.TransformList([T.NoOpTransform()])}

    SemanticSegmentorWithTTA(cfg, Recorder(), one_view)([{"file_name": name}])
    evaluated = InferenceMapper(cfg)({"file_name": name})["image"]
    assert torch.equal(seen[0], evaluated)
    # The ramp is scaled to 8 bits; clipping it would make 99.6 % of its pixels white.
    assert torch.equal(evaluated, torch.from_numpy((ramp >> 8).astype(np.uint8)).expand(3, -1, -1))


def test_a_damaged_png_is_an_error(cfg, tmp_path):
    name = save(tmp_path / "a.png", photo(56, 96))
    flip_a_bit(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png.*the PNG is damaged: the checksum at byte"):
        SemanticSegmentorWithTTA(cfg, Recorder())([{"file_name": name}])


def test_a_file_is_rotated_by_its_exif_orientation(cfg, tmp_path):
    pixels = photo(56, 96)
    # orientation 6: to be displayed, the stored image is rotated clockwise by 90 degrees
    name = save(tmp_path / "a.png", np.rot90(pixels), orientation=6)
    model = SemanticSegmentorWithTTA(cfg, Recorder())
    of_file, of_tensor = model([{"file_name": name}, {"image": tensor(pixels)}])
    assert torch.equal(of_file["sem_seg"], of_tensor["sem_seg"])


def test_the_file_takes_precedence_over_the_loaders_resized_image(cfg, tmp_path):
    pixels = photo(56, 96)
    example = {"file_name": save(tmp_path / "a.png", pixels), "height": 56, "width": 96}
    loaded = {**example, "image": tensor(photo(16, 32, seed=1)), "sem_seg": torch.zeros(16, 32)}
    model = SemanticSegmentorWithTTA(cfg, Recorder())
    of_file, of_tensor = model([loaded, {"image": tensor(pixels)}])
    assert torch.equal(of_file["sem_seg"], of_tensor["sem_seg"])


def test_examples_are_not_modified(cfg, tmp_path):
    example = {"file_name": save(tmp_path / "a.png", photo(40, 64)), "image": torch.ones(3, 8, 8)}
    before = dict(example)
    SemanticSegmentorWithTTA(cfg, Recorder())([example])
    assert example == before


# The wrapped model


@torch.no_grad()
def test_only_the_semantic_result_is_computed_and_the_model_is_unchanged(config, monkeypatch):
    cfg = config(
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True
    )
    model = load_trained_model(cfg)
    pixels = photo(56, 96)
    expected = mean_over_views(cfg, model, pixels, 56, 96)
    with monkeypatch.context() as patch:
        for name in ("panoptic_inference", "instance_inference"):
            patch.setattr(f"mask_former.inference.logits.{name}", None)
        (result,) = SemanticSegmentorWithTTA(cfg, model)([{"image": tensor(pixels)}])
    assert set(result) == {"sem_seg"}
    torch.testing.assert_close(result["sem_seg"], expected, rtol=1e-5, atol=1e-7)
    results = model([{"image": tensor(pixels)}])[0]
    assert set(results) == {"sem_seg", "panoptic_seg", "instances"}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_models_mode(cfg, training):
    model = Recorder().train(training)
    wrapped = SemanticSegmentorWithTTA(cfg, model)
    with inference_context(wrapped):
        wrapped([{"image": tensor(photo(40, 64))}])
    assert model.training is training and model.conv.training is training


def test_the_wrapper_shares_the_models_parameters(config):
    cfg = config()
    model = load_trained_model(cfg)
    wrapped = SemanticSegmentorWithTTA(cfg, model)
    assert wrapped.model is model
    assert list(map(id, wrapped.parameters())) == list(map(id, model.parameters()))


# Mistakes


def test_a_model_without_a_semantic_result_is_refused(config):
    cfg = config("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False)
    with pytest.raises(ValueError, match=r"TEST.SEMANTIC_ON True, or TEST.AUG.ENABLED False"):
        SemanticSegmentorWithTTA(cfg, load_trained_model(cfg))


def test_an_empty_set_of_views_is_refused(cfg):
    cfg.TEST.AUG.MIN_SIZES = []
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES is empty"):
        SemanticSegmentorWithTTA(cfg, Recorder())
    with pytest.raises(ValueError, match="made no view"):
        model = SemanticSegmentorWithTTA(cfg, Recorder(), tta_mapper=lambda example: [])
        model([{"image": tensor(photo(40, 64))}])


def test_a_view_that_cannot_be_inverted_is_refused(cfg):
    def crop(example):
        transforms = T.TransformList([T.CropTransform(0, 0, 8, 8)])
        return [{**example, "image": example["image"][:, :8, :8], "transforms": transforms}]

    model = SemanticSegmentorWithTTA(cfg, Recorder(), tta_mapper=crop)
    with pytest.raises(ValueError, match=r"CropTransform.*ResizeTransform, HFlipTransform"):
        model([{"image": tensor(photo(40, 64))}])


def test_invalid_examples_and_settings_are_refused(cfg, tmp_path):
    model = SemanticSegmentorWithTTA(cfg, Recorder())
    with pytest.raises(FileNotFoundError, match=r"no\.png.*leave `file_name` out"):
        model([{"file_name": str(tmp_path / "no.png"), "image": torch.ones(3, 8, 8)}])
    with pytest.raises(ValueError, match=r"\['height'\]; expected `file_name` or `image`"):
        model([{"height": 8}])
    model.train()
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        model([{"image": torch.ones(3, 8, 8)}])
    with pytest.raises(ValueError, match="batch_size is 0"):
        SemanticSegmentorWithTTA(cfg, Recorder(), batch_size=0)


# Evaluation


@pytest.fixture
def datasets(tmp_path):
    """Two datasets of two images each."""
    names = ["tta_one", "tta_two"]
    for seed, name in enumerate(names):
        examples = []
        for index, shape in enumerate([(56, 96), (64, 48)]):
            labels = np.random.default_rng(seed).integers(0, K, shape).astype(np.uint8)
            labels[:8] = 255
            example = {
                "file_name": save(tmp_path / f"{name}_{index}.png", photo(*shape, seed=index)),
                "sem_seg_file_name": save(tmp_path / f"{name}_{index}_labels.png", labels),
                "height": shape[0],
                "width": shape[1],
            }
            examples.append(example)
        DatasetCatalog.register(name, lambda examples=examples: examples)
        MetadataCatalog.get(name).set(
            stuff_classes=NAMES, ignore_label=255, evaluator_type="sem_seg"
        )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluation_options(datasets, output):
    options = {"DATASETS.TEST": datasets, "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": output}
    return [str(word) for pair in options.items() for word in pair]


@pytest.mark.parametrize("number", [1, 2])
def test_evaluate_measures_without_and_with_augmentation(files, datasets, tmp_path, number):
    output = tmp_path / "output"
    words = ["MODEL.WEIGHTS", files[1], *VIEWS, "TEST.AUG.ENABLED", True]
    words += evaluation_options(datasets[:number], output)
    results = evaluate(read_cfg(str(files[0]), [str(word) for word in words]))
    by_dataset = results if number > 1 else {datasets[0]: results}
    assert json.loads((output / "results.json").read_text()) == by_dataset
    assert list(by_dataset) == datasets[:number]
    for tasks in by_dataset.values():
        assert list(tasks) == ["sem_seg", "sem_seg_TTA"]
        assert tasks["sem_seg"]["mIoU"] != tasks["sem_seg_TTA"]["mIoU"]
    for folder in ("inference", "inference_TTA"):
        assert (output / folder / "sem_seg_predictions.json").is_file()


def test_trainer_test_measures_without_augmentation(config, datasets, tmp_path):
    cfg = config("TEST.AUG.ENABLED", True, *evaluation_options(datasets[:1], tmp_path))
    assert list(Trainer.test(cfg, load_trained_model(cfg))) == ["sem_seg"]


def test_datasets_that_cannot_be_augmented_are_refused_at_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", None)
    name = "tta_panoptic"
    MetadataCatalog.get(name).set(evaluator_type="coco_panoptic_seg")
    cfg = config("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, *evaluation_options([name], tmp_path))
    with pytest.raises(ValueError, match=r"TEST.AUG.ENABLED.*'tta_panoptic' needs panoptic"):
        Trainer.test_with_TTA(cfg, load_trained_model(cfg))
    MetadataCatalog.remove(name)
