"""The rows of the published model zoos, by path of their config below configs/."""

from __future__ import annotations

import gzip
import json
from typing import Any

from tests.helpers.paths import GOLDEN

__all__ = ["RESULTS", "WEIGHTS_LICENCE"]


def _read(name: str) -> Any:
    return json.loads(gzip.decompress((GOLDEN / name).read_bytes()))


def _by_path(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["Name"]["links"][0].removeprefix("configs/"): row for row in rows}


def _mask2former_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = _by_path(rows)
    # A row links to a file that does not exist; the published file has a 2 in its name.
    semantic = "mapillary-vistas/semantic-segmentation/"
    found[f"{semantic}maskformer2_R50_bs16_300k.yaml"] = found.pop(
        f"{semantic}maskformer_R50_bs16_300k.yaml"
    )
    return {f"mask2former/{path}": row for path, row in found.items()}


_mask2former = _read("mask2former_results.json.gz")
RESULTS = {
    **_by_path(_read("published_results.json.gz")),
    **_mask2former_rows(_mask2former["rows"]),
}
"""Scores, schedule and links of the 30 MaskFormer and the 47 Mask2Former configs."""
WEIGHTS_LICENCE = "CC BY-NC 4.0"
"""Licence of the weights of both."""
assert _mask2former["weights_licence"].startswith(WEIGHTS_LICENCE)

_SLIPS = {
    "ade20k-150-panoptic/maskformer_panoptic_R101_bs16_720k.yaml": "R101 + 6 Enc",
    "mask2former/ade20k/instance-segmentation/swin/"
    "maskformer2_swin_large_IN21k_384_bs16_160k.yaml": "Swin-L (IN21k)",
}
for _path, _backbone in _SLIPS.items():  # the published rows name a ResNet-50
    assert RESULTS[_path]["Backbone"].startswith("R50")
    RESULTS[_path]["Backbone"] = _backbone
