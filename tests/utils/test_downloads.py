"""Whatever names a URL, it is fetched in one way: checked, bounded, logged, kept if it is good."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg
from mask_former.predictor.pretrained import find_pretrained
from mask_former.utils import downloads, web
from mask_former.utils.downloads import cached_file, fetch, local_weights, named_in, typed_by_user
from mask_former.utils.web import RefusedURLError
from tests.helpers.servers import answer, redirect, serving

MIB = 1 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no URL that anybody has named."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_typed", set())
    monkeypatch.setattr(downloads, "_named_in", {})
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a checkpoint of ``linear()``."""
    path = tmp_path_factory.mktemp("made") / "x.pth"
    torch.save({"model": {"weight": torch.full((1, 1), 2.0)}}, path)
    return path.read_bytes()


def linear():
    return nn.Linear(1, 1, bias=False)


def anything(path: Path) -> None:
    """A check that accepts every file."""


def files(folder):
    """List the files in a folder, except for locks."""
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]


# Where copies lie


def ways(tmp_path):
    """By name, each way in which a file or a caller makes us fetch a URL."""

    def by_config(key):
        def read(url):
            (tmp_path / "x.yaml").write_text(f"{key}: {url}\n")
            return load_cfg(str(tmp_path / "x.yaml"))

        return read

    def by_weights(url):
        (tmp_path / "x.yaml").write_text(f"MODEL: {{WEIGHTS: '{url}'}}\n")
        return find_pretrained(tmp_path / "x.yaml", device="cpu")

    return {
        "_BASE_": by_config("_BASE_"),
        "a list of _BASE_": lambda url: by_config("_BASE_")(f"['{url}']"),
        "MODEL.WEIGHTS": by_weights,
        "from_pretrained": find_pretrained,
        "Checkpointer.load": lambda url: Checkpointer(linear()).load(url),
        "resume_or_load": lambda url: Checkpointer(linear()).resume_or_load(url, resume=False),
        "PathManager.open": PathManager.open,
        "PathManager.get_local_path": PathManager.get_local_path,
    }


@pytest.mark.parametrize("way", ways(Path()))
@pytest.mark.parametrize("dots", ["..", "%2e%2e", ".%2E"])
def test_a_url_cannot_write_outside_of_the_cache(way, dots, tmp_path, cache, checkpoint):
    planted = tmp_path / "planted" / "x.pth"
    planted.parent.mkdir()
    path = f"/{'/'.join([dots] * 12)}{planted}"
    with serving({path: checkpoint}) as server:
        with pytest.raises(ValueError, match="refused"):
            ways(tmp_path)[way](server.url + path)
        assert server.requests == []
    assert not planted.exists() and not cache.exists()


def test_a_detectron2_address_cannot_write_outside_of_the_cache(tmp_path, cache):
    for read in (local_weights, PathManager.get_local_path):
        with pytest.raises(RefusedURLError, match="refused"):
            read(f"detectron2://{'../' * 12}{tmp_path}/x.pth")
    assert not files(tmp_path)


def test_the_copy_that_detectron2_itself_has_made_is_used(cache, checkpoint):
    path = cache / "detectron2" / "ImageNetPretrained" / "x.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint)
    assert local_weights("detectron2://ImageNetPretrained/x.pkl") == str(path)


def test_a_folder_of_the_cache_that_leads_outside_is_refused(tmp_path, cache):
    (tmp_path / "elsewhere").mkdir()
    cache.mkdir()
    (cache / "mask_former").mkdir()
    (cache / "mask_former" / "downloads").symlink_to(tmp_path / "elsewhere")
    for name in ("downloads/x", "../x", "a/../../x"):
        with pytest.raises(RefusedURLError, match="would lie outside"):
            cached_file(name)


def test_a_cache_that_cannot_be_written_is_an_error_and_no_other_folder_is_used(cache):
    cache.write_text("a file in the place of the folder")
    pattern = rf"127\.0\.0\.1:9/x\.pth cannot be fetched: the cache folder {cache} .*FVCORE_CACHE"
    with pytest.raises(OSError, match=pattern):
        fetch("http://127.0.0.1:9/x.pth", anything, by_user=True)


