"""The worked examples of docs/extend.md: each is loaded, built and trained for a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image

from mask_former.config.loading import load_cfg
from mask_former.data import register_panoptic
from mask_former.data.mappers import MaskFormerSemanticDatasetMapper
from mask_former.registries import DATASET_MAPPER_REGISTRY, load_plugin
from mask_former.solver.optimizer import build_optimizer
from tests.helpers.batteries.backbone import BackboneBattery
from tests.helpers.batteries.criterion import CriterionBattery
from tests.helpers.batteries.head import HeadBattery
from tests.helpers.batteries.loss import LossBattery
from tests.helpers.batteries.mapper import MapperBattery
from tests.helpers.batteries.matcher import MatcherBattery
from tests.helpers.batteries.pixel_decoder import PixelDecoderBattery
from tests.helpers.batteries.transformer_decoder import TransformerDecoderBattery
from tests.helpers.own_data import write_panoptic
from tests.helpers.paths import ROOT
from tests.helpers.plugins import forgetting_plugins
from tests.helpers.tiny_trainer import make_example

EXAMPLES = ROOT / "docs" / "examples"
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.MASK_FORMER.DEC_LAYERS", "2"]


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Load an example as a plug-in, and forget it after the test."""
    with forgetting_plugins():
        yield load_plugin(EXAMPLES / f"{request.param}.py")


def with_plugin(name: str) -> Callable[[type], type]:
    """Load an example for every test of a class."""

    def decorate(battery: type) -> type:
        used = pytest.mark.usefixtures("plugin")(battery)
        return pytest.mark.parametrize("plugin", [name], indirect=True)(used)

    return decorate


