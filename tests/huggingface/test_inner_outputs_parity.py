"""Inner outputs of a converted model, compared with those of transformers' model."""

import pytest
import torch

from mask_former.huggingface import read_huggingface_folder
from mask_former.modeling.inner_outputs import inner_outputs
from tests.helpers.huggingface_models import (
    model_of,
    random_images,
    save_theirs,
    their_model,
)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 0.05, "the outputs are nearly constant"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def both(kind, size, folder, auxiliary=False):
    """Return transformers' model, its outputs and the inner outputs here for the same images."""
    theirs = their_model(kind)
    ours = model_of(read_huggingface_folder(save_theirs(theirs, folder)))
    normalised = random_images(*size)
    theirs.config.use_auxiliary_loss = auxiliary  # returns the logits of all layers
    with torch.no_grad():
        expected = theirs(
            pixel_values=normalised, output_hidden_states=True, output_auxiliary_logits=auxiliary
        )
    return theirs, expected, inner_outputs(ours, normalised * ours.pixel_std + ours.pixel_mean)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Swin", "ResNet"])
@pytest.mark.parametrize("size", [(64, 96), (160, 32)], ids=str)
def test_inner_outputs_equal_transformers(kind, size, tmp_path):
    theirs, expected, found = both(kind, size, tmp_path)
    maps = [found.backbone[name] for name in sorted(found.backbone)]
    assert len(maps) == len(expected.encoder_hidden_states) == 4
    for one, other in zip(maps, expected.encoder_hidden_states, strict=True):
        assert_same(one, other)
    assert_same(found.mask_features, expected.pixel_decoder_last_hidden_state)
    assert found.encoder_memory is None  # transformers' model has no such encoder

    # transformers: the queries' zero content first, then each layer without the decoder's final
    # norm, except the last one. Here: each layer with the norm.
    zero, *states = expected.transformer_decoder_hidden_states
    assert zero.abs().max() == 0
    norm = theirs.model.transformer_module.decoder.layernorm
    states = [norm(state) for state in states[:-1]] + states[-1:]
    assert len(found.layers) == len(states) == 2
    for layer, state in zip(found.layers, states, strict=True):
        assert_same(layer.query_states, state)
        assert_same(layer.pred_logits, theirs.class_predictor(state))
        kernels = theirs.mask_embedder(state)
        masks = torch.einsum("bqc,bchw->bqhw", kernels, expected.pixel_decoder_last_hidden_state)
        assert_same(layer.pred_masks, masks)
    assert_same(found.layers[-1].pred_logits, expected.class_queries_logits)
    assert_same(found.layers[-1].pred_masks, expected.masks_queries_logits)


@torch.no_grad()
def test_earlier_layers_predict_from_normalised_states(tmp_path):
    """transformers predicts from the states before the norm, and from the zero content too."""
    theirs, expected, found = both("Swin", (64, 96), tmp_path, auxiliary=True)
    zero, first, _ = expected.transformer_decoder_hidden_states
    logits_of_layers = [layer["class_queries_logits"] for layer in expected.auxiliary_logits]
    assert len(logits_of_layers) == 2
    for logits, state in zip(logits_of_layers, (zero, first), strict=True):
        torch.testing.assert_close(logits, theirs.class_predictor(state))
    assert (found.layers[0].pred_logits - logits_of_layers[1]).abs().max() > 0.01
