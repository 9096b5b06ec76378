"""Windows cover the image, run once and blend without seams; small images need no windows."""

import itertools
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask_former.config.validation import validate
from mask_former.inference import ImageLogits, SlidingWindow, WindowLogits
from mask_former.inference import sliding_window as windows
from mask_former.inference.sliding_window import blend_weights, even_windows, window_starts
from mask_former.ops import lazy_masks
from tests.helpers.core_cases import LargestTensor
from tests.helpers.memory import peak_ratio
from tests.helpers.tiny_model import tiny_settings

CLASSES, QUERIES = 5, 7
GRIDS = [(100, 32, 16), (100, 32, 32), (97, 40, 13), (64, 64, 64), (65, 64, 64), (33, 32, 1)]
"""Lengths of an axis, with window sizes and strides, in pixels."""


# One axis


@pytest.mark.parametrize(("length", "size", "stride"), GRIDS)
def test_windows_of_one_size_cover_exactly_the_axis(length, size, stride):
    starts = window_starts(length, size, stride)
    covered = {pixel for start in starts for pixel in range(start, start + size)}
    assert covered == set(range(length))
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < step <= stride for step in steps)
    assert set(steps[:-1]) <= {stride}  # only the last window is shifted


@pytest.mark.parametrize("length", [1, 31, 32])
def test_an_axis_no_longer_than_the_window_has_one_window(length):
    assert window_starts(length, 32, 16) == [0]
    assert torch.equal(blend_weights(length, 32, 16), torch.ones(1, length))


@pytest.mark.parametrize(("length", "size", "stride"), GRIDS)
def test_blend_weights_sum_to_1_and_fall_towards_the_edges(length, size, stride):
    weights = blend_weights(length, size, stride)
    total = torch.zeros(length)
    for start, weight in zip(window_starts(length, size, stride), weights, strict=True):
        total[start : start + size] += weight
        assert (weight > 0).all()
    torch.testing.assert_close(total, torch.ones(length))
    if stride == size / 2:
        inner = weights[1]
        assert inner[0] < 0.05 and inner[-1] < 0.05 and inner[size // 2] > 0.95


@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [
        ((512, 512), 512, [[0, 512]]),
        ((512, 700), 512, [[0, 512], [188, 700]]),
        ((1365, 512), 512, [[0, 512], [426, 938], [853, 1365]]),
        # 3 windows of 112 and 1 of the last pixels: rounding errors must not lose the last one
        (339, 112, [[0, 112], [75, 187], [151, 263], [227, 339]]),
    ],
)
def test_even_windows_are_the_fewest_and_end_where_the_image_does(size, window, expected):
    assert even_windows(size, window) == expected


@pytest.mark.parametrize(
    ("size", "step"), [(512, 352), (1024, 672), (256, 160), (640, 416), (64, 32), (20, 20)]
)
def test_the_default_stride_is_two_thirds_in_steps_of_32(size, step):
    assert SlidingWindow(size).step == step
    assert SlidingWindow(size, 17).step == 17


def test_the_smallest_window_is_one_pixel():
    assert SlidingWindow(1).step == 1
    with pytest.raises(ValueError, match="expected 1 or more pixels"):
        SlidingWindow(0)


# Blending


