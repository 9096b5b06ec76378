"""D2SwinTransformer is detectron2's SwinTransformer under the published names."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformer

from mask_former.modeling.backbone import swin as swin_module
from mask_former.ops.window_attention import attend_fused

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@pytest.fixture
def swin_cfg(cfg):
    """The config of a Swin of width 8 with one or two blocks per stage."""
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [2, 1, 2, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 2, 4]
    cfg.MODEL.SWIN.WINDOW_SIZE = 3
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


def test_feature_maps_have_the_documented_strides_and_channels(swin_cfg):
    swin = build(swin_cfg)
    maps = swin(torch.randn(2, 3, 64, 96))
    assert list(maps) == list(STRIDES)
    for stage, (name, stride) in enumerate(STRIDES.items()):
        assert swin.output_shape()[name] == ShapeSpec(channels=8 * 2**stage, stride=stride)
        assert tuple(maps[name].shape) == (2, 8 * 2**stage, 64 // stride, 96 // stride)


def test_images_of_any_size_are_accepted(swin_cfg):
    maps = build(swin_cfg)(torch.randn(1, 3, 45, 71))
    assert [tuple(one.shape[-2:]) for one in maps.values()] == [(12, 18), (6, 9), (3, 5), (2, 3)]


def test_the_size_divisor_is_the_last_stride(swin_cfg):
    # detectron2's SwinTransformer raises an AttributeError here
    assert build(swin_cfg).size_divisibility == 32


def detectron2_twin(ours, **settings):
    """Return detectron2's SwinTransformer of the same size with the weights of ``ours``."""
    theirs = SwinTransformer(
        **{
            "embed_dim": 8,
            "depths": [2, 1, 2, 1],
            "num_heads": [1, 2, 2, 4],
            "window_size": 3,
            "drop_path_rate": 0.0,
            **settings,
        }
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


@pytest.mark.parametrize("ape", [False, True])
def test_feature_maps_equal_detectron2s_with_the_same_weights(swin_cfg, ape):
    swin_cfg.MODEL.SWIN.APE = ape
    swin_cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 32
    swin_cfg.MODEL.SWIN.MLP_RATIO = 2.0
    ours = build(swin_cfg)
    theirs = detectron2_twin(ours, ape=ape, pretrain_img_size=32, mlp_ratio=2.0)
    image = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        found, expected = ours(image), theirs(image)
    for stage, name in enumerate(STRIDES):
        torch.testing.assert_close(found[name], expected[f"p{stage}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", [(48, 96), (50, 70), (13, 9)])
def test_gradients_equal_detectron2s(swin_cfg, size, qkv_bias):
    swin_cfg.MODEL.SWIN.QKV_BIAS = qkv_bias
    ours = build(swin_cfg)
    for parameter in ours.parameters():  # biases of 0 would hide padding
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = detectron2_twin(ours, qkv_bias=qkv_bias)
    gradients = []
    for swin in (ours, theirs):
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        image.requires_grad_()
        maps = swin(image).values()
        generator = torch.Generator().manual_seed(2)
        sum((one * torch.randn(one.shape, generator=generator)).sum() for one in maps).backward()
        named = {name: value.grad for name, value in swin.named_parameters()}
        gradients.append({**named, "image": image.grad})
    found, expected = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("features", [["res5"], ["res4", "res2"]])
def test_out_features_selects_the_maps_and_keeps_all_parameters(swin_cfg, features):
    whole = build(swin_cfg)
    swin_cfg.MODEL.SWIN.OUT_FEATURES = features
    swin = build(swin_cfg)
    assert swin.state_dict().keys() == whole.state_dict().keys()
    image = torch.randn(1, 3, 64, 64)
    found, expected = swin(image), whole(image)
    assert list(found) == list(swin.output_shape()) == features
    assert all(torch.equal(found[name], expected[name]) for name in features)


def test_the_error_for_an_unknown_map_lists_the_known_ones(swin_cfg):
    swin_cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res6"]
    with pytest.raises(KeyError, match=r"OUT_FEATURES has \['res6'\].*\['res2', 'res3'"):
        build(swin_cfg)


def test_drop_path_acts_only_in_training(swin_cfg):
    swin_cfg.MODEL.SWIN.DROP_PATH_RATE = 0.9
    swin = build(swin_cfg)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(swin(image)["res5"], swin(image)["res5"])
    swin.train()
    assert not torch.equal(swin(image)["res5"], swin(image)["res5"])


@pytest.mark.parametrize("size", [(48, 96), (50, 70)])
def test_the_fused_attention_of_gpus_gives_the_same_maps_and_gradients(swin_cfg, size, monkeypatch):
    swin = build(swin_cfg)
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(2, 3, *size)
    results = []
    for fused in (False, True):
        if fused:
            monkeypatch.setattr(swin_module, "attend_batched", attend_fused)
        swin.zero_grad()
        found = swin(image)["res5"]
        found.square().sum().backward()
        bias = swin.layers[0].blocks[1].attn.relative_position_bias_table
        results.append((found.detach(), bias.grad.clone()))
    (maps, gradient), (fused_maps, fused_gradient) = results
    torch.testing.assert_close(fused_maps, maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fused_gradient, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item()
    )


def test_reference_ops_use_detectron2s_stages_with_the_same_parameters(swin_cfg):
    swin = build(swin_cfg)
    swin_cfg.MODEL.REFERENCE_OPS = True
    reference = build(swin_cfg)
    assert {type(stage) for stage in reference.layers} == {BasicLayer}
    assert BasicLayer not in {type(module) for module in swin.modules()}
    expected, found = reference.state_dict(), swin.state_dict()
    assert list(found) == list(expected)  # in the same order
    assert all(map(torch.equal, found.values(), expected.values()))  # the same random draws
