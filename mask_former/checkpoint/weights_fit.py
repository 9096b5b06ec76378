"""Compare a checkpoint's tensors with a model's and summarise the result."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["WeightsFit", "check_finite", "compare", "decides_outputs"]

_SHOWN = 12  # entries of a list in the summary

_FOREIGN = (
    (
        r"layer\d\.\d+\.(conv|bn)\d\.",
        "Its names are torchvision's: convert it with tools/convert_torchvision_to_d2.py.",
    ),
    (
        r"layers\.\d\.blocks\.|patch_embed\.",
        "Its names are those of the official Swin Transformer: convert it with "
        "tools/convert_pretrained_swin_model_to_d2.py.",
    ),
    (
        r"model\.(pixel_level_module|transformer_module)\.",
        "Its names are those of Hugging Face: convert it with tools/convert_hf_maskformer.py, or "
        "give its folder to MaskFormerPredictor without a config file.",
    ),
)
"""Regular expressions for the start of names in other libraries' files, each with advice."""

_MODELS = (
    ("sem_seg_head.predictor.transformer.decoder.", "MaskFormer", "configs/coco-panoptic"),
    ("sem_seg_head.predictor.query_feat.", "Mask2Former", "configs/mask2former"),
)
"""Start of names that only one model has, the model, and a folder of configs for it."""


def decides_outputs(name: str, tensor: Tensor) -> bool:
    """Return False for a tensor that a checkpoint of a whole model may lack.

    Integer buffers follow from the architecture, and the criterion's weights from the config.
    """
    return tensor.is_floating_point() and "criterion." not in name


