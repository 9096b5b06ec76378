"""TransformerPredictor: outputs in each mode, settings from the config, and lookup by name."""

import pytest
import torch
from torch import nn

from mask_former.modeling import all_predictions
from mask_former.modeling.transformer_decoder.base import (
    TransformerDecoder,
    build_transformer_decoder,
)
from mask_former.modeling.transformer_decoder.maskformer import TransformerPredictor
from mask_former.registries import PREDICTOR_REGISTRY, TRANSFORMER_DECODER_REGISTRY
from tests.helpers.batteries.transformer_decoder import TransformerDecoderBattery

CLASSES, QUERIES, HIDDEN, MASK_DIM, LAYERS = 5, 7, 16, 12, 3


class TestTransformerPredictor(TransformerDecoderBattery):
    name = "TransformerPredictor"


@pytest.fixture
def small(cfg):
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.NUM_CLASSES, head.MASK_DIM = CLASSES, MASK_DIM
    node.HIDDEN_DIM, node.NHEADS, node.DIM_FEEDFORWARD = HIDDEN, 2, 24
    node.NUM_OBJECT_QUERIES, node.DEC_LAYERS, node.DROPOUT = QUERIES, LAYERS, 0.0
    return cfg


def build(cfg, in_channels=HIDDEN, **options):
    torch.manual_seed(0)
    return build_transformer_decoder(cfg, in_channels, **options)


def inputs(channels=HIDDEN):
    g = torch.Generator().manual_seed(1)
    feature_map = torch.randn(2, channels, 3, 5, generator=g)
    return (feature_map,), torch.randn(2, MASK_DIM, 12, 20, generator=g)


def assert_shapes(prediction):
    assert tuple(prediction["pred_logits"].shape) == (2, QUERIES, CLASSES + 1)
    assert tuple(prediction["pred_masks"].shape) == (2, QUERIES, 12, 20)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_earlier_layers_predict_only_in_training_with_deep_supervision(
    small, training, deep_supervision
):
    small.MODEL.MASK_FORMER.DEEP_SUPERVISION = deep_supervision
    outputs = build(small).train(training)(*inputs())
    expected = LAYERS - 1 if training and deep_supervision else 0
    assert len(outputs["aux_outputs"]) == expected
    for prediction in [outputs, *outputs["aux_outputs"]]:
        assert_shapes(prediction)


def test_each_layers_prediction_equals_that_of_a_decoder_cut_after_it(small):
    predictor = build(small).train()
    outputs = predictor(*inputs())
    layers = predictor.transformer.decoder.layers
    for depth, expected in enumerate(outputs["aux_outputs"], start=1):
        predictor.transformer.decoder.layers = layers[:depth]
        found = predictor(*inputs())
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_deep_supervision_does_not_change_the_last_layer(small):
    predictor = build(small).train()
    trained, evaluated = predictor(*inputs()), predictor.eval()(*inputs())
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(trained[name], evaluated[name], rtol=1e-5, atol=1e-5)


def test_a_mask_is_the_sum_over_channels_of_kernel_times_embedding(small):
    predictor = build(small).eval()
    (feature_map,), mask_features = inputs()
    outputs = predictor((feature_map,), mask_features)
    states = predictor.transformer(feature_map, predictor.query_embed.weight)[-1]
    hidden, last = states, predictor.mask_embed.layers[2]
    for linear in predictor.mask_embed.layers[:2]:
        hidden = torch.relu(linear(hidden))
    kernels = last(hidden)
    for image in range(2):
        for query in range(QUERIES):
            expected = sum(
                kernels[image, query, channel] * mask_features[image, channel]
                for channel in range(MASK_DIM)
            )
            found = outputs["pred_masks"][image, query]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected = states @ predictor.class_embed.weight.T + predictor.class_embed.bias
    torch.testing.assert_close(outputs["pred_logits"], expected, rtol=1e-4, atol=1e-5)


def test_without_mask_classification_there_are_no_class_logits(small):
    predictor = build(small, mask_classification=False).train()
    outputs = predictor(*inputs())
    assert predictor.class_embed is None
    for prediction in [outputs, *outputs["aux_outputs"]]:
        assert "pred_logits" not in prediction
        assert tuple(prediction["pred_masks"].shape) == (2, QUERIES, 12, 20)


