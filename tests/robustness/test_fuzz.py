"""Damaged files are refused by name, unless the damage does not matter or cannot be detected."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.table import read_table
from mask_former.data.formats.coco_instances import check_segmentation
from mask_former.data.formats.pixels import read_pixels
from mask_former.utils.weight_files import read_checkpoint
from tests.robustness.fuzzing import all_samples, fuzz
from tests.robustness.isolation import isolated
from tests.robustness.samples import write_checkpoints, write_table

MUTATIONS = 200


def test_no_damaged_file_hangs_or_crashes_or_is_accepted_although_it_cannot_be_right(tmp_path):
    cases = list(fuzz(all_samples(tmp_path), range(MUTATIONS)))
    problems = [case for case in cases if case.verdict == "problem"]
    assert not problems, "\n".join(map(str, problems[:5]))
    for kind in ("image", "label", "JSON", "YAML", "checkpoint", "result"):
        refused = [case for case in cases if case.kind == kind and case.verdict == "refused"]
        assert len(refused) >= MUTATIONS // 25, f"{kind}: hardly anything was damaged"


def test_a_mutation_can_be_repeated_from_its_seed(tmp_path):
    (one,) = fuzz(all_samples(tmp_path / "one"), range(7, 8))
    (other,) = fuzz(all_samples(tmp_path / "other"), range(7, 8))
    assert (one.file, one.damage, one.verdict) == (other.file, other.damage, other.verdict)


# Bugs that the fuzzer has found


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND"])
def test_a_wrong_bit_in_a_png_is_an_error(tmp_path, chunk):
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path, compress_level=0)
    content = bytearray(path.read_bytes())
    assert read_pixels(bytes(content)).shape == (9, 9)
    content[content.index(chunk) + 4 + (20 if chunk == b"IDAT" else 0)] ^= 1
    if chunk == b"IEND":
        read_pixels(bytes(content))  # a damaged end has no effect; a missing one is an error
        content = content[:-12]
    with pytest.raises(ValueError, match=r"checksum at byte \d+ is wrong|is truncated"):
        read_pixels(bytes(content))


def test_a_wrong_bit_in_the_weights_of_a_pth_is_an_error(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.full((1000,), 1.5)}}, path)
    content = path.read_bytes()
    number = np.float32(1.5).tobytes() * 10
    index = content.index(number) + 2
    path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
    assert torch.load(path)["model"]["a"].ne(1.5).any()  # torch does not verify checksums
    with pytest.raises(
        ValueError, match=r"x\.pth is not a readable checkpoint: the checksum of its record"
    ):
        read_checkpoint(path)


def test_a_pth_that_was_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"a": torch.ones(1000), "b": torch.zeros(9)}}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "x.pth")["model"]["a"].eq(1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    paths, model = write_checkpoints(tmp_path)
    weights = read_checkpoint(paths[0])["model"]
    name = next(iter(weights))
    weights[name].view(-1)[0] = value
    torch.save(weights, paths[0])
    with pytest.raises(ValueError, match=r"new\.pth: 1 of its \d+ weight tensors are not finite"):
        Checkpointer(model).load(str(paths[0]))


@pytest.mark.parametrize("point", [float("nan"), float("inf"), 1e30, "4", None, [1]])
def test_a_polygon_with_anything_but_points_near_the_image_is_refused(point):
    # pycocotools crashes the interpreter on NaN.
    with pytest.raises(ValueError, match=r"here: a polygon is .*expected numbers"):
        check_segmentation([[4, 4, 24, 4, point, 24]], (48, 64), "here")
    check_segmentation([[-4, 4, 70, 4, 24.5, 24]], (48, 64), "here")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": True}, "`name` is 'True', expected text"),
        ({"id": 1.5}, "`id` is '1.5', expected an integer"),
        ({"id": -1}, "`id` is '-1', expected an integer"),
        ({"color": [1, 2, 256]}, "`color` is .*expected three integers"),
        ({"isthing": "no"}, "`isthing` is 'no', expected true or false"),
    ],
)
def test_a_table_with_a_value_of_another_type_is_refused(tmp_path, change, message):
    path = write_table(tmp_path)
    content = json.loads(path.read_text())
    content["categories"][1].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"table\.json: category 1: {message}"):
        read_table(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("SEED: 1\nMODEL: {}\nSEED: 2\n", r"x\.yaml is not plain YAML: the key SEED occurs twice"),
        ("MODEL:\n  PIXEL_MEAN: [1, .nan, 3]\n", r"MODEL\.PIXEL_MEAN .*expected finite numbers"),
        (f"MODEL:\n  SWIN: {{EMBED_DIM: {10**30}}}\n", r"MODEL\.SWIN\."),
        (f"MODEL:\n  SEM_SEG_HEAD: {{MASK_DIM: {10**30}}}\n", r"MASK_DIM .*at most 65536"),
        ("MODEL:\n  SWIN: {DEPTHS: [2, x, 6, 2]}\n", r"MODEL\.SWIN\.DEPTHS .*'x', expected a num"),
        ("MODEL:\n  SWIN: {DEPTHS: [2, 6, 2]}\n", r"MODEL\.SWIN\.DEPTHS .*each of the four stages"),
        ("DATASETS:\n  TRAIN: [{a: 1}]\n", r"DATASETS\.TRAIN .*expected text"),
        ("DATASETS:\n  TRAIN:\n", r"DATASETS\.TRAIN has no value"),
        ("VERSION: new\nSEED: 1\n", r"x\.yaml: .* not supported between"),
    ],
)
def test_an_invalid_config_that_yacs_would_accept_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_cfg(str(tmp_path / "x.yaml"))


# The fuzzer itself detects crashes and hangs


def crash():
    import ctypes

    ctypes.string_at(0)


def test_a_crash_and_a_hang_are_distinguished_from_an_error():
    assert isolated(crash).signal == 11
    assert isolated(hang, timeout=0.3).timed_out
    assert isinstance(isolated(int, "x").error, ValueError)
    assert isolated(len, "abc").value == 3


def hang():
    import time

    time.sleep(60)
