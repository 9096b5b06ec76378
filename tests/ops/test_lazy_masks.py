"""Lazy masks: bands of rows equal the rows of the whole, however it is resized and cropped."""

import pytest
import torch
import torch.nn.functional as F

from mask_former.ops import LazyMasks, WholeMasks, as_masks, lazy_masks, reference_ops
from mask_former.ops.lazy_masks import resize_bands
from tests.helpers import references

SIZES = [(24, 31), (10, 13), (7, 5), (1, 1), (11, 200), (3, 14)]


def make_masks(queries=5, size=(10, 13), seed=0):
    return 6 * torch.randn(queries, *size, generator=torch.Generator().manual_seed(seed))


def interpolate(masks, size):
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


# torch and LazyMasks compute a pixel's position in fp32; the reference loop uses fp64.
TO_THE_LOOP = {"rtol": 1e-4, "atol": 5e-5}


def assert_same(lazy, expected):
    """Compare the masks as a whole, row by row and pixel by pixel."""
    assert lazy.size == tuple(expected.shape[-2:])
    torch.testing.assert_close(lazy.tensor(), expected, rtol=1e-5, atol=1e-5)
    for y in range(lazy.size[0]):
        row = lazy.rows(y, y + 1)
        torch.testing.assert_close(row[0], expected[:, y], rtol=1e-5, atol=1e-5)
    if isinstance(lazy.source, torch.Tensor):
        y, x = torch.ones(lazy.size).nonzero(as_tuple=True)
        pixels = lazy.at(y, x).T.view_as(expected)
        torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)


def test_upsampling_matches_the_reference_loop():
    masks = make_masks()
    expected = references.upsample(masks.double(), (24, 31)).float()
    found = LazyMasks(masks).resize((24, 31)).tensor()
    torch.testing.assert_close(found, expected, **TO_THE_LOOP)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("source", [(10, 13), (1, 1)], ids=str)
def test_resizing_matches_torchs(source, size):
    masks = make_masks(size=source)
    assert_same(LazyMasks(masks).resize(size), interpolate(masks, size))


@pytest.mark.parametrize("last", SIZES, ids=str)
@pytest.mark.parametrize("first", SIZES, ids=str)
def test_any_chain_of_steps_matches_torchs(first, last):
    masks = make_masks()
    kept = (max(1, first[0] - 3), max(1, first[1] - 2))
    lazy = LazyMasks(masks).resize(first).crop(kept).resize(last)
    cropped = interpolate(masks, first)[:, : kept[0], : kept[1]]
    assert_same(lazy, interpolate(cropped, last))
    assert_same(lazy.crop((5, 9)), interpolate(cropped, last)[:, :5, :9])
    probabilities = LazyMasks(masks).resize(first).crop(kept).sigmoid().resize(last)
    assert_same(probabilities, interpolate(cropped.sigmoid(), last))


def test_a_crop_works_without_a_resize():
    masks = make_masks()
    assert_same(LazyMasks(masks).crop((4, 20)), masks[:, :4])
    assert torch.equal(LazyMasks(masks).crop((4, 6)).tensor(), masks[:, :4, :6])


def test_steps_that_change_nothing_return_the_same_object():
    masks = make_masks()
    lazy = LazyMasks(masks)
    assert (
        lazy.resize(None) is lazy and lazy.resize((10, 13)) is lazy and lazy.crop((50, 60)) is lazy
    )
    assert as_masks(lazy) is lazy
    assert torch.equal(lazy.tensor(), masks)


