"""Run-length encodings equal those of pycocotools, with the counts as a string."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask_former.data.formats.rle import (
    area_and_box,
    compress_runs,
    decode_mask,
    encode_label_map,
    encode_mask,
    run_lengths,
)


def reference(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (40, 30)])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_masks_are_encoded_like_pycocotools_and_decoded_again(
    shape: tuple[int, int], share: float
) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    found = encode_mask(mask)
    assert found == reference(mask) == encode_mask(mask.astype(np.uint8))
    assert (decode_mask(found) == mask).all() and decode_mask(found).dtype == np.uint8


def test_a_view_of_a_larger_array_is_encoded_like_a_copy() -> None:
    stack = np.random.default_rng(0).random((20, 30, 4)) < 0.5
    assert encode_mask(stack[::2, :, 1]) == encode_mask(stack[::2, :, 1].copy())


def test_run_lengths_go_down_the_columns_and_start_with_background() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)
    assert compress_runs([2, 1, 1, 2], (2, 3)) == encode_mask(mask)
    assert area_and_box(encode_mask(mask)) == (3.0, [1.0, 0.0, 2.0, 2.0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (40, 30)])
@pytest.mark.parametrize("values", [[3], [0, 1], [5, 0, 300]])
def test_each_value_of_a_label_map_is_encoded_like_its_mask(
    shape: tuple[int, int], values: list[int]
) -> None:
    labels = np.random.default_rng(0).choice(values, shape).astype(np.uint16)
    found = encode_label_map(labels)
    assert list(found) == np.unique(labels).tolist()
    assert all(rle == reference(labels == value) for value, rle in found.items())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_compressed_counts_are_decoded_to_the_lengths_of_the_runs(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((70, 90)) < share
    mask = np.kron(mask, np.ones((1 + seed % 3, 1), bool))
    pixels = mask.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(pixels)) + 1
    expected = np.diff(ends, prepend=0, append=pixels.size).tolist()
    expected = [0, *expected] if pixels[0] else expected  # the first run is outside the mask
    counts = encode_mask(mask)["counts"]
    assert run_lengths(counts).tolist() == run_lengths(counts.encode()).tolist() == expected
