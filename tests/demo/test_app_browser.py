"""demo/app.py in a real browser.

Needs Gradio and Playwright (requirements/app.txt) and a Chromium: $CHROMIUM, or one on the PATH.
$APP_SCREENSHOTS names a folder for screenshots of the page.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mask_former import MaskFormerPredictor
from mask_former.cli.media import VideoWriter
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.tiny_model import write_tiny_model

pytestmark = pytest.mark.browser

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
REASON = "is not installed (requirements/app.txt)"
pytest.importorskip("gradio", reason=f"Gradio {REASON}")
playwright = pytest.importorskip("playwright.sync_api", reason=f"Playwright {REASON}")

DEMO = ROOT / "demo"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000
"""Time limit of each wait in milliseconds, long enough for a busy machine."""


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip("no Chromium on the PATH, and $CHROMIUM is not set")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    config, weights = write_tiny_model(
        tmp_path_factory.mktemp("model"),
        PANOPTIC_ON=True,
        INSTANCE_ON=True,
        OBJECT_MASK_THRESHOLD=0.25,
        OVERLAP_THRESHOLD=0.1,
    )
    load = MaskFormerPredictor.from_pretrained
    semantic = (
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON",
        False,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON",
        False,
    )
    return {
        "all": load(weights, config_file=config, device="cpu"),
        "semantic only": load(weights, config_file=config, device="cpu", opts=semantic),
    }


@pytest.fixture(scope="module")
def passes(predictors):
    """Return a list that grows by one with each forward pass."""
    seen = []
    for predictor in predictors.values():
        predictor.model.backbone.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.fixture(scope="module")
def address(predictors, tmp_path_factory):
    """Launch a page with limits of 1 megapixel, 3 frames and 2 waiting requests."""
    sys.path.insert(0, str(DEMO))
    from page.handlers import Page
    from page.layout import build, launch
    from page.models import Models
    from page.uploads import Limits

    folder = tmp_path_factory.mktemp("files")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    models = Models(list(predictors), predictors.get, keep=2)
    blocks = build(Page(models, Limits(megapixels=1, frames=3), folder, max_sessions=4))
    yield launch(blocks, "127.0.0.1", free_port(), queue_size=2)
    blocks.close()
    sys.path.remove(str(DEMO))


@pytest.fixture
def tab(browser, address):
    """Open the page; `tab.hosts` collects requested hosts, `tab.faults` JavaScript errors."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(PATIENCE)
    tab.hosts, tab.faults = set(), []
    tab.on("request", lambda request: tab.hosts.add(urlparse(request.url).hostname))
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.goto(address)
    tab.locator("#viewer .empty").wait_for()
    yield tab
    tab.close()
    assert tab.hosts <= {"127.0.0.1", None} and tab.faults == []


@pytest.fixture
def image(tmp_path):
    squares = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / "squares.png"
    Image.fromarray(squares).resize((480, 320), Image.Resampling.NEAREST).save(path)
    return path


def upload(tab, path):
    clear = tab.locator("#upload").get_by_label("Clear")
    if clear.count():
        clear.first.click()
    tab.locator("#upload input[type=file]").set_input_files(str(path))


def shown(tab):
    return tab.locator("#viewer .frame img")


def line(tab, text):
    """Wait until the line below the image has this text."""
    playwright.expect(tab.locator("#line")).to_contain_text(re.compile(text), timeout=PATIENCE)


def set_slider(tab, name, value):
    tab.locator(f"#{name} input[type=number]").fill(str(value))
    tab.locator(f"#{name} input[type=number]").press("Enter")


def hover(tab, x, y):
    """Point at a position, in shares of width and height, and return the text that appears."""
    box = tab.locator("#viewer .frame").bounding_box()
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    return tab.locator("#viewer .tip").inner_text()


def screenshot(tab, name):
    if folder := os.environ.get("APP_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png")


def test_an_image_is_uploaded_and_sliders_need_no_second_forward_pass(tab, image, passes):
    before = len(passes)
    upload(tab, image)
    line(tab, r"squares.png · 480×320 · one forward pass: .* · drawn in")
    source = shown(tab).get_attribute("src")
    assert tab.locator("#viewer .legend li").count() > 0
    set_slider(tab, "opacity", 0.9)
    playwright.expect(shown(tab)).not_to_have_attribute("src", source)
    set_slider(tab, "object_mask_threshold", 1)
    playwright.expect(tab.locator("#viewer .legend li")).to_have_count(0)
    assert hover(tab, 0.5, 0.5) == "nothing above the threshold"
    for kind in ("Semantic", "Instance"):
        tab.locator("#kind").get_by_label(kind).check()
        tab.locator(f"#viewer [data-kind={kind.lower()}]").wait_for()
        playwright.expect(tab.locator("#viewer .legend li")).not_to_have_count(0)
    assert len(passes) == before + 1


