"""What of a checkpoint fits a model, and the one text that says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["WeightsFit", "compare"]

_SHOWN = 12  # entries of a list in the summary

_FOREIGN = (
    (
        r"layer\d\.\d+\.(conv|bn)\d\.",
        "These are torchvision's names: make a file of it with tools/convert_torchvision_to_d2.py.",
    ),
    (
        r"layers\.\d\.blocks\.|patch_embed\.",
        "These are names of the official Swin Transformer: make a file of it with "
        "tools/convert_pretrained_swin_model_to_d2.py.",
    ),
    (
        r"model\.(pixel_level_module|transformer_module)\.",
        "These are names of Hugging Face's: make a file of it with tools/convert_hf_maskformer.py.",
    ),
)
"""What the names in a file of another library begin with, and what to do."""


@dataclass(frozen=True)
class WeightsFit:
    """The names in a checkpoint and in a model, compared."""

    loaded: list[str]  # in both, of one shape
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # in both; the file's, the model's
    missing: list[str]  # in the model only
    unused: list[str]  # in the file only

    @property
    def is_complete(self) -> bool:
        return not (self.reshaped or self.missing or self.unused)

    def check_share(self, source: str) -> None:
        """See that at least half of the file fits.

        Raises:
            ValueError: otherwise; names the file ``source``, the counts, and the likely reason.
        """
        in_file = len(self.loaded) + len(self.reshaped) + len(self.unused)
        if self.loaded and 2 * len(self.loaded) >= in_file:
            return
        shapes = [f"{name} {file} for {model}" for name, (file, model) in self.reshaped.items()]
        raise ValueError(
            f"{source} does not fit the model: {len(self.loaded)} of its {in_file} tensors do, "
            f"{len(self.reshaped)} have another shape{_examples(shapes)}, and {len(self.unused)} "
            f"have names that the model lacks{_examples(self.unused)}. {self._likely_reason()}"
        )

    def _likely_reason(self) -> str:
        if len(self.reshaped) > len(self.unused):
            return "It is of a model of another size: compare MODEL.BACKBONE and its settings."
        for pattern, advice in _FOREIGN:
            if sum(bool(re.match(pattern, name)) for name in self.unused) * 2 > len(self.unused):
                return advice
        endings = {ending for name in self.missing for ending in _endings(name)}
        if sum(name in endings for name in self.unused) * 2 > len(self.unused):
            return (
                "Its names lack a prefix that the model's have: behind the file's name, "
                "?matching_heuristics=True lets detectron2 find it."
            )
        return "It is of another model: MODEL.WEIGHTS and the config do not belong together."

    def summary(self, source: str, hints: Iterable[str] = ()) -> str:
        """Some lines: what was loaded, what was not and why, then ``hints``."""
        in_model = len(self.loaded) + len(self.reshaped) + len(self.missing)
        lines = [f"{source}: loaded {len(self.loaded)} of the model's {in_model} tensors."]
        for title, entries in (
            ("re-initialised, for the file has another shape", self._shapes()),
            ("not in the file, left as they were", grouped(self.missing, self._not_missing())),
            ("not in the model, unused", grouped(self.unused, self._not_missing())),
        ):
            if entries:
                lines.append(f"  {title}:")
                lines += [f"    {entry}" for entry in entries[:_SHOWN]]
                if len(entries) > _SHOWN:
                    lines.append(f"    … and {len(entries) - _SHOWN} more")
        return "\n".join([*lines, *(f"  {hint}" for hint in hints)])

    def _shapes(self) -> list[str]:
        return [f"{k}: {file}, the model's is {ours}" for k, (file, ours) in self.reshaped.items()]

    def _not_missing(self) -> list[str]:
        return [*self.loaded, *self.reshaped]


def compare(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> WeightsFit:
    """Compare the weights of a file with the state dict of a model."""
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
    """Names, those of a module of which there is nothing in ``others`` as one: ``head.* (2)``."""
    taken = {start for name in others for start in _starts(name)}
    groups = Counter(
        next((f"{start}.*" for start in _starts(name) if start not in taken), name)
        for name in names
    )
    return [f"{name} ({count})" if name.endswith("*") else name for name, count in groups.items()]


def _starts(name: str) -> Iterator[str]:
    """``a`` and ``a.b`` of ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _endings(name: str) -> Iterator[str]:
    """``b.c`` and ``c`` of ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[count:]) for count in range(1, len(parts)))


def _examples(entries: list[str]) -> str:
    if not entries:
        return ""
    return f" ({', '.join(entries[:3])}{', …' if len(entries) > 3 else ''})"
