"""MaskFormerHead: the feature map that its queries attend to, and its configuration errors."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head

from mask_former.modeling.pixel_decoder.fpn import BasePixelDecoder
from tests.helpers.batteries.pixel_decoder import CONVS_DIM, MASK_DIM, SHAPES, SIZES, make_features


@pytest.fixture
def small(cfg):
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.NAME, head.NORM, head.IN_FEATURES = "MaskFormerHead", "", list(SHAPES)
    head.NUM_CLASSES, head.CONVS_DIM, head.MASK_DIM = 5, CONVS_DIM, MASK_DIM
    head.TRANSFORMER_ENC_LAYERS = 1
    node.HIDDEN_DIM, node.NHEADS, node.DIM_FEEDFORWARD = 8, 2, 16
    node.NUM_OBJECT_QUERIES, node.DEC_LAYERS, node.DROPOUT = 4, 2, 0.0
    return cfg


def build(cfg, in_feature, decoder="BasePixelDecoder"):
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = decoder
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = in_feature
    torch.manual_seed(0)
    return build_sem_seg_head(cfg, SHAPES)


@pytest.mark.parametrize(
    ("in_feature", "decoder", "channels"),
    [
        ("res5", "BasePixelDecoder", SHAPES["res5"].channels),
        ("res3", "BasePixelDecoder", SHAPES["res3"].channels),
        ("pixel_embedding", "BasePixelDecoder", MASK_DIM),
        ("res5", "TransformerEncoderPixelDecoder", SHAPES["res5"].channels),
        ("transformer_encoder", "TransformerEncoderPixelDecoder", CONVS_DIM),
    ],
)
def test_the_predictor_receives_the_configured_feature_map(small, in_feature, decoder, channels):
    head = build(small, in_feature, decoder).eval()
    given = []
    head.predictor.register_forward_pre_hook(lambda _, args: given.extend(args))
    features = make_features()
    outputs = head(features)
    mask_features, encoded, _ = head.pixel_decoder.forward_features(features)
    maps = {**features, "transformer_encoder": encoded, "pixel_embedding": mask_features}
    (feature_map,), embeddings = given
    torch.testing.assert_close(feature_map, maps[in_feature])
    torch.testing.assert_close(embeddings, mask_features)
    assert feature_map.shape[1] == channels == head.predictor.input_proj.in_channels
    assert set(outputs) == {"pred_logits", "pred_masks", "queries", "aux_outputs"}
    assert tuple(outputs["pred_logits"].shape) == (2, 4, 6)
    assert tuple(outputs["pred_masks"].shape) == (2, 4, *SIZES["res2"])
    assert outputs["aux_outputs"] == []


def test_the_error_for_an_unknown_map_lists_the_known_ones(small):
    with pytest.raises(KeyError) as error:
        build(small, "res6")
    text = str(error.value)
    assert "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'res6'" in text
    known = [*SHAPES, "transformer_encoder", "pixel_embedding"]
    assert [name for name in known if repr(name) not in text] == []


def test_the_error_for_an_encoder_map_without_an_encoder_names_the_fix(small):
    with pytest.raises(ValueError) as error:
        build(small, "transformer_encoder")
    for part in ("TRANSFORMER_IN_FEATURE", "BasePixelDecoder", "TransformerEncoderPixelDecoder"):
        assert part in str(error.value)


def test_a_pixel_decoder_may_return_a_pair(small, monkeypatch):
    head = build(small, "res5").eval()
    mask_features = head.pixel_decoder.forward_features(make_features()).mask_features
    monkeypatch.setattr(head.pixel_decoder, "forward_features", lambda _: (mask_features, None))
    pixels, _ = head.decoder_inputs(make_features())
    assert pixels == (mask_features, None, ())


def test_the_error_for_a_pixel_decoder_of_another_width_names_the_config_key(small, monkeypatch):
    shape = {"mask_features": ShapeSpec(channels=MASK_DIM + 1, stride=4)}
    monkeypatch.setattr(BasePixelDecoder, "output_shape", lambda _: shape)
    with pytest.raises(ValueError, match=rf"MASK_DIM is {MASK_DIM}, .* have {MASK_DIM + 1} chan"):
        build(small, "res5")


def test_the_head_names_its_parameters_with_a_row_per_class_or_query(small):
    head = build(small, "res5")
    rows, state = head.parameter_rows(), head.state_dict()
    classes, queries = head.num_classes, small.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    assert rows.classes and all(len(state[k]) == classes + n for k, n in rows.classes.items())
    assert rows.queries and all(len(state[name]) == queries for name in rows.queries)
