"""URLs that somebody else wrote, and checkpoints to resume that somebody else changed.

They are samples of the fuzzer with mutations of their own: the files are sound, what they say is
hostile.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mask_former.config.loading import load_cfg
from mask_former.utils import web
from tests.helpers.servers import Server
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.fuzzing import Sample
from tests.robustness.trainings import SameImages, tiny_cfg

_SEGMENTS = ("a", "..", ".", "", "%2e%2e", "..%2f..", "%5c..", "..\\", "%00", "é", "x" * 300, "~")
_HOSTS = (
    "127.0.0.1",
    "localhost",
    "127.1",
    "2130706433",
    "[::1]",
    "[::ffff:7f00:1]",
    "me@0",
    "",
)
_SCHEMES = ("http", "https", "HTTP", "ftp", "file", "data", "detectron2", "timm", "nowhere")
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**12, 0.5, float("nan"), float("inf"), "x", [], {}, [1.0], {"a": 1}),
    *(
        torch.zeros(1),
        torch.zeros(0),
        torch.zeros(7, 5),
        torch.tensor(-1.0),
        torch.tensor(False),
    ),
    torch.zeros(1).expand(2**20),
)


def attack_samples(folder: Path, server: Server) -> list[Sample]:
    """Write a config that names a URL of ``server``, and a training that can be resumed.

    Args:
        folder: An empty folder; its folder ``cache`` is that of downloads.
        server: Serves the YAML of an empty mapping as ``/base.yaml``.
    """
    config = folder / "url.yaml"
    config.write_text(f"_BASE_: '{server.url}/base.yaml'\n")
    use = partial(_load, config, folder)
    samples = [Sample("URL", config, use, _must_write_nothing, mutate=partial(_other_url, server))]
    tiny, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    _train(tiny, folder / "output")
    checkpoint = folder / "output" / "model_final.pth"
    use = partial(_resume, tiny, folder / "output")
    return [*samples, Sample("resume", checkpoint, use, _may_train, mutate=_other_state)]


# URLs


def _load(config: Path, folder: Path) -> Any:
    """Load the config; returns the files that were written outside of the cache.

    127.0.0.1 counts as public here, every other address does not.
    """
    web._is_public = lambda address: address == "127.0.0.1"
    before = set(_files(folder))
    try:
        load_cfg(str(config))
    finally:
        written = sorted(set(_files(folder)) - before)
        assert not written, f"files outside of the cache: {written}"
    return written


def _files(folder: Path) -> Iterator[str]:
    cache = folder / "cache"
    return (str(p) for p in folder.rglob("*") if p.is_file() and cache not in p.parents)


def _must_write_nothing(expected: Any, found: Any, damage: str) -> str | None:
    return f"files outside of the cache: {found}" if found else None


def _other_url(server: Server, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A URL of another host, scheme or path, many of which lead out of a folder."""
    path = "/".join(rng.choices(_SEGMENTS, k=rng.randint(1, 12)))
    host = server.url.partition("://")[2]
    if rng.random() < 0.5:
        host = f"{rng.choice(_HOSTS)}:{host.rpartition(':')[2]}"
    scheme = rng.choice(_SCHEMES) if rng.random() < 0.3 else "http"
    return "another URL", f"_BASE_: '{scheme}://{host}/{path}'\n".encode()


# Trainings


def _train(config: Path, output: Path, iterations: int = 2, resume: bool = False) -> SameImages:
    half = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "float16"}
    cfg = tiny_cfg(config, output, SOLVER__MAX_ITER=iterations, MODEL__EMA__ENABLED=True, **half)
    trainer = SameImages(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def _resume(config: Path, output: Path) -> Any:
    """Train one iteration more; returns the shapes of the optimizer's state."""
    trainer = _train(config, output, iterations=3, resume=True)
    states = trainer.optimizer.state_dict()["state"].values()
    return [{key: tuple(value.shape) for key, value in state.items()} for state in states]


def _may_train(expected: Any, found: Any, damage: str) -> str | None:
    return None if len(found) == len(expected) else "the optimizer has other parameters"


def _other_state(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The checkpoint with one thing in its states removed, or of another type or shape."""
    data = torch.load(io.BytesIO(content), weights_only=True)
    states = {key: data[key] for key in ("trainer", "ema")}
    parent, key = rng.choice(list(_entries(states)))
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = copy.copy(rng.choice(_VALUES))
    file = io.BytesIO()
    torch.save({**data, **states}, file)
    return f"another {key}", file.getvalue()


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key of it, except for most of those in long lists."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    for key, value in items[:20]:
        yield node, key
        if isinstance(value, dict | list):
            yield from _entries(value)
