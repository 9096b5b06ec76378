"""DETR's transformer: each layer against its formula, computed with torch's attention."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mask_former.layers import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from tests.helpers import references

DIM, HEADS, FEEDFORWARD = 16, 4, 24
BATCH, CELLS, QUERIES = 2, 15, 6

both_norms = pytest.mark.parametrize("pre_norm", [False, True], ids=["post_norm", "pre_norm"])


def build(kind, *arguments, pre_norm, dropout=0.0):
    """Build a module in evaluation mode with random parameters, including norms and biases."""
    module = kind(*arguments, DIM, HEADS, FEEDFORWARD, dropout, pre_norm)
    return randomize(module)


def randomize(module):
    g = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=g)
        parameter.data = noise / DIM**0.5 if parameter.dim() > 1 else 1 + 0.3 * noise
    return module.eval()


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The formulas, with torch's attention


def attention(ours, query, key, value):
    """Apply torch's multi-head attention with the weights of ``ours``."""
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    inputs, options = (query, key, value), {"need_weights": False}
    return functional_call(reference, dict(ours.named_parameters()), inputs, options)[0]


def feed_forward(layer, x):
    return layer.linear2(layer.linear1(x).clamp(min=0))


def encoder_layer(layer, x, position, pre_norm):
    if pre_norm:
        y = layer.norm1(x)
        x = x + attention(layer.self_attn, y + position, y + position, y)
        return x + feed_forward(layer, layer.norm2(x))
    x = layer.norm1(x + attention(layer.self_attn, x + position, x + position, x))
    return layer.norm2(x + feed_forward(layer, x))


def decoder_layer(layer, x, queries, position, memory, pre_norm):
    cross = layer.multihead_attn
    if pre_norm:
        y = layer.norm1(x)
        x = x + attention(layer.self_attn, y + queries, y + queries, y)
        x = x + attention(cross, layer.norm2(x) + queries, memory + position, memory)
        return x + feed_forward(layer, layer.norm3(x))
    x = layer.norm1(x + attention(layer.self_attn, x + queries, x + queries, x))
    x = layer.norm2(x + attention(cross, x + queries, memory + position, memory))
    return layer.norm3(x + feed_forward(layer, x))


def encoder(module, x, position, pre_norm):
    for layer in module.layers:
        x = encoder_layer(layer, x, position, pre_norm)
    return module.norm(x) if pre_norm else x


def decoder(module, queries, position, memory, pre_norm):
    x = torch.zeros(len(memory), len(queries), DIM)
    states = []
    for layer in module.layers:
        x = decoder_layer(layer, x, queries, position, memory, pre_norm)
        states.append(module.norm(x))
    return torch.stack(states)


def flatten_map(feature_map):
    """Flatten B×C×h×w to B×hw×C, row by row; return it with the 1×hw×C positional encoding."""
    _, _, height, width = feature_map.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    encoding = references.sine_encoding(height, width, DIM).float()
    return (
        torch.stack([feature_map[:, :, y, x] for y, x in cells], dim=1),
        torch.stack([encoding[:, y, x] for y, x in cells])[None],
    )


# Layers


@both_norms
def test_an_encoder_layer_matches_its_formula(pre_norm):
    layer = build(TransformerEncoderLayer, pre_norm=pre_norm)
    x, position = random(BATCH, CELLS, DIM), random(1, CELLS, DIM, seed=2)
    torch.testing.assert_close(layer(x, position), encoder_layer(layer, x, position, pre_norm))


@both_norms
def test_a_decoder_layer_matches_its_formula(pre_norm):
    layer = build(TransformerDecoderLayer, pre_norm=pre_norm)
    x, queries = random(BATCH, QUERIES, DIM), random(1, QUERIES, DIM, seed=2)
    memory, position = random(BATCH, CELLS, DIM, seed=3), random(1, CELLS, DIM, seed=4)
    found = layer(x, queries, memory + position, memory)
    torch.testing.assert_close(found, decoder_layer(layer, x, queries, position, memory, pre_norm))


@both_norms
def test_the_gradients_of_a_decoder_layer_match_those_of_its_formula(pre_norm):
    layer = build(TransformerDecoderLayer, pre_norm=pre_norm)
    x, queries = random(BATCH, QUERIES, DIM), random(1, QUERIES, DIM, seed=2)
    memory, position = random(BATCH, CELLS, DIM, seed=3), random(1, CELLS, DIM, seed=4)
    inputs = [x, queries, memory, position, *layer.parameters()]
    for value in inputs:
        value.requires_grad_()
    upstream = random(BATCH, QUERIES, DIM, seed=5)
    found, expected = (
        torch.autograd.grad((upstream * out).sum(), inputs)
        for out in (
            layer(x, queries, memory + position, memory),
            decoder_layer(layer, x, queries, position, memory, pre_norm),
        )
    )
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


def make_uniform(*attentions):
    """Make attention uniform, so that a position could only affect the result via the values."""
    for module in attentions:
        module.in_proj_weight.data[: 2 * DIM] = 0