@pytest.mark.parametrize("elements", [1, 100, 744, 745, 1 << 20])
@pytest.mark.parametrize("channels", [0, 20])
def test_bands_cover_every_row_once_within_the_element_limit(elements, channels, monkeypatch):
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", elements)
    lazy = LazyMasks(make_masks()).resize((24, 31))
    bands = list(lazy.bands(channels))
    rows = [y for where, _ in bands for y in range(where.start, where.stop)]
    assert rows == list(range(24))
    for where, band in bands:
        assert len(band) == where.stop - where.start
        assert len(band) == 1 or len(band) * max(5, channels) * 31 <= elements
    found = torch.cat([band for _, band in bands]).transpose(0, 1)
    torch.testing.assert_close(found, lazy.tensor(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_type_is_resized_in_fp32(dtype):
    masks = make_masks().to(dtype)
    found = LazyMasks(masks).resize((24, 31)).tensor()
    assert found.dtype == torch.float32
    expected = references.upsample(masks.double(), (24, 31)).float()
    torch.testing.assert_close(found, expected, **TO_THE_LOOP)


@pytest.mark.parametrize("size", [None, (24, 31)], ids=str)
def test_memory_layout_is_irrelevant(size):
    masks = make_masks()
    expected = LazyMasks(masks).resize(size).tensor()
    strided = make_masks(size=(20, 26))
    strided[:, ::2, ::2] = masks
    layouts = [
        masks[None].contiguous(memory_format=torch.channels_last)[0],
        masks.transpose(1, 2).contiguous().transpose(1, 2),
        strided[:, ::2, ::2],
    ]
    for other in layouts:
        assert not other.is_contiguous()
        assert torch.equal(LazyMasks(other).resize(size).tensor(), expected)


def test_indexing_selects_masks():
    lazy = LazyMasks(make_masks()).resize((24, 31)).crop((20, 30))
    keep = torch.tensor([True, False, True, True, False])
    assert_same(lazy[keep], lazy.tensor()[keep])
    assert_same(lazy[torch.tensor([3, 0])], lazy.tensor()[[3, 0]])
    assert lazy[keep & False].tensor().shape == (0, 20, 30)


def test_an_infinite_logit_affects_only_the_pixels_interpolated_from_it():
    masks = make_masks(queries=1, size=(4, 4))
    expected = LazyMasks(masks).resize((16, 16)).tensor()
    masks[0, 3, 3] = float("inf")
    found = LazyMasks(masks).resize((16, 16)).tensor()
    assert torch.equal(found[:, :10], expected[:, :10])
    assert not found.isnan().any() and (found[0, 14:, 14:] > 1e6).all()


# The reference


def test_reference_ops_selects_whole_masks():
    masks = make_masks()
    assert isinstance(as_masks(masks), LazyMasks)
    with reference_ops():
        assert isinstance(as_masks(masks), WholeMasks)
        assert isinstance(as_masks(LazyMasks(masks)), LazyMasks)  # already wrapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("queries", [5, 0])
def test_lazy_masks_equal_the_references(queries, dtype):
    masks = make_masks(queries).to(dtype)
    masks[:1, 0, 0] = float("inf")
    keep = torch.arange(queries) % 2 == 0
    found, expected = (
        kind(masks)[keep].resize((24, 31)).crop((20, 40)).sigmoid().resize((7, 50))
        for kind in (LazyMasks, WholeMasks)
    )
    assert found.size == expected.size == (7, 50) and len(found) == len(expected)
    torch.testing.assert_close(found.tensor(), expected.tensor(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.rows(2, 5), expected.rows(2, 5), rtol=1e-5, atol=1e-6)
    ((rows, band),) = expected.bands()
    assert rows == slice(0, 7) and torch.equal(band, expected.rows(0, 7))


# Resizing a stream of bands


@pytest.mark.parametrize("output", [(10, 13), (24, 31), (4, 50), (3, 3), (1, 1), (37, 13)], ids=str)
@pytest.mark.parametrize("height", [1, 3, 10])
@pytest.mark.parametrize("max_rows", [1, 4, 100])
def test_bands_are_resized_like_the_whole_and_requested_only_when_needed(output, height, max_rows):
    maps = make_masks()
    starts = iter(range(0, 10, height))
    seen = []

    def bands():
        for start in starts:
            seen.append(start)
            rows = slice(start, min(start + height, 10))
            yield rows, maps[:, rows].transpose(0, 1)

    expected = interpolate(maps, output)
    done = 0
    for rows, band in resize_bands(bands(), (10, 13), output, max_rows):
        assert rows.start == done and len(band) == rows.stop - rows.start
        if output != (10, 13):
            assert len(band) <= max_rows
            # no band is requested before an output row needs its source rows
            assert seen[-1] <= (rows.stop - 0.5) * 10 / output[0] + 0.5
        done = rows.stop
        torch.testing.assert_close(band.transpose(0, 1), expected[:, rows], rtol=1e-5, atol=1e-5)
    assert done == output[0]
    with reference_ops():
        ((rows, band),) = resize_bands(
            [(slice(0, 10), maps.transpose(0, 1))], (10, 13), output, max_rows
        )
    assert rows == slice(0, output[0])
    assert torch.equal(band.transpose(0, 1), expected)