@pytest.mark.parametrize(
    ("channels", "enforced", "projected"),
    [(HIDDEN, False, False), (HIDDEN, True, True), (11, False, True), (11, True, True)],
)
def test_the_map_is_projected_if_its_width_or_the_config_requires_it(
    small, channels, enforced, projected
):
    small.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = enforced
    predictor = build(small, channels)
    names = {name for name in predictor.state_dict() if name.startswith("input_proj")}
    assert names == ({"input_proj.weight", "input_proj.bias"} if projected else set())
    if projected:
        assert tuple(predictor.input_proj.weight.shape) == (HIDDEN, channels, 1, 1)
    assert_shapes(predictor(*inputs(channels)))


def test_the_transformer_takes_its_settings_from_the_config(small):
    node = small.MODEL.MASK_FORMER
    node.ENC_LAYERS, node.PRE_NORM, node.DROPOUT = 2, True, 0.25
    predictor = build(small)
    encoder, decoder = predictor.transformer.encoder, predictor.transformer.decoder
    assert (len(encoder.layers), len(decoder.layers)) == (2, LAYERS)
    for layer in [*encoder.layers, *decoder.layers]:
        assert (layer.pre_norm, layer.dropout.p, layer.self_attn.num_heads) == (True, 0.25, 2)
        assert layer.linear1.out_features == 24
    assert tuple(predictor.query_embed.weight.shape) == (QUERIES, HIDDEN)


def test_the_error_for_a_width_not_divisible_by_the_heads_names_the_keys(small):
    small.MODEL.MASK_FORMER.NHEADS = 3
    with pytest.raises(ValueError, match=r"width 16 cannot be split into 3 heads.*HIDDEN_DIM"):
        build(small)


def test_every_parameter_gets_a_gradient(small):
    small.MODEL.MASK_FORMER.ENC_LAYERS = 1
    predictor = build(small, 11).train()
    outputs = predictor(*inputs(11))
    sum(
        (value * torch.randn_like(value)).sum()
        for prediction in [outputs, *outputs["aux_outputs"]]
        for value in (prediction["pred_logits"], prediction["pred_masks"])
    ).backward()
    without = {name for name, value in predictor.named_parameters() if value.grad is None}
    assert without == set()


def test_all_predictions_returns_in_evaluation_what_training_supervises(small):
    predictor = build(small).eval()
    model = nn.Sequential(predictor)
    with all_predictions(model):
        outputs = predictor(*inputs())
        assert not predictor.training
    trained = predictor.train()(*inputs())
    assert len(outputs["aux_outputs"]) == LAYERS - 1
    for found, expected in zip(
        [outputs, *outputs["aux_outputs"]], [trained, *trained["aux_outputs"]], strict=True
    ):
        torch.testing.assert_close(found["pred_masks"], expected["pred_masks"])
    assert predictor.eval()(*inputs())["aux_outputs"] == []


def test_decode_takes_an_explicit_choice_of_all_layers_or_the_last(small):
    predictor = build(small).eval()
    every = predictor.decode(*inputs(), all_layers=True)
    (last,) = predictor.decode(*inputs(), all_layers=False)
    assert len(every) == LAYERS
    torch.testing.assert_close(last["pred_masks"], every[-1]["pred_masks"])
    torch.testing.assert_close(predictor.class_embed(last["queries"]), last["pred_logits"])


def test_the_published_name_refers_to_the_same_registry():
    assert PREDICTOR_REGISTRY is TRANSFORMER_DECODER_REGISTRY


@pytest.mark.parametrize("base, message", [(TransformerDecoder, None), (nn.Module, "not a trans")])
def test_a_custom_decoder_is_found_by_name_and_must_be_a_transformer_decoder(small, base, message):
    @TRANSFORMER_DECODER_REGISTRY.register()
    class _Constant(base):
        def __init__(self, cfg, in_channels, mask_classification):
            super().__init__()
            self.arguments = (cfg, in_channels, mask_classification)

    try:
        assert isinstance(build(small), TransformerPredictor)
        small.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "_Constant"
        if message:
            with pytest.raises(TypeError, match=message):
                build(small, 9)
        else:
            assert build(small, 9).arguments == (small, 9, True)
    finally:
        TRANSFORMER_DECODER_REGISTRY._obj_map.pop("_Constant")


def test_the_error_for_an_unknown_predictor_lists_the_known_ones(small):
    small.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "Unheard"
    message = r"TRANSFORMER_DECODER_NAME is 'Unheard'.*'TransformerPredictor'"
    with pytest.raises(KeyError, match=message):
        build(small)
