"""Mask2Former's pixel decoder: published figures, the shared battery, and its config keys."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from mask_former.layers.deformable_transformer import MSDeformAttn
from mask_former.modeling.pixel_decoder.deformable import MSDeformAttnPixelDecoder
from mask_former.ops.ms_deform_attn import ms_deform_attn_reference
from tests.helpers.batteries.pixel_decoder import PixelDecoderBattery, build_decoder, make_features
from tests.helpers.golden_cases import fill_weights, load_case

NAME = "MSDeformAttnPixelDecoder"
RES = {f"res{n}": ShapeSpec(channels=2 ** (n + 6), stride=2**n) for n in (2, 3, 4, 5)}
"""Channels and strides of the maps of ResNet-50."""


def build(cfg: CfgNode, *, enc_layers: int = 2, **options: Any) -> Any:
    """Build a narrow decoder whose attention depends on its queries, unlike that of a new one."""
    encoded = [name for name in options.get("IN_FEATURES", RES) if name not in ("res2", "res9")]
    options = {"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": encoded, **options}
    options = {"CONVS_DIM": 32, "TRANSFORMER_ENC_LAYERS": enc_layers, **options}
    decoder = build_decoder(cfg, NAME, **options)
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, MSDeformAttn):
                nn.init.normal_(module.sampling_offsets.weight, std=0.1)
                nn.init.normal_(module.attention_weights.weight, std=0.1)
    return decoder


class TestMSDeformAttnPixelDecoder(PixelDecoderBattery):
    name = NAME
    has_encoder = True
    convs_dim = 32

    def build(self, cfg: CfgNode, **options: Any) -> Any:
        return build(cfg, **options)


def published_decoder() -> Any:
    torch.manual_seed(0)
    pyramid = {"res2": RES["res2"]}
    encoded = {name: RES[name] for name in ("res3", "res4", "res5")}
    sizes = {"conv_dim": 256, "mask_dim": 256, "encoder_layers": 6, "heads": 8}
    return MSDeformAttnPixelDecoder(encoded, pyramid, norm="GN", dropout=0.0, **sizes)


def named(decoder: nn.Module) -> nn.Module:
    """Put a decoder where its parameters have their names in a whole model."""
    return nn.ModuleDict({"sem_seg_head": nn.ModuleDict({"pixel_decoder": decoder})})


def draw(name: str, seed: int, shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(shape, generator=generator)


def spaced(x: Tensor) -> np.ndarray:
    flat = x.detach().flatten().numpy()
    return flat[np.linspace(0, flat.size - 1, 600).astype(int)]


def test_published_outputs_and_gradients_are_reproduced() -> None:
    facts, arrays = load_case("mask2former_pixel_decoder")
    decoder, seed = published_decoder().train(), facts["seed"]
    fill_weights(named(decoder))
    height, width = facts["res5_size"]
    features = {}
    for name, spec in RES.items():
        size = [height * 32 // spec.stride, width * 32 // spec.stride]
        drawn = draw(name, seed, [facts["batch"], spec.channels, *size])
        features[name] = drawn.requires_grad_()
    result = decoder.forward_features(features)
    maps = {f"multi_scale{i}": level for i, level in enumerate(result.multi_scale)}
    outputs = {"mask_features": result.mask_features, **maps}
    assert {name: list(x.shape) for name, x in outputs.items()} == facts["shapes"]
    every = {"mask_features": 8, "multi_scale0": 1, "multi_scale1": 2, "multi_scale2": 4}
    for name, step in every.items():
        expected = arrays[name if step == 1 else f"{name}_every{step}"]
        np.testing.assert_allclose(spaced(outputs[name][:, ::step]), expected, 1e-4, 1e-4)
    total = [(x * draw("upstream." + n, seed, [*x.shape])).sum() for n, x in outputs.items()]
    torch.stack(total).sum().backward()
    found = {n: p.grad.norm().item() for n, p in decoder.named_parameters()}
    assert found == pytest.approx(facts["grad_norms"], rel=2e-3, abs=2e-3)
    inputs = {name: x.grad.norm().item() for name, x in features.items()}
    assert inputs == pytest.approx(facts["input_grad_norms"], rel=2e-3)
    for name in ("res5", "res2"):
        expected = arrays[f"grad_{name}_every16"]
        atol = 1e-2 * np.abs(expected).max()
        np.testing.assert_allclose(spaced(features[name].grad[:, ::16]), expected, 0, atol)


def test_a_new_decoder_has_the_published_names_and_statistics() -> None:
    facts, _ = load_case("mask2former_pixel_decoder")
    state = published_decoder().state_dict()
    assert {n: list(x.shape) for n, x in state.items()} == {
        n: shape for n, (shape, _, _) in facts["initial"].items()
    }
    for name, (_, mean, std) in facts["initial"].items():
        found, tolerance = state[name], 0.03 + 5 / state[name].numel() ** 0.5
        assert found.std(correction=0).item() == pytest.approx(std, rel=tolerance, abs=1e-6), name
        assert abs(found.mean().item() - mean) <= 8 * std / found.numel() ** 0.5 + 1e-5, name
    layer = "transformer.encoder.layers.{}."
    for index in range(6):
        offsets = state[layer.format(index) + "self_attn.sampling_offsets.bias"].view(8, 3, 4, 2)
        for level in range(3):
            torch.testing.assert_close(offsets[:, level], torch.tensor(facts["offsets"]))
        for bias in ("linear1.bias", "linear2.bias"):
            assert torch.equal(state[layer.format(index) + bias], state[layer.format(0) + bias])
    weights = [state[layer.format(index) + "linear1.weight"] for index in (0, 1)]
    assert not torch.equal(*weights)


def test_the_maps_are_those_of_the_encoder_from_coarse_to_fine(cfg: CfgNode) -> None:
    mask_features, encoded, maps = build(cfg).forward_features(make_features())
    assert [tuple(level.shape[-2:]) for level in maps] == [(4, 5), (7, 10), (13, 19)]
    assert torch.equal(encoded, maps[0]) and mask_features.shape[-2:] == (25, 37)


def test_the_pyramid_upsamples_bilinearly_and_adds_the_adapted_map(cfg: CfgNode) -> None:
    decoder, features = build(cfg), make_features()
    mask_features, _, maps = decoder.forward_features(features)
    upsampled = F.interpolate(maps[-1], (25, 37), mode="bilinear", align_corners=False)
    pyramid = decoder.layer_1(decoder.adapter_1(features["res2"]) + upsampled)
    torch.testing.assert_close(mask_features, decoder.mask_features(pyramid))


def test_a_pyramid_of_several_levels_is_numbered_from_the_finest(cfg: CfgNode) -> None:
    decoder = build(cfg, DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res5", "res4"])
    mask_features, _, maps = decoder.forward_features(make_features())
    assert decoder.adapter_1.in_channels == 6 and decoder.adapter_2.in_channels == 7
    assert len(maps) == 2 and mask_features.shape[-2:] == (25, 37)
    shapes = decoder.output_shape()
    assert (shapes["mask_features"].stride, shapes["encoder_features"].stride) == (4, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_fp32_inside_autocast_and_on_half_precision_maps(
    cfg: CfgNode, dtype: torch.dtype
) -> None:
    decoder = build(cfg)
    halves = {name: x.to(dtype) for name, x in make_features().items()}
    expected = decoder.forward_features({name: x.float() for name, x in halves.items()})
    with torch.autocast("cpu", torch.bfloat16):
        found = decoder.forward_features(halves)
    assert torch.equal(found.mask_features, expected.mask_features)
    assert found.mask_features.dtype == torch.float32


def test_dropout_acts_in_training_only(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.5
    decoder, features = build(cfg, enc_layers=1), make_features()
    once, again = (decoder.forward_features(features).encoder_features for _ in range(2))
    assert torch.equal(once, again)
    decoder.train()
    once, again = (decoder.forward_features(features).encoder_features for _ in range(2))
    assert not torch.allclose(once, again)


def test_reference_ops_give_the_same_maps(cfg: CfgNode) -> None:
    fast = build(cfg)
    cfg.MODEL.REFERENCE_OPS = True
    reference = build(cfg)
    attention = reference.transformer.encoder.layers[1].self_attn
    assert attention.attend is ms_deform_attn_reference
    reference.load_state_dict(fast.state_dict())
    found, expected = (d.forward_features(make_features()) for d in (fast, reference))
    torch.testing.assert_close(found.mask_features, expected.mask_features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"CONVS_DIM": 48}, r"CONVS_DIM is 48; expected a multiple of 32"),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res6"]}, r"\['res6'\]; expected.*'res2'"),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": []}, r"\[\]; expected one or more"),
    ],
    ids=str,
)
def test_invalid_settings_are_errors_that_name_the_key(
    cfg: CfgNode, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(cfg, **options)


def test_a_width_that_the_heads_do_not_divide_is_an_error(cfg: CfgNode) -> None:
    shapes = {"res5": RES["res5"]}
    with pytest.raises(ValueError, match=r"width 32 cannot be split into 3 heads.*NHEADS"):
        MSDeformAttnPixelDecoder(
            shapes, {}, conv_dim=32, mask_dim=8, norm="", encoder_layers=1, heads=3, dropout=0.0
        )