@both_norms
def test_positions_are_not_added_to_attention_values(pre_norm):
    layer = build(TransformerEncoderLayer, pre_norm=pre_norm)
    make_uniform(layer.self_attn)
    x = random(BATCH, CELLS, DIM)
    first, second = (layer(x, random(1, CELLS, DIM, seed=seed)) for seed in (2, 3))
    torch.testing.assert_close(first, second)

    layer = build(TransformerDecoderLayer, pre_norm=pre_norm)
    make_uniform(layer.self_attn, layer.multihead_attn)
    x, memory = random(BATCH, QUERIES, DIM), random(BATCH, CELLS, DIM, seed=4)
    first, second = (
        layer(x, random(1, QUERIES, DIM, seed=seed), memory + seed, memory) for seed in (2, 3)
    )
    torch.testing.assert_close(first, second)


# Stacks


@both_norms
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_an_encoder_applies_its_layers_and_with_pre_norm_a_final_norm(layers, pre_norm):
    module = build(TransformerEncoder, layers, pre_norm=pre_norm)
    assert isinstance(module.norm, nn.LayerNorm) == pre_norm
    x, position = random(BATCH, CELLS, DIM), random(1, CELLS, DIM, seed=2)
    torch.testing.assert_close(module(x, position), encoder(module, x, position, pre_norm))


@both_norms
def test_a_decoder_starts_from_zero_and_normalises_every_layers_output(pre_norm):
    module = build(TransformerDecoder, 3, pre_norm=pre_norm)
    queries, position = random(QUERIES, DIM), random(1, CELLS, DIM, seed=2)
    memory = random(BATCH, CELLS, DIM, seed=3)
    found = module(queries, memory, position)
    assert found.shape == (3, BATCH, QUERIES, DIM)
    torch.testing.assert_close(found, decoder(module, queries, position, memory, pre_norm))


def build_transformer(encoder_layers=2, decoder_layers=2, pre_norm=False, dropout=0.0):
    return Transformer(
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        dim=DIM,
        heads=HEADS,
        feedforward_dim=FEEDFORWARD,
        dropout=dropout,
        pre_norm=pre_norm,
    )


@both_norms
@pytest.mark.parametrize("encoder_layers", [0, 2])
def test_a_transformer_decodes_queries_against_the_flattened_map(encoder_layers, pre_norm):
    module = randomize(build_transformer(encoder_layers, pre_norm=pre_norm))
    queries, feature_map = random(QUERIES, DIM), random(BATCH, DIM, 3, 5, seed=2)
    cells, position = flatten_map(feature_map)
    memory = encoder(module.encoder, cells, position, pre_norm)
    expected = decoder(module.decoder, queries, position, memory, pre_norm)
    torch.testing.assert_close(module(feature_map, queries), expected, rtol=1e-4, atol=1e-5)


@both_norms
def test_encoding_a_map_gives_a_map(pre_norm):
    module = randomize(build_transformer(decoder_layers=0, pre_norm=pre_norm))
    assert module.decoder is None
    for height, width in ((3, 5), (5, 3), (3, 5)):  # nothing is cached across sizes
        feature_map = random(BATCH, DIM, height, width, seed=height)
        expected = encoder(module.encoder, *flatten_map(feature_map), pre_norm)
        found = module.encode(feature_map)
        for y in range(height):
            for x in range(width):
                cell = expected[:, y * width + x]
                torch.testing.assert_close(found[:, :, y, x], cell, rtol=1e-4, atol=1e-5)


def test_matrices_are_initialised_with_xavier_uniform():
    for name, parameter in build_transformer().named_parameters():
        if parameter.dim() > 1:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name


# Dropout


@both_norms
def test_dropout_comes_before_every_residual_and_in_the_feed_forward(pre_norm):
    """With everything dropped, a layer reduces to its norms."""
    encoder_layer = build(TransformerEncoderLayer, pre_norm=pre_norm).train()
    decoder_layer = build(TransformerDecoderLayer, pre_norm=pre_norm).train()
    for layer in (encoder_layer, decoder_layer):
        layer.dropout.p = 1.0
        hidden_dropped = layer.feed_forward(random(BATCH, QUERIES, DIM))
        assert torch.equal(hidden_dropped, layer.linear2.bias.expand_as(hidden_dropped))
    x, cells = random(BATCH, QUERIES, DIM), random(BATCH, CELLS, DIM, seed=2)
    encoded, decoded = encoder_layer(x, random(1, 1, DIM)), decoder_layer(x, x, cells, cells)
    if pre_norm:
        assert torch.equal(encoded, x) and torch.equal(decoded, x)
    else:
        once = encoder_layer.norm1(x)
        torch.testing.assert_close(encoded, encoder_layer.norm2(once))
        twice = decoder_layer.norm2(decoder_layer.norm1(x))
        torch.testing.assert_close(decoded, decoder_layer.norm3(twice))


def test_attention_dropout_acts_only_in_training():
    layer = build(TransformerEncoderLayer, pre_norm=False, dropout=0.5)
    layer.dropout.p = 0.0
    x, position = random(BATCH, CELLS, DIM), random(1, CELLS, DIM, seed=2)
    assert torch.equal(layer(x, position), layer(x, position))
    layer.train()
    assert not torch.allclose(layer(x, position), layer(x, position))


def test_a_width_not_divisible_by_the_heads_is_an_error_that_names_the_keys():
    text = r"width 16 cannot be split into 5 heads; .*MODEL\.MASK_FORMER\.HIDDEN_DIM .*NHEADS"
    with pytest.raises(ValueError, match=text):
        Transformer(
            encoder_layers=0,
            decoder_layers=1,
            dim=16,
            heads=5,
            feedforward_dim=8,
            dropout=0.0,
            pre_norm=False,
        )
