"""demo/demo.py: pictures and videos in, drawings out, one line for each that cannot be drawn."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.engine.media import VideoReader, VideoWriter
from tests.tiny_model import DATASET, NAMES, write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "demo" / "demo.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Paths of a config that turns every result on, and of weights."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), PANOPTIC_ON=True, INSTANCE_ON=True)


@pytest.fixture
def module(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "setup_logger", lambda **kwargs: None)
    return module


class Log(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def lines(self, level=logging.INFO):
        return [r.getMessage() for r in self.records if r.levelno == level]

    @property
    def errors(self):
        return self.lines(logging.ERROR)


@pytest.fixture
def log():
    log, logger = Log(), logging.getLogger("mask_former")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)
    logger.setLevel(level)


@pytest.fixture
def run(module, log, tiny, tmp_path, monkeypatch):
    """Runs the demo on the tiny model in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, config=tiny[0], opts=()):
        weights = ("MODEL.WEIGHTS", str(tiny[1]))
        source = [*map(str, arguments), "--opts", *weights, *opts]
        return module.main(["--config-file", str(config), *source])

    return run


def make_image(path, seed=0, size=(64, 64)):
    """A picture of coloured squares."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


# What is drawn


def test_an_image_becomes_a_picture_and_the_last_line_says_where_it_lies(run, log):
    make_image("in/a.png", size=(500, 400))
    assert run("--input", "in/a.png", "--output", "out") == 0
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    picture = pixels("out/a.png")
    assert picture.shape == (400, 500, 3) and (picture != pixels("in/a.png")).mean() > 0.5
    *_, image_line, last = log.lines()
    assert re.fullmatch(r"in/a.png: \d+ panoptic segments?, \d\.\d\d s -> out/a.png", image_line)
    assert last == "1 of 1 inputs drawn: out"


def test_small_images_are_drawn_enlarged(run):
    make_image("a.png", size=(160, 128))
    make_image("thin.png", size=(300, 3))
    run("--input", "a.png", "thin.png", "--output", "out")
    assert pixels("out/a.png").shape == (384, 480, 3)
    assert pixels("out/thin.png").shape == (15, 1500, 3)


@pytest.mark.parametrize(
    "on, kind", [("PSI", "panoptic"), ("SI", "instance"), ("S", "semantic"), ("PS", "panoptic")]
)
def test_the_richest_result_that_the_config_turns_on_is_drawn(run, log, on, kind):
    make_image("a.png")
    opts = []
    for letter, name in {"P": "PANOPTIC", "S": "SEMANTIC", "I": "INSTANCE"}.items():
        opts += [f"MODEL.MASK_FORMER.TEST.{name}_ON", str(letter in on)]
    assert run("--input", "a.png", opts=opts) == 0
    assert f" {kind} segment" in log.lines()[-2]


def test_kinds_that_are_asked_for_get_one_picture_each(run):
    make_image("a.png")
    assert run("--input", "a.png", "--kinds", "semantic", "panoptic", "instance") == 0
    names = sorted(path.name for path in Path("output/demo").iterdir())
    assert names == ["a_instance.png", "a_panoptic.png", "a_semantic.png"]


def test_a_config_that_turns_on_no_result_is_an_error(run, log):
    make_image("a.png")
    opts = [
        word
        for name in ("PANOPTIC", "SEMANTIC", "INSTANCE")
        for word in (f"MODEL.MASK_FORMER.TEST.{name}_ON", "False")
    ]
    assert run("--input", "a.png", opts=opts) == 2
    assert "--kinds" in log.errors[0]


def test_what_is_below_the_threshold_is_not_drawn(run):
    make_image("a.png", size=(420, 420))
    kinds = ["panoptic", "instance", "semantic"]
    for threshold in (0, 1):
        run("--input", "a.png", "--confidence-threshold", threshold, "--kinds", *kinds)
        for kind in kinds:
            changed = (pixels(f"output/demo/a_{kind}.png") != pixels("a.png")).any(-1).mean()
            assert changed > 0.1 if threshold == 0 else changed == 0, (kind, threshold, changed)


def test_the_threshold_is_the_models_for_panoptic_results(module, tiny):
    cfg = module.load_cfg(str(tiny[0]), ["MODEL.WEIGHTS", str(tiny[1])])
    for threshold, expected in ((None, 0.0), (0.3, 0.3), (0.0, 0.0)):
        demo = module.Demo(cfg, ["panoptic"], threshold)
        assert demo.pipeline.model.object_mask_threshold == expected
    assert cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD == 0.0


def test_names_come_from_the_dataset_of_the_config(module, tiny):
    for datasets, names in (
        ("('tiny_model_val',)", NAMES),
        ("('nobody_knows_it',)", [f"class {i}" for i in range(4)]),
    ):
        opts = ["MODEL.WEIGHTS", str(tiny[1]), "DATASETS.TEST", datasets]
        cfg = module.load_cfg(str(tiny[0]), opts)
        assert module.Demo(cfg, ["semantic"], None).classes.names == names
    assert DATASET == "tiny_model_val"


def test_names_of_another_number_of_classes_are_not_taken_and_the_log_says_so(run, log):
    make_image("a.png")
    assert run("--input", "a.png", opts=["DATASETS.TEST", "('camvid_sem_seg_val',)"]) == 0
    [warning] = log.lines(logging.WARNING)
    assert "'camvid_sem_seg_val' has 11 classes, the model has 4" in warning


# Where it goes


def test_without_output_pictures_go_to_output_demo(run, log):
    make_image("a.png")
    assert run("--input", "a.png") == 0
    assert Path("output/demo/a.png").is_file() and log.lines()[-1].endswith("drawn: output/demo")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_output_may_be_a_file_for_one_image(run, suffix):
    make_image("a.png")
    assert run("--input", "a.png", "--output", f"x/y{suffix}") == 0
    assert pixels(f"x/y{suffix}").shape == (384, 384, 3)


def test_images_of_one_name_do_not_replace_each_other(run):
    for index in range(3):
        make_image(f"{index}/a.png", seed=index)
    assert run("--input", "0", "1/*.png", "2/a.png", "--output", "out") == 0
    pictures = [pixels(path) for path in sorted(Path("out").iterdir())]
    assert len(pictures) == 3
    assert not any((one == pictures[0]).all() for one in pictures[1:])


@pytest.mark.parametrize("output, reason", [(".", "would replace"), ("x.jpg", "is one file")])
def test_an_output_that_will_not_do_is_an_error_before_anything_is_drawn(run, log, output, reason):
    images = [make_image(f"{name}.png") for name in "ab"]
    before = [image.read_bytes() for image in images]
    assert run("--input", *images, "--output", output) == 2
    assert len(log.errors) == 1 and reason in log.errors[0]
    assert [image.read_bytes() for image in images] == before


# What goes wrong


def test_files_that_are_no_images_get_one_line_each_and_the_rest_is_drawn(run, log):
    make_image("in/a.png")
    make_image("in/z.jpg")
    Path("in/text.jpg").write_text("hello\n")
    Path("in/zero.png").touch()
    whole = make_image("whole.png", size=(300, 300)).read_bytes()
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("empty").mkdir()
    bad = ["in/text.jpg", "in/zero.png", "in/cut.png", "empty", "none/*.jpg", "none.jpg"]
    assert run("--input", "in", "empty", "none/*.jpg", "none.jpg", "--output", "out") == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "z.png"]
    assert sorted(line.split(":")[0] for line in log.errors) == sorted(bad)
    assert not any("\n" in line for line in log.errors)
    assert log.lines()[-1] == "2 of 8 inputs drawn: out"


def test_an_image_that_the_model_fails_on_does_not_end_the_others(run, log, module, monkeypatch):
    make_image("a.png", size=(64, 64))
    make_image("b.png", size=(64, 48))
    overlays = module.Demo.overlays

    def fails_on_squares(self, image):
        if image.shape[0] == image.shape[1]:
            raise RuntimeError("out of memory:\n  tried to allocate 3 TiB")
        return overlays(self, image)

    monkeypatch.setattr(module.Demo, "overlays", fails_on_squares)
    assert run("--input", "a.png", "b.png") == 1
    assert log.errors == ["a.png: out of memory: tried to allocate 3 TiB"]
    assert Path("output/demo/b.png").is_file()


def test_inputs_that_are_all_bad_need_no_model(run, log):
    assert run("--input", "none.png", config="tiny.yaml") == 2  # there is no such config
    log.records.clear()
    assert run("--input", "none.png", opts=["MODEL.WEIGHTS", "none.pth"]) == 1
    assert log.errors == ["none.png: no such file or folder"]


@pytest.mark.parametrize(
    "opts, reason",
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is not set"),
        (["MODEL.WEIGHTS", "none.pth"], "There is no checkpoint none.pth"),
        (["MODEL.WEIGHTS", "text.pth"], "text.pth is no readable checkpoint"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], "does not fit the model"),
        (["MODEL.BACKBONE.NAME", "none"], "MODEL.BACKBONE.NAME is 'none'"),
        (["MODEL.NONE", "1"], "MODEL.NONE"),
        (["MODEL.MASK_FORMER.HIDDEN_DIM", "many"], "MODEL.MASK_FORMER.HIDDEN_DIM"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line_and_exit_code_2(run, log, opts, reason):
    make_image("a.png")
    Path("text.pth").write_text("hello\n")
    assert run("--input", "a.png", opts=opts) == 2
    assert len(log.errors) == 1 and reason in log.errors[0] and "\n" not in log.errors[0]
    assert not list(Path().glob("output/**/*.png"))


@pytest.mark.parametrize("content", [None, "MODEL: [1,", "MODEL:\n  NONE: 1\n"])
def test_a_config_that_cannot_be_read_is_one_line_and_exit_code_2(run, log, content):
    make_image("a.png")
    if content:
        Path("x.yaml").write_text(content)
    assert run("--input", "a.png", config="x.yaml") == 2
    assert len(log.errors) == 1 and "\n" not in log.errors[0]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "a.png", "--confidence-threshold", "1.5"], "no number from 0 to 1"),
        (["--input", "a.png", "--confidence-threshold", "nan"], "no number from 0 to 1"),
        (["--input", "a.png", "--confidence-threshold", "high"], "no number from 0 to 1"),
        (["--input", "a.png", "--kinds", "depth"], "invalid choice"),
        (["--input", "a.png", "--opts", "MODEL.WEIGHTS"], "pairs KEY VALUE"),
        (["--input", "a.png", "--webcam"], "not allowed with"),
        ([], "required"),
    ],
)
def test_wrong_usage_is_told(module, capsys, arguments, reason):
    with pytest.raises(SystemExit) as info:
        module.main(["--config-file", "x.yaml", *arguments])
    assert info.value.code == 2 and reason in capsys.readouterr().err


def test_the_script_itself_ends_with_the_exit_code_and_without_a_traceback(tiny, tmp_path):
    """In a process of its own, as people run it."""
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_text("text")
    command = [sys.executable, SCRIPT, "--config-file", tiny[0], "--input", "in", "--output", "out"]
    command += ["--opts", "MODEL.WEIGHTS", tiny[1]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert "in/b.png: is not an image" in done.stdout and "Traceback" not in done.stderr
    assert "1 of 2 inputs drawn: out" in done.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "a.png").is_file()


# Videos, cameras, windows


def make_video(path, count=6, size=(66, 50)):
    Path(path).parent.mkdir(exist_ok=True)
    writer = VideoWriter(Path(path), 7.5)
    for index in range(count):
        writer.write(pixels(make_image("frame.png", seed=index, size=size)))
    writer.close()
    assert writer.path == Path(path)


def test_a_video_becomes_a_video_of_the_same_size_length_and_speed(run, log):
    make_video("in/drive.avi")
    assert run("--video-input", "in/drive.avi", "--output", "out") == 0
    reader = VideoReader("out/drive.mp4")
    frames, original = list(reader), list(VideoReader("in/drive.avi"))
    assert reader.fps == pytest.approx(7.5) and len(frames) == 6
    for frame, before in zip(frames, original, strict=True):
        assert frame.shape == before.shape == (50, 66, 3)
        assert np.abs(frame.astype(int) - before).mean() > 20
    assert log.lines()[-1] == "in/drive.avi: 6 frames drawn: out/drive.mp4"


def test_each_kind_gets_a_video_of_its_own(run):
    make_video("drive.avi", count=2)
    assert (
        run("--video-input", "drive.avi", "--output", "o", "--kinds", "semantic", "panoptic") == 0
    )
    names = sorted(path.name for path in Path("o").iterdir())
    assert names == ["drive_panoptic.mp4", "drive_semantic.mp4"]


def test_frames_are_drawn_as_they_are_read(run, module, monkeypatch):
    """So that a video of any length fits into memory."""
    order = []
    overlays, frames = module.Demo.overlays, VideoReader.__iter__

    def note_reading(self):
        for frame in frames(self):
            order.append("read")
            yield frame

    def note_drawing(self, image):
        order.append("draw")
        return overlays(self, image)

    monkeypatch.setattr(VideoReader, "__iter__", note_reading)
    monkeypatch.setattr(module.Demo, "overlays", note_drawing)
    make_video("drive.avi", count=3)
    run("--video-input", "drive.avi", "--output", "out")
    assert order == ["read", "draw"] * 3


def test_a_video_that_breaks_off_is_drawn_as_far_as_it_goes_with_exit_code_1(run, log):
    make_video("drive.avi", count=12, size=(200, 200))
    content = Path("drive.avi").read_bytes()
    Path("drive.avi").write_bytes(content[: len(content) // 2])
    assert run("--video-input", "drive.avi", "--output", "out") == 1
    assert len(log.errors) == 1 and "drive.avi" in log.errors[0] and "damaged" in log.errors[0]
    assert 2 <= len(list(VideoReader("out/drive.mp4"))) <= 8


@pytest.mark.parametrize(
    "source, reason",
    [
        (["--video-input", "none.mp4"], "none.mp4: no such file"),
        (["--video-input", "text.mp4"], "text.mp4: not a video"),
        (["--webcam", "97"], "camera 97: not there"),
    ],
)
def test_a_video_or_camera_that_is_not_there_is_one_line(run, log, source, reason):
    Path("text.mp4").write_text("hello\n")
    assert run(*source, "--output", "out") == 2
    assert len(log.errors) == 1 and reason in log.errors[0]


@pytest.mark.parametrize("source", [["--video-input", "drive.avi"], ["--input", "a.png", "--show"]])
def test_where_no_window_can_be_shown_the_error_says_what_to_do(run, log, monkeypatch, source):
    import cv2

    def fails(*args):
        raise cv2.error("not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", fails, raising=False)
    make_video("drive.avi", count=1)
    make_image("a.png")
    assert run(*source) == 2
    assert len(log.errors) == 1 and "--output" in log.errors[0]


def test_images_are_shown_until_the_user_quits(run, log, module, monkeypatch):
    shown = []

    class TwoPictures:
        def __init__(self, title):
            pass

        def show(self, picture, milliseconds=0):
            shown.append(picture)
            return len(shown) < 2

    monkeypatch.setattr(module, "Window", TwoPictures)
    for name in "abc":
        make_image(f"in/{name}.png")
    assert run("--input", "in", "--show") == 0
    assert len(shown) == 2 and not Path("output").exists()
    assert log.lines()[-1] == "2 of 3 inputs drawn"


def test_ctrl_c_ends_a_camera_in_good_order_and_a_video_with_exit_code_1(run, module, monkeypatch):
    overlays = module.Demo.overlays
    drawn = []

    def interrupted(self, image):
        drawn.append(image)
        if len(drawn) % 3 == 0:
            raise KeyboardInterrupt
        return overlays(self, image)

    make_video("drive.avi")
    monkeypatch.setattr(module.Demo, "overlays", interrupted)
    assert run("--video-input", "drive.avi", "--output", "out") == 1
    assert len(list(VideoReader("out/drive.mp4"))) == 2
    camera = VideoReader("drive.avi")
    camera.num_frames = None
    monkeypatch.setattr(module, "VideoReader", lambda source: camera)
    assert run("--webcam", "--output", "out") == 0
    assert len(list(VideoReader("out/webcam.mp4"))) == 2
