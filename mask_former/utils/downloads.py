"""Fetch files from URLs: the one way by which anything of this package reaches the network.

Importing this module makes detectron2's file layer (``PathManager``) use it for ``http://`` and
``https://`` as well: for the ``_BASE_`` of configs, ``detectron2://`` and files of datasets.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import OneDrivePathHandler, PathHandler, file_lock
from tqdm import tqdm

from .errors import one_line, short
from .web import RefusedURLError, is_url, normalize_url, read_url
from .weight_files import read_checkpoint

__all__ = [
    "MAX_CONFIG_BYTES",
    "announce",
    "cached_file",
    "fetch",
    "local_weights",
    "named_in",
    "typed_by_user",
]

MAX_BYTES = 4 << 30
MAX_CONFIG_BYTES = 1 << 20
_WEIGHT_OPTIONS = ("ema=True", "matching_heuristics=True")
"""Words after ``?`` that tell how to load a file of weights, and are not sent to a server."""

_typed: set[str] = set()
_named_in: dict[str, str] = {}


def typed_by_user(values: Iterable[Any]) -> None:
    """Note the URLs among ``values``, which the user typed: they may have a private address."""
    _typed.update(value for value in values if isinstance(value, str) and is_url(value))


def named_in(url: str, file: str) -> None:
    """Note the file that names a URL, for the log."""
    if is_url(url):
        _named_in[url] = file


def announce(url: str) -> None:
    """Log that a URL is fetched, and because of which file."""
    logger = logging.getLogger(__name__)
    if url in _typed:
        logger.info(f"Fetching {url}.")
    else:
        logger.warning(f"Fetching {url}, named in {_named_in.get(url, 'a config or a file')}.")


def _cache_folder() -> Path:
    """Return detectron2's cache folder.

    If it cannot be written, iopath uses one in the system's temporary folder instead, in which any
    other user of the machine may have put files.
    """
    return Path(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()


def cached_file(name: str) -> Path:
    """Return the path of a file in this package's part of detectron2's cache folder.

    Raises:
        RefusedURLError: If the path would lie outside of the folder.
    """
    folder = _cache_folder() / "mask_former"
    path = folder / name
    if ".." in Path(name).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise RefusedURLError(f"{name!r} was refused: its copy would lie outside of {folder}.")
    return path


def fetch(
    url: str,
    check: Callable[[Path], Any],
    *,
    max_bytes: int = MAX_BYTES,
    by_user: bool = False,
) -> Path:
    """Fetch a URL once, and return the path of its copy in the cache folder.

    Args:
        url: An http or https URL. Its whole text, the query included, is the key of the cache.
        check: Reads the copy, and raises ValueError if it is not what the caller needs; the copy
            is then removed, so that the next call fetches it again.
        max_bytes: Largest number of bytes.
        by_user: The user passed the URL, so it may have a private address; see
            :func:`typed_by_user`.

    Raises:
        OSError: If it cannot be fetched.
        ValueError: If the URL is refused (:class:`~.web.RefusedURLError`), the content is too
            large, or ``check`` raises it.
    """
    if by_user:
        typed_by_user([url])
    try:
        plain = normalize_url(url)
        target = _copy_of(plain)
        if not target.is_file():
            _make_folder(target.parent)
            with file_lock(str(target)):
                if not target.is_file():  # another process may have fetched it meanwhile
                    announce(url)
                    _download(plain, target, check, max_bytes, url in _typed)
    except (HTTPException, OSError, UnicodeError) as error:
        raise OSError(f"{url} cannot be fetched: {one_line(error)}") from error
    except RefusedURLError as error:
        text = str(error) if repr(url)[1:-1] in str(error) else f"{url}: {error}"
        text += f" It is named in {_named_in[url]}." if url in _named_in else ""
        raise RefusedURLError(text) from error
    if target.stat().st_size > max_bytes:
        raise ValueError(f"{url} {_too_large(max_bytes)}")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache folder {_cache_folder()} cannot be written ({one_line(error)}); make it "
            "writable, or name another one in the environment variable FVCORE_CACHE"
        ) from error


def _copy_of(url: str) -> Path:
    """Return the path of the copy of a normalized URL."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.A)
    key = hashlib.sha256(url.encode()).hexdigest()[:32]
    return cached_file(f"downloads/{key}/{name[-100:].lstrip('.') or 'file'}")


def _download(
    url: str, target: Path, check: Callable[[Path], Any], max_bytes: int, allow_private: bool
) -> None:
    """Write the content of a URL to ``target``, atomically and after it was checked."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part_") as folder:
        part, received = Path(folder) / target.name, 0
        with part.open("wb") as file, tqdm(desc=target.name, unit="B", unit_scale=True,
                                           disable=None) as progress:  # fmt: skip
            for block, length in read_url(url, allow_private=allow_private):
                received += len(block)
                if max(received, length or 0) > max_bytes:
                    raise ValueError(f"{url} {_too_large(max_bytes)}")
                file.write(block)
                progress.total = length
                progress.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        try:
            check(part)
        except ValueError as error:
            text = str(error).replace(str(part), url)
            raise ValueError(f"{text} Nothing was kept of what was fetched.") from error
        part.replace(target)


def _too_large(max_bytes: int) -> str:
    return f"is larger than {max_bytes / 2**20:g} MiB, the limit for a file of its kind: refused."


def local_weights(source: str, *, by_user: bool = False) -> str:
    """Return the local file of a checkpoint, which is fetched if ``source`` is a URL.

    Args:
        source: A path, an http or https URL, ``detectron2://``, ``timm://`` or another address that
            detectron2's file layer resolves; options such as ``?ema=True`` may follow.
        by_user: see :func:`fetch`.

    Returns:
        ``source`` itself if it is a path; otherwise that of the copy, with the same options.

    Raises:
        OSError: If it cannot be fetched.
        ValueError: If it is refused, or is not a readable checkpoint.
    """
    if not is_url(source):
        return source
    plain, _, query = source.partition("?")
    words = query.split("&") if query else []
    options = "&".join(word for word in words if word in _WEIGHT_OPTIONS)
    others = "&".join(word for word in words if word not in _WEIGHT_OPTIONS)
    url = f"{plain}?{others}" if others else plain
    if by_user or source in _typed:
        typed_by_user([url])
    elif source in _named_in:
        named_in(url, _named_in[source])
    return f"{_local_file(url)}{'?' if options else ''}{options}"


def _local_file(url: str) -> str:
    """Resolve a URL without options to a local file with weights."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() in ("http", "https"):
        return str(fetch(url, read_checkpoint))
    if scheme == "detectron2":
        address = normalize_url(Detectron2Handler.S3_DETECTRON2_PREFIX + rest)
        # Machines without a network may have the copy that detectron2 itself has made.
        copy = _cache_folder() / urlsplit(address).path.lstrip("/")
        named_in(address, _named_in.get(url, url))
        if copy.is_file():
            return str(copy)
        return str(fetch(address, read_checkpoint, by_user=url in _typed))
    try:
        local = PathManager.get_local_path(url)
    except OSError as error:
        raise OSError(f"{short(url, 200)} cannot be fetched: {one_line(error)}") from error
    if not os.path.isfile(local):
        raise OSError(f"{url} cannot be fetched: addresses of this kind are unknown.")
    return str(local)


class _CheckedDownloads(PathHandler):
    """The handler of detectron2's file layer for URLs, in place of iopath's."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://", "ftp://", OneDrivePathHandler.ONE_DRIVE_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(fetch(path, lambda file: None))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can only be read; found the mode {mode!r}.")
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(_CheckedDownloads(), allow_override=True)
