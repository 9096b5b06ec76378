"""Conversion of parameter names between this project and Hugging Face's ``transformers``.

Ours are the published names; theirs are those of the files that ``save_pretrained`` writes, which
transformers has kept through version 5.23.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mask_former.utils.errors import short

from .families import best_family
from .family import Family

__all__ = ["from_huggingface_names", "to_huggingface_names"]

_LAST_SWIN_NORM = "backbone.norm3."
_MOST_UNKNOWN = 1000
"""Number of unknown names after which the others are not looked up."""
_COUNTER = "num_batches_tracked"  # of batch norms; the frozen kind has none


def from_huggingface_names(
    weights: Mapping[str, Tensor], family: Family | None = None
) -> dict[str, Tensor]:
    """Rename the weights of a transformers MaskFormer or Mask2Former to this project's names.

    Two kinds of weights are left out: the counters of batch norms (ours are frozen), and Swin's
    last norm, which nothing reads.

    Args:
        weights: Its state dict, with the names in files or in memory.
        family: The model; None: the one whose names fit best.

    Returns:
        Tensors by name, with unchanged values; queries, keys and values are concatenated.

    Raises:
        ValueError: If names are not those of the model (the message lists the first), if two names
            stand for one weight, or if a query, key and value differ in shape or one is missing.
    """
    family = family or _best_family(weights)
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    wanted: dict[str, int] = {}
    unknown = []
    for name, value in weights.items():
        if name.startswith(family.unused_norm) or name.endswith(_COUNTER):
            continue
        place = family.names.to_ours(name)
        if place is None:
            unknown.append(name)
            if len(unknown) > _MOST_UNKNOWN:
                break
            continue
        if place.position in parts[place.name]:
            raise ValueError(f"Two names stand for one weight, {place.name}: {name} is the second.")
        parts[place.name][place.position] = value
        wanted[place.name] = place.parts
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} names are unknown in a transformers {family.name} "
            f"with a Swin or ResNet: {_shown(unknown)}.{_belongs_to(_best_family(weights), family)}"
        )
    incomplete = [ours for ours, found in parts.items() if len(found) < wanted[ours]]
    if incomplete:
        raise ValueError(
            f"Not all of query, key and value exist for {_shown(incomplete)}: is the file only one "
            "part of a checkpoint? Convert the whole checkpoint."
        )
    for ours, found in parts.items():
        shapes = {tuple(part.shape) for part in found.values()}
        if len(found) > 1 and (len(shapes) > 1 or shapes == {()}):
            raise ValueError(
                f"Query, key and value of {ours} must have one shape, found {sorted(shapes)}."
            )
    return {
        ours: torch.cat([found[part] for part in sorted(found)]) if len(found) > 1 else found[0]
        for ours, found in parts.items()
    }


def _best_family(theirs: Iterable[str]) -> Family:
    return best_family(theirs, lambda family, name: family.names.to_ours(name))


def _belongs_to(found: Family, expected: Family) -> str:
    if found is expected:
        return ""
    return (
        f" They are the names of a {found.name}, but config.json describes a {expected.name}: put "
        "the config.json of the checkpoint next to its weights."
    )


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names that a transformers MaskFormer or Mask2Former saves.

    Weights that only transformers has are added: the counters of batch norms (0 if ours are
    frozen), and a last norm of Swin (ones and zeros), which nothing reads.

    Args:
        weights: State dict of a :class:`~mask_former.MaskFormer`.

    Returns:
        Tensors by name, with unchanged values; they share memory with ``weights``.

    Raises:
        ValueError: If names have no counterpart in transformers; the message lists the first.
    """
    family = best_family(weights, lambda family, name: family.names.to_theirs(name))
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        stem, _, leaf = name.rpartition(".")
        if leaf in family.unsaved:
            continue
        theirs = family.names.to_theirs(name)
        if not theirs:
            unknown.append(name)
            continue
        parts = value.chunk(len(theirs)) if len(theirs) > 1 else [value]
        converted.update(zip(theirs, parts, strict=True))
        if name.startswith(_LAST_SWIN_NORM):
            like = torch.ones_like if leaf == "weight" else torch.zeros_like
            converted[family.unused_norm + leaf] = like(value)
        if leaf == "running_mean":
            counter = weights.get(f"{stem}.{_COUNTER}", torch.tensor(0))
            converted[theirs[0].replace(leaf, _COUNTER)] = counter
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} weights have no counterpart in transformers' "
            f"{family.name}: {_shown(unknown)}."
        )
    return converted


def _shown(names: list[str]) -> str:
    return ", ".join(short(name) for name in names[:3]) + (" …" if len(names) > 3 else "")
