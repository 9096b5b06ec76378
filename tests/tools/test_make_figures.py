"""tools/make_figures.py: the figures of the method show the values that the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from profiling.attention import attention_recorder, attention_weights

from mask_former import MaskFormerPredictor
from mask_former.layers import Attention
from tests.helpers.scripts import load_script
from tests.helpers.tiny_model import NAMES, write_tiny_model

make_figures = load_script("tools/make_figures.py")


def write_tiny(folder: Path, *, mask2former: bool = False) -> tuple[Path, Path, Path]:
    """Write the config and weights of a model with panoptic results, and an image file."""
    config, weights = write_tiny_model(folder, mask2former=mask2former, PANOPTIC_ON=True)
    pixels = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "scene.png")
    return config, weights, folder / "scene.png"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def walk(tiny: tuple[Path, Path, Path]):
    config, weights, image_file = tiny
    predictor = MaskFormerPredictor.from_pretrained(weights, config_file=config, device="cpu")
    return make_figures.trace_image(predictor, image_file)


@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_weights_are_those_of_the_layer(masked: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4).eval()
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    attended = (torch.rand(2, 1, 3, 7) > 0.5) | torch.eye(3, 7, dtype=torch.bool)
    options = [attended] if masked else []
    weights = attention_weights(attention, query, key, *options)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3))
    projected = torch.nn.functional.linear(
        value, attention.in_proj_weight[32:], attention.in_proj_bias[32:]
    )
    heads = projected.unflatten(-1, (4, -1)).transpose(1, 2)
    mixed = attention.out_proj((weights @ heads).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, attention(query, key, value, *options))


def test_a_walk_has_every_layer_at_the_size_of_the_image(walk) -> None:
    height, width = walk.image.shape[:2]
    assert len(walk.layers) == len(walk.attention) == 1
    assert walk.layers[0].pred_masks.shape == (6, height, width)
    assert walk.attention[0].shape == (6, height, width)


def test_a_pixel_goes_to_the_query_with_the_largest_score_times_mask(walk) -> None:
    logits, masks = walk.layers[-1].pred_logits, walk.layers[-1].pred_masks
    winners = walk.winners
    for y, x in ((0, 0), (10, 20), (30, 50)):
        best, found = -1, -1.0
        for query in range(len(logits)):
            score, label = logits[query].softmax(-1).max(-1)
            value = float(score * masks[query, y, x].sigmoid())
            if label < len(NAMES) and value > found:
                best, found = query, value
        assert winners[y, x] == best
    counts = [int((winners == query).sum()) for query in walk.best_queries(9)]
    assert counts == sorted(counts, reverse=True) and sum(counts) == winners.numel()


def test_a_mask2former_has_a_prediction_before_its_layers_which_attend_to_maps_in_turn(
    tmp_path: Path,
) -> None:
    config, weights, image_file = write_tiny(tmp_path, mask2former=True)
    predictor = MaskFormerPredictor.from_pretrained(weights, config_file=config, device="cpu")
    with attention_recorder(predictor.model.sem_seg_head.predictor) as attention:
        inner = predictor.inner_outputs(image_file)
    assert len(inner.layers) == 4
    assert [tuple(one.shape[2:]) for one in attention] == [(2, 3), (4, 6), (8, 12)]
    for level, of_level in enumerate(attention):
        logits = F.interpolate(inner.layers[level].pred_masks, of_level.shape[2:], mode="bilinear")
        own = logits.sigmoid() >= 0.5
        own |= ~own.any((2, 3), keepdim=True)
        assert torch.equal(of_level > 0, own)


@pytest.mark.parametrize("mask2former", [False, True])
def test_three_small_figures_are_written(tmp_path: Path, mask2former: bool) -> None:
    config, weights, image_file = map(str, write_tiny(tmp_path, mask2former=mask2former))
    options = ["--weights", weights, "--config-file", config, "--input", image_file]
    assert make_figures.main([*options, "--output", str(tmp_path), "--num", "2"]) == 0
    for name in ("queries", "layers", "attention"):
        path = tmp_path / f"method_{name}.png"
        assert path.stat().st_size < 200e3
        assert np.asarray(Image.open(path).convert("RGB")).std() > 5, "the figure is empty"


def test_a_missing_image_is_an_error_of_one_line(tiny, tmp_path: Path, capsys) -> None:
    config, weights, _ = map(str, tiny)
    options = ["--weights", weights, "--config-file", config, "--output", str(tmp_path)]
    assert make_figures.main([*options, "--input", "no.png"]) == 1
    assert "no.png" in capsys.readouterr().err
