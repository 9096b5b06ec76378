"""demo/demo.py draws and saves images and videos, with one line for each that fails."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.cli import predict
from mask_former.cli.media import VideoReader, VideoWriter
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.results import load_npz
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import DATASET, NAMES, write_tiny_model
from tests.robustness.malice import NAME as HOSTILE_NAME
from tests.robustness.malice import assert_harmless

SCRIPT = ROOT / "demo" / "demo.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Write a config that turns on every result, and weights; return both paths."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), PANOPTIC_ON=True, INSTANCE_ON=True)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Prevent the command from replacing pytest's logging."""
    monkeypatch.setattr(predict, "setup_logger", lambda **kwargs: None)


class Log(logging.Handler):
    """A handler that keeps all records."""

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
def run(log, tiny, tmp_path, monkeypatch):
    """Return a function that runs the demo on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, config=tiny[0], opts=()):
        weights = ("MODEL.WEIGHTS", str(tiny[1]))
        source = [*map(str, arguments), "--opts", *weights, *opts]
        return predict.main(["--config-file", str(config), *source])

    return run


@pytest.fixture
def predictions(monkeypatch):
    """Return a list to which every prediction adds its predictor and its options."""
    calls, call = [], MaskFormerPredictor.__call__

    def note(self, images, **options):
        calls.append((self, options))
        return call(self, images, **options)

    monkeypatch.setattr(MaskFormerPredictor, "__call__", note)
    return calls


def make_image(path, seed=0, size=(64, 64)):
    """Write an image of coloured squares."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


# Drawings


def test_an_image_is_drawn_and_the_last_line_names_the_folder(run, log):
    make_image("in/a.png", size=(500, 400))
    assert run("--input", "in/a.png", "--output", "out") == 0
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    drawing = pixels("out/a.png")
    assert drawing.shape == (400, 500, 3) and (drawing != pixels("in/a.png")).mean() > 0.5
    *_, image_line, last = log.lines()
    assert re.fullmatch(r"in/a.png: \d+ panoptic segments?, \d\.\d\d s -> out/a.png", image_line)
    assert last == "1 of 1 inputs drawn: out"


def test_small_images_are_drawn_upsampled(run):
    make_image("a.png", size=(160, 128))
    make_image("thin.png", size=(300, 3))
    run("--input", "a.png", "thin.png", "--output", "out")
    assert pixels("out/a.png").shape == (384, 480, 3)
    assert pixels("out/thin.png").shape == (15, 1500, 3)


@pytest.mark.parametrize(
    "on, kind", [("PSI", "panoptic"), ("SI", "instance"), ("S", "semantic"), ("PS", "panoptic")]
)
def test_by_default_the_result_with_the_most_information_is_drawn(run, log, on, kind):
    make_image("a.png")
    opts = []
    for letter, name in {"P": "PANOPTIC", "S": "SEMANTIC", "I": "INSTANCE"}.items():
        opts += [f"MODEL.MASK_FORMER.TEST.{name}_ON", str(letter in on)]
    assert run("--input", "a.png", opts=opts) == 0
    assert f" {kind} segment" in log.lines()[-2]


def test_each_requested_kind_gets_its_own_drawing(run):
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


def test_segments_below_the_threshold_are_not_drawn(run):
    make_image("a.png", size=(420, 420))
    kinds = ["panoptic", "instance", "semantic"]
    for threshold in (0, 1):
        run("--input", "a.png", "--confidence-threshold", threshold, "--kinds", *kinds)
        for kind in kinds:
            changed = (pixels(f"output/demo/a_{kind}.png") != pixels("a.png")).any(-1).mean()
            assert changed > 0.1 if threshold == 0 else changed == 0, (kind, threshold, changed)


def test_for_panoptic_results_the_threshold_is_that_of_the_model(run, predictions):
    make_image("a.png")
    run("--input", "a.png")
    run("--input", "a.png", "--confidence-threshold", "0.3")
    run("--input", "a.png", "--confidence-threshold", "0")
    asked = [options["object_mask_threshold"] for _, options in predictions]
    assert asked == [None, 0.3, 0.0]


def test_names_come_from_the_dataset_of_the_config(run, predictions):
    make_image("a.png")
    for datasets, names in (
        ("('tiny_model_val',)", NAMES),
        ("('nobody_knows_it',)", [f"class {i}" for i in range(4)]),
    ):
        opts = ["DATASETS.TEST", datasets, "DATASETS.TRAIN", datasets]
        run("--input", "a.png", opts=opts)
        assert predictions[-1][0].classes.names == names
    assert DATASET == "tiny_model_val"


