"""``best_class`` finds the same class of each pixel as ``max``."""

from __future__ import annotations

import pytest
import torch

from mask_former.ops import best_class, reference_ops


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 1, 1), (11, 100, 30), (257, 49, 8), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_first_of_the_best_classes_is_returned_with_its_score(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(20, shape, generator=g).to(dtype)  # many are equal
    class_ids, best = best_class(scores)
    # torch guarantees the first of equal values for max(dim), not for argmax
    expected = scores.max(dim=0)
    assert class_ids.dtype == torch.int64 and torch.equal(class_ids, expected.indices)
    assert torch.equal(best, expected.values.to(best.dtype))


def test_scores_that_differ_only_in_double_precision_are_distinguished() -> None:
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64).view(2, 1, 1)
    assert best_class(scores)[0] == 1


def test_scores_may_be_a_view_and_require_gradients() -> None:
    scores = torch.rand(40, 30, 7, requires_grad=True).permute(2, 0, 1)
    class_ids, best = best_class(scores)
    assert torch.equal(class_ids, scores.argmax(0)) and torch.equal(best, scores.amax(0))
    assert not best.requires_grad


def test_infinite_scores_are_compared_and_nan_shows_in_the_score() -> None:
    inf, nan = float("inf"), float("nan")
    scores = torch.tensor([[-inf, 1.0, nan], [2.0, inf, 0.0], [-inf, 3.0, 1.0]])[:, None]
    class_ids, best = best_class(scores)
    assert class_ids[0, :2].tolist() == [1, 1] and best[0, :2].tolist() == [2.0, inf]
    assert best[0, 2].isnan()


def test_the_reference_gives_the_same() -> None:
    scores = torch.rand(5, 70, 9, generator=torch.Generator().manual_seed(0))
    with reference_ops():
        expected = best_class(scores)
    assert all(map(torch.equal, best_class(scores), expected))
