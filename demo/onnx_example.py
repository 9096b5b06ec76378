#!/usr/bin/env python3
"""A picture's class map from an exported model, with ONNX Runtime and numpy alone: no torch.

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
    """new×old: the matrix that resizes an axis, bilinear, pixel centres at half."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    return np.stack([np.interp(place, np.arange(old), row) for row in np.eye(old)], 1)


def load(path, about):
    """The picture at the network's size, 3×h×w, and its own size."""
    picture = Image.open(path).convert("RGB")
    scale = about["shortest_edge"] / min(picture.size) if about["shortest_edge"] else 1
    scale = min(scale, about["longest_edge"] / max(picture.size))
    small = picture.resize([int(side * scale + 0.5) for side in picture.size], Image.BILINEAR)
    pixels = np.asarray(small, np.float32)
    pixels = pixels if about["channels"] == "RGB" else pixels[..., ::-1]
    return pixels.transpose(2, 0, 1), picture.size


def class_map(session, pixels, about):
    """h×w ids: the class with the largest Σ over queries of class × mask probability."""
    _, height, width = pixels.shape
    padded = about["size"] or [-(-side // 32) * 32 for side in (height, width)]
    image = np.tile(np.float32(about["mean"]).reshape(1, 3, 1, 1), padded)  # padding: the mean
    image[0, :, :height, :width] = pixels
    classes, masks = (output[0] for output in session.run(None, {"image": image}))
    rows, columns = (resizing(n, m) for n, m in zip(masks.shape[1:], padded, strict=True))
    masks = 1 / (1 + np.exp(-(rows[:height] @ masks @ columns[:width].T)))
    classes = np.exp(classes - classes.max(1, keepdims=True))
    classes = classes[:, :-1] / classes.sum(1, keepdims=True)  # without "no object"
    return np.tensordot(classes, masks, (0, 0)).argmax(0)


def main(folder, picture, output):
    about = json.loads(Path(folder, "mask_former.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(Path(folder, "mask_former.onnx"))
    pixels, size = load(picture, about["input"])
    ids = class_map(session, pixels, about["input"])
    colors = np.array([one["color"] for one in about["classes"]], np.uint8)[ids]
    Image.fromarray(colors).resize(size, Image.Resampling.NEAREST).save(output)
    print("found:", ", ".join(about["classes"][index]["name"] for index in np.unique(ids)))


if __name__ == "__main__":
    main(*sys.argv[1:])
