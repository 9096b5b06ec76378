"""Costs of a model, compared with sums by hand and with published figures."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d
from profiling.analysis import (
    Network,
    analyze,
    count_activations,
    count_flops,
    count_parameters,
    measure_seconds,
)
from torch import nn

from mask_former.config.loading import load_cfg
from mask_former.layers import Attention, DeformableTransformer
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"


class OnImage(nn.Module):
    """A module that applies a function of itself and an image, with some layers."""

    def __init__(self, function, **layers) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.dummy = nn.Parameter(torch.zeros(0))
        self.function = function

    def forward(self, images):
        return self.function(self, images)


def total(counts, module=""):
    return sum(counts[module].values())


def test_a_convolution_costs_a_multiply_add_for_each_weight_and_pixel():
    conv = nn.Conv2d(3, 5, kernel_size=3, padding=1, stride=2)
    network = OnImage(lambda self, images: self.conv(images), conv=conv)
    flops, skipped = count_flops(network, [(8, 12)])
    assert total(flops) == total(flops, "conv") == 4 * 6 * 5 * 3 * 3 * 3
    assert skipped == {}
    assert total(count_activations(network, [(8, 12)])) == 4 * 6 * 5
    assert count_parameters(network)["conv"] == 5 * 3 * 3 * 3 + 5


def test_attention_costs_its_projections_and_both_products():
    """Torch's fused attention is one operator, which fvcore does not know."""
    queries, keys, width = 7, 8 * 12, 16

    def attend(self, images):
        tokens = images.flatten(1).T[None].repeat(1, 1, width).unflatten(1, (keys, 3))[:, :, 0]
        return self.attention(tokens[:, :queries], tokens, tokens)

    network = OnImage(attend, attention=Attention(width, 4)).eval()
    flops, skipped = count_flops(network, [(8, 12)])
    projections = 2 * queries * width**2 + 2 * keys * width**2
    assert total(flops, "attention") == projections + 2 * queries * keys * width
    assert "aten::scaled_dot_product_attention" not in skipped
    outputs = 3 * queries * width + 2 * keys * width  # q, k, v, attended and projected
    assert total(count_activations(network, [(8, 12)]), "attention") == outputs


def test_attention_is_counted_with_values_of_another_width_than_the_keys():
    def attend(self, images):
        one, other = images[0, :, :2], images[0, :, :5]  # heads × tokens × channels
        values = images[0, :, :5, :3]
        return nn.functional.scaled_dot_product_attention(one, other, values)

    flops, _ = count_flops(OnImage(attend), [(8, 12)])
    assert flops[""] == {"scaled_dot_product_attention": 3 * 2 * 5 * (12 + 3)}


def test_deformable_attention_costs_five_multiply_adds_for_each_channel_of_a_sample():
    """Four for the interpolation, one for the weight; and the projections of its layer."""
    sizes, width, heads, points = [(8, 12), (4, 6)], 16, 2, 3
    cells = sum(height * columns for height, columns in sizes)

    def encode(self, images):
        maps = [images[:, :1, :height, :columns] for height, columns in sizes]
        return self.encoder.encode([level.repeat(1, width, 1, 1) for level in maps])

    settings = {"encoder_layers": 1, "dim": width, "heads": heads, "levels": 2, "points": points}
    encoder = DeformableTransformer(**settings, feedforward_dim=8, dropout=0.0)
    flops, skipped = count_flops(OnImage(encode, encoder=encoder).eval(), [(8, 12)])
    samples = cells * 2 * points * width
    projections = cells * width * (2 * width + 3 * heads * 2 * points)
    assert total(flops, "encoder.encoder.layers.0.self_attn") == 5 * samples + projections
    assert not any("grid_sampler" in name or "einsum" in name for name in skipped)


def test_a_matrix_product_with_a_sum_counts_as_the_product():
    def multiply(self, images):
        left, right = images[0, :, :4], images[0, :, :, :6].transpose(1, 2).transpose(1, 2)
        return torch.baddbmm(torch.zeros(3, 4, 6), left[:, :, :8], right)

    flops, _ = count_flops(OnImage(multiply), [(8, 12)])
    assert flops[""] == {"baddbmm": 3 * 4 * 8 * 6}


def test_batch_norms_are_free_and_uncounted_operators_are_listed():
    def forward(self, images):
        return self.norm(images).sin() + images.sin()

    flops, skipped = count_flops(OnImage(forward, norm=nn.BatchNorm2d(3)).eval(), [(8, 12)])
    assert total(flops) == 0
    assert skipped == {"aten::sin": 2, "aten::add": 1}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return left @ right


class ProductWithSetup(torch.autograd.Function):
    @staticmethod
    def forward(left, right):
        return left @ right

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


