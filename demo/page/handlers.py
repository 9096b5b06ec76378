"""Handlers of the page's events, without its layout."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from mask_former.utils.errors import one_line

from .image_results import ImageResults, Settings
from .limits import GIGA, Limits
from .models import Models
from .rates import client_name
from .sessions import Sessions
from .uploads import is_video, read_upload
from .videos import draw_video
from .viewer import MAX_SIDE, NOTHING, message, preview, view

__all__ = ["FAILURES", "SESSION_LIFETIME", "Page"]

logger = logging.getLogger("mask_former.page")

SESSION_LIFETIME = 30 * 60.0
"""Seconds without activity after which a visitor's image is dropped."""
FAILURES = (OSError, KeyError, ValueError, RuntimeError, MemoryError)
"""Errors that fail only one request: the visitor sees the reason, and the page continues."""

_PREVIEW_SECONDS = 0.5  # between the frames that are shown while a video is drawn

Shown = tuple[Any, Any, str]
"""New values of the viewer, the video and the line below them."""


class Page:
    """State of the page, and one method for each event."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        folder: Path,
        max_sessions: int,
        lifetime: float = SESSION_LIFETIME,
    ) -> None:
        """Set up a page.

        Args:
            models: the checkpoints to choose from.
            limits: limits on uploads, and on the memory of the images that are kept.
            folder: folder of the files to download, with a subfolder for each session.
            max_sessions: number of visitors whose image is kept.
            lifetime: seconds; see ``SESSION_LIFETIME``.
        """
        self.models = models
        self.limits = limits
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._images: Sessions[ImageResults] = Sessions(
            max_sessions,
            lifetime,
            size=lambda image: image.nbytes,
            max_size=limits.memory_gb * GIGA,
            per_owner=limits.per_client,
        )
        self._busy: set[str] = set()  # sessions whose image or video is being processed

    def defaults(self, model: str) -> Settings:
        """Return the values of the controls for a checkpoint, from its config.

        Raises:
            OSError, KeyError, ValueError: if it cannot be loaded.
        """
        predictor = self.models.get(model)
        test = predictor.cfg.MODEL.MASK_FORMER.TEST
        return Settings(
            kind=next(iter(predictor.kinds), "semantic"),
            object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
            overlap_threshold=test.OVERLAP_THRESHOLD,
            min_score=0.5,
            min_share=0.0,
            opacity=0.5,
        )

    def analyze(
        self, request: gr.Request, upload: str | None, model: str, *settings: Any
    ) -> Iterator[Shown]:
        """Run the network on an upload.

        A video is drawn here, with a live preview. An image is kept for :meth:`show`, which draws
        it with the settings at the time when the network has finished.
        """
        session = _session(request)
        self._images.drop(session)
        self._busy.add(session)
        try:
            if upload is None:
                yield None, _no_video(), ""
            elif is_video(path := Path(upload)):
                yield from self._video(path, model, Settings(*settings), session)
            else:
                self._images.put(session, self._image(path, model), _client(request))
                yield gr.skip(), _no_video(), gr.skip()
        except FAILURES as error:
            yield message(_reason(error)), _no_video(), ""
        finally:
            self._busy.discard(session)

    def _image(self, path: Path, model: str) -> ImageResults:
        image = read_upload(path, self.limits)
        predictor = self.models.get(model)
        start = time.perf_counter()
        output = predictor.logits(image)
        seconds = time.perf_counter() - start
        height, width = image.shape[:2]
        summary = f"{path.name} · {width}×{height} · one forward pass: {seconds:.2f} s"
        results = ImageResults(output, path.stem, summary)
        if results.nbytes > self.limits.session_gb * GIGA:
            raise ValueError(
                f"{path.name}: the image and its result take {results.nbytes / GIGA:.2g} GB; the "
                f"page keeps up to {self.limits.session_gb:g} GB for a visitor. Make the image "
                "smaller, or start the page with a larger --session-memory."
            )
        return results

    def _video(self, path: Path, model: str, settings: Settings, session: str) -> Iterator[Shown]:
        predictor, limit = self.models.get(model), self.limits.frames
        output = self._fresh_folder(session) / f"{path.stem}_{settings.kind}.webm"
        start = shown = time.perf_counter()
        for frame in draw_video(predictor, path, settings, self.limits, output):
            now = time.perf_counter()
            if frame.done == 1 or now - shown > _PREVIEW_SECONDS:
                shown = now
                total = min(frame.in_file or limit, limit)
                line = f"{path.name} · frame {frame.done} of {total}"
                yield preview(frame.image), _no_video(), line
        line = f"{path.name} · {frame.done} frames · {(now - start) / frame.done:.2f} s per frame"
        if frame.broken:
            line += f" · {frame.broken} broken frames left out"
        if (frame.in_file or limit + 1) > limit <= frame.done + frame.broken:
            line += f" · the page stops after {limit} (--max-frames)"
        elif now - start > self.limits.seconds:
            line += f" · the page stops after {self.limits.seconds:g} s (--max-seconds)"
        yield NOTHING, gr.update(value=str(output), visible=True), line

    def show(self, request: gr.Request, *settings: Any) -> tuple[Any, Any]:
        """Draw the kept image with these settings; return new values of the viewer and the line."""
        image = self._images.get(_session(request))
        if image is None:
            return gr.skip(), gr.skip()
        chosen = Settings(*settings)
        start = time.perf_counter()
        try:
            shown = view(image.result(chosen, MAX_SIDE), chosen.kind, chosen.opacity)
        except FAILURES as error:
            return message(_reason(error)), ""
        return shown, f"{image.summary} · drawn in {time.perf_counter() - start:.2f} s"

    def redraw(self, request: gr.Request, upload: str | None, *settings: Any) -> tuple[Any, Any]:
        """Call :meth:`show` after a control was changed; if no image is kept, show a hint."""
        session = _session(request)
        kept = self._images.get(session) is not None
        if kept or session in self._busy or upload is None or not Path(upload).is_file():
            return self.show(request, *settings)
        try:
            if is_video(Path(upload)):
                return gr.skip(), "Press “Run again” to draw the video with these settings."
        except ValueError:  # reported when the file was uploaded
            return gr.skip(), gr.skip()
        return message("This image has expired. Press “Run again” to process it again."), ""

    def pack(self, request: gr.Request, formats: list[str], *settings: Any) -> str | None:
        """Return the path of the archive to download, or None after a warning on the page."""
        session = _session(request)
        image = self._images.get(session)
        if image is None:
            gr.Warning(
                "There is no result to download: drop in an image first. (The download button of a "
                "video is on its player.)"
            )
            return None
        try:
            return str(image.pack(Settings(*settings), formats, self._fresh_folder(session)))
        except FAILURES as error:
            gr.Warning(_reason(error))
            return None

    def forget(self, request: gr.Request) -> None:
        """Drop the image and the files of a visitor who has left."""
        session = _session(request)
        self._images.drop(session)
        shutil.rmtree(self._session_folder(session), ignore_errors=True)

    def _session_folder(self, session: str) -> Path:
        return self._folder / f"session_{hashlib.sha256(session.encode()).hexdigest()}"

    def _fresh_folder(self, session: str) -> Path:
        folder = self._session_folder(session)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()  # not its parents: after the end of the page nothing may be written
        return folder


def _session(request: gr.Request) -> str:
    """Return the name of the visitor's session.

    Raises:
        ValueError: if the request has none, because such visitors would share their images.
    """
    session = request.session_hash
    if not isinstance(session, str) or not session:
        raise ValueError(
            f"The request is refused: session_hash is {session!r}; expected the name of a session "
            "of your own."
        )
    return session


def _client(request: gr.Request) -> str:
    """Return the client of a request, whose sessions may not take the place of all others."""
    client = getattr(request, "client", None)
    return client_name(client.host) if client else ""


def _no_video() -> Any:
    return gr.update(value=None, visible=False)


def _reason(error: BaseException) -> str:
    """Log the reason of an error and return it for the visitor."""
    text = one_line(error)
    if isinstance(error, MemoryError) or "out of memory" in text:
        text = "There is not enough memory for that. Make the image smaller and try again."
    logger.warning(text)
    return text