@pytest.mark.parametrize("last", ["", "..x", "%00", "%2Froot", "a%20b", "x" * 300 + ".pth"])
def test_whatever_a_url_ends_in_its_copy_has_a_plain_short_name(last, cache):
    with serving({f"/{last}": b"content"}) as server:
        path = fetch(f"{server.url}/{last}", anything, by_user=True)
    assert path.read_bytes() == b"content" and cache in path.parents
    assert 0 < len(path.name) <= 100 and path.name.isascii() and not path.name.startswith(".")
    assert path.suffix == (".pth" if last.endswith(".pth") else path.suffix)


def test_hosts_ports_and_queries_have_copies_of_their_own_and_each_is_asked_once():
    pages = {"/x": b"one", "/x?a=2": b"two"}
    with serving(pages) as server, serving({"/x": b"other"}) as other:
        urls = [f"{server.url}/x", f"{server.url}/x?a=2", f"{other.url}/x"] * 2
        found = [fetch(url, anything, by_user=True).read_bytes() for url in urls]
        assert found == [b"one", b"two", b"other"] * 2
        assert server.requests == ["/x", "/x?a=2"] and other.requests == ["/x"]


# What is kept


def test_a_bad_copy_is_not_kept_and_the_same_call_fetches_again(cache, checkpoint):
    pages = {"/x.pth": checkpoint[:-100]}
    with serving(pages) as server:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"/x\.pth is not a readable checkpoint") as info:
                Checkpointer(linear()).load(f"{server.url}/x.pth")
            assert server.url in str(info.value) and "Nothing was kept" in str(info.value)
            assert files(cache) == []
        pages["/x.pth"] = checkpoint
        model = linear()
        Checkpointer(model).load(f"{server.url}/x.pth")
        assert model.weight.item() == 2 and len(server.requests) == 3


def test_content_that_ends_too_early_is_not_kept(cache):
    message = r"/x cannot be fetched: it ended after 4 of 8 bytes"
    pages = {"/x": lambda handler: answer(handler, b"half", length=8)}
    with serving(pages) as server, pytest.raises(OSError, match=message):
        fetch(f"{server.url}/x", anything, by_user=True)
    assert files(cache) == []


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(MIB))


@pytest.mark.parametrize("page", [bytes(MIB + 1), endless])
def test_content_without_end_or_larger_than_its_kind_is_refused(page, cache):
    with serving({"/x": page}) as server:
        with pytest.raises(ValueError, match=r"/x is larger than 1 MiB, .*refused"):
            fetch(f"{server.url}/x", anything, max_bytes=MIB, by_user=True)
        assert files(cache) == []
        if page is not endless:
            fetch(f"{server.url}/x", anything, by_user=True)
            with pytest.raises(ValueError, match=r"/x is larger than 1 MiB"):
                fetch(f"{server.url}/x", anything, max_bytes=MIB)


def test_options_of_weights_are_not_sent_and_other_words_are(checkpoint):
    with serving({"/x.pth?token=1": checkpoint}) as server:
        url = f"{server.url}/x.pth?ema=True&token=1&matching_heuristics=True"
        local = local_weights(url, by_user=True)
    assert local.endswith("/x.pth?ema=True&matching_heuristics=True")
    assert server.requests == ["/x.pth?token=1"]


def test_what_is_not_a_url_stays_as_it_is():
    for name in ("x.pth", "/a/x.pth?ema=True", "out/http://x", ""):
        assert local_weights(name) == name


# Who may name which address, and the log


