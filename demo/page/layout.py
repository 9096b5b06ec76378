"""Controls of the page, their layout, and the methods of ``handlers.Page`` that they call."""

from __future__ import annotations

import socket
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from .gate import Gate, Rules
from .handlers import Page
from .image_results import FORMATS, Settings
from .limits import MEGA, Limits
from .rates import client_name

__all__ = ["build", "launch"]

KINDS = [("Semantic", "semantic"), ("Panoptic", "panoptic"), ("Instance", "instance")]
FORMAT_LABELS = {
    "overlay": "Drawn image (PNG)",
    "semantic-png": "Class ids (PNG)",
    "panoptic-coco": "COCO panoptic (PNG, JSON)",
    "instances-coco": "COCO instances (JSON)",
    "npz": "All arrays (NumPy)",
}
SLIDERS = {
    "object_mask_threshold": ("Confidence", "class probability that a segment needs", "panoptic"),
    "overlap_threshold": ("Overlap", "share of its own mask that a segment must keep", "panoptic"),
    "min_score": ("Confidence", "score that an instance needs", "instance"),
    "min_share": ("Confidence", "share of all scores that a pixel's class needs", "semantic"),
    "opacity": ("Opacity", None, None),
}
"""Label, explanation and kind of result of each slider, by field of ``Settings``."""

_FIELDS = [field.name for field in fields(Settings)]  # "kind" is the first
DRAWING = {"concurrency_id": "drawing", "concurrency_limit": 2}

CSS = """
.gradio-container { max-width: 1400px !important; margin: auto; }
.gradio-container > main { padding: 12px 24px !important; }
#head h1 { font-size: 22px; margin: 0; }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
#kind .wrap { flex-wrap: nowrap; gap: 5px; }
#kind label { padding: 6px; font-size: 13px; }
#formats label { padding: 5px 8px; font-size: 13px; }
#viewer, #viewer > div, #line { padding: 0 !important; }
#line { min-height: 20px; }
#line p { color: var(--body-text-color-subdued); font-size: 13px; margin: 0; }
#save { align-items: center; }
"""
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
# Gradio's paler greys have too little contrast (WCAG 2 requires 4.5:1).
GREYS = {
    "body_text_color_subdued": "*neutral_500",
    "block_info_text_color": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color_dark": "*neutral_300",
}

# The archive is made first; then a click on the hidden button downloads it.
FETCH = """() => setTimeout(() => {
  const button = document.querySelector('#fetch');
  (button.querySelector('a, button') || button).click();
}, 150)"""


@dataclass(frozen=True)
class Controls:
    """Components of the page."""

    upload: gr.File
    model: gr.Dropdown
    kind: gr.Radio
    sliders: dict[str, gr.Slider]
    again: gr.Button
    viewer: gr.HTML
    video: gr.Video
    line: gr.Markdown
    formats: gr.CheckboxGroup
    download: gr.Button
    fetch: gr.DownloadButton

    @property
    def settings(self) -> list[Any]:
        """Components whose values are a ``Settings``, in the order of its fields."""
        return [self.kind, *(self.sliders[name] for name in _FIELDS[1:])]


