"""Mask2Former's transformer decoder: masked attention over several maps, published figures."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.modeling.transformer_decoder.mask2former import MultiScaleMaskedTransformerDecoder
from mask_former.structures import Prediction
from tests.helpers.batteries.common import run_backward
from tests.helpers.batteries.transformer_decoder import TransformerDecoderBattery
from tests.helpers.golden_cases import WIDE, fill_weights, load_case, seeded
from tests.helpers.references import sine_encoding

LEVELS, LAYERS = 3, 4
"""Sizes of the small decoder: its fourth layer attends to the coarsest map again."""


class TestMultiScaleMaskedTransformerDecoder(TransformerDecoderBattery):
    name = "MultiScaleMaskedTransformerDecoder"
    num_maps = LEVELS
    options: ClassVar[dict[str, Any]] = {"MODEL.MASK_FORMER.DEC_LAYERS": LAYERS + 1}


def small(cfg: CfgNode, **options: object) -> MultiScaleMaskedTransformerDecoder:
    """Build the battery's decoder, in double precision, with other values of ``MASK_FORMER``."""
    battery = TestMultiScaleMaskedTransformerDecoder()
    battery.options = {
        **battery.options,
        **{f"MODEL.MASK_FORMER.{name}": value for name, value in options.items()},
    }
    return battery.build(cfg).eval().double()


def inputs(batch: int = 2) -> tuple[tuple[Tensor, ...], Tensor]:
    maps, mask_features = TestMultiScaleMaskedTransformerDecoder().inputs(batch)
    # Channel 0 is the same everywhere, so that a kernel can make a mask empty.
    mask_features[:, 0] = 1
    return tuple(value.double() for value in maps), 3 * mask_features.double()


# The formulas, with torch's own attention


def reference(
    decoder: MultiScaleMaskedTransformerDecoder, maps: tuple[Tensor, ...], mask_features: Tensor
) -> list[Prediction]:
    """Decode one image (a batch of one) step by step, as in section 3.2.1 of the paper."""
    x, position = decoder.query_feat.weight[None], decoder.query_embed.weight[None]
    predictions = [predict(decoder, x, mask_features)]
    for index in range(len(decoder.transformer_ffn_layers)):
        level = index % LEVELS
        feature_map = maps[level]
        values = feature_map.flatten(2).transpose(1, 2) + decoder.level_embed.weight[level]
        keys = values + encoding(feature_map)
        logits = F.interpolate(
            predictions[-1]["pred_masks"], feature_map.shape[-2:], mode="bilinear"
        )
        blocked = logits[0].flatten(1) < 0
        for row in blocked:  # a query with an empty mask sees everything
            if bool(row.all()):
                row[:] = False
        cross = decoder.transformer_cross_attention_layers[index]
        x = cross.norm(x + attention(cross.multihead_attn, x + position, keys, values, blocked))
        own = decoder.transformer_self_attention_layers[index]
        x = own.norm(x + attention(own.self_attn, x + position, x + position, x))
        block = decoder.transformer_ffn_layers[index]
        x = block.norm(x + block.linear2(block.linear1(x).relu()))
        predictions.append(predict(decoder, x, mask_features))
    return predictions


def predict(
    decoder: MultiScaleMaskedTransformerDecoder, x: Tensor, mask_features: Tensor
) -> Prediction:
    state = decoder.decoder_norm(x)
    kernels = decoder.mask_embed(state)
    masks = (kernels[0] @ mask_features[0].flatten(1)).view(1, -1, *mask_features.shape[-2:])
    assert decoder.class_embed is not None
    return {"pred_logits": decoder.class_embed(state), "pred_masks": masks, "queries": state}


def attention(
    module: torch.nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocked: Tensor | None = None,
) -> Tensor:
    weights, biases = module.in_proj_weight, module.in_proj_bias
    attended, _ = F.multi_head_attention_forward(
        *(one.transpose(0, 1) for one in (query, key, value)),
        module.embed_dim,
        module.num_heads,
        weights,
        biases,
        None,
        None,
        False,
        0.0,
        module.out_proj.weight,
        module.out_proj.bias,
        attn_mask=blocked,
    )
    return attended.transpose(0, 1)


def encoding(feature_map: Tensor) -> Tensor:
    _, channels, height, width = feature_map.shape
    return sine_encoding(height, width, channels).flatten(1).T[None]


