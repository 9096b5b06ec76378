#!/usr/bin/env python3
"""Draw how a model computes a panoptic result: the figures of docs/method.md.

    python tools/make_figures.py --weights output/shapes_demo --input IMAGE --output docs/images

Writes method_queries.png (which queries win), method_layers.png (the prediction of each decoder
layer) and method_attention.png (where the winning queries attend), for any MaskFormer or
Mask2Former; `make demo` trains the one that docs/method.md shows.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from profiling.attention import attention_recorder, cross_attentions
from torch import Tensor

from mask_former import MaskFormerPredictor
from mask_former.inference import panoptic_inference
from mask_former.modeling.inner_outputs import DecoderLayerOutput, InnerOutputs
from mask_former.predictor.images import read_image
from mask_former.utils.atomic_files import replace_file
from mask_former.utils.errors import message_of

DOTS = 110
"""Dots per inch; a cell of a figure is 1.5 inches wide."""


class Trace(NamedTuple):
    """Intermediate outputs of the network for one image; all maps have the size of its input."""

    image: NDArray[np.uint8]
    """Input of the network: H×W×3, RGB, without padding."""
    layers: list[DecoderLayerOutput]
    """Predictions, first layer to last: Q×(K+1) class logits, Q×H×W mask logits. Mask2Former's
    first prediction is made before its first layer."""
    attention: list[Tensor]
    """Cross-attention of each decoder layer: Q×H×W weights, averaged over the heads."""
    predictor: MaskFormerPredictor

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the panoptic inference, from the model's config."""
        test = self.predictor.cfg.MODEL.MASK_FORMER.TEST
        return {
            "thing_ids": self.predictor.classes.thing_ids,
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "segment_within_mask": test.SEGMENT_WITHIN_MASK,
        }

    @property
    def winners(self) -> Tensor:
        """Query that wins each pixel in the last layer, H×W; -1 if no query is kept."""
        last = self.layers[-1]
        score, label = last.pred_logits.softmax(-1).max(-1)
        real = label < last.pred_logits.shape[-1] - 1
        kept = (real & (score > self.options["object_mask_threshold"])).nonzero()[:, 0]
        if not len(kept):
            return torch.full(last.pred_masks.shape[-2:], -1)
        return kept[(score[kept, None, None] * last.pred_masks[kept].sigmoid()).argmax(0)]

    def best_queries(self, count: int) -> list[int]:
        """List the queries that win pixels, up to ``count``, those with most pixels first."""
        queries, pixels = self.winners.unique(return_counts=True)
        order = pixels.argsort(descending=True)[:count]
        return [int(query) for query in queries[order] if query >= 0]

    def best_class(self, layer: int, query: int) -> str:
        """Return the best class of a query and its probability, such as "tree 0.98"."""
        probability, label = self.layers[layer].pred_logits[query].softmax(-1).max(-1)
        names = [*self.predictor.classes.names, "no object"]
        return f"{names[int(label)]} {probability:.2f}"


def trace_image(predictor: MaskFormerPredictor, image: Path) -> Trace:
    """Run the network once and keep its intermediate outputs.

    Raises:
        FileNotFoundError: if the image is missing.
        ValueError: if the image is damaged, or the model has no queries that attend to it.
    """
    head: Any = getattr(predictor.model, "sem_seg_head", None)
    module = getattr(head, "predictor", None)
    if not cross_attentions(module) or getattr(module, "class_embed", None) is None:
        raise ValueError(
            f"The model's predictor is a {type(module).__name__}; expected a transformer decoder "
            "that predicts classes, such as TransformerPredictor "
            "(MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)."
        )
    with attention_recorder(module) as attention:
        inner = predictor.inner_outputs(image)
    return _build_trace(predictor, image, inner, [one[0] for one in attention])


def _build_trace(
    predictor: MaskFormerPredictor, path: Path, inner: InnerOutputs, attention: list[Tensor]
) -> Trace:
    """Resize all maps to the size of the network's input and crop the padding."""
    height, width = inner.image_sizes[0]

    def resize(maps: Tensor) -> Tensor:
        padded = F.interpolate(maps[None], inner.input_size, mode="bilinear")[0]
        return padded[:, :height, :width].float().cpu()

    layers = [
        DecoderLayerOutput(None, layer.pred_logits[0].float().cpu(), resize(layer.pred_masks[0]))
        for layer in inner.layers
    ]
    image = Image.fromarray(read_image(path)).resize((width, height))
    return Trace(np.asarray(image), layers, [resize(one) for one in attention], predictor)


def _axes(rows: int, columns: int, image: NDArray[Any]) -> tuple[Any, Any]:
    height = 1.5 * image.shape[0] / image.shape[1] + 0.25
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.5 * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _show(axis: Any, image: Any, title: str, **options: Any) -> None:
    axis.imshow(image, **options)
    axis.set_title(title, fontsize=7, pad=2)


def _over(axis: Any, trace: Trace, heat: Tensor, title: str, top: float) -> None:
    """Draw a map over the image in grey: black where it is 0, yellow at ``top`` and above."""
    _show(axis, trace.image.mean(-1), title, cmap="gray", vmin=0, vmax=255)
    axis.imshow(heat, cmap="inferno", vmin=0, vmax=top, alpha=0.75)