def test_a_config_cannot_make_us_ask_a_private_address_and_the_user_can(tmp_path, checkpoint):
    config = tmp_path / "x.yaml"
    with serving({"/x.pth": checkpoint, "/b.yaml": b"SEED: 5\n"}) as server:
        url = f"{server.url}/x.pth"
        config.write_text(f"MODEL: {{WEIGHTS: '{url}'}}\n")
        weights = load_cfg(str(config)).MODEL.WEIGHTS
        with pytest.raises(RefusedURLError, match=r"127\.0\.0\.1 .*give it yourself.*x\.yaml"):
            Checkpointer(linear()).resume_or_load(weights, resume=False)
        config.write_text(f"_BASE_: {server.url}/b.yaml\n")
        with pytest.raises(RefusedURLError, match=r"127\.0\.0\.1"):
            load_cfg(str(config))
        assert server.requests == []
        weights = load_cfg("", ["MODEL.WEIGHTS", url]).MODEL.WEIGHTS
        Checkpointer(linear()).resume_or_load(weights, resume=False)
        assert server.requests == ["/x.pth"]


@pytest.fixture
def public(monkeypatch):
    """127.0.0.1 counts as public."""
    monkeypatch.setattr(web, "_is_public", lambda address: address == "127.0.0.1")


def messages(caplog):
    return [(r.levelname, r.message) for r in caplog.records if r.name == downloads.__name__]


def test_the_log_names_each_url_and_the_file_that_names_it(tmp_path, public, caplog, checkpoint):
    caplog.set_level(logging.INFO)
    pages = {
        "/c/b.yaml": b"_BASE_: a.yaml\nSEED: 5\n",
        "/c/a.yaml": b"VERSION: 2\nSEED: 4\n",
        "/x.pth": checkpoint,
    }
    config = tmp_path / "x.yaml"
    with serving(pages) as server:
        base, url = f"{server.url}/c/b.yaml", f"{server.url}/x.pth"
        config.write_text(f"_BASE_: {base}\nMODEL: {{WEIGHTS: '{url}'}}\n")
        cfg = load_cfg(str(config))
        assert cfg.SEED == 5
        Checkpointer(linear()).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
        assert server.requests == ["/c/b.yaml", "/c/a.yaml", "/x.pth"]
    assert [level for level, _ in messages(caplog)] == ["WARNING"] * 3
    texts = [text for _, text in messages(caplog)]
    assert f"Fetching {base}, named in _BASE_ of {config}." == texts[0]
    assert f"Fetching {server.url}/c/a.yaml, named in _BASE_ of {base}." == texts[1]
    assert f"Fetching {url}, named in {config}." == texts[2]


def test_a_url_that_nobody_is_known_to_have_named_is_logged(public, caplog):
    with serving({"/x": b"content"}) as server, PathManager.open(f"{server.url}/x", "rb") as file:
        assert file.read() == b"content"
    ((level, text),) = messages(caplog)
    assert level == "WARNING" and f"{server.url}/x" in text


def test_a_url_that_the_user_typed_is_not_a_warning(caplog):
    caplog.set_level(logging.INFO)
    named_in("http://127.0.0.1/x", "x.yaml")
    with serving({"/x": b"content"}) as server:
        typed_by_user([f"{server.url}/x", "other", 7])
        fetch(f"{server.url}/x", anything)
    assert messages(caplog) == [("INFO", f"Fetching {server.url}/x.")]


def test_a_base_is_a_config_of_at_most_a_mebibyte(tmp_path, public, cache):
    config = tmp_path / "x.yaml"
    pages = {
        "/list.yaml": b"- 1\n",
        "/large.yaml": b"#" * (MIB + 1),
        "/moved": redirect("/list.yaml"),
    }
    with serving(pages) as server:
        for page, message in (
            ("list.yaml", r"/list\.yaml holds list"),
            ("moved", "/moved holds list"),
            ("large.yaml", r"/large\.yaml is larger than 1 MiB"),
        ):
            config.write_text(f"_BASE_: {server.url}/{page}\n")
            with pytest.raises(ValueError, match=message):
                load_cfg(str(config))
    assert files(cache) == []


def test_importing_the_package_replaces_the_downloads_of_detectron2():
    for url in ("http://h/x", "https://h/x", "ftp://h/x", "https://1drv.ms/u/s!x"):
        handler = PathManager._PathManager__get_path_handler(url)
        assert isinstance(handler, downloads._CheckedDownloads)
