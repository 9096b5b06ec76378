"""demo/app.py without a browser: sessions, uploads, results, downloads and the command."""

from __future__ import annotations

import base64
import json
import socket
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mask_former.cli.media import VideoReader
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script
from tests.helpers.tiny_model import NAMES
from tests.helpers.visitors import VISITOR, make_image, make_video, pixels, values

DEMO = ROOT / "demo"


@pytest.fixture
def passes(predictor):
    """Return a list that grows by one with each forward pass."""
    seen = []
    hook = predictor.model.backbone.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    hook.remove()


def unpack(text, dtype, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)


# Sessions


def test_a_session_keeps_only_its_last_value(part):
    sessions = part("sessions").Sessions(capacity=2, lifetime=10)
    sessions.put("a", 1)
    sessions.put("a", 2)
    assert sessions.get("a") == 2 and len(sessions) == 1
    sessions.drop("a")
    sessions.drop("a")
    assert sessions.get("a") is None


def test_the_least_recently_used_session_is_dropped_first(part):
    sessions = part("sessions").Sessions(capacity=2, lifetime=10)
    sessions.put("a", 1)
    sessions.put("b", 2)
    sessions.get("a")
    sessions.put("c", 3)
    assert [sessions.get(name) for name in "abc"] == [1, None, 3]


def test_only_an_unused_session_expires(part):
    now = [0.0]
    sessions = part("sessions").Sessions(capacity=5, lifetime=10, clock=lambda: now[0])
    sessions.put("a", 1)
    sessions.put("b", 2)
    now[0] = 9
    assert sessions.get("a") == 1
    now[0] = 11
    assert sessions.get("b") is None and sessions.get("a") == 1
    now[0] = 22
    assert len(sessions) == 0


def test_a_capacity_of_0_is_refused(part):
    with pytest.raises(ValueError, match="capacity 0"):
        part("sessions").Sessions(capacity=0, lifetime=10)


# Checkpoints


def test_a_checkpoint_is_loaded_on_first_use_and_few_are_kept(part):
    loaded = []
    models = part("models").Models(["a", "b", "c"], lambda s: loaded.append(s) or s.upper(), keep=2)
    assert models.names == ["a", "b", "c"] and not loaded
    assert [models.get(name) for name in "aabaca"] == list("AABACA")
    assert loaded == ["a", "b", "c"]
    assert models.loaded == ["c", "a"]
    models.get("b")
    assert loaded == ["a", "b", "c", "b"]


def test_an_unknown_checkpoint_is_an_error_that_lists_the_known_ones(part):
    models = part("models").Models(["a", "b"], str, keep=1)
    with pytest.raises(KeyError, match=r"'x'.*\['a', 'b'\]"):
        models.get("x")
    with pytest.raises(ValueError, match="0 checkpoints"):
        part("models").Models([], str, keep=1)


def test_checkpoints_of_one_name_are_distinguished_by_their_folders(part):
    names = part("models").display_names(["run/a/final.pth", "run/b/final.pth", "zoo"])
    assert names == ["a/final.pth", "b/final.pth", "zoo"]
    deep = part("models").display_names(["x/a/m.pth", "y/a/m.pth"])
    assert deep == ["x/a/m.pth", "y/a/m.pth"]
    with pytest.raises(ValueError, match="twice"):
        part("models").display_names(["a.pth", "a.pth"])


# Uploads


def test_an_image_and_a_video_are_distinguished_by_their_content(part, tmp_path):
    is_video = part("uploads").is_video
    image = make_image(tmp_path / "a.png")
    video = make_video(tmp_path / "a.avi", 3)
    assert not is_video(image) and is_video(video)
    assert not is_video(image.rename(tmp_path / "b.mp4"))
    assert is_video(video.rename(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.jpg", b"", r"^empty.jpg is empty \(0 bytes\)"),
        ("notes.png", b"not an image\n" * 9, "^notes.png is neither an image nor a video"),
        ("clip.mp4", b"\0\0\0\x18ftypmp42" + bytes(90), "^clip.mp4 is neither .* MP4, WebM"),
    ],
)
def test_a_file_that_is_neither_image_nor_video_is_refused_by_name(
    part, tmp_path, name, content, text
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        part("uploads").is_video(path)


def test_a_truncated_image_is_refused_by_name(part, tmp_path):
    uploads = part("uploads")
    path = make_image(tmp_path / "a.png", size=(500, 400))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"^a\.png: cannot be read.*Save it again"):
        uploads.read_upload(path, uploads.Limits())