@pytest.mark.parametrize("product", [Product, ProductWithSetup])
def test_the_operators_of_an_autograd_function_are_counted(product):
    apply = torch.autograd.Function.apply
    network = OnImage(lambda self, images: product.apply(images[0, 0], images[0, 1, :, :4]))
    flops, skipped = count_flops(network, [(8, 8)])
    assert total(flops) == 8 * 8 * 4
    assert not [name for name in skipped if "PythonOp" in name]
    assert torch.autograd.Function.apply == apply


def test_counts_are_the_mean_over_the_sizes():
    conv = Conv2d(3, 5, kernel_size=1)
    network = OnImage(lambda self, images: self.conv(images), conv=conv)
    sizes = [(8, 8), (4, 8), (8, 8)]
    assert total(count_flops(network, sizes)[0]) == pytest.approx(15 * (64 + 32 + 64) / 3)
    assert total(count_activations(network, sizes)) == pytest.approx(5 * (64 + 32 + 64) / 3)


TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 24,
}
TINY_SWIN = {
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SWIN.WINDOW_SIZE": 2,
}


def tiny_cfg(name, **keys):
    values = {**TINY, **(TINY_SWIN if "swin" in name else {}), **keys}
    return load_cfg(
        str(CONFIGS / f"{name}.yaml"), [str(word) for pair in values.items() for word in pair]
    )


@pytest.mark.parametrize(
    "name",
    [
        "ade20k-150/maskformer_R50_bs16_160k",
        "ade20k-150/swin/maskformer_swin_tiny_bs16_160k",
        "ade20k-150/per_pixel_baseline_R50_bs16_160k",
        "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k",
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k",
        "camvid/maskformer_efficientnet_lite0_bs8",
    ],
)
def test_every_kind_of_model_is_counted_and_its_parts_add_up(name):
    report, network = analyze(tiny_cfg(name), sizes=[(50, 64)])
    unpadded = name.startswith("coco") or "per_pixel" in name
    rows = 50 if unpadded else 64
    assert report.input_sizes == [(rows, 64)]
    assert report.parameters[""] == sum(p.numel() for p in network.parameters())
    for counts in (report.flops, report.activations):
        parts = [total(counts, part) for part in ("backbone", "sem_seg_head")]
        assert min(parts) > 0 and total(counts) == pytest.approx(sum(parts))
    costly = ("conv", "mm", "linear", "einsum", "attention", "lstm", "matmul")
    assert not [name for name in report.skipped if any(word in name for word in costly)]
    assert not network.training and not any(m.training for m in network.modules())


def test_inference_leaves_out_the_predictions_of_the_earlier_layers():
    cfg = tiny_cfg("ade20k-150/maskformer_R50_bs16_160k")
    (every, _), (last, _) = (
        analyze(cfg, ["flop"], [(64, 64)], inference=inference) for inference in (False, True)
    )
    assert every.inference is False and last.inference is True
    queries, hidden, width, classes = 100, 16, 24, 150
    embedding = 2 * hidden**2 + hidden * width  # a three-layer MLP
    prediction = queries * (embedding + width * 16 * 16 + hidden * (classes + 1))
    difference = total(every.flops) - total(last.flops)
    assert difference == pytest.approx((6 - 1) * prediction, rel=1e-3)  # fvcore rounds einsums
    assert total(every.flops, "backbone") == total(last.flops, "backbone")


def test_the_published_model_has_the_costs_that_fvcore_counts_for_the_published_code():
    """41.3 M parameters and 50.8 G multiply-adds at 512×512."""
    cfg = load_cfg(
        str(CONFIGS / "ade20k-150/maskformer_R50_bs16_160k.yaml"), ["MODEL.DEVICE", "cpu"]
    )
    report, _ = analyze(cfg, ["parameter", "flop"])
    assert report.parameters[""] / 1e6 == pytest.approx(41.3, abs=0.05)
    assert report.trained_parameters == report.parameters[""]
    expected = {
        "": 50.8,
        "backbone": 21.4,
        "sem_seg_head.pixel_decoder": 25.5,
        "sem_seg_head.predictor": 4.0,
    }
    found = {module: total(report.flops, module) / 1e9 for module in expected}
    assert found == pytest.approx(expected, abs=0.05)


def test_frozen_parameters_are_not_trained_ones():
    cfg = tiny_cfg("ade20k-150/maskformer_R50_bs16_160k", **{"MODEL.BACKBONE.FREEZE_AT": 2})
    report, _ = analyze(cfg, ["parameter"])
    frozen = sum(report.parameters[f"backbone.{part}"] for part in ("stem", "res2"))
    assert report.flops is report.activations is report.seconds is None
    assert 0 < report.trained_parameters < report.parameters[""]
    # norms of frozen layers have buffers in place of parameters
    assert report.trained_parameters == report.parameters[""] - frozen


def test_the_time_of_a_small_network_is_plausible():
    network = OnImage(lambda self, images: images.sin())
    assert 0 < measure_seconds(network, (8, 8)) < 1


def test_a_model_without_backbone_and_head_is_refused():
    with pytest.raises(ValueError, match="Linear, which has no backbone and no sem_seg_head"):
        Network(nn.Linear(2, 3))
