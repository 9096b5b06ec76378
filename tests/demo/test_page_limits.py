"""The limits of the page: memory, sessions, time, and what is left when it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.visitors import VISITOR, make_image, make_video, pixels, values

# Sessions


def test_the_memory_of_all_sessions_is_bounded(part):
    sizes = {"a": 40, "b": 40}
    sessions = part("sessions").Sessions(9, 9, size=lambda name: sizes[name], max_size=100)
    sessions.put("1", "a")
    sessions.put("2", "b")
    sessions.get("1")
    assert len(sessions) == 2
    sizes["a"] = 61  # a value grows when results are computed
    assert sessions.get("2") is None and sessions.get("1") == "a"


def test_sessions_of_one_client_take_the_place_of_its_own_only(part):
    sessions = part("sessions").Sessions(5, 9, per_owner=2)
    sessions.put("honest", 0, "b")
    for name in "12345":
        sessions.put(name, 1, "a")
    assert sessions.get("honest") == 0 and len(sessions) == 3
    assert [sessions.get(name) for name in "345"] == [None, 1, 1]
    sessions.put("5", 2, "a")
    assert sessions.get("4") == 1


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_only_results_that_fit_a_screen_are_kept(part, predictor, settings, kind):
    results = part("image_results").ImageResults(predictor.logits(pixels(size=(1200, 400))), "a")
    chosen = replace(settings, kind=kind, min_score=0.0)
    before = results.nbytes
    assert before >= 400 * 1200 * 3
    results.result(chosen)
    assert results.nbytes == before
    small = results.result(chosen, 60)
    kept = small.instances.masks.nbytes if kind == "instance" else 60 * 20 * 4
    assert before + kept <= results.nbytes < before + kept + 60 * 20 * 8
    assert results.result(chosen, 60).image is small.image


def test_an_image_that_takes_too_much_memory_is_refused_with_the_option(page, settings, tmp_path):
    page.limits = replace(page.limits, session_gb=1e-6)
    upload = str(make_image(tmp_path / "a.png"))
    [(shown, _, _)] = page.analyze(VISITOR, upload, "tiny.pth", *values(settings))
    assert shown["message"].startswith("a.png: the image and its result take")
    assert "--session-memory" in shown["message"]
    assert page.pack(VISITOR, ["npz"], *values(settings)) is None


@pytest.mark.parametrize("session", [None, ""])
def test_a_request_without_a_session_is_refused(page, settings, tmp_path, session):
    nobody = SimpleNamespace(session_hash=session)
    upload = str(make_image(tmp_path / "a.png"))
    calls = [
        lambda: list(page.analyze(nobody, upload, "tiny.pth", *values(settings))),
        lambda: page.show(nobody, *values(settings)),
        lambda: page.redraw(nobody, upload, *values(settings)),
        lambda: page.pack(nobody, ["npz"], *values(settings)),
        lambda: page.forget(nobody),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"is refused: session_hash is (None|'')"):
            call()


def test_similar_session_names_have_different_folders(page, settings, tmp_path):
    upload = str(make_image(tmp_path / "a.png"))
    visitor = SimpleNamespace(session_hash="a-b")
    list(page.analyze(visitor, upload, "tiny.pth", *values(settings)))
    archive = page.pack(visitor, ["npz"], *values(settings))
    for name in ("ab", "a/b", "A-B"):
        page.forget(SimpleNamespace(session_hash=name))
    assert os.path.isfile(archive)


def test_a_video_is_drawn_for_a_limited_time(page, settings, tmp_path):
    page.limits = replace(page.limits, frames=100, seconds=0.001)
    upload = str(make_video(tmp_path / "drive.avi", 6))
    *_, (_, video, line) = page.analyze(VISITOR, upload, "tiny.pth", *values(settings))
    assert "--max-seconds" in line and int(re.search(r"(\d+) frames", line)[1]) < 6
    assert os.path.isfile(video["value"])


# The command


@pytest.fixture
def served(tiny, tmp_path):
    """Start demo/app.py; return its process, its port and the folder of its uploads."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
    port = free_port()
    options = ["--weights", str(tiny[1]), "--config-file", str(tiny[0]), "--device", "cpu"]
    options += ["--port", str(port), "--max-upload", "1", "--per-client", "2"]
    command = [sys.executable, "-u", str(ROOT / "demo" / "app.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("app: http://")
        (folder,) = tmp_path.glob("mask_former_page_*")
        yield process, port, folder
    finally:
        process.kill()
        process.wait()


def post(port, path, body, content_type="application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", f"/gradio_api/{path}", body, {"Content-Type": content_type})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def send_file(port, content):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return post(
        port, "upload", form + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    )


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_served_page_is_behind_the_gate_and_leaves_nothing_when_it_is_terminated(served):
    process, port, folder = served
    status, path = send_file(port, b"content")
    (uploaded,) = json.loads(path)
    assert status == 200 and uploaded.startswith(str(folder))
    assert send_file(port, bytes(1_100_000))[0] == 413
    file = {"path": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}
    message = {"data": [file], "fn_index": 0, "session_hash": "visitor1"}
    status, reason = post(port, "queue/join", json.dumps(message))
    assert status == 403 and "nothing is fetched" in reason
    message = {"data": [], "fn_index": 0}
    assert post(port, "queue/join", json.dumps(message))[0] == 400
    assert post(port, "run/predict", json.dumps(message))[0] == 403
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0 and not folder.exists()


def test_the_requests_of_each_client_in_the_queue_are_counted(part, page):
    """The names in Gradio's queue are not public, so a new version may change them."""
    layout = part("layout")
    blocks = layout.build(page)
    blocks.queue()

    def event(host):
        return SimpleNamespace(request=SimpleNamespace(client=SimpleNamespace(host=host)))

    queue = blocks._queue
    assert layout._queued(blocks, "192.0.2.1") == 0
    queue.event_queue_per_concurrency_id["network"] = SimpleNamespace(
        queue=[event("192.0.2.1"), event("192.0.2.2")]
    )
    queue.active_jobs = [None, [event("192.0.2.1")]]
    assert layout._queued(blocks, "192.0.2.1") == 2


def test_every_limit_is_an_option_and_documented(part):
    text = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    limits = part("limits").Limits()
    for name, limit in type(limits).__dataclass_fields__.items():
        option = re.escape(limit.metadata["option"])
        assert re.search(rf"\| `{option}` \| {getattr(limits, name):g} \|", text), option
