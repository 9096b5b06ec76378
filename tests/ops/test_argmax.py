"""``argmax_with_margin`` finds the index of ``argmax``, and marks where no other value is close."""

import pytest
import torch

from mask_former.ops import argmax_with_margin, reference_ops
from mask_former.ops.argmax import argmax_with_margin_reference


def test_the_first_of_equal_values_is_returned():
    values = torch.randint(4, (3, 7, 50), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(argmax_with_margin(values.clone())[0], values.argmax(1))
    assert torch.equal(argmax_with_margin(values[:, :1].clone())[0], torch.zeros(3, 50).long())


def test_a_value_is_settled_where_no_other_is_within_the_margin():
    values = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.85]])[None]
    found, settled = argmax_with_margin(values, 0.1)
    assert found[0, 0] == 1 and settled.tolist() == [[True, False]]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_values_still_give_a_valid_index(broken):
    values = torch.rand(2, 5, 6)
    values[0, 3, 2] = broken
    found, _ = argmax_with_margin(values.clone())
    assert ((found >= 0) & (found < 5)).all()
    finite = torch.ones(2, 6, dtype=torch.bool)
    finite[0, 2] = False
    assert torch.equal(found[finite], values.argmax(1)[finite])


@pytest.mark.parametrize("margin", [0.01, 0.1, 1.0])
def test_where_the_best_exceeds_the_margin_it_equals_the_references(margin):
    values = torch.rand(3, 5, 500, generator=torch.Generator().manual_seed(0))
    expected, expected_settled = argmax_with_margin_reference(values, margin)
    found, settled = argmax_with_margin(values.clone(), margin)
    assert torch.equal(settled, expected_settled)
    assert torch.equal(found[settled], expected[settled])
    best = values.amax(1)
    assert (values.gather(1, found[:, None])[:, 0] >= best - margin).all()
    with reference_ops():
        assert torch.equal(argmax_with_margin(values, margin)[0], values.argmax(1))