@pytest.mark.parametrize("reference_ops", [False, True])
def test_predictions_and_gradients_equal_the_reference(cfg: CfgNode, reference_ops: bool) -> None:
    cfg.MODEL.REFERENCE_OPS = reference_ops
    decoder = small(cfg)
    with torch.no_grad():  # so that query 0 has an empty mask at first
        decoder.mask_embed.layers[-1].weight[0] = 0
        decoder.mask_embed.layers[-1].bias[0] = -1
    maps, mask_features = inputs()
    tensors = [*maps, mask_features, *decoder.parameters()]
    results = []
    for run in (
        lambda: decoder.decode(maps, mask_features, all_layers=True),
        lambda: [
            {name: torch.cat([one[name] for one in images]) for name in images[0]}
            for images in zip(
                *(
                    reference(decoder, tuple(m[i : i + 1] for m in maps), mask_features[i : i + 1])
                    for i in range(2)
                ),
                strict=True,
            )
        ],
    ):
        for tensor in tensors:
            tensor.requires_grad_().grad = None
        predictions = run()
        run_backward([p[name] for p in predictions for name in ("pred_logits", "pred_masks")])
        results.append((predictions, [tensor.grad for tensor in tensors]))
    (found, gradients), (expected, expected_gradients) = results
    assert len(found) == len(expected) == LAYERS + 1
    for one, other in zip(found, expected, strict=True):
        for name in ("pred_logits", "pred_masks", "queries"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_a_decoder_without_layers_predicts_from_the_learned_queries_alone(cfg: CfgNode) -> None:
    decoder = small(cfg, DEC_LAYERS=1)
    (prediction,) = decoder.decode(*inputs(), all_layers=True)
    expected = decoder.class_embed(decoder.decoder_norm(decoder.query_feat.weight))
    torch.testing.assert_close(prediction["pred_logits"], expected.expand(2, -1, -1))


def test_a_prediction_depends_only_on_the_cells_inside_the_masks(cfg: CfgNode) -> None:
    decoder = small(cfg, DEC_LAYERS=2)
    maps, mask_features = inputs(batch=1)
    left = torch.tensor([1.0] * 20 + [-1.0] * 20).expand(24, 40)
    mask_features = torch.zeros_like(mask_features)
    mask_features[:, 0] = left
    with torch.no_grad():  # every mask is the left half
        decoder.mask_embed.layers[-1].weight.zero_()
        decoder.mask_embed.layers[-1].bias.zero_()[0] = 1
    first = decoder.decode(maps, mask_features, all_layers=False)[0]["pred_logits"]
    outside, inside = maps[0].clone(), maps[0].clone()
    outside[..., 3:] += 5  # of 5 columns; the mask's edge is in the third
    inside[..., :2] += 5
    same = decoder.decode((outside, *maps[1:]), mask_features, all_layers=False)[0]["pred_logits"]
    other = decoder.decode((inside, *maps[1:]), mask_features, all_layers=False)[0]["pred_logits"]
    torch.testing.assert_close(same, first)
    assert (other - first).abs().max() > 1e-3


def test_maps_of_another_width_are_projected(cfg: CfgNode) -> None:
    decoder = small(cfg, ENFORCE_INPUT_PROJ=True)
    assert [tuple(one.weight.shape) for one in decoder.input_proj] == [(16, 16, 1, 1)] * LEVELS
    assert len(decoder.decode(*inputs(), all_layers=True)) == LAYERS + 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PRE_NORM", True, "PRE_NORM is True.*set it to False"),
        ("DEC_LAYERS", 0, "DEC_LAYERS is 0.*1 or more"),
        ("NHEADS", 3, "HIDDEN_DIM is 16, not a multiple of NHEADS, 3"),
    ],
)
def test_an_unsupported_value_is_an_error_that_names_its_key(
    cfg: CfgNode, key: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(cfg, **{key: value})


def test_another_number_of_maps_is_an_error_that_names_the_key(cfg: CfgNode) -> None:
    maps, mask_features = inputs()
    with pytest.raises(ValueError, match=r"3 maps, but got 1: .*TRANSFORMER_IN_FEATURE"):
        small(cfg).decode(maps[:1], mask_features, all_layers=True)


# The published figures


@pytest.fixture(scope="module")
def golden() -> tuple[dict, dict, list[Prediction], dict[str, Tensor]]:
    """The case's figures; found predictions, and gradients by name."""
    facts, arrays = load_case("mask2former_transformer_decoder")
    decoder = MultiScaleMaskedTransformerDecoder(256, **facts["settings"])
    fill_weights(decoder, "sem_seg_head.predictor.", WIDE)
    seed, batch, (height, width) = facts["seed"], facts["batch"], facts["coarsest_size"]
    tensors = {
        f"multi_scale{i}": seeded(
            f"multi_scale{i}", seed, (batch, 256, height * 2**i, width * 2**i)
        )
        for i in range(LEVELS)
    }
    size = (batch, 256, height * 8, width * 8)
    offset = seeded("mask_offset", seed, (batch, 256, 1, 1))
    tensors["mask_features"] = seeded("mask_features", seed, size) + 0.5 * offset
    for tensor in tensors.values():
        tensor.requires_grad_()
    *maps, mask_features = tensors.values()
    predictions = decoder.train().decode(tuple(maps), mask_features, all_layers=True)
    logits, masks = (
        torch.stack([one[name] for one in predictions]) for name in ("pred_logits", "pred_masks")
    )
    total = (logits * seeded("upstream.logits", seed, logits.shape)).sum()
    (total + 0.1 * (masks * seeded("upstream.masks", seed, masks.shape)).sum()).backward()
    named = {**tensors, **dict(decoder.named_parameters())}
    return facts, arrays, predictions, {name: value.grad for name, value in named.items()}


def test_all_ten_predictions_match_the_published_ones(golden) -> None:
    facts, arrays, predictions, _ = golden
    assert len(predictions) == facts["layers"] == 10
    for index, prediction in enumerate(predictions):
        for name, step in (("pred_logits", 5), ("pred_masks", 20)):
            expected = torch.from_numpy(arrays[f"{name}_every{step}"][index])
            flat = prediction[name].detach()[:, ::step].flatten()
            found = flat[:: len(flat) // len(expected)][: len(expected)]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradient_norms_match_the_published_ones(golden) -> None:
    facts, _, _, gradients = golden
    found = {name: gradients[name].norm().item() for name in facts["grad_norms"]}
    assert found == pytest.approx(facts["grad_norms"], rel=2e-3, abs=2e-3)
