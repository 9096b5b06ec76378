"""Images and videos of any format are found, read and written, or refused with a reason."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image

from mask_former.cli.media import VideoReader, VideoWriter, Window, find_images
from mask_former.predictor.images import read_image

cv2 = pytest.importorskip("cv2")
OpenedVideo = cv2.VideoCapture


@pytest.fixture
def folder(tmp_path):
    """Write images a.jpg, b.PNG and sub/c.png, a hidden image, and notes.txt."""
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.png", ".hidden.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("text")
    return tmp_path


def names(files):
    return [file.name for file in files]


# Finding


def test_a_folder_is_replaced_by_its_images(folder):
    files, problems = find_images([str(folder)])
    assert names(files) == ["a.jpg", "b.PNG"] and not problems


def test_a_glob_is_replaced_by_the_files_and_the_images_of_folders_that_it_matches(folder):
    assert names(find_images([f"{folder}/*.jpg"])[0]) == ["a.jpg"]
    assert names(find_images([f"{folder}/**/*.png"])[0]) == ["c.png"]
    assert names(find_images([f"{folder}/s*"])[0]) == ["c.png"]


def test_a_file_that_is_named_like_a_glob_is_that_file(folder):
    (folder / "a.jpg").rename(folder / "a[1].jpg")
    assert names(find_images([f"{folder}/a[1].jpg"])[0]) == ["a[1].jpg"]


def test_each_file_is_listed_once_in_the_order_of_the_inputs(folder):
    files, problems = find_images([f"{folder}/notes.txt", f"{folder}/*.jpg", str(folder)])
    assert names(files) == ["notes.txt", "a.jpg", "b.PNG"] and not problems


def test_recursive_includes_subfolders_but_not_hidden_ones(folder):
    (folder / ".cache").mkdir()
    Image.new("RGB", (8, 6)).save(folder / ".cache" / "d.png")
    files, problems = find_images([str(folder)], recursive=True)
    assert names(files) == ["a.jpg", "b.PNG", "c.png"] and not problems
    assert names(find_images([f"{folder}/s*"], recursive=True)[0]) == ["c.png"]


def test_each_input_without_an_image_gets_a_line_that_names_it(folder):
    (folder / "empty").mkdir()
    inputs = [f"{folder}/{name}" for name in ("missing.jpg", "*.gif", "empty")]
    files, problems = find_images(inputs)
    assert not files and len(problems) == 3
    for text, line, reason in zip(
        inputs,
        problems,
        ("no such file", "matches no file", "a folder without images"),
        strict=True,
    ):
        assert line.startswith(f"{text}: {reason}")


# Reading


def scene(height=24, width=36):
    """Return an RGB image of smooth colours whose four sides differ."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y // height, 255 * x // width, 40 + 0 * x], -1).astype(np.uint8)


MODES = {
    "RGB": lambda image: (image, scene()),
    "L": lambda image: (image.convert("L"), None),
    "1": lambda image: (image.convert("1"), None),
    "LA": lambda image: (image.convert("LA"), None),
    "RGBA": lambda image: (image.convert("RGBA"), scene()),
    "P": lambda image: (image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64), None),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_png_becomes_rgb(tmp_path, mode):
    image, expected = MODES[mode](Image.fromarray(scene()))
    image.save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png")
    assert pixels.shape == (24, 36, 3) and pixels.dtype == np.uint8
    if expected is None:
        expected = np.asarray(image.convert("RGB"))
    assert (pixels == expected).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_and_not_clipped_to_white(tmp_path, suffix):
    values = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    pixels = read_image(tmp_path / f"x{suffix}")
    for y in range(24):
        for x in range(36):
            assert (pixels[y, x] == values[y, x] // 256).all()


def test_16_bit_colours_are_scaled(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), scene()[:, :, ::-1].astype(np.uint16) * 257)
    assert (read_image(tmp_path / "x.png") == scene()).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.fromarray(scene()).convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    difference = read_image(tmp_path / "x.jpg").astype(int) - scene()
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize(
    "orientation, turned",
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a))],
)
def test_a_photo_is_rotated_as_its_exif_tag_states(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene()).save(tmp_path / "x.png", exif=exif)
    assert (read_image(tmp_path / "x.png") == turned(scene())).all()


