"""A run of any length needs the memory of one batch, and images that fail are counted."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.cli.media import VideoReader, VideoWriter
from mask_former.cli.run import Item, PredictionRun, read_files, read_frames
from mask_former.data.datasets.classes import Classes
from mask_former.results import Result, ResultWriter

CLASSES = Classes(["dark", "bright"], [(0, 0, 0), (255, 255, 255)], [False, False])
FRAME = (48, 64, 3)


def by_brightness(images):
    """Return results of images, in place of a model."""
    return [
        Result(image, CLASSES, semantic=(image[..., 0] > 99).astype(np.int32)) for image in images
    ]


def items(count, broken=()):
    for index in range(count):
        image = None if index in broken else np.full(FRAME, index, np.uint8)
        error = ValueError("torn") if index in broken else None
        yield Item(f"item {index}", f"{index}", image, error=error)


class Used(list):
    """A list of the names of the items whose results it has received."""

    def __call__(self, item, result, seconds):
        assert (result.image == int(item.name)).all() and seconds >= 0
        self.append(int(item.name))
        return True


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_broken_items_do_not_count_in_a_batch_and_the_order_is_kept(batch_size, caplog):
    batches = []

    def predict(images):
        batches.append(len(images))
        return by_brightness(images)

    run, used = PredictionRun(predict, batch_size), Used()
    assert run.over(items(7, broken=(0, 3, 4)), used)
    assert used == [1, 2, 5, 6] and (run.done, run.failed) == (4, 3)
    assert batches == {1: [1, 1, 1, 1], 2: [2, 2], 3: [3, 1], 10: [4]}[batch_size]
    assert [r.getMessage() for r in caplog.records] == [f"item {i}: torn" for i in (0, 3, 4)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_failed_batch_is_repeated_image_by_image(batch_size):
    def fails_on_3(images):
        if any(image[0, 0, 0] == 3 for image in images):
            raise RuntimeError("out of memory")
        return by_brightness(images)

    run, used = PredictionRun(fails_on_3, batch_size), Used()
    assert run.over(items(6), used)
    assert used == [0, 1, 2, 4, 5] and (run.done, run.failed) == (5, 1)


def test_a_result_that_cannot_be_saved_counts_as_failed_and_the_others_are_saved(caplog):
    def full_disk(item, result, seconds):
        if item.name == "1":
            raise OSError("no space left")
        return True

    run = PredictionRun(by_brightness, 2)
    assert run.over(items(4), full_disk)
    assert (run.done, run.failed) == (3, 1) and caplog.messages == ["item 1: no space left"]


def test_the_user_can_stop_a_run_and_at_most_one_more_batch_is_read():
    read = []

    def noted():
        for item in items(9):
            read.append(item)
            yield item

    run = PredictionRun(by_brightness, 2)
    assert run.over(noted(), lambda item, result, seconds: item.name != "2") is False
    assert run.done == 3 and len(read) == 4


def test_a_bug_is_raised_instead_of_counted_as_a_broken_item():
    def mistaken(images):
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        PredictionRun(mistaken).over(items(1), Used())


def test_files_are_read_one_at_a_time(tmp_path):
    for index in range(3):
        Image.fromarray(np.full(FRAME, index, np.uint8)).save(tmp_path / f"{index}.png")
    files = read_files((tmp_path / f"{index}.png", f"{index}") for index in range(3))
    assert next(files).image is not None
    (tmp_path / "1.png").write_text("text")
    (tmp_path / "2.png").unlink()
    for item, reason in zip(files, ("cannot be read as an image", "is missing"), strict=True):
        assert item.image is None and reason in str(item.error)
        assert item.label == str(tmp_path / f"{item.name}.png")


def test_a_video_among_the_files_is_named_with_the_option_for_videos(tmp_path):
    (tmp_path / "a.MP4").write_bytes(bytes(100))
    [item] = read_files([(tmp_path / "a.MP4", "a")])
    assert item.image is None and "a.MP4 is a video" in str(item.error)
    assert "--video-input" in str(item.error)


class Peak:
    """Saves results, and records the peak of memory (bytes) of every 50 items."""

    def __init__(self, writer):
        self.writer, self.count, self.peaks = writer, 0, []

    def __call__(self, item, result, seconds):
        self.writer.write(result, item.name)
        self.count += 1
        if self.count % 50 == 0:
            self.peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
        return True


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path, batch_size):
    pytest.importorskip("cv2")
    writer = VideoWriter(tmp_path / "x.avi", 10)
    for index in range(300):
        writer.write(np.full((96, 128, 3), index % 200, np.uint8))
    writer.close()
    reader = VideoReader(str(tmp_path / "x.avi"))
    tracemalloc.start()
    try:
        with ResultWriter(tmp_path / "out", ["semantic-png"]) as results:
            peak, run = Peak(results), PredictionRun(by_brightness, batch_size)
            run.over(read_frames(reader, "x"), peak)
    finally:
        tracemalloc.stop()
    assert run.done == 300 and len(list((tmp_path / "out" / "semantic").iterdir())) == 300
    frame = 96 * 128 * 3
    assert max(peak.peaks[2:]) < peak.peaks[1] + 2 * frame  # 200 frames would be 7 MB


def test_frames_are_named_by_their_number_in_the_video(tmp_path, caplog):
    pytest.importorskip("cv2")
    caplog.set_level(logging.ERROR)
    writer = VideoWriter(tmp_path / "x.avi", 10)
    for index in range(5):
        writer.write(np.full(FRAME, index, np.uint8))
    writer.close()
    path = Path(tmp_path / "x.avi")
    names = [item.name for item in read_frames(VideoReader(str(path), 2), "x")]
    assert names == ["x_000000", "x_000002", "x_000004"]