def step(cfg: CfgNode, batch: list[dict]) -> tuple[torch.nn.Module, dict, set[str]]:
    """Train for one step; return the model, its losses, and the names of changed parameters."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    return model, losses, moved


def load(name: str) -> CfgNode:
    return load_cfg(str(EXAMPLES / f"{name}.yaml"), SMALL)


@pytest.mark.parametrize("plugin", ["conv_stages"], indirect=True)
def test_the_backbone_is_built_and_learns(plugin: ModuleType) -> None:
    model, _, moved = step(load("conv_stages"), [make_example(0), make_example(1)])
    assert isinstance(model.backbone, plugin.ConvStages)
    shapes = model.backbone.output_shape()
    maps = model.backbone(torch.randn(1, 3, 64, 96))
    for name, shape in shapes.items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert maps[name].shape == (1, shape.channels, *size)
    assert all(f"backbone.{name}" in moved for name, _ in model.backbone.named_parameters())


MASKFORMER = "ade20k-150/maskformer_R50_bs16_160k.yaml"
MASK2FORMER = "mask2former/ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"


@pytest.mark.parametrize("base", [MASKFORMER, MASK2FORMER])
def test_both_models_are_built_on_a_plain_vit_and_learn(base: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    text = (EXAMPLES / "vit_backbone.yaml").read_text()
    assert base in text
    base_line = f"../../configs/{MASKFORMER}"
    (tmp_path / "vit.yaml").write_text(text.replace(base_line, str(ROOT / "configs" / base)))
    tiny = ["MODEL.VIT.NAME", "test_vit", "MODEL.VIT.OUT_CHANNELS", "16"]
    tiny += ["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "100", "MODEL.VIT.DROP_PATH_RATE", "0.0"]
    cfg = load_cfg(str(tmp_path / "vit.yaml"), [*SMALL, *tiny])
    model, _, moved = step(cfg, [make_example(0), make_example(1)])
    assert {f"backbone.{name}" for name, _ in model.backbone.named_parameters()} <= moved


@pytest.mark.parametrize("plugin", ["sum_pixel_decoder"], indirect=True)
def test_the_pixel_decoder_is_built_and_learns(plugin: ModuleType) -> None:
    model, _, moved = step(load("sum_pixel_decoder"), [make_example(0), make_example(1)])
    decoder = model.sem_seg_head.pixel_decoder
    assert isinstance(decoder, plugin.SumPixelDecoder)
    names = {f"sem_seg_head.pixel_decoder.{name}" for name, _ in decoder.named_parameters()}
    assert names and names <= moved


@pytest.mark.parametrize("plugin", ["mask_size_loss"], indirect=True)
def test_the_loss_has_a_value_for_every_layer_and_training_lowers_it(plugin: ModuleType) -> None:
    cfg = load("mask_size_loss")
    batch = [make_example(0), make_example(1)]
    model, losses, _ = step(cfg, batch)
    assert {"loss_mask_size", "loss_mask_size_0"} <= set(losses)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(batch)["loss_mask_size"]
        loss.backward()
        optimizer.step()
    assert model(batch)["loss_mask_size"] < losses["loss_mask_size"]


@pytest.mark.parametrize("plugin", ["attention_decoder"], indirect=True)
def test_the_transformer_decoder_is_built_and_learns(plugin: ModuleType) -> None:
    model, losses, moved = step(load("attention_decoder"), [make_example(0), make_example(1)])
    decoder = model.sem_seg_head.predictor
    assert isinstance(decoder, plugin.AttentionDecoder)
    names = {f"sem_seg_head.predictor.{name}" for name, _ in decoder.named_parameters()}
    assert names and names <= moved
    assert "loss_ce_0" in losses, "every layer is supervised"


@pytest.mark.parametrize("plugin", ["pooled_head"], indirect=True)
def test_the_head_is_built_and_learns(plugin: ModuleType) -> None:
    model, _, moved = step(load("pooled_head"), [make_example(0), make_example(1)])
    assert isinstance(model.sem_seg_head, plugin.PooledHead)
    names = {f"sem_seg_head.{name}" for name, _ in model.sem_seg_head.named_parameters()}
    assert names and names <= moved


@pytest.mark.parametrize("plugin", ["last_layer_criterion"], indirect=True)
def test_the_criterion_is_built_and_trains(plugin: ModuleType) -> None:
    model, losses, moved = step(load("last_layer_criterion"), [make_example(0), make_example(1)])
    assert isinstance(model.criterion, plugin.LastLayerCriterion)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"} and moved


@pytest.mark.parametrize("plugin", ["greedy_matcher"], indirect=True)
def test_the_matcher_is_built_and_trains(plugin: ModuleType) -> None:
    model, _, moved = step(load("greedy_matcher"), [make_example(0), make_example(1)])
    assert isinstance(model.criterion.matcher, plugin.GreedyMatcher) and moved
    match = model.criterion.matcher.assign(np.array([[1.0, 2.0], [0.5, 9.0], [3.0, 4.0]]))
    assert [part.tolist() for part in match] == [[0, 1], [1, 0]]


@pytest.mark.parametrize("plugin", ["brightness_mapper"], indirect=True)
def test_the_mapper_is_found_reads_its_key_and_trains(plugin: ModuleType, tmp_path: Path) -> None:
    images, json_file, png_folder = write_panoptic(tmp_path)
    register_panoptic("example_panoptic", images, json_file, png_folder)
    try:
        cfg = load_cfg(
            str(EXAMPLES / "brightness_mapper.yaml"),
            [*SMALL, "DATASETS.TRAIN", "('example_panoptic',)", "DATASETS.TEST", "()"]
            + ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"],
        )
        mapper = DATASET_MAPPER_REGISTRY.get("bright_panoptic")(cfg, is_train=True)
        assert isinstance(mapper, plugin.BrightPanopticMapper)
        (brightness,) = [a for a in mapper.augmentations.augs if isinstance(a, T.RandomBrightness)]
        assert (brightness.intensity_min, brightness.intensity_max) == (0.7, 1.3)
        example = mapper(DatasetCatalog.get("example_panoptic")[0])
        assert step(cfg, [example, example])[2]
    finally:
        DatasetCatalog.pop("example_panoptic", None)


# Each example passes the battery of its kind, which takes these three lines.


@with_plugin("conv_stages")
class TestConvStages(BackboneBattery):
    name = "ConvStages"


@with_plugin("sum_pixel_decoder")
class TestSumPixelDecoder(PixelDecoderBattery):
    name = "SumPixelDecoder"
    has_encoder = False
    has_norms = False


@with_plugin("attention_decoder")
class TestAttentionDecoder(TransformerDecoderBattery):
    name = "AttentionDecoder"


@with_plugin("pooled_head")
class TestPooledHead(HeadBattery):
    name = "PooledHead"
    maps = ("res2", "res5")


@with_plugin("last_layer_criterion")
class TestLastLayerCriterion(CriterionBattery):
    name = "LastLayerCriterion"
    supervises_all_layers = False


@with_plugin("greedy_matcher")
class TestGreedyMatcher(MatcherBattery):
    name = "GreedyMatcher"


@with_plugin("mask_size_loss")
class TestMaskSizeLoss(LossBattery):
    name = "mask_size"


@with_plugin("brightness_mapper")
class TestBrightPanopticMapper(MapperBattery):
    name = "bright_panoptic"
    kind = "panoptic"


def test_the_dataset_is_read_mapped_and_trained_on(tmp_path: Path) -> None:
    for folder in ("photos", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "train" / "a.jpg")
    labels = np.repeat(np.array([0, 1, 2, 5], np.uint8), 24)[:, None].repeat(128, axis=1)
    Image.fromarray(labels).save(tmp_path / "labels" / "train" / "a.png")
    for name in ("pets.json", "pets.yaml"):
        text = (EXAMPLES / name).read_text()
        (tmp_path / name).write_text(text.replace("../..", str(EXAMPLES.parents[1])))
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.SIZE", "(64, 64)"]
    try:
        cfg = load_cfg(str(tmp_path / "pets.yaml"), [*SMALL, *sizes, "SEED", "1"])
        (record,) = DatasetCatalog.get("pets_sem_seg_train")
        example = MaskFormerSemanticDatasetMapper(cfg, is_train=True)(record)
        classes = set(example["instances"].gt_classes.tolist())
        assert classes and classes <= {0, 1, 2}, "ids 1, 2 and 5 are classes 0, 1 and 2"
        _, losses, moved = step(cfg, [example, example])
        assert "loss_dice" in losses and moved
        assert MetadataCatalog.get("pets_sem_seg_val").stuff_classes == ["cat", "dog", "sofa"]
    finally:
        for name in ("pets_sem_seg_train", "pets_sem_seg_val"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