def test_class_names_of_another_number_are_ignored_with_a_warning(run, log):
    make_image("a.png")
    other = "('camvid_sem_seg_val',)"
    assert run("--input", "a.png", opts=["DATASETS.TEST", other, "DATASETS.TRAIN", other]) == 0
    [mismatch, unnamed] = log.lines(logging.WARNING)
    assert "camvid_sem_seg_val': 11" in mismatch
    assert "names of the model's 4 classes are unknown" in unnamed


# Output files


def test_without_output_drawings_go_to_output_demo(run, log):
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
    drawings = [pixels(path) for path in sorted(Path("out").iterdir())]
    assert len(drawings) == 3
    assert not any((one == drawings[0]).all() for one in drawings[1:])


@pytest.mark.parametrize("output, reason", [(".", "would replace"), ("x.jpg", "is one file")])
def test_an_unusable_output_is_an_error_before_anything_is_drawn(run, log, output, reason):
    images = [make_image(f"{name}.png") for name in "ab"]
    before = [image.read_bytes() for image in images]
    assert run("--input", *images, "--output", output) == 2
    assert len(log.errors) == 1 and reason in log.errors[0]
    assert [image.read_bytes() for image in images] == before


# Errors


def test_files_that_are_not_images_get_one_line_each_and_the_others_are_drawn(run, log):
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
    assert log.lines()[-1] == "2 of 8 inputs drawn, 6 failed: out"


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_an_image_that_the_model_fails_on_does_not_end_the_run(run, log, monkeypatch, batch_size):
    """The other images of its batch are drawn, too."""
    for name, width in (("a", 48), ("b", 64), ("c", 48)):
        make_image(f"{name}.png", size=(width, 64))
    call = MaskFormerPredictor.__call__

    def fails_on_squares(self, images, **options):
        if any(image.shape[0] == image.shape[1] for image in images):
            raise RuntimeError("out of memory:\n  tried to allocate 3 TiB")
        return call(self, images, **options)

    monkeypatch.setattr(MaskFormerPredictor, "__call__", fails_on_squares)
    names = ["a.png", "b.png", "c.png"]
    assert run("--input", *names, "--batch-size", batch_size) == 1
    assert log.errors == ["b.png: out of memory: tried to allocate 3 TiB"]
    assert sorted(path.name for path in Path("output/demo").iterdir()) == ["a.png", "c.png"]
    assert log.lines()[-1] == "2 of 3 inputs drawn, 1 failed: output/demo"


def test_if_all_inputs_are_missing_no_model_is_loaded(run, log):
    assert run("--input", "none.png", config="tiny.yaml") == 2  # this config is missing, too
    log.records.clear()
    assert run("--input", "none.png", opts=["MODEL.WEIGHTS", "none.pth"]) == 1
    assert log.errors == ["none.png: no such file or folder"]


@pytest.mark.parametrize(
    "opts, reason",
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is not set"),
        (["MODEL.WEIGHTS", "none.pth"], "There is no checkpoint none.pth"),
        (["MODEL.WEIGHTS", "text.pth"], "text.pth is not a readable checkpoint"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], "does not fit the model"),
        (["MODEL.BACKBONE.NAME", "none"], "MODEL.BACKBONE.NAME is 'none'"),
        (["MODEL.NONE", "1"], "MODEL.NONE"),
        (["MODEL.MASK_FORMER.HIDDEN_DIM", "many"], "MODEL.MASK_FORMER.HIDDEN_DIM"),
    ],
)
def test_a_model_that_cannot_be_built_is_an_error_of_one_line_and_exit_code_2(
    run, log, opts, reason
):
    make_image("a.png")
    Path("text.pth").write_text("hello\n")
    assert run("--input", "a.png", opts=opts) == 2
    assert len(log.errors) == 1 and reason in log.errors[0] and "\n" not in log.errors[0]
    assert not list(Path().glob("output/**/*.png"))


