"""A web server on loopback, whose pages are made up."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Page = bytes | Callable[[Any], None]
"""The content of a page, or a function that answers by the request's handler."""


@dataclass
class Server:
    """A server that is running."""

    url: str
    requests: list[str] = field(default_factory=list)
    """The paths, with their queries, that were asked for."""


@contextmanager
def serving(pages: Mapping[str, Page], host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve ``pages``, by path and query; other paths do not exist."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.requests.append(self.path)
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
            elif isinstance(page, bytes):
                answer(self, page)
            else:
                page(self)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.handle_error = lambda *_: None  # a client that hangs up
        made = Server(f"http://{host}:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield made
        finally:
            server.shutdown()


def answer(handler: Any, content: bytes, length: int | None = None) -> None:
    """Send a page, which may announce another length than it has."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def redirect(target: str) -> Callable[[Any], None]:
    """A page that sends the client to another one."""

    def send(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return send
