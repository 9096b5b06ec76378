"""Only public addresses are asked, and every answer comes to an end."""

from __future__ import annotations

import socket
import time

import pytest

from mask_former.utils import web
from mask_former.utils.web import RefusedURLError, is_url, normalize_url, read_url
from tests.helpers.servers import answer, redirect, serving


def read(url, **options):
    return b"".join(block for block, _ in read_url(url, **options))


# URLs


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://example.org", "http://example.org/"),
        ("HTTP://Example.ORG:80/A/b.pth", "http://example.org/A/b.pth"),
        ("https://example.org:443/x?a=1&b=/../#part", "https://example.org/x?a=1&b=/../"),
        ("https://example.org:444/é%20.pth", "https://example.org:444/%C3%A9%20.pth"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("http://h/..x/x../...", "http://h/..x/x../..."),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://１２７.0.０.１/", "http://127.0.0.1/"),
    ],
)
def test_a_url_has_one_spelling(url, expected):
    assert normalize_url(url) == expected == normalize_url(expected)


@pytest.mark.parametrize(
    "url",
    [
        "http://h/../../../x.pth",
        "http://h/a/%2e%2e/x.pth",
        "http://h/a/%2E./x.pth",
        "http://h/a/..%2fx.pth",
        "http://h/a/..%5Cx.pth",
        "http://h/a\\..\\x.pth",
        "http://h/./x.pth",
        "http://h/x\n.pth",
        "http://h/ x.pth",
        "http://me@h/x.pth",
        "http:///x.pth",
        "http://h:99999/x.pth",
        "http://[h/x.pth",
        "http://h..org/x.pth",
        f"http://{'h' * 64}.org/x.pth",
        "http://\u202eh/x.pth",
        "http://h/\ud800.pth",
        "ftp://h/x.pth",
        "file:///etc/passwd",
        "x.pth",
    ],
)
def test_a_url_that_is_not_normalized_or_of_another_kind_is_refused(url):
    with pytest.raises(RefusedURLError, match="was refused"):
        normalize_url(url)


@pytest.mark.parametrize(
    "name, expected",
    [("http://h/x", True), ("timm://x", True), ("a/http://h/x", False), ("C:/x", False)],
)
def test_a_path_with_a_url_in_it_is_a_path(name, expected):
    assert is_url(name) is expected


# Addresses


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),
        *(
            (address, False)
            for address in (
                *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
                *("100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"),
                *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1"),
                *("::ffff:127.0.0.1", "::ffff:10.1.2.3", "2002:7f00:1::", "64:ff9b::7f00:1"),
            )
        ),
    ],
)
def test_addresses_of_this_machine_and_of_private_networks_are_not_public(address, public):
    assert web._is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_a_private_address_is_not_even_connected_to(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(RefusedURLError, match=r"was refused: its address .*private network"):
        read(f"http://{host}:1/x")


def test_what_the_user_gives_may_have_a_private_address():
    with serving({"/x": b"content"}) as server:
        assert read(f"{server.url}/x", allow_private=True) == b"content"


def test_a_host_is_looked_up_once_and_that_address_is_connected_to(monkeypatch):
    """DNS rebinding: a name that has another address at the second look."""
    looked_up, connected = [], []

    def look_up(host, port, **options):
        looked_up.append(host)
        address = "93.184.215.14" if len(looked_up) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(address, *options, **more):
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(OSError, match="no network here"):
        read("http://example.org/x")
    assert looked_up == ["example.org"] and connected == [("93.184.215.14", 80)]


def test_one_private_address_among_public_ones_is_refused(monkeypatch):
    entries = [(2, 1, 6, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: entries)
    with pytest.raises(RefusedURLError, match=r"10\.0\.0\.1"):
        read("http://example.org/x")


def test_the_proxy_of_the_environment_is_asked_for_public_hosts_only(monkeypatch):
    with serving({"http://93.184.215.14/x": b"by proxy"}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert read("http://93.184.215.14/x") == b"by proxy"
        with pytest.raises(RefusedURLError):
            read("http://10.0.0.1/x")
        assert proxy.requests == ["http://93.184.215.14/x"]


# Redirects


@pytest.fixture
def two_networks(monkeypatch):
    """127.0.0.1 counts as public, all else as private."""
    monkeypatch.setattr(web, "_is_public", lambda address: address == "127.0.0.1")


def test_a_redirect_is_followed(two_networks):
    with serving({"/x": redirect("/y?z"), "/y?z": b"content"}) as server:
        assert read(f"{server.url}/x") == b"content"


@pytest.mark.parametrize("allow_private", [False, True])
def test_a_redirect_to_a_private_address_is_refused_and_never_asked(two_networks, allow_private):
    with serving({"/x": b"secret"}, host="127.0.0.2") as internal:
        pages = {"/x": redirect(f"{internal.url}/x")}
        with serving(pages) as server, pytest.raises(RefusedURLError, match=r"127\.0\.0\.2"):
            read(f"{server.url}/x", allow_private=allow_private)
        assert internal.requests == []


@pytest.mark.parametrize(
    "target", ["https://h/x", "file:///etc/passwd", "ftp://h/x", "http://h/%2e%2e"]
)
def test_a_redirect_to_another_scheme_is_refused(two_networks, target):
    with (
        serving({"/x": redirect(target)}) as server,
        pytest.raises(RefusedURLError, match="refused"),
    ):
        read(f"{server.url}/x")


def test_redirects_come_to_an_end(two_networks):
    with serving({"/x": redirect("/x")}) as server:
        with pytest.raises(OSError, match="redirected more than 5 times"):
            read(f"{server.url}/x")
        assert len(server.requests) == 6


# Time, and what is sent


def silent(handler):
    time.sleep(5)


def one_byte_at_a_time(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    drip(handler)


def endless_header(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
    drip(handler)


def drip(handler):
    for _ in range(100):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("page", [silent, one_byte_at_a_time, endless_header])
def test_a_server_that_is_silent_or_too_slow_is_given_up(monkeypatch, page):
    monkeypatch.setattr(web, "_TIMEOUT", 0.5)
    monkeypatch.setattr(web, "_SLOWEST", 0.5)
    began = time.monotonic()
    with serving({"/x": page}) as server, pytest.raises(OSError):
        read(f"{server.url}/x", allow_private=True)
    assert time.monotonic() - began < 3


def test_content_that_ends_too_early_is_an_error():
    with (
        serving({"/x": lambda handler: answer(handler, b"half", length=8)}) as server,
        pytest.raises(OSError, match="ended after 4 of 8 bytes"),
    ):
        read(f"{server.url}/x", allow_private=True)


def test_an_error_of_the_server_is_one_of_ours():
    with serving({}) as server, pytest.raises(OSError, match="the server reports 404 Not Found"):
        read(f"{server.url}/x", allow_private=True)


def malformed(content):
    def send(handler):
        handler.close_connection = True
        handler.wfile.write(content)

    return send


def test_a_malformed_answer_is_one_of_our_errors():
    chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nxx"
    target = b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"
    with serving({"/chunk": malformed(chunk), "/target": malformed(target)}) as server:
        with pytest.raises(OSError, match="the answer is damaged"):
            read(f"{server.url}/chunk", allow_private=True)
        with pytest.raises(
            RefusedURLError, match="/target redirects to an address that was refused"
        ):
            read(f"{server.url}/target", allow_private=True)