@pytest.mark.parametrize("content", [None, "MODEL: [1,", "MODEL:\n  NONE: 1\n"])
def test_a_config_that_cannot_be_read_is_an_error_of_one_line_and_exit_code_2(run, log, content):
    make_image("a.png")
    if content:
        Path("x.yaml").write_text(content)
    assert run("--input", "a.png", config="x.yaml") == 2
    assert len(log.errors) == 1 and "\n" not in log.errors[0]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "a.png", "--confidence-threshold", "1.5"], "not a number from 0 to 1"),
        (["--input", "a.png", "--confidence-threshold", "nan"], "not a number from 0 to 1"),
        (["--input", "a.png", "--confidence-threshold", "high"], "not a number from 0 to 1"),
        (["--input", "a.png", "--kinds", "depth"], "invalid choice"),
        (["--input", "a.png", "--opts", "MODEL.WEIGHTS"], "pairs KEY VALUE"),
        (["--input", "a.png", "--webcam"], "not allowed with"),
        (["--input", "a.png", "--save", "overlay,masks"], "'masks' is not a format"),
        (["--input", "a.png", "--batch-size", "0"], "not an integer of 1 or more"),
        (["--input", "a.png", "--every-n", "-1"], "not an integer of 1 or more"),
        (["--input", "a.png", "--palette", "pink"], "invalid choice"),
        (["--video-input", "a.mp4", "--legend"], "that of a video cannot"),
        ([], "required"),
    ],
)
def test_wrong_usage_is_reported(capsys, arguments, reason):
    with pytest.raises(SystemExit) as info:
        predict.main(["--config-file", "x.yaml", *arguments])
    assert info.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.subprocess
def test_the_script_ends_with_the_exit_code_and_without_a_traceback(tiny, tmp_path):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_text("text")
    command = [sys.executable, SCRIPT, "--config-file", tiny[0], "--input", "in", "--output", "out"]
    command += ["--opts", "MODEL.WEIGHTS", tiny[1]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert "in/b.png: cannot be read as an image" in done.stdout and "Traceback" not in done.stderr
    assert "1 of 2 inputs drawn, 1 failed: out" in done.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "a.png").is_file()


def test_names_of_files_neither_forge_lines_of_the_log_nor_command_the_terminal(
    run, monkeypatch, capsys
):
    def setup(name):
        logger = logging.getLogger(name)
        logger.addHandler(logging.StreamHandler(sys.stdout))
        monkeypatch.setattr(logger, "handlers", logger.handlers[-1:])

    logger = logging.getLogger("mask_former")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(predict, "setup_logger", setup)
    make_image(f"in/{HOSTILE_NAME}.png")
    Path(f"in/b{HOSTILE_NAME}.png").write_bytes(b"damaged")
    assert run("--input", "in", "--output", "out") == 1
    output = "".join(capsys.readouterr())
    assert_harmless(output)
    assert "cannot be read as an image" in output and r"a\n[11-28" in output


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


def test_each_kind_gets_its_own_video(run):
    make_video("drive.avi", count=2)
    assert (
        run("--video-input", "drive.avi", "--output", "o", "--kinds", "semantic", "panoptic") == 0
    )
    names = sorted(path.name for path in Path("o").iterdir())
    assert names == ["drive_panoptic.mp4", "drive_semantic.mp4"]


@pytest.mark.parametrize("batch_size, expected", [(1, "rprprp"), (2, "rrprp")])
def test_frames_are_drawn_as_they_are_read(run, monkeypatch, batch_size, expected):
    """A video of any length must fit into memory."""
    order = []
    call, read = MaskFormerPredictor.__call__, VideoReader.__next__

    def note_reading(self):
        frame = read(self)
        order.append("r")
        return frame

    def note_predicting(self, images, **options):
        order.append("p")
        return call(self, images, **options)

    make_video("drive.avi", count=3)
    monkeypatch.setattr(VideoReader, "__next__", note_reading)
    monkeypatch.setattr(MaskFormerPredictor, "__call__", note_predicting)
    run("--video-input", "drive.avi", "--output", "out", "--batch-size", batch_size)
    assert "".join(order) == expected


def test_a_truncated_video_is_drawn_up_to_its_last_frame_with_exit_code_1(run, log):
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
        (["--webcam", "97"], "camera 97: not found"),
    ],
)
def test_a_missing_video_or_camera_is_an_error_of_one_line(run, log, source, reason):
    Path("text.mp4").write_text("hello\n")
    assert run(*source, "--output", "out") == 2
    assert len(log.errors) == 1 and reason in log.errors[0]


@pytest.mark.parametrize("source", [["--video-input", "drive.avi"], ["--input", "a.png", "--show"]])
def test_the_error_about_a_window_that_cannot_be_shown_has_the_fix(run, log, monkeypatch, source):
    import cv2

    def fails(*args):
        raise cv2.error("not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", fails, raising=False)
    make_video("drive.avi", count=1)
    make_image("a.png")
    assert run(*source) == 2
    assert len(log.errors) == 1 and "--output" in log.errors[0]


