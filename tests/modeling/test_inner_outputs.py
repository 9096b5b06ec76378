"""``inner_outputs`` returns the same intermediate tensors that the forward pass computes."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone
from torch import nn

from mask_former.modeling.inner_outputs import inner_outputs
from mask_former.modeling.transformer_decoder.base import TransformerDecoder
from mask_former.registries import TRANSFORMER_DECODER_REGISTRY
from mask_former.structures import layer_predictions
from tests.helpers.small_backbones import resnet
from tests.helpers.tiny_model import tiny_settings
from tests.helpers.tiny_networks import MASK2FORMER

LAYERS, QUERIES, CLASSES, WIDTH = 3, 6, 4, 16


@pytest.fixture
def tiny(cfg):
    """The tiny model's config with three decoder layers and nothing random in training."""
    settings = tiny_settings()
    settings["DATASETS"] = {"TRAIN": [], "TEST": []}
    cfg.merge_from_other_cfg(CfgNode(settings))
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = LAYERS
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.SEM_SEG_HEAD.NORM = "LN"
    return cfg


def with_encoder(cfg):
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"


def with_resnet(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    resnet(cfg)


def with_pixel_embedding(cfg):
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "pixel_embedding"


def with_mask2former(cfg):
    cfg.merge_from_list(MASK2FORMER)
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = LAYERS


KINDS = {
    "Swin": lambda cfg: None,
    "ResNet": with_resnet,
    "encoder": with_encoder,
    "queries attend to the pixel embedding": with_pixel_embedding,
    "Mask2Former": with_mask2former,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def build(cfg, kind="Swin"):
    KINDS[kind](cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.query_embed.weight.mul_(10)
    return model


def random_images(*sizes):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=g).float() for size in sizes]


def examples(*sizes):
    return [{"image": image} for image in random_images(*sizes)]


@each_kind
def test_the_last_layer_equals_the_models_prediction(tiny, kind):
    model = build(tiny, kind)
    batch = examples((64, 96), (50, 70))
    found = inner_outputs(model, batch)
    with torch.no_grad():
        logits = model.predict(batch)
    for index, one in enumerate(logits):
        torch.testing.assert_close(found.layers[-1].pred_logits[index], one.mask_cls)
        torch.testing.assert_close(found.layers[-1].pred_masks[index], one.mask_pred)
        assert found.input_size == one.padded_size
        assert found.image_sizes[index] == one.image_size


@each_kind
def test_the_layers_are_those_that_training_supervises(tiny, kind):
    model = build(tiny, kind)
    batch = examples((64, 96))
    found = inner_outputs(model, batch)
    with torch.no_grad():
        features = model.backbone(model.preprocess(batch).tensor)
        expected = layer_predictions(model.sem_seg_head.train()(features))
    assert len(found.layers) == len(expected) == LAYERS
    for layer, prediction in zip(found.layers, expected, strict=True):
        assert layer.query_states.shape == (1, QUERIES, WIDTH)
        torch.testing.assert_close(layer.pred_logits, prediction["pred_logits"])
        torch.testing.assert_close(layer.pred_masks, prediction["pred_masks"])
    states = [layer.query_states for layer in found.layers]
    assert not torch.allclose(states[0], states[1])


@each_kind
def test_masks_and_classes_follow_from_the_query_states(tiny, kind):
    model = build(tiny, kind)
    found = inner_outputs(model, examples((64, 64)))
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        for layer in found.layers:
            kernels = predictor.mask_embed(layer.query_states)
            masks = torch.einsum("bqc,bchw->bqhw", kernels, found.mask_features)
            torch.testing.assert_close(layer.pred_masks, masks)
            torch.testing.assert_close(layer.pred_logits, predictor.class_embed(layer.query_states))


@each_kind
def test_feature_maps_equal_those_of_the_backbone_and_the_pixel_decoder(tiny, kind):
    model = build(tiny, kind)
    batch = examples((64, 96))
    found = inner_outputs(model, batch)
    with torch.no_grad():
        features = model.backbone(model.preprocess(batch).tensor)
        decoder = model.sem_seg_head.pixel_decoder
        mask_features, encoded, _ = decoder.forward_features(features)
    assert sorted(found.backbone) == ["res2", "res3", "res4", "res5"]
    for stride, name in zip((4, 8, 16, 32), sorted(found.backbone), strict=True):
        assert found.backbone[name].shape[-2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(found.backbone[name], features[name])
    torch.testing.assert_close(found.mask_features, mask_features)
    if kind in ("encoder", "Mask2Former"):
        assert found.encoder_memory.shape == (1, 32, 2, 3)
        torch.testing.assert_close(found.encoder_memory, encoded)
    else:
        assert found.encoder_memory is None


def test_a_tensor_is_accepted_as_a_batch_of_images(tiny):
    model = build(tiny)
    images = random_images((64, 96), (64, 96))
    expected = inner_outputs(model, [{"image": image} for image in images])
    found = inner_outputs(model, torch.stack(images))
    assert torch.equal(found.layers[-1].pred_masks, expected.layers[-1].pred_masks)
    assert len(inner_outputs(model, images[0]).layers[-1].pred_masks) == 1


# Modes


def test_gradients_are_kept_only_on_request(tiny):
    model = build(tiny)
    image = random_images((64, 64))[0].requires_grad_()
    assert not inner_outputs(model, image).layers[0].query_states.requires_grad
    with torch.no_grad():
        found = inner_outputs(model, image, grad=True)
    found.layers[0].query_states.sum().backward()
    assert image.grad.abs().sum() > 0
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_evaluation_mode_and_its_mode_is_restored(tiny, training):
    tiny.MODEL.MASK_FORMER.DROPOUT = 0.5
    model = build(tiny).train(training)
    one, other = (inner_outputs(model, examples((64, 64))) for _ in range(2))
    assert torch.equal(one.layers[-1].pred_logits, other.layers[-1].pred_logits)
    assert model.training is model.sem_seg_head.training is training


def test_the_precision_is_that_of_the_models_inference(tiny):
    tiny.TEST.AMP.ENABLED = True
    model = build(tiny)
    batch = examples((64, 64))
    found = inner_outputs(model, batch).layers[-1].pred_logits
    with torch.no_grad():
        expected = model.predict(batch)[0].mask_cls
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found[0], expected)


# Custom parts


class CustomBackbone(Backbone):
    """Four strided convolutions, and an extra map that nothing uses."""

    def __init__(self, cfg=None, input_shape=None):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(4 if level else 3, 4, stride, stride)
            for level, stride in enumerate((4, 2, 2, 2))
        )

    def forward(self, x):
        maps = {"stem": x}
        for level, conv in enumerate(self.convs, start=2):
            maps[f"res{level}"] = x = conv(x)
        return maps

    def output_shape(self):
        return {f"res{level}": ShapeSpec(channels=4, stride=2**level) for level in (2, 3, 4, 5)} | {
            "stem": ShapeSpec(channels=3, stride=1)
        }


