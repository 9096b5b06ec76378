"""The MLP is a chain of linear layers with ReLU between them."""

import pytest
import torch

from mask_former.layers import MLP


@pytest.mark.parametrize("layers, widths", [(1, [3, 5]), (2, [3, 8, 5]), (3, [3, 8, 8, 5])])
def test_the_mlp_applies_its_linear_layers_with_relu_between(layers, widths):
    torch.manual_seed(0)
    mlp = MLP(3, 8, 5, layers)
    assert [layer.in_features for layer in mlp.layers] == widths[:-1]
    assert [layer.out_features for layer in mlp.layers] == widths[1:]
    x = expected = torch.randn(2, 7, 3)
    for index, layer in enumerate(mlp.layers):
        expected = expected @ layer.weight.T + layer.bias
        if index < layers - 1:
            expected = expected.clamp(min=0)
    torch.testing.assert_close(mlp(x), expected)
    assert (mlp(x) < 0).any()  # no ReLU after the last layer


def test_parameters_have_the_published_names():
    names = [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert list(MLP(3, 8, 5, 3).state_dict()) == names