@pytest.mark.parametrize("side", [1001, 20000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(part, tmp_path, side):
    uploads = part("uploads")
    path = tmp_path / "huge.png"
    Image.new("1", (side, side)).save(path)
    assert not uploads.is_video(path)
    with pytest.raises(ValueError, match=r"^huge.png has .* up to 1 million.*--max-megapixels"):
        uploads.read_upload(path, uploads.Limits(megapixels=1))


# Results of one forward pass


def test_every_result_at_every_threshold_comes_from_one_forward_pass(
    part, predictor, passes, settings
):
    results = part("image_results").ImageResults(predictor.logits(pixels()), "a")
    for kind in ("panoptic", "instance", "semantic"):
        for threshold in (0.0, 0.3, 0.9):
            chosen = replace(
                settings,
                kind=kind,
                object_mask_threshold=threshold,
                min_score=threshold,
                min_share=threshold,
            )
            assert results.result(chosen).kinds == [kind]
    assert len(passes) == 1


def test_the_thresholds_have_the_same_effect_as_in_the_predictor(part, predictor, settings):
    image = pixels()
    results = part("image_results").ImageResults(predictor.logits(image), "a")
    ids, segments = results.result(replace(settings, object_mask_threshold=0.3)).panoptic
    expected = predictor(
        image, kinds=["panoptic"], object_mask_threshold=0.3, overlap_threshold=0.1
    ).panoptic
    np.testing.assert_array_equal(ids, expected.ids)
    assert segments == expected.segments

    whole = predictor(image, kinds=["instance", "semantic"])
    score = float(np.median(whole.instances.scores))
    kept = results.result(replace(settings, kind="instance", min_score=score)).instances
    assert 0 < len(kept) < len(whole.instances) and (kept.scores >= score).all()
    share = float(whole.semantic_scores.min() + whole.semantic_scores.max()) / 2
    semantic = results.result(replace(settings, kind="semantic", min_share=share)).semantic
    unsure = whole.semantic_scores < share
    assert unsure.any() and (semantic[unsure] == -1).all()
    np.testing.assert_array_equal(semantic[~unsure], whole.semantic[~unsure])


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_the_view_has_class_and_score_of_each_pixel(part, predictor, settings, kind):
    chosen = replace(settings, kind=kind)
    result = part("image_results").ImageResults(predictor.logits(pixels()), "a").result(chosen)
    view = json.loads(json.dumps(part("viewer").view(result, kind, 0.5)))
    shape = view["height"], view["width"]
    assert shape == (64, 96)
    ids = unpack(view["ids"], "<u2", shape)
    regions = view["regions"]
    assert regions and ids.max() <= len(regions)
    assert sum(region["area"] for region in regions) == pytest.approx((ids > 0).mean())
    for y, x in np.argwhere(ids > 0)[::97]:
        region = regions[ids[y, x] - 1]
        if kind == "panoptic":
            segment = next(
                s for s in result.panoptic.segments if s["id"] == result.panoptic.ids[y, x]
            )
            assert region["name"] == NAMES[segment["category_id"]]
            assert region["score"] == segment["score"]
        elif kind == "semantic":
            assert region["name"] == NAMES[result.semantic[y, x]]
            share = unpack(view["scores"], np.uint8, shape)[y, x] / 255
            assert share == pytest.approx(result.semantic_scores[y, x], abs=1 / 255)
        else:
            of_this = [
                (name, pytest.approx(score))
                for name, score, mask in zip(
                    result.instances.class_names,
                    result.instances.scores,
                    result.instances.masks,
                    strict=True,
                )
                if mask[y, x]
            ]
            assert (region["name"], region["score"]) in of_this


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_a_large_image_is_sent_at_a_size_that_fits_a_screen(part, predictor, settings, kind):
    results = part("image_results").ImageResults(predictor.logits(pixels(size=(1200, 400))), "a")
    chosen = replace(settings, kind=kind)
    small, whole = results.result(chosen, 300), results.result(chosen)
    view = part("viewer").view(small, kind, 0.5)
    assert (view["width"], view["height"]) == (300, 100)
    ids = unpack(view["ids"], "<u2", (100, 300))
    np.testing.assert_array_equal(ids, whole.overlay(kind, 0.0).ids[2::4, 2::4])
    assert whole.image.shape == (400, 1200, 3)


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_the_archive_has_the_results_that_are_shown(part, predictor, settings, tmp_path, kind):
    image_results = part("image_results")
    results = image_results.ImageResults(predictor.logits(pixels()), "street")
    chosen = replace(settings, kind=kind)
    archive = results.pack(chosen, image_results.FORMATS[kind], tmp_path)
    assert archive.name == f"street_{kind}.zip"
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if not name.endswith("/")]
        assert files.testzip() is None
    assert len(names) >= 3 and any(name.endswith(".npz") for name in names)


def test_an_archive_of_results_that_are_not_shown_is_refused(part, predictor, settings, tmp_path):
    results = part("image_results").ImageResults(predictor.logits(pixels()), "a")
    with pytest.raises(ValueError, match="at least one of overlay, panoptic-coco"):
        results.pack(settings, ["semantic-png"], tmp_path)


# The page's handlers


def test_an_image_is_analysed_once_and_redrawn_from_the_kept_results(
    page, passes, settings, tmp_path
):
    upload = str(make_image(tmp_path / "a.png"))
    list(page.analyze(VISITOR, upload, "tiny.pth", *values(settings)))
    shown, line = page.show(VISITOR, *values(settings))
    assert shown["regions"] and line.startswith("a.png · 96×64 · one forward pass")
    nothing = replace(settings, object_mask_threshold=1.0)
    redrawn, line = page.redraw(VISITOR, upload, *values(nothing))
    assert redrawn["regions"] == [] and "drawn in" in line
    assert len(passes) == 1


def test_a_control_that_is_moved_while_the_network_runs_changes_nothing(
    page, predictor, settings, tmp_path, monkeypatch
):
    """The drawing after the forward pass uses the new value."""
    upload, logits, meanwhile = str(make_image(tmp_path / "a.png")), predictor.logits, []

    def slow(image):
        meanwhile.append(page.redraw(VISITOR, upload, *values(settings)))
        return logits(image)

    monkeypatch.setattr(predictor, "logits", slow)
    list(page.analyze(VISITOR, upload, "tiny.pth", *values(settings)))
    [(shown, line)] = meanwhile
    assert "message" not in shown and not isinstance(line, str)


def test_results_of_a_visitor_are_not_shown_to_another(page, settings, tmp_path):
    upload = str(make_image(tmp_path / "a.png"))
    list(page.analyze(VISITOR, upload, "tiny.pth", *values(settings)))
    other = SimpleNamespace(session_hash="other")
    assert "message" in page.redraw(other, upload, *values(settings))[0]
    page.forget(VISITOR)
    assert "Run again" in page.redraw(VISITOR, upload, *values(settings))[0]["message"]


def test_a_bad_upload_is_answered_with_a_message(page, settings, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    [(shown, _, line)] = page.analyze(VISITOR, str(path), "tiny.pth", *values(settings))
    assert shown["message"].startswith("notes.png is neither") and line == ""


def test_a_bad_upload_drops_the_results_of_the_last_image(page, settings, tmp_path):
    upload = str(make_image(tmp_path / "a.png"))
    list(page.analyze(VISITOR, upload, "tiny.pth", *values(settings)))
    (tmp_path / "bad.png").write_bytes(b"")
    list(page.analyze(VISITOR, str(tmp_path / "bad.png"), "tiny.pth", *values(settings)))
    assert page.pack(VISITOR, ["npz"], *values(settings)) is None
    assert page.warnings[-1].startswith("There is no result")


def test_downloads_of_a_session_replace_each_other(page, settings, tmp_path):
    upload = str(make_image(tmp_path / "a.png"))
    list(page.analyze(VISITOR, upload, "tiny.pth", *values(settings)))
    first, second = (page.pack(VISITOR, ["npz"], *values(settings)) for _ in range(2))
    assert Path(second).is_file() and not Path(first).exists()
    page.forget(VISITOR)
    assert not Path(second).exists()


def test_a_video_is_drawn_frame_by_frame_up_to_the_limit(page, passes, settings, tmp_path):
    upload = str(make_video(tmp_path / "drive.avi", 6))
    *steps, (shown, video, line) = page.analyze(VISITOR, upload, "tiny.pth", *values(settings))
    assert steps[0][0]["image"] and steps[0][2] == "drive.avi · frame 1 of 4"
    assert shown == {"nothing": True} and "4 frames" in line and "--max-frames" in line
    assert len(passes) == 4
    frames = list(VideoReader(video["value"]))
    assert len(frames) == 4 and frames[0].shape == (64, 96, 3)
    assert video["value"].endswith("drive_panoptic.webm")


def test_a_video_of_the_maximum_length_is_not_reported_as_cut(page, settings, tmp_path):
    upload = str(make_video(tmp_path / "drive.avi", 4))
    *_, (_, _, line) = page.analyze(VISITOR, upload, "tiny.pth", *values(settings))
    assert "4 frames" in line and "--max-frames" not in line


def test_frames_of_too_many_pixels_are_refused(part, predictor, settings, tmp_path):
    limits = part("uploads").Limits(megapixels=0.001)
    video = make_video(tmp_path / "drive.avi", 2)
    with pytest.raises(ValueError, match=r"^drive\.avi has 96×64"):
        list(part("videos").draw_video(predictor, video, settings, limits, tmp_path / "o.webm"))


def test_the_controls_start_at_the_values_of_the_config(page):
    start = page.defaults("tiny.pth")
    assert start.kind == "panoptic"
    assert (start.object_mask_threshold, start.overlap_threshold) == (0.25, 0.1)


# The command


@pytest.fixture
def app(page):
    return load_script(DEMO / "app.py")


def test_a_missing_checkpoint_is_an_error_of_one_line(app, capsys, tmp_path):
    assert app.main(["--weights", str(tmp_path / "none.pth")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("app: ") and "none.pth" in error and error.count("\n") == 1


@pytest.mark.parametrize("port", [None, 99999])
def test_an_unavailable_port_is_an_error_of_one_line(app, tiny, capsys, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or taken.getsockname()[1]
        options = ["--weights", str(tiny[1]), "--config-file", str(tiny[0]), "--device", "cpu"]
        assert app.main([*options, "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"app: The page cannot listen on --host 127.0.0.1 --port {port}")
    assert error.count("\n") == 1


def test_the_first_checkpoint_is_loaded_and_the_model_zoo_is_listed_last(app, tiny):
    options = ["--weights", str(tiny[1]), "--config-file", str(tiny[0]), "--device", "cpu"]
    models = app.make_models(app.parse(options))
    assert models.names == ["tiny.pth", "camvid_panoptic", "camvid_semantic"]
    assert models.loaded == ["tiny.pth"]


def test_the_page_has_every_control_and_no_public_endpoint(part, page):
    blocks = part("layout").build(page)
    config = blocks.get_config_file()
    ids = {component["props"].get("elem_id") for component in config["components"]}
    assert {"upload", "kind", "viewer", "video", *part("layout").SLIDERS} <= ids
    visibility = {one["api_visibility"] for one in config["dependencies"] if one["backend_fn"]}
    assert "public" not in visibility
