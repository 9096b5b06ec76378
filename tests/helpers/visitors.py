"""Visitors of the page of demo/app.py, their uploads and their settings."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from PIL import Image

from mask_former.cli.media import VideoWriter

VISITOR = SimpleNamespace(session_hash="visitor1")


def pixels(seed=0, size=(96, 64)):
    squares = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(squares).resize(size, Image.Resampling.NEAREST))


def make_image(path, **options):
    Image.fromarray(pixels(**options)).save(path)
    return path


def make_video(path, frames):
    writer = VideoWriter(path, fps=5)
    for seed in range(frames):
        writer.write(pixels(seed))
    writer.close()
    return path


def values(settings):
    return tuple(vars(settings).values())
