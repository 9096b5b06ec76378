"""The largest of several values is found as ``argmax`` finds it."""

import pytest
import torch

from mask_former.ops import argmax_with_margin, reference_ops
from mask_former.ops.argmax import argmax_with_margin_reference


def test_of_equal_values_the_first_is_the_argmax_with_margin():
    values = torch.randint(4, (3, 7, 50), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(argmax_with_margin(values.clone())[0], values.argmax(1))
    assert torch.equal(argmax_with_margin(values[:, :1].clone())[0], torch.zeros(3, 50).long())


def test_a_value_is_settled_where_no_other_is_within_the_margin():
    values = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.85]])[None]
    found, settled = argmax_with_margin(values, 0.1)
    assert found[0, 0] == 1 and settled.tolist() == [[True, False]]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_broken_values_still_give_an_index(broken):
    values = torch.rand(2, 5, 6)
    values[0, 3, 2] = broken
    found, _ = argmax_with_margin(values.clone())
    assert ((found >= 0) & (found < 5)).all()
    whole = torch.ones(2, 6, dtype=torch.bool)
    whole[0, 2] = False
    assert torch.equal(found[whole], values.argmax(1)[whole])


@pytest.mark.parametrize("margin", [0.01, 0.1, 1.0])
def test_where_the_best_is_alone_it_is_that_of_the_reference(margin):
    values = torch.rand(3, 5, 500, generator=torch.Generator().manual_seed(0))
    expected, expected_alone = argmax_with_margin_reference(values, margin)
    found, alone = argmax_with_margin(values.clone(), margin)
    assert torch.equal(alone, expected_alone)
    assert torch.equal(found[alone], expected[alone])
    best = values.amax(1)
    assert (values.gather(1, found[:, None])[:, 0] >= best - margin).all()
    with reference_ops():
        assert torch.equal(argmax_with_margin(values, margin)[0], values.argmax(1))
