#!/usr/bin/env python3
"""Compute the class map of an image with an exported model, in ONNX Runtime, without torch.

python tools/export.py --config-file model_zoo/camvid_semantic.yaml --dynamic --output camvid
python demo/onnx_example.py camvid street.jpg classes.png
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def resizing(old, new):
    """Return the new×old matrix that resizes an axis (bilinear, pixel centres at 0.5, 1.5, …)."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    return np.stack([np.interp(position, np.arange(old), row) for row in np.eye(old)], 1)


def load(path, about):
    """Read an image; return its pixels resized for the network, 3×h×w, and its (width, height)."""
    image = Image.open(path).convert("RGB")
    scale = about["shortest_edge"] / min(image.size) if about["shortest_edge"] else 1
    scale = min(scale, about["longest_edge"] / max(image.size))
    small = image.resize([int(side * scale + 0.5) for side in image.size], Image.BILINEAR)
    pixels = np.asarray(small, np.float32)[..., :: 1 if about["channels"] == "RGB" else -1]
    return pixels.transpose(2, 0, 1), image.size


def class_map(session, pixels, about):
    """Return the h×w class ids with the largest Σ over queries of class × mask probability."""
    _, height, width = pixels.shape
    padded = about["size"] or [-(-side // 32) * 32 for side in (height, width)]
    image = np.tile(np.float32(about["mean"]).reshape(1, 3, 1, 1), padded)  # padded with the mean
    image[0, :, :height, :width] = pixels
    classes, masks = (output[0] for output in session.run(None, {"image": image}))
    rows, columns = (resizing(n, m) for n, m in zip(masks.shape[1:], padded, strict=True))
    masks = 1 / (1 + np.exp(-(rows[:height] @ masks @ columns[:width].T)))
    classes = np.exp(classes - classes.max(1, keepdims=True))
    classes = classes[:, :-1] / classes.sum(1, keepdims=True)  # without "no object"
    return np.tensordot(classes, masks, (0, 0)).argmax(0)


def main(folder, image, output):
    """Write the class map of an image, in the colours of the classes."""
    about = json.loads(Path(folder, "mask_former.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(Path(folder, "mask_former.onnx"))
    pixels, size = load(image, about["input"])
    ids = class_map(session, pixels, about["input"])
    colors = np.array([one["color"] for one in about["classes"]], np.uint8)[ids]
    Image.fromarray(colors).resize(size, Image.Resampling.NEAREST).save(output)
    print("found:", ", ".join(about["classes"][index]["name"] for index in np.unique(ids)))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
