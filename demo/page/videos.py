"""A video, drawn frame by frame into a file that browsers play."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.page.pictures import Picture, Settings
from demo.page.uploads import Limits, check_size
from mask_former import MaskFormerPredictor
from mask_former.cli.media import VideoReader, VideoWriter

__all__ = ["Frame", "draw_video"]

_WHOLE = 0.0  # thresholds have been at work when a picture is drawn


@dataclass(frozen=True)
class Frame:
    """One frame, as soon as it is drawn."""

    picture: NDArray[np.uint8]
    """H×W×3, RGB."""
    done: int
    """Frames drawn, with this one."""
    broken: int
    """Frames passed over, for they cannot be decoded."""
    in_file: int | None
    """Frames that the file should have, where it says so."""


def draw_video(
    predictor: MaskFormerPredictor, path: Path, settings: Settings, limits: Limits, output: Path
) -> Iterator[Frame]:
    """Draw at most ``limits.frames`` frames of a video.

    Args:
        predictor: gives the results.
        path: of the video.
        settings: of what is drawn.
        limits: of the number and the size of frames.
        output: the file, ``.webm``: of what OpenCV can write, it is what browsers play.

    Raises:
        ValueError: if a frame is too large, or none can be decoded.
    """
    with closing(VideoReader(str(path))) as reader, closing(VideoWriter(output, reader.fps)) as out:
        broken = 0
        for _ in range(limits.frames):
            try:
                frame = next(reader)
            except StopIteration:
                break
            except ValueError:  # the frame is broken; the next may not be
                broken += 1
                continue
            check_size(path.name, frame.shape[1], frame.shape[0], limits)
            picture = _draw(predictor, frame, settings)
            out.write(picture)
            yield Frame(picture, out.num_frames, broken, reader.num_frames)
        if not out.num_frames:
            raise ValueError(
                f"No frame of {path.name} can be decoded. Is it whole? Save it as an MP4 "
                "(H.264) and try again."
            )


def _draw(
    predictor: MaskFormerPredictor, frame: NDArray[np.uint8], settings: Settings
) -> NDArray[np.uint8]:
    result = Picture(predictor.logits(frame), "frame").result(settings)
    return result.draw(settings.kind, threshold=_WHOLE, opacity=settings.opacity)