@dataclass(frozen=True)
class WeightsFit:
    """Comparison of the tensors of a checkpoint with those of a model, by name."""

    loaded: list[str]
    """Names in both, of the same shape."""
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Names in both, of different shapes: that of the file and that of the model."""
    missing: list[str]
    """Names in the model only."""
    unused: list[str]
    """Names in the file only."""

    @property
    def is_complete(self) -> bool:
        return not (self.reshaped or self.missing or self.unused)

    def differences(self) -> list[str]:
        """List all differences, one for each name."""
        return [
            *(f"{name} is missing" for name in self.missing),
            *(f"{k} has shape {file}, not {ours}" for k, (file, ours) in self.reshaped.items()),
            *(f"{name} is not in the model" for name in self.unused),
        ]

    def check_share(self, source: str) -> None:
        """Check that at least half of the file fits the model.

        Raises:
            ValueError: If it does not. The message names the file ``source``, the counts, and the
                likely reason.
        """
        in_file = len(self.loaded) + len(self.reshaped) + len(self.unused)
        if self.loaded and 2 * len(self.loaded) >= in_file:
            return
        shapes = [f"{name} {file}, not {model}" for name, (file, model) in self.reshaped.items()]
        raise ValueError(
            f"{source} does not fit the model: {len(self.loaded)} of its {in_file} tensors fit, "
            f"{len(self.reshaped)} have another shape{_examples(shapes)}, and {len(self.unused)} "
            f"have names that the model lacks{_examples(self.unused)}. {self._likely_reason()}"
        )

    def check_whole(self, source: str, state: Mapping[str, Tensor]) -> None:
        """Check that the file has all weights that decide the outputs of the model.

        Args:
            source: Name of the file, for the error message.
            state: State dict of the model.

        Raises:
            ValueError: If it has not.
        """
        needed = [name for name, tensor in state.items() if decides_outputs(name, tensor)]
        missing = [k for k in needed if k in self.missing or k in self.reshaped]
        if not missing:
            return
        detail = f"{missing[0]} is missing"
        if self.reshaped:
            name, (found, expected) = next(iter(self.reshaped.items()))
            detail = f"{name} has shape {found}, the model expects {expected}"
        reason = self._other_model() or (
            "MODEL.WEIGHTS must be a checkpoint of the whole model, trained with this config (the "
            "same MODEL.SEM_SEG_HEAD.NUM_CLASSES)."
        )
        raise ValueError(
            f"{source} does not fit the model: {len(missing)} of {len(needed)} weights are "
            f"missing or have another shape ({detail}). {reason}"
        )

    def _other_model(self) -> str:
        """Return the reason and the fix if the file is of another model than the config, or ""."""
        in_model = (*self.loaded, *self.reshaped, *self.missing)
        for start, model, configs in _MODELS:
            in_file_only = not any(name.startswith(start) for name in in_model)
            if in_file_only and any(name.startswith(start) for name in self.unused):
                return (
                    f"It is a checkpoint of a {model}, and the config describes another model: "
                    f"give the config that it was trained with, such as one in {configs}."
                )
        return ""

    def _likely_reason(self) -> str:
        if other_model := self._other_model():
            return other_model
        if len(self.reshaped) > len(self.unused):
            return "Its model has another size: compare MODEL.BACKBONE and its settings."
        for pattern, advice in _FOREIGN:
            if sum(bool(re.match(pattern, name)) for name in self.unused) * 2 > len(self.unused):
                return advice
        endings = {ending for name in self.missing for ending in _endings(name)}
        if sum(name in endings for name in self.unused) * 2 > len(self.unused):
            return (
                "Its names lack a prefix of the model's names: append ?matching_heuristics=True to "
                "the file's name, and detectron2 finds the prefix."
            )
        return "It belongs to another model: MODEL.WEIGHTS and the config do not fit each other."

    def summary(self, source: str, hints: Iterable[str] = ()) -> str:
        """List the tensors that were loaded and those that were not and why, then ``hints``."""
        in_model = len(self.loaded) + len(self.reshaped) + len(self.missing)
        lines = [f"{source}: loaded {len(self.loaded)} of the model's {in_model} tensors."]
        for title, entries in (
            ("other shape in the file, not loaded", self._shapes()),
            ("missing in the file, unchanged", grouped(self.missing, self._not_missing())),
            ("not in the model, unused", grouped(self.unused, self._not_missing())),
        ):
            if entries:
                lines.append(f"  {title}:")
                lines += [f"    {entry}" for entry in entries[:_SHOWN]]
                if len(entries) > _SHOWN:
                    lines.append(f"    … and {len(entries) - _SHOWN} more")
        return "\n".join([*lines, *(f"  {hint}" for hint in hints)])

    def _shapes(self) -> list[str]:
        return [f"{k}: {file}, the model has {ours}" for k, (file, ours) in self.reshaped.items()]

    def _not_missing(self) -> list[str]:
        return [*self.loaded, *self.reshaped]


def check_finite(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Check the floating-point weights of a file that fit the state dict of a model.

    Others are not read: a few bytes of a file may claim to be a tensor of any size.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    fitting = (k for k, v in weights.items() if k in state and v.shape == state[k].shape)
    floats = [name for name in fitting if weights[name].is_floating_point()]
    broken = [name for name in floats if not weights[name].isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} of its {len(floats)} weight tensors are not finite, the "
            f"first is {broken[0]}. The file is damaged, or its training diverged: use an earlier "
            "checkpoint."
        )


def compare(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> WeightsFit:
    """Compare the weights of a file with the state dict of a model by name and shape."""
    shapes = {
        name: (tuple(value.shape), tuple(state[name].shape))
        for name, value in weights.items()
        if name in state
    }
    return WeightsFit(
        loaded=[name for name, (file, model) in shapes.items() if file == model],
        reshaped={name: both for name, both in shapes.items() if both[0] != both[1]},
        missing=[name for name in state if name not in weights],
        unused=[name for name in weights if name not in state],
    )


def grouped(names: Collection[str], others: Iterable[str]) -> list[str]:
    """Group names: a module with no name in ``others`` becomes one entry such as ``head.* (2)``."""
    taken = {start for name in others for start in _starts(name)}
    groups = Counter(
        next((f"{start}.*" for start in _starts(name) if start not in taken), name)
        for name in names
    )
    return [f"{name} ({count})" if name.endswith("*") else name for name, count in groups.items()]


def _starts(name: str) -> Iterator[str]:
    """Yield the proper prefixes of a name: ``a`` and ``a.b`` for ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _endings(name: str) -> Iterator[str]:
    """Yield the proper suffixes of a name: ``b.c`` and ``c`` for ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[count:]) for count in range(1, len(parts)))


def _examples(entries: list[str]) -> str:
    if not entries:
        return ""
    return f" ({', '.join(entries[:3])}{', …' if len(entries) > 3 else ''})"