def test_values_that_are_not_an_image_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1e6, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(
        ValueError,
        match=r"x\.tif: cannot be read as an image: it holds float32 values from 1000000",
    ):
        read_image(tmp_path / "x.tif")


def damage(path, how):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello\n", "cut": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".tif", ".webp", ".ppm"])
@pytest.mark.parametrize("how", ["empty", "text", "cut"])
def test_a_file_that_is_not_a_complete_image_is_refused_by_name(tmp_path, how, suffix):
    path = tmp_path / f"x{suffix}"
    damage(path, how)
    reason = {"empty": "it is empty", "text": "Pillow does not recognise its format", "cut": ""}
    with pytest.raises(ValueError, match=rf"cannot be read as an image: {reason[how]}") as info:
        read_image(path)
    assert str(info.value).startswith(f"{path}: ") and "\n" not in str(info.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.jpg: is missing"):
        read_image(tmp_path / "x.jpg")


# Videos


def frames(count, height=48, width=64):
    """Return frames of one colour each."""
    values = np.linspace(30, 220, count).astype(np.uint8)
    return [np.full((height, width, 3), (v, 100, 255 - v), np.uint8) for v in values]


def write_video(path, images, fps=12.5):
    writer = VideoWriter(path, fps)
    for image in images:
        writer.write(image)
    writer.close()
    return writer


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_that_was_written_is_read_with_its_frames_size_and_speed(tmp_path, suffix):
    written = frames(10)
    writer = write_video(tmp_path / f"x{suffix}", written)
    assert writer.path.is_file() and writer.num_frames == 10
    reader = VideoReader(str(writer.path))
    assert reader.fps == pytest.approx(12.5) and reader.num_frames == 10
    read = list(reader)
    reader.close()
    assert len(read) == 10
    for one, other in zip(read, written, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() < 10  # red and blue are not swapped


def test_frames_are_read_one_at_a_time(tmp_path):
    write_video(tmp_path / "x.avi", frames(5))
    reader = iter(VideoReader(str(tmp_path / "x.avi")))
    assert next(reader).shape == (48, 64, 3)


def test_an_avi_is_written_if_opencv_cannot_write_an_mp4(tmp_path, monkeypatch):
    real = cv2.VideoWriter

    def without_mp4(path, *args):
        return real("" if path.endswith(".mp4") else path, *args)

    monkeypatch.setattr(cv2, "VideoWriter", without_mp4)
    writer = write_video(tmp_path / "x.mp4", frames(3))
    assert writer.path == tmp_path / "x.avi" and writer.path.stat().st_size > 0
    # an existing file is never replaced: it may be the video that is being read
    with pytest.raises(ValueError, match=r"x\.mp4: OpenCV cannot write this video"):
        write_video(tmp_path / "x.mp4", frames(1))


def test_a_truncated_video_is_an_error_after_its_last_frame(tmp_path):
    path = tmp_path / "x.avi"
    images = list(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8))
    write_video(path, images)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = 0
    with pytest.raises(ValueError, match="of 20 frames: damaged"):
        for _ in VideoReader(str(path)):
            read += 1
    assert 5 <= read <= 12


def with_broken_frames(path, broken, count=20):
    """Write an .avi in which the data of some frames is zeros; return the red value of each frame.

    The colour of a frame encodes its index.
    """
    write_video(path, frames(count))
    content = bytearray(path.read_bytes())
    movie = content.index(b"movi")
    starts = [match.end() for match in re.finditer(b"00dc", content[movie:])]
    for number in broken:
        begin = movie + starts[number] + 4  # after the size
        size = int.from_bytes(content[begin - 4 : begin], "little")
        content[begin : begin + size] = bytes(size)
    path.write_bytes(content)
    return [int(frame[0, 0, 0]) for frame in frames(count)]


def read_all(reader):
    """Return index -> red value of the frames that are read, and the indices of broken ones."""
    whole, broken = {}, []
    while True:
        try:
            frame = next(reader)
        except StopIteration:
            return whole, broken
        except ValueError as error:
            assert "damaged" in str(error)
            broken.append(reader.index)
        else:
            whole[reader.index] = int(frame[..., 0].mean())


@pytest.mark.parametrize("damaged", [[6], [6, 7, 8], [0], [3, 11]])
def test_a_broken_frame_in_the_middle_is_reported_and_those_after_it_are_read(tmp_path, damaged):
    reds = with_broken_frames(tmp_path / "x.avi", damaged)
    whole, broken = read_all(VideoReader(str(tmp_path / "x.avi")))
    assert broken == damaged
    assert sorted(whole) == [i for i in range(20) if i not in damaged]
    assert all(abs(red - reds[index]) < 8 for index, red in whole.items())


def test_every_n_reads_the_first_of_n_frames_at_an_nth_of_the_speed(tmp_path):
    reds = with_broken_frames(tmp_path / "x.avi", [4, 6])
    reader = VideoReader(str(tmp_path / "x.avi"), every_n=3)
    assert reader.num_frames == 7 and reader.fps == pytest.approx(12.5 / 3)
    whole, broken = read_all(reader)
    assert broken == [6]  # frame 4 is not needed
    assert list(whole) == [0, 3, 9, 12, 15, 18]
    assert all(abs(red - reds[index]) < 8 for index, red in whole.items())


def test_a_frame_of_another_size_is_an_error(tmp_path):
    writer = write_video(tmp_path / "x.avi", frames(2))
    with pytest.raises(ValueError, match=r"x\.avi: a frame is 32×24 pixels, those before it 64×48"):
        writer.write(frames(1, 24, 32)[0])


def test_a_file_that_is_not_a_video_is_named(tmp_path):
    (tmp_path / "x.mp4").write_text("text")
    with pytest.raises(ValueError, match=r"x\.mp4: not a video"):
        VideoReader(str(tmp_path / "x.mp4"))
    with pytest.raises(FileNotFoundError, match=r"y\.mp4: no such file"):
        VideoReader(str(tmp_path / "y.mp4"))


class Huge:
    """A video of 30,000×20,000 pixels, or one with such frames behind an honest header."""

    honest = False

    def __init__(self, source):
        self.video = OpenedVideo(source)

    def __getattr__(self, name):
        return getattr(self.video, name)

    def get(self, key):
        sides = {cv2.CAP_PROP_FRAME_WIDTH: 3e4, cv2.CAP_PROP_FRAME_HEIGHT: 2e4}
        return self.video.get(key) if self.honest else sides.get(key, self.video.get(key))

    def retrieve(self):
        raise cv2.error("Insufficient memory")


def test_a_video_with_more_pixels_than_an_image_may_have_is_refused_before_decoding(
    tmp_path, monkeypatch
):
    write_video(tmp_path / "x.avi", frames(2))
    monkeypatch.setattr(cv2, "VideoCapture", Huge)
    with pytest.raises(ValueError, match=r"x\.avi was refused: its frames are 30000×20000 pixels"):
        VideoReader(str(tmp_path / "x.avi"))


def test_frames_that_opencv_has_no_memory_for_are_broken_ones(tmp_path, monkeypatch):
    write_video(tmp_path / "x.avi", frames(2))
    monkeypatch.setattr(cv2, "VideoCapture", Huge)
    monkeypatch.setattr(Huge, "honest", True)
    assert read_all(VideoReader(str(tmp_path / "x.avi"))) == ({}, [0, 1])


def test_a_missing_camera_is_named():
    with pytest.raises(ValueError, match="camera 97: not found"):
        VideoReader(97)


# Windows


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
def test_a_window_without_a_screen_is_an_error_with_the_fix(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match=r"no display.*--output"):
        Window("title")


def test_an_opencv_without_windows_is_an_error_with_the_fix(monkeypatch):
    def fails(*args):
        raise cv2.error("not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", fails, raising=False)
    with pytest.raises(ValueError, match=r"this OpenCV has no windows.*opencv-python in place of"):
        Window("title")


@pytest.mark.parametrize(
    "key, goes_on", [(-1, True), (ord("x"), True), (ord("q"), False), (27, False)]
)
def test_a_window_shows_rgb_and_closes_on_q_or_escape(monkeypatch, key, goes_on):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    for name, function in {
        "namedWindow": lambda *args: None,
        "imshow": lambda title, image: shown.append(image),
        "waitKey": lambda milliseconds: key,
    }.items():
        monkeypatch.setattr(cv2, name, function, raising=False)
    assert Window("title").show(scene()) is goes_on
    assert (shown[0][:, :, ::-1] == scene()).all()