class CustomPixelDecoder(nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(4, cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, 1)

    def output_shape(self):
        return {
            "mask_features": ShapeSpec(channels=self.conv.out_channels, stride=4),
            "encoder_features": ShapeSpec(channels=32, stride=32),
        }

    def forward_features(self, features):
        return self.conv(features["res2"]), features["res5"].repeat(1, 8, 1, 1)


class CustomDecoder(TransformerDecoder):
    """The minimum of the contract: no transformer and no query states."""

    deep_supervision = False

    def __init__(self, cfg, in_channels, mask_classification=True):
        super().__init__()
        self.classes = nn.Linear(in_channels, QUERIES * (CLASSES + 1))

    def decode(self, maps, mask_features, *, all_layers):
        logits = self.classes(maps[0].mean((2, 3))).unflatten(1, (QUERIES, -1))
        return [{"pred_logits": logits, "pred_masks": mask_features[:, :QUERIES]}]


@pytest.fixture
def custom_parts(tiny):
    registries = (
        (BACKBONE_REGISTRY, CustomBackbone),
        (SEM_SEG_HEADS_REGISTRY, CustomPixelDecoder),
        (TRANSFORMER_DECODER_REGISTRY, CustomDecoder),
    )
    for registry, part in registries:
        registry.register(part)
    yield tiny
    for registry, part in registries:
        registry._obj_map.pop(part.__name__)


def test_custom_parts_need_no_more_than_their_contract(custom_parts):
    custom_parts.MODEL.BACKBONE.NAME = "CustomBackbone"
    custom_parts.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "CustomPixelDecoder"
    custom_parts.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "CustomDecoder"
    custom_parts.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 32
    custom_parts.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"
    model = build_model(custom_parts).eval()
    found = inner_outputs(model, examples((60, 64)))
    assert sorted(found.backbone) == ["res2", "res3", "res4", "res5", "stem"]
    assert found.encoder_memory.shape == (1, 32, 2, 2)
    (layer,) = found.layers
    assert layer.query_states is None
    assert torch.equal(layer.pred_masks, found.mask_features[:, :QUERIES])
    with torch.no_grad():
        assert torch.equal(layer.pred_logits[0], model.predict(examples((60, 64)))[0].mask_cls)


def test_another_architecture_is_refused(tiny):
    with pytest.raises(ValueError, match=r"The model is a Linear .*expected a MaskFormer"):
        inner_outputs(nn.Linear(1, 1), torch.zeros(3, 4, 4))


def test_a_tensor_that_is_not_an_image_is_refused(tiny):
    with pytest.raises(ValueError, match=r"shape \(64, 64, 3\); expected one image 3×H×W"):
        inner_outputs(build(tiny), torch.zeros(64, 64, 3))
