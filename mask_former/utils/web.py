"""HTTP requests to public addresses that come to an end: for URLs that anybody may have written.

A config from somebody else may name any URL. Without these checks it could make this machine ask
the servers of its own network, follow redirects to them, or wait forever.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

__all__ = ["RefusedURLError", "is_url", "normalize_url", "read_url"]

_TIMEOUT = 30.0
"""Seconds that a connection, or the next byte of an answer, may take."""
_SLOWEST = 60.0
"""Seconds that the header of an answer, or a block of its body, may take."""
_BLOCK = 1 << 18
"""Bytes of a block."""
_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST, _NAT64 = IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96")
_UNQUOTED = "/%:@!$&'()*+,;=~?[]"


class RefusedURLError(ValueError):
    """A URL that is not asked for, because that could harm this machine or its network."""


def is_url(name: str) -> bool:
    """Return whether a name starts like a URL (``scheme://``), not like a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", name) is not None


def normalize_url(url: str) -> str:
    """Return the one spelling of an http or https URL.

    The host is in lower case and ASCII (``xn--…``); a default port and a fragment are left out.

    Raises:
        RefusedURLError: If it is another kind of URL, has no host, holds a user name or characters
            that URLs do not have, or its path is not normalized (``..``, also as ``%2e%2e``).
    """
    try:
        parts, problem = urlsplit(url), ""
        port, name = parts.port, (parts.hostname or "").encode("idna").decode()
        path, query = quote(parts.path, _UNQUOTED) or "/", quote(parts.query, _UNQUOTED)
    except ValueError as error:
        raise RefusedURLError(f"{url!r} was refused: {error}.") from error
    if parts.scheme not in _PORTS:
        problem = "only http:// and https:// are fetched"
    elif re.search(r"[\s\x00-\x1f\x7f\\]", url):
        problem = "it holds spaces, control characters or backslashes; write them as %20 and so on"
    elif not name or "@" in parts.netloc:
        problem = "expected http://HOST/PATH, without a user name"
    elif {".", ".."} & set(re.split(r"[/\\]", unquote(parts.path))):
        problem = "its path holds '..' or '.', which may lead out of a folder; write it without"
    if problem:
        raise RefusedURLError(f"{url!r} was refused: {problem}.")
    host = f"[{name}]" if ":" in name else name
    host += f":{port}" if port not in (None, _PORTS[parts.scheme]) else ""
    return f"{parts.scheme}://{host}{path}{'?' if query else ''}{query}"


def read_url(url: str, *, allow_private: bool = False) -> Iterator[tuple[bytes, int | None]]:
    """Request a URL, and yield its content in blocks, each with the length of the whole.

    Args:
        url: A normalized URL.
        allow_private: Allow that the host of ``url`` has an address of this machine or of a
            private network. Other hosts, to which it may redirect, need public addresses.

    Returns:
        Blocks, and the number of bytes that the server has announced, or None.

    Raises:
        RefusedURLError: For an address that is not public, and for a redirect to another scheme.
        OSError: If the server cannot be reached, is too slow, or reports an error; if it announces
            more bytes than it sends.
    """
    with _response(url, allow_private) as (response, connection):
        length, received = response.length, 0
        while True:
            with _deadline(connection):
                block = response.read(_BLOCK)
            if not block:
                break
            received += len(block)
            yield block, length
        if length is not None and received < length:
            raise OSError(f"it ended after {received} of {length} bytes")


@contextmanager
def _response(url: str, allow_private: bool) -> Iterator[tuple[HTTPResponse, socket.socket]]:
    """Follow redirects to the answer, and yield it together with its socket."""
    own_host = urlsplit(url).netloc if allow_private else ""
    for _ in range(_MAX_REDIRECTS + 1):
        handler = _Handler(own_host)
        opener = OpenerDirector()
        opener.add_handler(ProxyHandler())
        opener.add_handler(handler)
        with opener.open(Request(url), timeout=_TIMEOUT) as response:
            if response.status == 200:
                yield response, handler.connection.watched
                return
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not target:
                raise OSError(f"the server reports {response.status} {response.reason}"[:200])
        url = _redirected(url, target)
    raise OSError(f"it is redirected more than {_MAX_REDIRECTS} times")


def _redirected(url: str, target: str) -> str:
    """Return the URL that a redirect leads to, which must have the same scheme."""
    try:
        new = normalize_url(urljoin(url, target))
    except ValueError as error:
        raise RefusedURLError(f"{url} redirects to an address that was refused: {error}") from error
    if urlsplit(new).scheme != urlsplit(url).scheme:
        raise RefusedURLError(
            f"{url} redirects to {new}, which has another scheme: this was refused. If you trust "
            "that address, give it instead."
        )
    return new


@contextmanager
def _deadline(connection: socket.socket) -> Iterator[None]:
    """End a connection that is still in use after ``_SLOWEST`` seconds, whatever has arrived.

    Raises:
        OSError: If it was ended, or an answer is damaged in a way that ``http.client`` overlooks.
    """
    expired = threading.Event()

    def end() -> None:
        expired.set()
        with suppress(OSError):  # it may have just ended
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(_SLOWEST, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except ValueError as error:
        raise OSError(f"the answer is damaged ({error})") from error
    finally:
        timer.cancel()
        if expired.is_set():
            raise OSError(f"the server sent less than {_BLOCK} bytes in {_SLOWEST:.0f} seconds")


def _is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip: IPv4Address | IPv6Address = ip_address(address)
    if isinstance(ip, IPv6Address):
        hidden = ip.ipv4_mapped or ip.sixtofour
        hidden = hidden or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if hidden is None:
            return ip in _GLOBAL_UNICAST and ip.is_global
        ip = hidden
    return ip.is_global and not ip.is_multicast


def _addresses(host: str, port: int, url: str, allow_private: bool) -> list[str]:
    """Look up the addresses of a host, and check every one before ``url`` is asked for."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    private = [address for address in addresses if not _is_public(address)]
    if private and not allow_private:
        raise RefusedURLError(
            f"{url} was refused: its address {private[0]} belongs to this machine or to a private "
            "network, which no file and no redirect may make it ask. If you trust the URL, give it "
            "yourself, such as MODEL.WEIGHTS URL or --weights URL on the command line."
        )
    return addresses


class _Http(HTTPConnection):
    """A connection to an address that was checked: the name of the host is looked up once."""

    url = ""
    allow_private = False
    watched: socket.socket
    """The socket; ``http.client`` drops its own reference when it has read the header."""

    def connect(self) -> None:
        host, error = self.host, OSError("it has no address")
        try:
            for address in _addresses(host, self.port, self.url, self.allow_private):
                self.host = address
                try:
                    return super().connect()
                except OSError as failure:
                    error = failure
        finally:
            self.host = host
        raise error

    def getresponse(self) -> HTTPResponse:
        self.watched = self.sock
        with _deadline(self.watched):
            return super().getresponse()


class _Https(HTTPSConnection, _Http):
    """The same, encrypted; ``HTTPSConnection`` connects through the class after it."""


class _Handler(HTTPSHandler, HTTPHandler):
    """Open a request on a connection that checks addresses."""

    def __init__(self, own_host: str) -> None:
        """Set the host (with its port) that may have a private address, if any."""
        super().__init__()
        self.own_host = own_host
        self.connection: _Http

    def http_open(self, req: Request) -> HTTPResponse:
        return self._ask(_Http, req)

    def https_open(self, req: Request) -> HTTPResponse:
        return self._ask(_Https, req)

    def _ask(self, kind: type[_Http], request: Request) -> HTTPResponse:
        target = urlsplit(request.full_url)
        allow_private = target.netloc == self.own_host
        is_proxied = request.host != target.netloc
        if is_proxied:  # the proxy is the user's own; it may be alone in knowing the host
            with suppress(OSError):
                port = target.port or _PORTS[target.scheme]
                _addresses(str(target.hostname), port, request.full_url, allow_private)

        def connect(host: str, **options: Any) -> _Http:
            self.connection = kind(host, **options)
            self.connection.url = request.full_url
            self.connection.allow_private = allow_private or is_proxied
            return self.connection

        return self.do_open(connect, request)
