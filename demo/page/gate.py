"""Refuse requests that the page's own script does not send, before Gradio acts on them.

Gradio offers many more routes than the page uses: calls without a session, files that the server
fetches from a URL, editing. :class:`Gate` is an ASGI middleware in front of all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import make_room
from .limits import GIGA, MEGA, Limits
from .rates import Rate, client_name

__all__ = ["Gate", "Refused", "Rules"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/gradio_api/"
JOIN, UPLOAD = f"{API}queue/join", f"{API}upload"
POSTED = {JOIN, f"{API}cancel", f"{API}reset"}
"""Paths that take a JSON message of the page's script."""
READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(assets|static|svelte)/.*"
    r"|gradio_api/(startup-events|app_id/?|info/?|theme\.css|heartbeat/[^/]+|queue/(data|status)"
    r"|upload_progress|file=/.*))?"
)
"""Paths that may be read; files only by their path on this machine, never by URL."""

JSON_BYTES = 64 * 1024
"""Largest request that is not an upload; the page's own ones have less than 2 KB."""
FORM_BYTES = 64 * 1024
"""Size of an upload besides its file: the boundaries of the form, and the file's name."""
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Rules:
    """The page's limits, and what the gate must know about Gradio."""

    limits: Limits
    folder: Path
    """Folder of the uploads; the files of a request must lie in it."""
    queued: Callable[[str], int]
    """Returns the number of a client's requests that are waiting or running."""


class Gate:
    """ASGI middleware that applies the rules to every request."""

    def __init__(self, app: App, rules: Rules) -> None:
        """Stand in front of an application."""
        self._app = app
        self._rules = rules
        self._requests = Rate(rules.limits.requests)
        self._uploads = Rate(rules.limits.uploads)
        self._arriving = 0  # bytes of the uploads that are not complete yet

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason for the refusal."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            if scope["method"] == "POST" and scope["path"] == UPLOAD:
                await self._receive_upload(scope, receive, send)
            else:
                await self._app(scope, await self._admit(scope, receive), send)
        except Refused as refusal:
            await _answer(refusal, send)

    async def _admit(self, scope: Message, receive: Receive) -> Receive:
        """Check a request; return what the application reads its body from."""
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        if method in ("GET", "HEAD"):
            if not READ.fullmatch(path):
                raise Refused(403, f"{path} is refused: the page does not use it.")
            return receive
        if method != "POST" or path not in POSTED:
            raise Refused(403, f"{method} {path} is refused: the page does not use it.")
        client = _client(scope)
        if not self._requests.allows(client):
            raise Refused(429, "There were too many requests. Wait a minute and try again.")
        receive = _within(self._rules.limits.seconds, receive)
        body = await _read(receive)
        self._check_message(_parse(body), client, joins=path == JOIN)
        return _replay(body, receive)

    async def _receive_upload(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check an upload by its headers, make room for it, and pass it on."""
        limits, length = self._rules.limits, _length(scope)
        self._check_upload(length, _client(scope))
        self._arriving += length
        try:
            if not make_room(self._rules.folder, self._arriving, limits.disk_gb * GIGA):
                raise Refused(503, "Too many uploads are arriving at once. Try again later.")
            await self._app(scope, _within(limits.seconds, receive), send)
        finally:
            self._arriving -= length

    def _check_upload(self, length: int, client: str) -> None:
        limit = self._rules.limits.upload_mb
        if length > limit * MEGA + FORM_BYTES:
            raise Refused(
                413,
                f"The file has {length / MEGA:.0f} MB; this page accepts up to {limit:g} MB. Make "
                "it smaller, or start the page with a larger --max-upload.",
            )
        if not self._uploads.allows(client):
            raise Refused(429, "There were too many uploads. Wait a minute and try again.")

    def _check_message(self, message: Any, client: str, joins: bool) -> None:
        if not isinstance(message, dict):
            raise Refused(400, "The request is refused: expected a JSON object.")
        session = message.get("session_hash")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise Refused(
                400,
                f"The request is refused: session_hash is {str(session)[:80]!r}; expected 1 to 64 "
                "letters, digits, '-' or '_', which name this visitor alone.",
            )
        for path in _paths(message):
            if not _lies_in(path, self._rules.folder):
                raise Refused(
                    403,
                    f"The file {str(path)[:80]!r} is refused: only a file that was uploaded to "
                    "this page is read, and nothing is fetched. Upload it first.",
                )
        if joins and self._rules.queued(client) >= (most := self._rules.limits.per_client):
            raise Refused(429, f"{most} of your requests are not finished yet. Wait for them.")


def _paths(message: Any) -> Iterator[Any]:
    """Yield the path of each file in a request; Gradio describes a file by a dict."""
    values = [message]
    while values:  # no recursion: the depth is the client's choice
        value = values.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            values += value.values()
        elif isinstance(value, list):
            values += value


def _lies_in(path: Any, folder: Path) -> bool:
    if not isinstance(path, str) or "\0" in path:
        return False
    real = Path(os.path.realpath(path))  # unlike `resolve`, it accepts links in a circle
    return Path(path).is_absolute() and real.is_relative_to(folder.resolve())


def _client(scope: Message) -> str:
    host, _ = scope.get("client") or ("unknown", 0)
    return client_name(host)


def _length(scope: Message) -> int:
    """Return the length of a body, which the server (h11) then enforces."""
    found = [value for name, value in scope["headers"] if name == b"content-length"]
    if len(found) != 1 or not found[0].isdigit():
        raise Refused(411, "The upload is refused: its length is missing (Content-Length).")
    return int(found[0])


def _within(seconds: float, receive: Receive) -> Receive:
    """Limit the time in which a body arrives; then only the end of the connection is awaited."""
    end: float | None = asyncio.get_running_loop().time() + seconds

    async def timed() -> Message:
        nonlocal end
        if end is None:
            return await receive()
        try:
            left = end - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(receive(), max(left, 0.001))
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"The request did not arrive within {seconds:g} s.") from None
        if not message.get("more_body"):
            end = None
        return message

    return timed


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > JSON_BYTES:
            raise Refused(413, f"The request is refused: it has more than {JSON_BYTES} bytes.")
        more = message.get("more_body", False)
    return body


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The request is refused: it is not JSON.") from error


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return the body once, then what comes after it."""
    rest = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> Message:
        return next(rest, None) or await receive()

    return replayed


async def _answer(refusal: Refused, send: Send) -> None:
    """Answer with the reason, in the form of Gradio's own errors, which its script shows."""
    body = json.dumps({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
