"""Draw a video frame by frame into a file that browsers play."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_former import MaskFormerPredictor
from mask_former.cli.media import VideoReader, VideoWriter

from .image_results import ImageResults, Settings
from .limits import Limits
from .uploads import check_size

__all__ = ["Frame", "draw_video"]


@dataclass(frozen=True)
class Frame:
    """A drawn frame, and the progress of the video."""

    image: NDArray[np.uint8]
    """H×W×3, RGB."""
    done: int
    """Number of frames drawn, including this one."""
    broken: int
    """Number of frames skipped because they cannot be decoded."""
    in_file: int | None
    """Number of frames according to the file, or None if it does not state it."""


def draw_video(
    predictor: MaskFormerPredictor, path: Path, settings: Settings, limits: Limits, output: Path
) -> Iterator[Frame]:
    """Draw at most ``limits.frames`` frames of a video, for at most ``limits.seconds``.

    Args:
        predictor: the model.
        path: the video.
        settings: thresholds, and the kind of result to draw.
        limits: limits on the number and the size of frames, and on the time.
        output: a ``.webm`` file, the format that OpenCV can write and browsers play.

    Raises:
        ValueError: if a frame is too large, or none can be decoded.
    """
    with closing(VideoReader(str(path))) as reader, closing(VideoWriter(output, reader.fps)) as out:
        broken = 0
        end = time.monotonic() + limits.seconds
        for _ in range(limits.frames):
            if time.monotonic() > end:
                break
            try:
                frame = next(reader)
            except StopIteration:
                break
            except ValueError:  # this frame is broken; the next one may be fine
                broken += 1
                continue
            check_size(path.name, frame.shape[1], frame.shape[0], limits)
            drawing = ImageResults(predictor.logits(frame), "frame").draw(settings)
            out.write(drawing)
            yield Frame(drawing, out.num_frames, broken, reader.num_frames)
        if not out.num_frames:
            raise ValueError(
                f"No frame of {path.name} can be decoded. Is it complete? Save it as an MP4 "
                "(H.264) and try again."
            )
