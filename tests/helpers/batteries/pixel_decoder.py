"""Tests that every pixel decoder passes.

A subclass in the test file of a new decoder runs them:

    class TestNewDecoder(PixelDecoderBattery):
        name = "NewDecoder"
        has_encoder = False
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import build_pixel_decoder
from mask_former.structures import PixelFeatures

CONVS_DIM, MASK_DIM = 16, 12
SHAPES = {
    "res2": ShapeSpec(channels=6, stride=4),
    "res3": ShapeSpec(channels=7, stride=8),
    "res4": ShapeSpec(channels=9, stride=16),
    "res5": ShapeSpec(channels=11, stride=32),
}
# The sizes of the maps of a 100×148 image; its sides are not multiples of 32.
SIZES = {"res2": (25, 37), "res3": (13, 19), "res4": (7, 10), "res5": (4, 5)}


def make_features(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return random backbone maps by name."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, SHAPES[name].channels, *SIZES[name], generator=g)
        for name in SHAPES
    }


def build_decoder(
    cfg: CfgNode, name: str, shapes: dict[str, ShapeSpec] | None = None, **head: Any
) -> nn.Module:
    """Build a small decoder in evaluation mode; ``head`` has keys of ``MODEL.SEM_SEG_HEAD``."""
    settings = {"CONVS_DIM": CONVS_DIM, "MASK_DIM": MASK_DIM, "NORM": "LN"}
    settings = {**settings, "IN_FEATURES": list(SHAPES), "TRANSFORMER_ENC_LAYERS": 2}
    cfg.MODEL.SEM_SEG_HEAD.update({**settings, "PIXEL_DECODER_NAME": name, **head})
    cfg.MODEL.MASK_FORMER.NHEADS = 2
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 24
    torch.manual_seed(0)
    decoder = build_pixel_decoder(cfg, shapes or SHAPES).eval()
    with torch.no_grad():  # identity norms and zero biases would hide that one is missing
        for parameter in decoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def _maps(features: Any) -> list[Tensor]:
    """List all tensors in the result of ``forward_features``."""
    parts = [part if isinstance(part, tuple) else (part,) for part in PixelFeatures(*features)]
    return [value for part in parts for value in part if value is not None]


class PixelDecoderBattery:
    """The contract of ``forward_features``, ``output_shape`` and the config keys."""

    name: str
    has_encoder = False
    """True if it has a transformer encoder, whose output it returns."""
    convs_dim = CONVS_DIM
    """Channels of the pyramid and the encoder."""
    has_norms = True
    """True if its convolutions are followed by a norm of type ``MODEL.SEM_SEG_HEAD.NORM``."""

    def build(self, cfg: CfgNode, **options: Any) -> Any:
        """Build the decoder with keys of ``MODEL.SEM_SEG_HEAD``."""
        return build_decoder(cfg, self.name, CONVS_DIM=self.convs_dim, **options)

    def test_output_sizes_are_those_of_the_maps_even_if_odd(self, cfg):
        mask_features, encoded, *_ = self.build(cfg).forward_features(make_features())
        assert tuple(mask_features.shape) == (2, MASK_DIM, *SIZES["res2"])
        if self.has_encoder:
            assert tuple(encoded.shape) == (2, self.convs_dim, *SIZES["res5"])
        else:
            assert encoded is None

    def test_the_stated_shapes_are_those_of_the_maps(self, cfg):
        decoder = self.build(cfg)
        features, stated = make_features(), decoder.output_shape()
        maps = PixelFeatures(*decoder.forward_features(features))._asdict()
        assert set(stated) == {k for k, value in maps.items() if value is not None and len(value)}
        for name, shape in stated.items():
            of_name = maps[name] if isinstance(maps[name], tuple) else [maps[name]]
            assert {value.shape[1] for value in of_name} == {shape.channels}

    def test_mask_features_have_the_size_of_the_finest_chosen_map(self, cfg):
        decoder = self.build(cfg, IN_FEATURES=["res3", "res5"])
        mask_features, *_ = decoder.forward_features(make_features())
        assert tuple(mask_features.shape) == (2, MASK_DIM, *SIZES["res3"])

    @pytest.mark.parametrize("norm", ["", "LN", "BN"])
    def test_a_convolution_has_a_bias_exactly_if_no_norm_follows(self, cfg, norm):
        if not self.has_norms:
            pytest.skip("it has no norms")
        convs = [m for m in self.build(cfg, NORM=norm).modules() if isinstance(m, Conv2d)]
        assert [conv for conv in convs if (conv.bias is None) != (conv.norm is not None)] == []
        assert any(conv.norm is not None for conv in convs) == bool(norm)

    def test_the_order_in_which_maps_are_named_is_irrelevant(self, cfg):
        decoder = self.build(cfg)
        backwards = dict(reversed(SHAPES.items()))
        other = self.build(cfg, shapes=backwards, IN_FEATURES=["res4", "res2", "res5", "res3"])
        other.load_state_dict(decoder.state_dict(), strict=True)
        features = make_features()
        expected = decoder.forward_features(features)
        found = other.forward_features(dict(reversed(features.items())))
        for one, two in zip(_maps(found), _maps(expected), strict=True):
            assert torch.equal(one, two)

    def test_every_map_and_every_parameter_gets_a_gradient(self, cfg):
        decoder = self.build(cfg).train()
        features = {name: value.requires_grad_() for name, value in make_features().items()}
        mask_features, *_ = decoder.forward_features(features)
        (mask_features * torch.randn_like(mask_features)).sum().backward()
        tensors = {**features, **dict(decoder.named_parameters())}
        unused = [k for k, v in tensors.items() if v.grad is None or not v.grad.abs().sum() > 0]
        assert unused == []

    def test_images_of_a_batch_do_not_affect_each_other(self, cfg):
        decoder = self.build(cfg)
        features = make_features(batch=3)
        alone = decoder.forward_features({k: v[1:2] for k, v in features.items()})[0]
        together = decoder.forward_features(features)[0][1:2]
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)

    def test_an_unknown_map_is_an_error_that_lists_the_known_ones(self, cfg):
        with pytest.raises(KeyError, match=r"IN_FEATURES has \['res9'\].*\['res2', 'res3'"):
            self.build(cfg, IN_FEATURES=["res2", "res9"])