def test_images_are_shown_until_the_user_quits(run, log, monkeypatch):
    shown = []

    class TwoImages:
        def __init__(self, title):
            pass

        def show(self, image, milliseconds=0):
            shown.append(image)
            return len(shown) < 2

    monkeypatch.setattr(predict, "Window", TwoImages)
    for name in "abc":
        make_image(f"in/{name}.png")
    assert run("--input", "in", "--show") == 0
    assert len(shown) == 2 and not Path("output").exists()
    assert log.lines()[-1] == "2 of 3 inputs drawn"


def test_ctrl_c_ends_a_camera_with_exit_code_0_and_a_video_with_exit_code_1(run, monkeypatch):
    call = MaskFormerPredictor.__call__
    drawn = []

    def interrupted(self, images, **options):
        drawn.append(images)
        if len(drawn) % 3 == 0:
            raise KeyboardInterrupt
        return call(self, images, **options)

    make_video("drive.avi")
    monkeypatch.setattr(MaskFormerPredictor, "__call__", interrupted)
    assert run("--video-input", "drive.avi", "--output", "out") == 1
    assert len(list(VideoReader("out/drive.mp4"))) == 2
    camera = VideoReader("drive.avi")
    camera.num_frames = None
    monkeypatch.setattr(predict, "VideoReader", lambda source, every_n: camera)
    assert run("--webcam", "--output", "out") == 0
    assert len(list(VideoReader("out/webcam.mp4"))) == 2


# Saved results, long inputs


def test_each_format_has_its_own_folder_next_to_the_drawings(run, log):
    make_image("in/a.png", size=(72, 64))
    make_image("in/deep/a.png", seed=1)
    formats = "overlay,semantic-png,panoptic-coco,instances-coco,npz"
    assert run("--input", "in", "--recursive", "--save", formats, "--output", "out") == 0
    expected = {"categories.json", "instances.json", "panoptic.json"}
    for name in ("a", "a_2"):
        expected |= {f"{name}.png", f"semantic/{name}.png", f"panoptic/{name}.png"}
        expected.add(f"npz/{name}.npz")
    found = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("records/")} == expected
    result = load_npz(Path("out/npz/a.npz"))
    assert set(result.kinds) == {"panoptic", "instance", "semantic"}
    ids = np.asarray(Image.open("out/semantic/a.png"))
    assert ids.shape == (64, 72) and (ids == result.semantic).all()
    annotation = json.loads(Path("out/panoptic.json").read_text())["annotations"][0]
    assert {s["id"] for s in annotation["segments_info"]} == {s["id"] for s in result.panoptic[1]}
    assert log.lines()[-1] == "2 of 2 inputs done: out"


def test_only_the_results_that_are_saved_are_computed(run, predictions):
    """A panoptic result that the config turns on must cost nothing if it is not requested."""
    make_image("a.png")
    for save, kinds, expected in (
        ("semantic-png", [], ["semantic"]),
        ("instances-coco", [], ["instance"]),
        ("semantic-png,overlay", [], ["panoptic", "semantic"]),
        ("npz", [], ["panoptic", "instance", "semantic"]),
        ("npz", ["--kinds", "semantic"], ["semantic"]),
        ("panoptic-coco,overlay", ["--kinds", "instance"], ["instance", "panoptic"]),
    ):
        assert run("--input", "a.png", "--save", save, *kinds) == 0
        assert predictions[-1][1]["kinds"] == expected


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_save_the_same_results_as_single_images(run, batch_size):
    for index, size in enumerate([(64, 64), (80, 64), (64, 64), (64, 64), (80, 64)]):
        make_image(f"in/{index}.png", seed=index, size=size)
    save = ["--input", "in", "--save", "semantic-png,panoptic-coco"]
    assert run(*save, "--output", "one") == 0
    assert run(*save, "--output", "batch", "--batch-size", batch_size) == 0
    for path in Path("one").glob("*/*.png"):
        other = Path("batch") / path.relative_to("one")
        assert (pixels(path) == pixels(other)).mean() > 0.999


def test_inputs_are_never_replaced_by_saved_results(run, log):
    image = make_image("out/semantic/a.png")
    before = image.read_bytes()
    assert run("--input", image, "--save", "semantic-png", "--output", "out") == 2
    assert "lies in a subfolder of --output" in log.errors[0] and image.read_bytes() == before


def test_a_file_cannot_hold_several_formats(run, log):
    make_image("a.png")
    assert run("--input", "a.png", "--save", "overlay,npz", "--output", "x.png") == 2
    assert "x.png is a file" in log.errors[0]


def test_every_n_draws_every_nth_file(run, log):
    for index in range(5):
        make_image(f"in/{index}.png")
    assert run("--input", "in", "--every-n", "2", "--output", "out") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "2.png", "4.png"]
    assert log.lines()[-1] == "3 of 3 inputs drawn: out"


