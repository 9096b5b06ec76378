"""The gate in front of the page, without Gradio: which requests reach the application."""

from __future__ import annotations

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
from page.disk import make_room
from page.gate import Gate, Rules
from page.limits import Limits
from page.rates import Rate, client_name

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


class Site:
    """A gate in front of an application that records the requests that reach it."""

    def __init__(self, folder, queued=lambda client: 0, **limits):
        self.reached = []
        self.gate = Gate(self._app, Rules(Limits(**limits), folder, queued))

    async def _app(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.reached.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(self, method, path, body=b"", host="192.0.2.1", headers=None, pause=0.0, kind="http"):
        """Send a request, its body in two pieces; return the status and the reason."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        pieces = [(body[: len(body) // 2], True), (body[len(body) // 2 :], False)]
        sent = []

        async def receive():
            await asyncio.sleep(pause)
            piece, more = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": more}

        async def send(message):
            sent.append(message)

        if headers is None:
            headers = [(b"content-length", b"%d" % len(body))]
        scope = {"type": kind, "method": method, "path": path, "headers": headers}
        scope["client"] = (host, 1)
        asyncio.run(self.gate(scope, receive, send))
        reason = json.loads(sent[1]["body"] or b"{}") if len(sent) > 1 else {}
        return SimpleNamespace(
            status=sent[0].get("status"), kind=sent[0]["type"], reason=reason.get("detail", "")
        )


def join(*data, session="visitor1"):
    return {"data": list(data), "fn_index": 0, "session_hash": session}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "uploads"
    made.mkdir()
    return made


@pytest.fixture
def site(folder):
    return Site(folder)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/gradio_api/{name}") for name in ("run/predict", "api/predict", "call/a")),
        *(("POST", f"/gradio_api/{name}") for name in ("call/v2/a", "stream/1", "vibe-edit/")),
        *(("POST", f"/gradio_api/{name}") for name in ("component_server", "process_recording")),
        *(("POST", f"{JOIN}/../run/predict"), ("PUT", JOIN), ("DELETE", "/"), ("POST", "/login")),
        *(("GET", f"/gradio_api/{name}") for name in ("proxy=http://a/", "call/a/1", "runs")),
        *(("GET", f"/gradio_api/file={name}") for name in ("http://a/x", "HTTPS://a/x", "x.png")),
        *(("GET", name) for name in ("/monitoring", "/gradio_api/deep_link", "/.env", "//etc")),
    ],
)
def test_a_route_that_the_page_does_not_use_is_refused(site, method, path):
    answer = site.ask(method, path, join())
    assert answer.status == 403 and "is refused: the page does not use it" in answer.reason
    assert not site.reached


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/assets/index.js", "/static/img/logo.svg", "/theme.css"),
        *("/gradio_api/heartbeat/visitor1", "/gradio_api/queue/data", "/gradio_api/info"),
        *("/gradio_api/upload_progress", "/gradio_api/file=/tmp/a.webm"),
    ],
)
def test_what_the_page_reads_is_passed_on(site, path):
    assert site.ask("GET", path).status == 200


def test_a_websocket_is_refused(site):
    assert site.ask("GET", "/", kind="websocket").kind == "websocket.close"
    assert not site.reached


def test_a_request_of_the_page_reaches_the_application_unchanged(site, folder):
    message = join({"path": str(folder / "a.png"), "url": "http://host/gradio_api/file=/a.png"})
    assert site.ask("POST", JOIN, message).status == 200
    assert site.reached == [(JOIN, json.dumps(message).encode())]


@pytest.mark.parametrize("session", [None, "", 5, ["a"], "a/b", "a" * 65, "ä"])
@pytest.mark.parametrize("path", [JOIN, "/gradio_api/cancel"])
def test_a_request_without_a_session_of_its_own_is_refused(site, session, path):
    answer = site.ask("POST", path, join(session=session))
    assert answer.status == 400 and "is refused: session_hash is" in answer.reason
    assert not site.reached


@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1/a.png", "https://a/b", "file:///a", "/etc/passwd", "a.png", 5, None, "\0"],
)
def test_only_a_file_that_was_uploaded_is_accepted(site, path):
    for file in ({"path": path}, [{"deep": {"path": path}}]):
        answer = site.ask("POST", JOIN, join(file))
        assert answer.status == 403 and "nothing is fetched" in answer.reason
    assert not site.reached


def test_a_path_that_leaves_the_folder_is_refused(site, folder):
    (folder / "link").symlink_to("/etc")
    for path in (folder / ".." / "x.png", folder / "link" / "passwd"):
        assert site.ask("POST", JOIN, join({"path": str(path)})).status == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((b"[" * 60_000, 400), (b"no json", 400), (b"[]", 400), (b"\xff", 400)),
        (b'{"data": [' + b" " * 70_000 + b"]}", 413),
        (b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
    ],
)
def test_a_body_that_the_page_does_not_send_is_refused(site, body, status):
    assert site.ask("POST", JOIN, body).status == status
    assert not site.reached


def test_a_client_cannot_fill_the_queue(folder):
    waiting = {"192.0.2.1": 4, "192.0.2.2": 3}
    site = Site(folder, queued=waiting.get, per_client=4)
    answer = site.ask("POST", JOIN, join(), host="192.0.2.1")
    assert answer.status == 429 and answer.reason.startswith("4 of your requests")
    assert site.ask("POST", JOIN, join(), host="192.0.2.2").status == 200
    assert site.ask("POST", "/gradio_api/cancel", join(), host="192.0.2.1").status == 200


def test_requests_and_uploads_of_a_client_are_limited_by_the_minute(folder):
    site = Site(folder, requests=3, uploads=2)
    asked = [site.ask("POST", JOIN, join()).status for _ in range(4)]
    sent = [site.ask("POST", UPLOAD, b"x").status for _ in range(3)]
    assert asked == [200, 200, 200, 429] and sent == [200, 200, 429]
    assert site.ask("POST", JOIN, join(), host="192.0.2.2").status == 200


def test_an_upload_is_refused_by_its_length_before_it_is_read(folder):
    site = Site(folder, upload_mb=1)
    answer = site.ask("POST", UPLOAD, headers=[(b"content-length", b"2000000")])
    assert answer.status == 413 and "--max-upload" in answer.reason
    for headers in ([], [(b"content-length", b"-5")], [(b"content-length", b"1")] * 2):
        assert site.ask("POST", UPLOAD, headers=headers).status == 411
    assert not site.reached
    assert site.ask("POST", UPLOAD, b"x" * 100).status == 200


@pytest.mark.parametrize("path", [JOIN, UPLOAD])
def test_a_body_that_arrives_too_slowly_is_refused(folder, path):
    site = Site(folder, seconds=0.05)
    answer = site.ask("POST", path, join(), pause=0.2)
    assert answer.status == 408 and "within 0.05 s" in answer.reason and not site.reached


def test_an_upload_makes_room_for_itself(folder):
    (folder / "old.png").write_bytes(bytes(900))
    site = Site(folder, disk_gb=1e-6)
    assert site.ask("POST", UPLOAD, bytes(200)).status == 200
    assert not (folder / "old.png").exists()
    answer = site.ask("POST", UPLOAD, bytes(1001))
    assert answer.status == 503 and len(site.reached) == 1


def test_the_oldest_files_are_deleted_until_there_is_room(tmp_path):
    for age, name in enumerate(("new", "b/middle", "a/old")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    assert make_room(tmp_path, needed=100, limit=400)
    assert (tmp_path / "a/old").exists()
    assert make_room(tmp_path, needed=200, limit=400)
    assert not (tmp_path / "a").exists() and (tmp_path / "b/middle").exists()
    assert not make_room(tmp_path, needed=401, limit=400) and (tmp_path / "new").exists()
    assert make_room(tmp_path, needed=400, limit=400) and not any(tmp_path.iterdir())


def test_a_rate_allows_a_burst_and_then_one_event_per_interval():
    now = [0.0]
    rate = Rate(per_minute=3, clock=lambda: now[0])
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    now[0] = 20
    assert [rate.allows("a") for _ in range(2)] == [True, False]
    now[0] = 200
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]


def test_a_network_of_ipv6_addresses_is_one_client():
    assert client_name("2001:db8::1") == client_name("2001:db8::ffff") != client_name("2001:db9::1")
    assert client_name("::ffff:192.0.2.1") == client_name("192.0.2.1") == "192.0.2.1"
    assert client_name("192.0.2.1") != client_name("192.0.2.2")
    assert client_name("unix") == "unix"
