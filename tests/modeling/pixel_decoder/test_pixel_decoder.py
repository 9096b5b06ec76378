"""Pixel decoders against a step-by-step reference, and the shared battery of tests."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from tests.helpers.batteries.pixel_decoder import PixelDecoderBattery, build_decoder, make_features

PYRAMID = ["layer_4", "adapter_3", "layer_3", "adapter_2", "layer_2", "adapter_1", "layer_1"]


class TestBasePixelDecoder(PixelDecoderBattery):
    name = "BasePixelDecoder"
    has_encoder = False


class TestTransformerEncoderPixelDecoder(PixelDecoderBattery):
    name = "TransformerEncoderPixelDecoder"
    has_encoder = True


def convolve(weights, name, x):
    """Apply the named convolution, then its norm over channels if it has one."""
    kernel = weights[f"{name}.weight"]
    x = F.conv2d(x, kernel, weights.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)
    if f"{name}.norm.weight" not in weights:
        return x
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    scale, shift = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
    return x * scale[:, None, None] + shift[:, None, None]


def upsample(x, size):
    """Upsample h×w to H×W by nearest neighbour: (y, x) takes the value at (⌊y·h/H⌋, ⌊x·w/W⌋)."""
    rows = [x[:, :, row * x.shape[2] // size[0]] for row in range(size[0])]
    x = torch.stack(rows, dim=2)
    columns = [x[:, :, :, column * x.shape[3] // size[1]] for column in range(size[1])]
    return torch.stack(columns, dim=3)


def pyramid(weights, features, coarsest):
    """Return the mask features of the feature pyramid, computed level by level."""
    p4 = F.relu(convolve(weights, "layer_4", coarsest))
    a3 = convolve(weights, "adapter_3", features["res4"])
    p3 = F.relu(convolve(weights, "layer_3", a3 + upsample(p4, a3.shape[-2:])))
    a2 = convolve(weights, "adapter_2", features["res3"])
    p2 = F.relu(convolve(weights, "layer_2", a2 + upsample(p3, a2.shape[-2:])))
    a1 = convolve(weights, "adapter_1", features["res2"])
    p1 = F.relu(convolve(weights, "layer_1", a1 + upsample(p2, a1.shape[-2:])))
    return convolve(weights, "mask_features", p1)


@pytest.mark.parametrize("norm", ["", "LN"])
def test_the_base_decoder_is_a_feature_pyramid(cfg, norm):
    decoder = build_decoder(cfg, "BasePixelDecoder", NORM=norm)
    features = make_features()
    found, encoded, _ = decoder.forward_features(features)
    expected = pyramid(decoder.state_dict(), features, features["res5"])
    assert encoded is None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["", "LN"])
def test_the_encoder_runs_before_the_pyramid_and_its_map_is_returned(cfg, norm):
    decoder = build_decoder(cfg, "TransformerEncoderPixelDecoder", NORM=norm)
    features = make_features()
    found, encoded, _ = decoder.forward_features(features)
    weights = decoder.state_dict()
    projected = convolve(weights, "input_proj", features["res5"])
    expected = decoder.transformer.encode(projected)
    assert not torch.allclose(expected, projected)
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, pyramid(weights, features, expected), rtol=1e-4, atol=1e-5)


def test_the_encoder_takes_its_settings_from_the_config(cfg):
    cfg.MODEL.MASK_FORMER.PRE_NORM = True
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.25
    decoder = build_decoder(
        cfg, "TransformerEncoderPixelDecoder", TRANSFORMER_ENC_LAYERS=3, NORM=""
    )
    encoder = decoder.transformer.encoder
    assert decoder.transformer.decoder is None
    assert len(encoder.layers) == 3
    assert encoder.norm is not None
    layer = encoder.layers[0]
    assert (layer.linear1.in_features, layer.linear1.out_features) == (16, 24)
    assert (layer.self_attn.num_heads, layer.dropout.p, layer.pre_norm) == (2, 0.25, True)


def test_parameters_have_the_published_names(cfg):
    base = build_decoder(cfg, "BasePixelDecoder", NORM="LN").state_dict()
    expected = {"mask_features.weight", "mask_features.bias"}
    for name in PYRAMID:
        expected |= {f"{name}.weight", f"{name}.norm.weight", f"{name}.norm.bias"}
    assert set(base) == expected

    encoder = build_decoder(cfg, "TransformerEncoderPixelDecoder", NORM="LN").state_dict()
    added = set(encoder) - expected
    assert set(encoder) >= expected
    assert {name.split(".")[0] for name in added} == {"input_proj", "transformer"}
    assert "transformer.encoder.layers.1.self_attn.in_proj_weight" in added


def test_kernels_are_3_by_3_in_layers_and_1_by_1_in_adapters(cfg):
    weights = build_decoder(cfg, "BasePixelDecoder", NORM="").state_dict()
    sizes = {name: tuple(weights[f"{name}.weight"].shape[-2:]) for name in PYRAMID}
    assert {sizes[name] for name in PYRAMID if name.startswith("layer")} == {(3, 3)}
    assert {sizes[name] for name in PYRAMID if name.startswith("adapter")} == {(1, 1)}
    assert tuple(weights["mask_features.weight"].shape[-2:]) == (3, 3)


def test_a_head_that_is_not_a_pixel_decoder_is_refused(cfg):
    @SEM_SEG_HEADS_REGISTRY.register()
    class _NoDecoder(torch.nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()

    try:
        with pytest.raises(TypeError, match=r"is '_NoDecoder', which is not a pixel deco"):
            build_decoder(cfg, "_NoDecoder")
    finally:
        SEM_SEG_HEADS_REGISTRY._obj_map.pop("_NoDecoder")


def test_the_error_for_an_unknown_decoder_lists_the_known_ones(cfg):
    with pytest.raises(KeyError, match=r"PIXEL_DECODER_NAME is 'Unheard'.*'BasePixelDecoder'"):
        build_decoder(cfg, "Unheard", {"res2": ShapeSpec(channels=3, stride=4)})