def test_subfolders_are_included_on_request(run, log):
    make_image("in/deep/er/a.png")
    assert run("--input", "in", "--output", "out") == 1
    assert "--recursive" in log.errors[0]
    assert run("--input", "in", "--recursive", "--output", "out") == 0
    assert Path("out/a.png").is_file()


def test_a_palette_changes_colours_and_a_legend_adds_a_panel(run):
    make_image("a.png", size=(400, 400))
    run("--input", "a.png", "--kinds", "semantic", "--output", "plain")
    run("--input", "a.png", "--kinds", "semantic", "--output", "other", "--palette", "spread")
    run("--input", "a.png", "--kinds", "semantic", "--output", "legend", "--legend")
    plain, other, legend = (pixels(f"{name}/a.png") for name in ("plain", "other", "legend"))
    assert plain.shape == other.shape == (400, 400, 3) and (plain != other).any(-1).mean() > 0.5
    assert legend.size > plain.size and (legend[:400, :400] == plain).mean() > 0.99


def test_a_folder_with_weights_and_config_is_enough(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    write_tiny_model(Path("mine"), PANOPTIC_ON=True)
    Path("mine/tiny.yaml").rename("mine/config.yaml")
    make_image("a.png")
    assert predict.main(["--input", "a.png", "--weights", "mine", "--device", "cpu"]) == 0
    assert Path("output/demo/a.png").is_file() and " panoptic segment" in log.lines()[-2]
    assert predict.main(["--input", "a.png", "--weights", "none"]) == 2
    assert "There is no checkpoint or folder none" in log.errors[0]


def test_the_input_is_the_only_required_option(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_image("a.png", size=(240, 180))
    assert predict.main(["--input", "a.png", "--device", "cpu"]) == 0
    assert "using camvid_semantic" in log.lines()[0] and " semantic segment" in log.lines()[-2]
    assert Path("output/demo/a.png").is_file()


def break_frames(path, numbers):
    """Zero the data of some frames of an .avi."""
    content = bytearray(Path(path).read_bytes())
    movie = content.index(b"movi")
    ends = [match.end() for match in re.finditer(b"00dc", content[movie:])]
    for number in numbers:
        begin = movie + ends[number] + 4  # after the size
        size = int.from_bytes(content[begin - 4 : begin], "little")
        content[begin : begin + size] = bytes(size)
    Path(path).write_bytes(content)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_broken_frames_are_reported_and_skipped(run, log, batch_size):
    make_video("drive.avi", count=20)
    break_frames("drive.avi", [4, 10])
    options = ["--output", "out", "--save", "overlay,semantic-png", "--batch-size", batch_size]
    assert run("--video-input", "drive.avi", *options) == 1
    assert log.errors == [
        f"drive.avi, frame {index}: damaged: it cannot be decoded" for index in (4, 10)
    ]
    assert len(list(VideoReader("out/drive.mp4"))) == 18
    frames = sorted(path.name for path in Path("out/semantic").iterdir())
    expected = [index for index in range(20) if index not in (4, 10)]
    assert frames == [f"drive_{index:06d}.png" for index in expected]
    assert log.lines()[-2:] == [
        "drive.avi: 18 frames drawn, 2 failed: out/drive.mp4",
        "drive.avi: 18 frames done, 2 failed: out",
    ]


def test_a_frame_that_the_model_fails_on_does_not_end_the_video(run, log, monkeypatch):
    make_video("drive.avi", count=5)
    call, seen = MaskFormerPredictor.__call__, []

    def fails_once(self, images, **options):
        seen.append(images)
        if len(seen) == 3:
            raise RuntimeError("out of memory")
        return call(self, images, **options)

    monkeypatch.setattr(MaskFormerPredictor, "__call__", fails_once)
    assert run("--video-input", "drive.avi", "--output", "out") == 1
    assert log.errors == ["drive.avi, frame 2: out of memory"]
    assert len(list(VideoReader("out/drive.mp4"))) == 4


def test_a_video_of_every_nth_frame_has_the_same_duration(run, log):
    make_video("drive.avi", count=7)
    options = ["--every-n", "3", "--output", "out", "--save", "overlay,semantic-png"]
    assert run("--video-input", "drive.avi", *options) == 0
    reader = VideoReader("out/drive.mp4")
    assert len(list(reader)) == 3 and reader.fps == pytest.approx(2.5)
    names = sorted(path.name for path in Path("out/semantic").iterdir())
    assert names == ["drive_000000.png", "drive_000003.png", "drive_000006.png"]
