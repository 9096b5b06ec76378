"""Window attention by lookup tables, and with dynamic sizes, equals the reference version."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mask_former.ops.open_layout import OpenLayout, open_layout
from mask_former.ops.window_attention import attend_batched, attend_fused, attend_reference
from mask_former.ops.window_layout import (
    PlainLayout,
    from_windows,
    plain_layout,
    to_windows,
    window_layout,
)

CPU = torch.device("cpu")
MAPS = [(6, 9), (7, 5), (2, 3), (1, 1)]
"""Heights and widths of maps in tokens; windows have 3×3 tokens."""
BATCH, HEADS, SIZE, WIDTH = 2, 2, 3, 4

pytestmark = pytest.mark.parametrize("shift", [0, 1, 2])


def tensors(tokens: int) -> list[Tensor]:
    """Return a map, the projection's weight and bias, and the relative position bias in fp64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, tokens, WIDTH), (3 * WIDTH, WIDTH), (3 * WIDTH,), (1, HEADS, 9, 9)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def by_layout(
    layout: PlainLayout | OpenLayout, x: Tensor, weight: Tensor, bias: Tensor, position: Tensor
) -> Tensor:
    """Cut, project, attend and join windows: the reference version."""
    parts = torch.nn.functional.linear(layout.cut(x), weight, bias).chunk(3, -1)
    heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
    attended = attend_reference(*heads, position, layout, scale=0.7, dropout=0.0)
    return layout.join(attended.transpose(1, 2).flatten(2)).reshape(x.shape)


def by_tables(
    attend: Callable[..., Tensor], size: tuple[int, int], shift: int, *given: Tensor
) -> Tensor:
    """Project, then gather windows with lookup tables: the fast version."""
    x, weight, bias, position = given
    layout = window_layout(BATCH, *size, HEADS, SIZE, shift, CPU)
    projected = torch.nn.functional.linear(x, weight, bias)
    heads = to_windows(projected, bias, layout, HEADS)
    attended = attend(*heads, position, layout, scale=0.7, dropout=0.0)
    return from_windows(attended, layout).view(x.shape)


def with_gradients(result: Tensor, given: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(result.shape, generator=generator, dtype=result.dtype)
    return [result, *torch.autograd.grad(result, given, upstream)]


@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("attend", [attend_reference, attend_batched, attend_fused])
def test_lookup_tables_give_the_values_and_gradients_of_the_reference(
    attend: Callable[..., Tensor], size: tuple[int, int], shift: int
) -> None:
    given = tensors(size[0] * size[1])
    plain = plain_layout(BATCH, *size, SIZE, shift, CPU)
    expected = with_gradients(by_layout(plain, *given), given)
    found = with_gradients(by_tables(attend, size, shift, *given), given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_open_sizes_give_the_values_and_gradients_of_the_reference(
    size: tuple[int, int], shift: int
) -> None:
    given = tensors(size[0] * size[1])
    expected, found = (
        with_gradients(by_layout(layout(BATCH, *size, SIZE, shift, CPU), *given), given)
        for layout in (plain_layout, open_layout)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_the_reference_cuts_windows_by_the_formula(size: tuple[int, int], shift: int) -> None:
    height, width = size
    x = torch.randn(BATCH, height * width, WIDTH)
    layout = plain_layout(BATCH, height, width, SIZE, shift, CPU)
    windows = layout.cut(x)
    tall, wide = (-(-side // SIZE) for side in size)
    found = windows.view(BATCH, tall, wide, SIZE, SIZE, WIDTH)
    for row, column, y, x_ in torch.ones(tall, wide, SIZE, SIZE).nonzero().tolist():
        y_of_map = (row * SIZE + y + shift) % (tall * SIZE)
        x_of_map = (column * SIZE + x_ + shift) % (wide * SIZE)
        token = found[:, row, column, y, x_]
        if y_of_map < height and x_of_map < width:
            assert torch.equal(token, x[:, y_of_map * width + x_of_map])
        else:
            assert not token.any()
    assert torch.equal(layout.join(windows), x)


def test_dropout_drops_attention_weights_and_keeps_their_mean(shift: int) -> None:
    layout = window_layout(1, 9, 9, 1, SIZE, shift, CPU)
    query = torch.zeros(9, 1, 9, 5, dtype=torch.float64)
    value, bias = torch.ones_like(query), torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    for attend in (attend_reference, attend_batched, attend_fused):
        torch.manual_seed(0)
        found = attend(query, query, value, bias, layout, scale=1.0, dropout=0.5)
        assert found.std() > 0.1 and abs(found.mean() - 1) < 0.1