def _panoptic(trace: Trace, layer: int) -> NDArray[np.uint8]:
    """Draw the panoptic result of one layer, H×W×3, RGB, in shades of the classes' colours."""
    of_layer = trace.layers[layer]
    ids, segments = panoptic_inference(of_layer.pred_logits, of_layer.pred_masks, **trace.options)
    drawing = np.zeros((*ids.shape, 3), np.uint8)
    for index, segment in enumerate(segments):
        color = np.asarray(trace.predictor.classes.colors[segment["category_id"]], float)
        drawing[(ids == segment["id"]).numpy()] = color * (1 - 0.12 * (index % 4))
    return drawing


def draw_layers(trace: Trace, queries: Sequence[int]) -> Any:
    """Draw a column per prediction: its panoptic result and its masks of a few queries."""
    figure, axes = _axes(1 + len(queries), 1 + len(trace.layers), trace.image)
    _show(axes[0, 0], trace.image, "image")
    before = len(trace.layers) - len(trace.attention)
    for layer, of_layer in enumerate(trace.layers):
        when = f"after layer {layer + 1 - before}" if layer >= before else "before layer 1"
        _show(axes[0, layer + 1], _panoptic(trace, layer), f"result {when}")
        for row, query in enumerate(queries, start=1):
            mask = of_layer.pred_masks[query].sigmoid()
            title = trace.best_class(layer, query)
            _show(axes[row, layer + 1], mask, title, cmap="gray", vmin=0, vmax=1)
    for row, query in enumerate(queries, start=1):
        axes[row, 0].text(0.5, 0.5, f"mask of\nquery {query}", fontsize=8, ha="center", va="center")
    return figure


def draw_attention(trace: Trace, queries: Sequence[int]) -> Any:
    """Draw the cross-attention of a few queries (rows) in each decoder layer (columns)."""
    figure, axes = _axes(len(queries), 1 + len(trace.attention), trace.image)
    for row, query in enumerate(queries):
        mask = trace.layers[-1].pred_masks[query].sigmoid()
        _over(axes[row, 0], trace, mask, f"query {query}: {trace.best_class(-1, query)}", 1.0)
        for layer, attention in enumerate(trace.attention):
            heat = attention[query]
            _over(axes[row, layer + 1], trace, heat, f"looks, layer {layer + 1}", float(heat.max()))
    return figure


def draw_queries(trace: Trace) -> Any:
    """Draw the query that each pixel is assigned to, and how confident it is of a class."""
    probability, label = trace.layers[-1].pred_logits.softmax(-1)[:, :-1].max(-1)
    winners = trace.winners
    won = torch.bincount(winners[winners >= 0].flatten(), minlength=len(probability)) > 0
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(8, 2.3), width_ratios=(1, 1, 2.6), layout="constrained"
    )
    left.set_axis_off()
    middle.set_axis_off()
    _show(left, trace.image, "image")
    _show(middle, np.ma.masked_less(winners.numpy(), 0), "query of each pixel", cmap="tab20")
    for query in winners.unique().tolist():
        y, x = (winners == query).nonzero().float().median(0).values.tolist()
        if query >= 0:
            middle.text(x, y, str(query), fontsize=6, ha="center", va="center")
    colors = np.asarray(trace.predictor.classes.colors)[label.numpy()] / 255
    edges = ["black" if one else "none" for one in won.tolist()]
    right.bar(range(len(probability)), probability, color=colors, edgecolor=edges)
    right.axhline(trace.options["object_mask_threshold"], color="gray", lw=0.8, ls="--")
    right.set_title("probability of each query's best class; outlined: it wins pixels", fontsize=7)
    right.set_xlabel("query", fontsize=7)
    right.tick_params(labelsize=6)
    return figure


def write_figure(figure: Any, path: Path) -> None:
    """Write a PNG of 256 colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS)
    plt.close(figure)
    with Image.open(buffer) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    replace_file(path, lambda part: small.save(part, format="PNG", optimize=True))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights",
        default="output/shapes_demo",
        help="a checkpoint, or the output folder of a training run",
    )
    parser.add_argument("--config-file", help="config, if the checkpoint contains none")
    parser.add_argument("--input", type=Path, required=True, help="an image")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="a folder")
    parser.add_argument("--num", type=int, default=4, help="queries to show (default: 4)")
    args = parser.parse_args(argv)
    try:
        predictor = MaskFormerPredictor.from_pretrained(
            args.weights, config_file=args.config_file, device="cpu"
        )
        found = trace_image(predictor, args.input)
        queries = found.best_queries(args.num)
        if not queries:
            raise ValueError(f"{args.input}: the model finds no segment in it; use another image.")
        args.output.mkdir(parents=True, exist_ok=True)
        write_figure(draw_queries(found), args.output / "method_queries.png")
        write_figure(draw_layers(found, queries), args.output / "method_layers.png")
        write_figure(draw_attention(found, queries), args.output / "method_attention.png")
    except (KeyError, OSError, ValueError) as error:
        print(f"make_figures: {message_of(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