def build(page: Page) -> gr.Blocks:
    """Build the page, ready to be launched.

    Raises:
        OSError, KeyError, ValueError: if the first checkpoint cannot be loaded.
    """
    start = page.defaults(page.models.names[0])
    with gr.Blocks(title="MaskFormer", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        gr.Markdown(
            "# MaskFormer\nDrop in an image or a video; point at the result to read its class "
            "and score.",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=330):
                left = _make_inputs(page.models.names, start)
            with gr.Column(scale=3, min_width=320):
                right = _make_outputs(start.kind)
        controls = Controls(**left, **right)
        _connect_network(page, controls)
        _connect_drawing(page, controls)
        blocks.unload(page.forget)
    return blocks


def _make_inputs(models: list[str], start: Settings) -> dict[str, Any]:
    return {
        "upload": gr.File(label="Image or video", height=130, elem_id="upload"),
        "model": gr.Dropdown(models, value=models[0], label="Checkpoint"),
        "kind": gr.Radio(KINDS, value=start.kind, label="Result", elem_id="kind"),
        "sliders": {name: _make_slider(name, start) for name in SLIDERS},
        "again": gr.Button("Run again", size="sm"),
    }


def _make_outputs(kind: str) -> dict[str, Any]:
    made = {
        "viewer": _make_viewer(),
        "video": gr.Video(
            visible=False, show_label=False, autoplay=True, height="60vh", elem_id="video"
        ),
        "line": gr.Markdown("", elem_id="line"),
    }
    with gr.Row(elem_id="save"):
        made["formats"] = gr.CheckboxGroup(
            **_format_choices(kind), show_label=False, container=False, scale=4, elem_id="formats"
        )
        made["download"] = gr.Button(
            "Download", size="md", scale=1, min_width=120, elem_id="download"
        )
        made["fetch"] = gr.DownloadButton("fetch", visible="hidden", elem_id="fetch")
    return made


def _connect_network(page: Page, on: Controls) -> None:
    """Connect the events that need a forward pass: one at a time, for all visitors."""
    options = {"show_progress_on": on.viewer, "api_visibility": "private"}
    network = {"concurrency_id": "network", "concurrency_limit": 1, **options}

    def run(event: Any) -> None:
        """Run the network, then draw with the settings of that moment."""
        event(
            page.analyze, [on.upload, on.model, *on.settings], [on.viewer, on.video, on.line],
            trigger_mode="always_last", **network,
        ).success(page.show, on.settings, [on.viewer, on.line], **DRAWING, **options)  # fmt: skip

    run(partial(gr.on, [on.upload.upload, on.upload.clear, on.again.click]))
    # Not the "input" event, which a dropdown fires twice.
    run(on.model.change(partial(_defaults, page), on.model, on.settings, **network).success)


def _connect_drawing(page: Page, on: Controls) -> None:
    """Connect the events that need no forward pass."""
    private = {"api_visibility": "private"}
    # Through the queue, though it takes no time: the gate refuses requests outside the queue.
    on.kind.change(
        _of_kind, on.kind, [*on.sliders.values(), on.formats], concurrency_limit=None, **private
    )
    gr.on(
        [on.kind.input, *(slider.input for slider in on.sliders.values())],
        page.redraw, [on.upload, *on.settings], [on.viewer, on.line],
        trigger_mode="always_last", show_progress="hidden", **DRAWING, **private,
    )  # fmt: skip
    on.download.click(
        page.pack, [on.formats, *on.settings], on.fetch, **DRAWING, **private
    ).success(None, js=FETCH)


def _make_viewer() -> gr.HTML:
    """Make the viewer; its values come from ``viewer.view``, ``preview`` and ``message``."""
    here = Path(__file__).parent
    return gr.HTML(
        value=None,
        html_template='<div class="viewer"></div>',
        css_template=(here / "viewer.css").read_text(encoding="utf-8"),
        js_on_load=(here / "viewer.js").read_text(encoding="utf-8"),
        elem_id="viewer",
    )


def _make_slider(name: str, start: Settings) -> gr.Slider:
    label, info, kind = SLIDERS[name]
    return gr.Slider(
        0, 1, value=getattr(start, name), step=0.01, label=label, info=info,
        visible=kind in (None, start.kind), elem_id=name,
    )  # fmt: skip


def _format_choices(kind: str) -> dict[str, Any]:
    choices = [(FORMAT_LABELS[name], name) for name in FORMATS[kind]]
    return {"choices": choices, "value": FORMATS[kind][:2]}


def _of_kind(kind: str) -> list[Any]:
    """Show the sliders of a kind of result, and the formats in which it can be saved."""
    visible = [gr.update(visible=of in (None, kind)) for _, _, of in SLIDERS.values()]
    return [*visible, gr.update(**_format_choices(kind))]


def _defaults(page: Page, model: str) -> list[Any]:
    """Return the values of the controls for another checkpoint."""
    try:
        defaults = page.defaults(model)
    except (OSError, KeyError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    return [getattr(defaults, name) for name in _FIELDS]


def launch(
    blocks: gr.Blocks, host: str, port: int, queue_size: int, limits: Limits | None = None
) -> str:
    """Serve the page in the background, behind a gate, and return its URL.

    Raises:
        OSError: if the port is taken, or the address does not exist.
    """
    limits = limits or Limits()
    blocks.queue(max_size=queue_size)
    rules = Rules(limits, Path(blocks.GRADIO_CACHE), partial(_queued, blocks))
    theme = gr.themes.Default(  # system fonts: none is downloaded
        primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO
    ).set(**GREYS)
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise OSError(
            f"The page cannot listen on --host {host} --port {port} ({error}): choose another port."
        ) from error
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, share=False, ssr_mode=False, inbrowser=False,
        prevent_thread_lock=True, theme=theme, css=CSS, footer_links=[], run_history=False,
        enable_monitoring=False, pwa=False, mcp_server=False, quiet=True,
        max_file_size=int(limits.upload_mb * MEGA),
        app_kwargs={"middleware": [Middleware(Gate, rules=rules)]},
    )  # fmt: skip
    return address


def _queued(blocks: gr.Blocks, client: str) -> int:
    """Count the requests of a client that wait or run; Gradio has no public name for its queue."""
    queue = blocks._queue
    waiting = [
        event for each in queue.event_queue_per_concurrency_id.values() for event in each.queue
    ]
    running = [event for job in queue.active_jobs if job for event in job]
    hosts = [event.request.client.host for event in (*waiting, *running) if event.request.client]
    return sum(client_name(host) == client for host in hosts)