def test_pointing_at_a_region_shows_its_class_and_score(tab, image, predictors):
    """Point at the middle of each region, where rounding does not matter."""
    upload(tab, image)
    line(tab, "forward pass")
    result = predictors["all"](image, kinds=["panoptic", "semantic"])
    names = result.classes.names
    segments = result.panoptic.segments
    assert len(segments) > 2
    for segment in segments:
        y, x = middle(result.panoptic.ids == segment["id"])
        expected = f"{names[segment['category_id']]} {100 * segment['score']:.0f}%"
        assert hover(tab, x / 480, y / 320) == expected

    tab.locator("#kind").get_by_label("Semantic").check()
    tab.locator("#viewer [data-kind=semantic]").wait_for()
    for level in (result.semantic_scores.min(), result.semantic_scores.max()):
        y, x = middle(result.semantic_scores == level)
        name, share = hover(tab, x / 480, y / 320).split()
        assert name == names[result.semantic[int(y), int(x)]]
        assert abs(int(share[:-1]) - 100 * level) < 2
    tab.mouse.move(5, 5)
    assert tab.locator("#viewer .tip").is_hidden()


def middle(mask):
    """Return (y, x), the centre of the pixel that is farthest from the edge of a mask."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return y + 0.5, x + 0.5


def test_masks_are_downloaded_as_an_archive(tab, image):
    upload(tab, image)
    line(tab, "forward pass")
    with tab.expect_download() as download:
        tab.locator("#download").click()
    assert download.value.suggested_filename == "squares_panoptic.zip"
    with zipfile.ZipFile(download.value.path()) as files:
        assert any(name.endswith(".json") for name in files.namelist())


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("notes.png", b"not an image\n", "notes.png is neither an image nor a video"),
        ("empty.jpg", b"", "empty.jpg is empty"),
        ("clip.mp4", bytes(100), "clip.mp4 is neither an image nor a video"),
    ],
)
def test_a_bad_file_gets_a_message_and_the_next_good_one_is_accepted(
    tab, image, tmp_path, name, content, text
):
    (tmp_path / name).write_bytes(content)
    upload(tab, tmp_path / name)
    playwright.expect(tab.locator("#viewer .message")).to_contain_text(text, timeout=PATIENCE)
    screenshot(tab, f"bad_{name}")
    upload(tab, image)
    line(tab, "forward pass")


def test_a_huge_image_gets_a_message(tab, tmp_path):
    Image.new("RGB", (2000, 1500)).save(tmp_path / "huge.png")
    upload(tab, tmp_path / "huge.png")
    playwright.expect(tab.locator("#viewer .message")).to_contain_text("up to 1 million")


def test_a_visitor_gets_a_message_if_the_queue_is_full(
    tab, browser, address, image, predictors, monkeypatch
):
    go, logits = threading.Event(), predictors["all"].logits
    monkeypatch.setattr(predictors["all"], "logits", lambda image: go.wait(60) and logits(image))
    crowd = [browser.new_page() for _ in range(3)]  # one is served, two wait
    try:
        for one in crowd:
            one.goto(address)
            upload(one, image)
            one.locator("#viewer .progress-text, #viewer .eta-bar").first.wait_for(state="attached")
        upload(tab, image)
        playwright.expect(tab.get_by_text("currently busy")).to_be_visible(timeout=PATIENCE)
    finally:
        go.set()
    line(crowd[-1], "forward pass")
    for one in crowd:
        one.close()


def test_another_checkpoint_sets_the_controls_and_runs(tab, image, passes):
    upload(tab, image)
    line(tab, "forward pass")
    before = len(passes)
    tab.get_by_label("Checkpoint").click()
    tab.get_by_role("option", name="semantic only").click()
    playwright.expect(tab.locator("#kind").get_by_label("Semantic")).to_be_checked(timeout=PATIENCE)
    tab.locator("#min_share").wait_for()
    assert tab.locator("#object_mask_threshold").is_hidden()
    line(tab, "squares.png · 480×320 · one forward pass")
    playwright.expect(tab.locator("#viewer .legend li")).not_to_have_count(0)
    assert len(passes) == before + 1


def test_a_video_is_drawn_and_plays(tab, tmp_path):
    writer = VideoWriter(tmp_path / "drive.avi", fps=5)
    for shade in range(6):
        writer.write(np.full((64, 96, 3), 40 * shade, np.uint8))
    writer.close()
    upload(tab, tmp_path / "drive.avi")
    line(tab, r"drive.avi · 3 frames .*--max-frames")
    video = tab.locator("#video video")
    video.wait_for()
    tab.wait_for_function("document.querySelector('#video video').readyState >= 2")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [96, 64]
