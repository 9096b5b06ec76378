"""Integer maps and the masks made from them, compared with loops over pixels."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from mask_former.data.targets import (
    MAX_SEGMENT_ID,
    InstanceMasks,
    SegmentMap,
    count_values,
    decode_segment_ids,
    index_segments,
    masks_from_index_map,
    pad_map,
)


def masks_by_loop(index_map, indices):
    masks = torch.zeros(len(indices), *index_map.shape, dtype=torch.bool)
    for n, index in enumerate(indices):
        for y in range(index_map.shape[0]):
            for x in range(index_map.shape[1]):
                masks[n, y, x] = int(index_map[y, x]) == int(index)
    return masks


def test_segment_ids_are_decoded_from_three_bytes():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    rgb[0, 0] = 255
    ids = decode_segment_ids(rgb)
    for y in range(5):
        for x in range(7):
            r, g, b = (int(v) for v in rgb[y, x])
            assert ids[y, x] == r + 256 * g + 256**2 * b
    assert ids[0, 0] == MAX_SEGMENT_ID


def test_segment_ids_are_read_from_any_memory_layout():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert (decode_segment_ids(rgb[:, ::-1]) == decode_segment_ids(rgb)[:, ::-1]).all()


@pytest.mark.parametrize("count, dtype", [(3, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_indices_follow_the_order_of_the_ids_in_the_smallest_type(count, dtype):
    rng = np.random.default_rng(count)
    known = rng.choice(np.arange(1, MAX_SEGMENT_ID + 1), count + 5, replace=False).tolist()
    segment_ids, unknown = known[:count], known[count:]
    segment_ids[0] = MAX_SEGMENT_ID
    ids = rng.choice(np.array([0, *segment_ids, *unknown], dtype=np.uint32), (20, 30))
    index_map, present = index_segments(ids, segment_ids)
    assert present.tolist() == sorted(set(ids.ravel().tolist()))
    assert index_map.dtype == dtype
    for y in range(20):
        for x in range(30):
            value = int(ids[y, x])
            assert index_map[y, x] == (segment_ids.index(value) + 1 if value in segment_ids else 0)


def test_an_image_without_segments_has_index_0_everywhere():
    index_map, present = index_segments(np.full((2, 3), 7, dtype=np.uint32), [])
    assert index_map.tolist() == [[0, 0, 0], [0, 0, 0]] and present.tolist() == [7]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_masks_are_where_the_map_equals_the_index(dtype):
    rng = np.random.default_rng(0)
    values = np.array([0, 3, 7, 200, 255 if dtype == np.uint8 else 65535])
    index_map = rng.choice(values, (6, 9)).astype(dtype)
    index_map[0] = 0  # 7 may be rare; 5 never occurs
    indices = np.array([7, 5, 0, values[-1]])
    masks = masks_from_index_map(index_map, indices)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, masks_by_loop(index_map, indices))
    assert torch.equal(masks_from_index_map(torch.tensor(index_map), torch.tensor(indices)), masks)


def test_without_indices_there_are_no_masks():
    masks = masks_from_index_map(np.zeros((4, 5), np.uint8), np.zeros(0, np.int64))
    assert masks.shape == (0, 4, 5) and masks.dtype == torch.bool


def test_masks_of_all_values_cover_each_pixel_once():
    index_map = np.random.default_rng(0).integers(0, 6, (8, 8)).astype(np.uint8)
    assert (masks_from_index_map(index_map, np.arange(6)).sum(0) == 1).all()


def test_maps_are_padded_on_the_right_and_at_the_bottom():
    small = np.arange(6, dtype=np.uint8).reshape(2, 3)
    padded = pad_map(small, (4, 5), 255)
    assert padded.dtype == np.uint8
    for y in range(4):
        for x in range(5):
            assert padded[y, x] == (small[y, x] if y < 2 and x < 3 else 255)


def test_a_padded_map_has_a_larger_type_if_the_padding_value_needs_it():
    padded = pad_map(np.full((1, 1), 255, np.uint8), (1, 2), 65535)
    assert padded.dtype == np.uint16 and padded.tolist() == [[255, 65535]]


@pytest.fixture
def segments():
    index_map = np.array([[1, 1, 1, 4], [2, 0, 1, 4]], dtype=np.uint8)
    return SegmentMap(index_map, np.array([4, 1, 3, 2]), np.array([40, 10, 30, 20]), void=0)


@pytest.mark.parametrize(
    "min_area, kept",
    [(0, [40, 10, 30, 20]), (1, [40, 10, 20]), (2, [40, 10]), (3, [10]), (5, [])],
)
def test_segments_below_the_minimum_area_are_dropped(segments, min_area, kept):
    labels, masks = segments.targets((2, 4), min_area)
    assert labels.dtype == torch.int64 and labels.tolist() == kept
    indices = [label // 10 for label in kept]
    assert torch.equal(masks, masks_by_loop(segments.index_map, indices))


def test_padding_is_outside_all_segments(segments):
    _, masks = segments.targets((3, 6))
    assert masks.shape == (4, 3, 6)
    assert torch.equal(masks[:, :2, :4], segments.targets((2, 4))[1])
    assert not masks[:, 2:].any() and not masks[:, :, 4:].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_valid_pixels_are_those_of_targets(segments, dtype):
    some = SegmentMap(segments.index_map.astype(dtype), np.array([4, 2]), np.array([0, 1]), void=0)
    expected = [[0, 0, 0, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert some.valid_mask((3, 5)).tolist() == (np.array(expected) > 0).tolist()
    nothing = SegmentMap(segments.index_map, np.zeros(0, np.int64), np.zeros(0, np.int64), void=0)
    assert not nothing.valid_mask((2, 4)).any()


def test_an_image_without_targets_has_empty_labels_and_masks(segments):
    nothing = SegmentMap(segments.index_map, np.zeros(0, np.int64), np.zeros(0, np.int64), void=0)
    for min_area in (0, 1):
        labels, masks = nothing.targets((3, 5), min_area)
        assert labels.shape == (0,) and labels.dtype == torch.int64
        assert masks.shape == (0, 3, 5) and masks.dtype == torch.bool


def test_a_transform_acts_only_on_the_map(segments):
    flipped = segments.transform(T.HFlipTransform(segments.index_map.shape[1]))
    labels, masks = flipped.targets((2, 4))
    assert labels.tolist() == [40, 10, 30, 20]
    assert torch.equal(masks, segments.targets((2, 4))[1].flip(-1))


def overlapping_instances(count=3):
    rng = np.random.default_rng(0)
    masks = (rng.random((count, 5, 7)) < 0.4).astype(np.uint8)
    crowd = (rng.random((5, 7)) < 0.3).astype(np.uint8)
    return InstanceMasks(masks, np.arange(count), crowd)


@pytest.mark.parametrize("count", [0, 3])
def test_overlapping_masks_are_padded_with_false(count):
    instances = overlapping_instances(count)
    labels, masks = instances.targets((6, 9))
    assert labels.tolist() == list(range(count))
    assert masks.dtype == torch.bool and masks.shape == (count, 6, 9)
    for n in range(count):
        assert (masks[n, :5, :7].numpy() == instances.masks[n]).all()
    assert not masks[:, 5:].any() and not masks[:, :, 7:].any()


def test_instances_below_the_minimum_area_are_dropped():
    instances = overlapping_instances()
    instances.masks[1] = 0
    areas = instances.masks.sum((1, 2))
    assert instances.targets((5, 7), 0)[0].tolist() == [0, 1, 2]
    assert instances.targets((5, 7), 1)[0].tolist() == [0, 2]
    least = int(max(areas))
    labels, masks = instances.targets((5, 7), least)
    assert labels.tolist() == [n for n in range(3) if areas[n] >= least]
    assert int(masks.sum((1, 2)).min()) >= least


def test_crowds_and_padding_are_invalid_but_background_is_valid():
    instances = overlapping_instances()
    valid = instances.valid_mask((6, 9))
    for y in range(6):
        for x in range(9):
            inside = y < 5 and x < 7
            expected = inside and (not instances.crowd[y, x] or instances.masks[:, y, x].any())
            assert bool(valid[y, x]) == bool(expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 6), (0, 3)])
def test_values_are_counted_for_even_and_odd_numbers_of_pixels(dtype, shape):
    map_ = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    counts = count_values(map_)
    assert len(counts) == np.iinfo(dtype).max + 1
    assert counts.tolist() == [(map_ == value).sum() for value in range(len(counts))]
    assert count_values(map_[:, ::2]).sum() == map_[:, ::2].size