class Network:
    """A network with random logits; it records its scores by the window's first pixel."""

    def __init__(self, constant=False, dtype=torch.float32):
        self.recorded, self.batches, self.alive, self.most_alive = {}, [], 0, 0
        self.constant, self.dtype = constant, dtype
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, parts):
        self.batches.append([tuple(part.shape) for part in parts])
        return [self.logits(part) for part in parts]

    def logits(self, part):
        """Return logits with masks at a quarter of the size padded to a multiple of 8."""
        size = tuple(part.shape[-2:])
        padded = tuple(-(-side // 8) * 8 for side in size)
        generator = torch.Generator().manual_seed(0) if self.constant else self.generator
        mask_cls = 3 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
        grid = (1, 1) if self.constant else (padded[0] // 4, padded[1] // 4)
        mask_pred = 4 * torch.randn(QUERIES, *grid, generator=generator)
        mask_pred = mask_pred.expand(-1, padded[0] // 4, padded[1] // 4).to(self.dtype).clone()
        logits = ImageLogits(mask_cls, mask_pred, padded, size, size)
        key = part[0, 0, 0].item()
        assert key not in self.recorded, "a window was run twice"
        self.recorded[key] = SimpleNamespace(size=size, scores=logits.semantic_scores())
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(mask_pred, self.forget)
        return logits

    def forget(self):
        self.alive -= 1


def make_logits(size=(50, 75), window=32, stride=20, output=None, **options):
    """Return the logits of an image whose pixels hold their own index, and their network."""
    image = torch.arange(size[0] * size[1], dtype=torch.float32).view(1, *size)
    network = Network(**options)
    logits = WindowLogits(
        image,
        SlidingWindow(window, stride),
        network,
        output or size,
        CLASSES,
        torch.device("cpu"),
    )
    return logits, network


def blended(logits, network):
    """Return the mean of the windows' scores, weighted by the distance from their borders."""
    height, width = logits.image.shape[-2:]
    total, weights = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for key, window in network.recorded.items():
        top, left = divmod(int(key), width)
        y, x = (
            torch.tensor([min(i + 0.5, side - i - 0.5) for i in range(side)])
            for side in window.size
        )
        weight = y[:, None] * x
        where = slice(top, top + window.size[0]), slice(left, left + window.size[1])
        total[(slice(None), *where)] += weight * window.scores
        weights[where] += weight
    return total / weights


@pytest.mark.parametrize(
    "size", [(50, 75), (32, 75), (20, 75), (75, 20), (75, 33), (32, 32)], ids=str
)
@pytest.mark.parametrize("stride", [20, 32, 7])
def test_scores_are_the_weighted_mean_of_the_windows(size, stride):
    logits, network = make_logits(size, stride=stride)
    found = logits.semantic_scores()
    torch.testing.assert_close(found, blended(logits, network), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", [(100, 150), (25, 30), (50, 80)], ids=str)
def test_the_blended_scores_are_resized_to_the_output_size(output):
    logits, network = make_logits(output=output)
    found = logits.semantic_scores()
    expected = F.interpolate(
        blended(logits, network)[None], output, mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", [None, (100, 150), (25, 30)], ids=str)
def test_the_map_holds_the_best_class_and_its_share_of_the_scores(output):
    (logits, _), (twin, _) = (make_logits(output=output) for _ in range(2))
    (ids, shares), scores = logits.semantic_map(), twin.semantic_scores()
    assert ids.dtype == torch.int64 and shares.dtype == torch.float32
    assert torch.equal(ids, scores.argmax(0))
    torch.testing.assert_close(shares, scores.amax(0) / scores.sum(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("output", [None, (100, 150), (25, 30)], ids=str)
def test_scores_and_map_equal_the_references(output):
    found, reference = (make_logits(output=output)[0] for _ in range(2))
    reference.reference_ops = True
    expected, maps = reference.semantic_scores(), []
    torch.testing.assert_close(found.semantic_scores(), expected, rtol=1e-5, atol=1e-6)
    for on in (False, True):
        logits, _ = make_logits(output=output)
        logits.reference_ops = on
        maps.append(logits.semantic_map())
    torch.testing.assert_close(maps[0][1], maps[1][1], rtol=1e-5, atol=1e-6)
    assert torch.equal(maps[0][0], maps[1][0])


@pytest.mark.parametrize("grid", [(32, 20), (40, 40), (64, 11), (100, 50)])
def test_windows_that_predict_the_same_leave_no_trace(grid):
    logits, _ = make_logits((50, 75), *grid, constant=True)
    whole = Network(constant=True).logits(logits.image).semantic_scores()
    torch.testing.assert_close(logits.semantic_scores(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_scores_do_not_depend_on_how_many_rows_are_blended_at_once(rows, monkeypatch):
    expected = [make_logits(output=size)[0].semantic_scores() for size in (None, (120, 70))]
    monkeypatch.setattr(windows, "_BAND_ROWS", rows)
    found = [make_logits(output=size)[0].semantic_scores() for size in (None, (120, 70))]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_mixed_precision_are_blended_in_fp32(dtype):
    logits, network = make_logits(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits.semantic_scores()
    assert found.dtype == torch.float32
    # The scores of a whole image are multiplied in bfloat16 if its masks have that type.
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, blended(logits, network), rtol=tolerance, atol=1e-6)


# Network calls and memory


@pytest.mark.parametrize("result", ["semantic_scores", "semantic_map"])
@pytest.mark.parametrize("output", [None, (300, 75), (20, 75)], ids=str)
def test_each_window_is_run_once_and_few_are_held_in_memory(result, output):
    logits, network = make_logits((200, 75), output=output)
    assert not network.batches  # nothing runs before a result is requested
    getattr(logits, result)()
    tops, lefts = (window_starts(side, 32, 20) for side in (200, 75))
    assert len(network.recorded) == len(tops) * len(lefts) == 10 * 4
    assert network.most_alive <= 3 * len(lefts)
    assert network.alive == 0


def test_requesting_the_map_again_runs_nothing():
    logits, network = make_logits()
    ids, shares = logits.semantic_map()
    runs, expected = len(network.batches), (ids.clone(), shares.clone())
    ids.fill_(-1)  # a caller may overwrite its copy
    shares.fill_(-1)
    assert all(map(torch.equal, logits.semantic_map(), expected))
    assert len(network.batches) == runs


@pytest.mark.parametrize(("pixels", "batches"), [(1, [1] * 4), (32 * 32 * 3, [3, 1])])
def test_windows_are_run_in_bounded_batches_of_one_size(pixels, batches, monkeypatch):
    monkeypatch.setitem(windows._BATCH_PIXELS, "cpu", pixels)
    logits, network = make_logits((32, 75))
    found = logits.semantic_scores()
    torch.testing.assert_close(found, blended(logits, network), rtol=1e-5, atol=1e-6)
    assert [len(batch) for batch in network.batches] == batches
    assert {shape for batch in network.batches for shape in batch} == {(1, 32, 32)}


def test_the_map_never_holds_every_class_or_window(monkeypatch):
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", 1 << 12)
    logits, _ = make_logits((300, 75))
    with LargestTensor() as largest:
        logits.semantic_map()
    assert 0 < largest.elements <= 300 * 75


PEAK = """
import torch
from mask_former.inference import ImageLogits, SlidingWindow, WindowLogits
def run(parts):
    size = tuple(parts[0].shape[-2:])
    return [
        ImageLogits(torch.randn(20, 151), torch.randn(20, size[0] // 4, size[1] // 4), *[size] * 3)
        for _ in parts
    ]
def logits(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    return WindowLogits(image, SlidingWindow(128), run, size, 150, torch.device("cpu"))
logits((130, 130)).semantic_map()  # loads libraries
before = memory("VmRSS")
logits((500, 1000)).semantic_map()
ratio = (memory("VmHWM") - before) / (150 * 500 * 1000 * 4)
"""


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_map_takes_a_fraction_of_the_memory_of_all_scores():
    assert peak_ratio(PEAK) < 0.3


# The model


@pytest.fixture
def tiny(cfg):
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    return cfg


def build(cfg, size=0, stride=0):
    cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE = size, stride
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_embed" in name or ("mask_embed" in name and weight.ndim > 1):
                weight.mul_(10)
    return model


def make_image(size, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=g) * 255
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0].byte()


def scores_of(model, examples):
    with torch.no_grad():
        return [result["sem_seg"] for result in model(examples)]


@pytest.mark.parametrize("size", [96, 200])
def test_an_image_no_larger_than_a_window_gives_exactly_the_result_without_windows(tiny, size):
    examples = [{"image": make_image((96, 70)), "height": 50, "width": 40}]
    examples.append({"image": make_image((60, 90), seed=1)})
    expected = scores_of(build(tiny), examples)
    assert all(map(torch.equal, scores_of(build(tiny, size), examples), expected))


# Models run in double precision, because rounding in fp32 depends on the batch size. The remaining
# error is that of blending, which is computed in fp32.
BLENDED = {"rtol": 1e-5, "atol": 1e-6}


@torch.no_grad()
def test_a_larger_image_is_blended_from_the_models_scores_of_its_windows(tiny):
    model, image = build(tiny, 64, 40).double(), make_image((64, 144))
    (found,) = scores_of(model, [{"image": image}])
    expected = torch.zeros_like(found)
    whole = build(tiny).double()
    weights = blend_weights(144, 64, 40)
    for left, weight in zip((0, 40, 80), weights, strict=True):
        (part,) = scores_of(whole, [{"image": image[:, :, left : left + 64]}])
        expected[:, :, left : left + 64] += weight * part
    torch.testing.assert_close(found, expected, **BLENDED)
    (entire,) = scores_of(whole, [{"image": image}])
    assert not torch.allclose(found, entire, rtol=1e-2)  # windows do make a difference


@torch.no_grad()
def test_large_and_small_images_of_a_batch_keep_their_order(tiny):
    model = build(tiny, 64).double()
    sizes = [(100, 70), (64, 64), (64, 65), (50, 40)]
    examples = [{"image": make_image(size, seed)} for seed, size in enumerate(sizes)]
    examples[0].update(height=30, width=20)
    predicted = model.predict(examples)
    kinds = [WindowLogits, ImageLogits, WindowLogits, ImageLogits]
    assert [type(logits) for logits in predicted] == kinds
    assert [logits.output_size for logits in predicted] == [(30, 20), *sizes[1:]]
    assert {logits.num_classes for logits in predicted} == {4}
    found = scores_of(model, examples)
    for example, scores in zip(examples, found, strict=True):
        (alone,) = scores_of(model, [example])
        torch.testing.assert_close(scores, alone, **BLENDED)


def test_running_windows_in_training_mode_is_refused(tiny):
    model = build(tiny, 64)
    (logits,) = model.predict([{"image": make_image((64, 80))}])
    model.train()
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\)"):
        logits.semantic_map()


@pytest.mark.parametrize("kind", ["panoptic", "instances"])
def test_windows_give_only_semantic_results(tiny, kind):
    (logits,) = build(tiny, 64).predict([{"image": make_image((64, 80))}])
    options = {"thing_ids": (), "object_mask_threshold": 0.0, "overlap_threshold": 0.0}
    with pytest.raises(ValueError, match=r"80×64 pixels with TEST\.SLIDING_WINDOW\.SIZE 64"):
        getattr(logits, kind)(**options if kind == "panoptic" else {"topk": 5})


# Mistakes in the config


@pytest.mark.parametrize("check", [validate, build_model])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SIZE": -1}, r"SLIDING_WINDOW\.SIZE is -1, expected 1 or more"),
        ({"SIZE": 64, "STRIDE": 65}, r"SLIDING_WINDOW\.STRIDE is 65, expected 1 … 64 pixels"),
        ({"SIZE": 64, "STRIDE": -2}, r"SLIDING_WINDOW\.STRIDE is -2, expected 1 … 64 pixels"),
        ({"STRIDE": 32}, r"STRIDE is 32, but TEST\.SLIDING_WINDOW\.SIZE is 0"),
    ],
)
def test_the_error_for_an_invalid_window_names_the_valid_values(tiny, check, settings, message):
    tiny.TEST.SLIDING_WINDOW.merge_from_other_cfg(CfgNode(settings))
    with pytest.raises(ValueError, match=message):
        check(tiny)


@pytest.mark.parametrize("check", [validate, build_model])
@pytest.mark.parametrize("key", ["PANOPTIC_ON", "INSTANCE_ON"])
def test_results_that_windows_cannot_give_are_refused(tiny, check, key):
    tiny.MODEL.MASK_FORMER.TEST[key] = True
    check(tiny)
    tiny.TEST.SLIDING_WINDOW.SIZE = 512
    with pytest.raises(ValueError, match=rf"SLIDING_WINDOW\.SIZE is 512 .*TEST\.{key} is True"):
        check(tiny)


def test_windows_are_refused_for_other_architectures(tiny):
    tiny.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    tiny.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    validate(tiny)
    tiny.TEST.SLIDING_WINDOW.SIZE = 512
    with pytest.raises(ValueError, match=r"SLIDING_WINDOW\.SIZE is 512, but.*Set it to 0\."):
        validate(tiny)
