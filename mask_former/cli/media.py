"""Find, read, write and show images and videos. All pixels are RGB."""

from __future__ import annotations

import glob
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.utils.atomic_files import replacing

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "VideoReader",
    "VideoWriter",
    "Window",
    "find_images",
]

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Suffixes of images in a folder; a file that the user names may have any suffix."""
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
_DEFAULT_FPS = 25.0
_MAX_PIXELS = 2 * 89_478_485
"""Most pixels of a frame: the number above which Pillow refuses an image."""
_PATIENCE = 100  # number of consecutive broken frames after which the video has ended


def find_images(inputs: Iterable[str], recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Find the files that paths, folders (their images) and globs name.

    Args:
        inputs: Paths and globs.
        recursive: Search the subfolders of folders too, except hidden ones.

    Returns:
        The files, each once, in the order of the inputs and, within each input, of their names; and
        a message for each input without files. Whether the files are images is not checked.
    """
    files: dict[Path, None] = {}
    problems = []
    for text in inputs:
        path = Path(text).expanduser()
        # A file may be named "a[1].jpg".
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not paths and glob.has_magic(text):
            problems.append(f"{text}: matches no file")
        elif not paths:
            problems.append(f"{text}: no such file or folder")
        for one in paths:
            found = _images_in(one, recursive) if one.is_dir() else [one]
            files.update(dict.fromkeys(found))
            if not found and one == path:
                hint = "" if recursive else " (--recursive: look into its subfolders, too)"
                problems.append(f"{text}: a folder without images{hint}")
    return list(files), problems


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and name[0] != "."]
        paths = (Path(base, name) for name in names if name[0] != ".")
        found += [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    return sorted(found)


class VideoReader:
    """Iterator over the frames of a video file, a stream (URL) or a camera.

    It continues after an error: a broken frame raises a ``ValueError``, and the next ``next()``
    returns the frame after it.
    """

    def __init__(self, source: str | int, every_n: int = 1) -> None:
        """Open the video.

        Args:
            source: A path, a URL, or the number of a camera, from 0.
            every_n: Return every n-th frame, beginning with the first.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If OpenCV cannot read it, or its frames are too large.
        """
        cv2 = _opencv()
        camera = isinstance(source, int)
        self.name = f"camera {source}" if camera else str(source)
        is_file = not camera and "://" not in self.name
        if is_file and not os.path.isfile(self.name):
            raise FileNotFoundError(f"{self.name}: no such file")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise ValueError(f"{self.name}: {'not found' if camera else 'not a video'} (OpenCV)")
        sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        width, height = map(self._capture.get, sides)
        if width * height > _MAX_PIXELS:
            raise ValueError(
                f"{self.name} was refused: its frames are {width:.0f}×{height:.0f} pixels, "
                f"expected at most {_MAX_PIXELS} in all. Scale it down first."
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = (fps if math.isfinite(fps) and fps > 0 else _DEFAULT_FPS) / every_n
        """Rate of the returned frames per second; a source without a rate counts as 25."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._total = int(count) if not camera and 0 < count < math.inf else None
        self.num_frames = self._total and math.ceil(self._total / every_n)
        """Expected number of returned frames, or None if unknown."""
        self.index = -1
        """Index of the last frame, returned or broken, among all frames of the source, from 0."""
        self._every_n = every_n
        self._patience = _PATIENCE if is_file else 1
        self._frames = self._read()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return self

    def __next__(self) -> NDArray[np.uint8]:
        """Return the next frame, H×W×3; raise ValueError if it is broken, or the end is missing."""
        self.index, frame = next(self._frames)
        if frame is None:
            raise ValueError("damaged: it cannot be decoded")
        return frame

    def _read(self) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """Yield every n-th frame with its index; None for a broken one."""
        index = failed = 0
        while failed < self._patience:
            if not self._capture.grab():
                failed += 1  # broken frames or the end; only a later good frame decides
                continue
            for broken in range(index, index + failed):
                if broken % self._every_n == 0:
                    yield broken, None
            index, failed = index + failed, 0
            if index % self._every_n == 0:
                yield index, self._frame()
            index += 1
        if not index or index < 0.95 * (self._total or 0):  # files may be off by a few
            raise ValueError(f"ended after {index} of {self._total or '?'} frames: damaged?")

    def _frame(self) -> NDArray[np.uint8] | None:
        """Decode the frame that was grabbed; None if it is broken, or there is no memory for it."""
        try:
            decoded, frame = self._capture.retrieve()
        except _opencv().error:  # of a frame that is larger than the video's header states
            return None
        return np.ascontiguousarray(frame[:, :, ::-1]) if decoded else None

    def close(self) -> None:
        """Release the source."""
        self._capture.release()


class VideoWriter:
    """Writer of an ``.mp4``, ``.avi`` or ``.webm``, or of an ``.avi`` if OpenCV cannot write it.

    The file appears, or replaces an earlier one, when the writer is closed.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Store the path; the first frame opens the file.

        Args:
            path: File that ends in ``.mp4``, ``.avi`` or ``.webm``. After the first frame, the
                attribute ``path`` is the file that is actually written.
            fps: Frames per second.
        """
        self.path = path
        self.fps = fps
        self.num_frames = 0
        self._writer: Any = None
        self._file = ExitStack()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, H×W×3; the first one sets the size.

        Raises:
            OSError, ValueError: If the file cannot be written, or the frame has another size.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            self._writer = self._open(width, height)
            self._size = width, height
        if (width, height) != self._size:  # OpenCV would skip it silently
            raise ValueError(
                f"{self.path}: a frame is {width}×{height} pixels, those before it "
                f"{self._size[0]}×{self._size[1]}; all frames of a video must have one size."
            )
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
        self.num_frames += 1

    def _open(self, width: int, height: int) -> Any:
        avi = self.path.with_suffix(".avi")
        try:
            return self._open_as(self.path, width, height)
        except ValueError:
            if avi == self.path or avi.exists():  # it may be the video that is being read
                raise
        return self._open_as(avi, width, height)

    def _open_as(self, path: Path, width: int, height: int) -> Any:
        cv2 = _opencv()
        code = cv2.VideoWriter_fourcc(*_CODECS[path.suffix.lower()])
        with ExitStack() as file:
            part = file.enter_context(replacing(path, path.suffix))
            writer = cv2.VideoWriter(str(part), code, self.fps, (width, height))
            if not writer.isOpened():
                raise ValueError(f"{self.path}: OpenCV cannot write this video")
            file.callback(self._check_frames, part)
            file.callback(writer.release)
            self.path, self._file = path, file.pop_all()
        return writer

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: If it is incomplete; nothing is replaced then.
        """
        self._file.close()

    def _check_frames(self, part: Path) -> None:
        """Read back the number of frames: OpenCV does not report a full disk."""
        cv2 = _opencv()
        written = cv2.VideoCapture(str(part))
        count = written.get(cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        if 0 <= count < 0.95 * self.num_frames:  # negative where a format states none
            raise OSError(
                f"{self.path}: only {count:.0f} of {self.num_frames} frames could be written; "
                "nothing was changed. Is the disk full? Make room, then run the command again."
            )


class Window:
    """Window on the screen."""

    def __init__(self, title: str) -> None:
        """Open the window.

        Raises:
            ValueError: If OpenCV or the machine cannot show windows.
        """
        cv2 = _opencv()
        self.title = title
        screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
        try:
            if not screen:  # some builds of OpenCV end the process instead of raising
                raise ValueError("there is no display (DISPLAY is not set)")
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except (cv2.error, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else "this OpenCV has no windows"
            raise ValueError(
                f"No window can be shown: {reason}. Write files instead (--output, without "
                "--show), or install opencv-python in place of opencv-python-headless."
            ) from error

    def show(self, image: NDArray[np.uint8], milliseconds: int = 0) -> bool:
        """Show an image (0 ms: until a key is pressed); return False if the key is q or Esc."""
        cv2 = _opencv()
        cv2.imshow(self.title, np.ascontiguousarray(image[:, :, ::-1]))
        return cv2.waitKey(milliseconds) & 0xFF not in (ord("q"), 27)


def _opencv() -> Any:
    """Import OpenCV, without its own messages: callers report errors themselves."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Videos and windows need OpenCV: pip install opencv-python-headless (or opencv-python)."
        ) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
