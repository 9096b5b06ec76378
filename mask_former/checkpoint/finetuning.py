"""What a checkpoint of other classes, or of another number of queries, has for this model.

Rows of the class layer are carried over by the class's name, "no object" always; queries are cut or
repeated.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from mask_former.data.datasets.classes import Classes

from .inference_data import classes_of

__all__ = ["Finetuning", "match_classes"]

_PREDICTOR = "sem_seg_head.predictor."
_CLASS_EMBED = (f"{_PREDICTOR}class_embed.weight", f"{_PREDICTOR}class_embed.bias")
_PER_PIXEL = (f"{_PREDICTOR}weight", f"{_PREDICTOR}bias")
_QUERIES = f"{_PREDICTOR}query_embed.weight"
CLASS_TENSORS = (*_CLASS_EMBED, *_PER_PIXEL, _QUERIES)
"""What has the shape of the classes or of the queries."""


def match_classes(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For each of ``names`` the place in ``others`` of the class of that name, if there is one.

    Case and the spaces around do not count. Where the whole name ("wall, building") is not there,
    its first word of several does ("wall"), if it means one class only.
    """
    whole = {_plain(name): place for place, name in reversed(list(enumerate(others)))}
    firsts = [_first(name) for name in others]
    ours, theirs = Counter(map(_first, names)), Counter(firsts)
    by_first = {
        first: place for place, first in enumerate(firsts) if ours[first] == theirs[first] == 1
    }
    return [whole.get(_plain(name), by_first.get(_first(name))) for name in names]


def _plain(name: str) -> str:
    return name.strip().lower()


def _first(name: str) -> str:
    return _plain(name.partition(",")[0])


def carry_over(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    class_sources: Sequence[int | None],
) -> dict[str, Tensor]:
    """The weights of a file with the classes and queries of a model.

    Args:
        weights: of the file, names to tensors.
        state: the model's state dict. Rows of classes that are new stay as it has them.
        class_sources: for each class of the model, the file's class that it continues.
    """
    carried = dict(weights)
    by_class = class_rows(weights, state)
    for name in CLASS_TENSORS:
        if not _same_width(name, weights, state):
            continue
        old, new = weights[name], state[name]
        if name in by_class:
            carried[name] = _rows_by_class(old, new, class_sources)
        elif name == _QUERIES:
            carried[name] = old[torch.arange(len(new)) % len(old)]
    return carried


def class_rows(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, int]:
    """The tensors in both that have a row a class, with the number of the file's classes."""
    shared = [name for name in CLASS_TENSORS if _same_width(name, weights, state)]
    rows = {name: len(weights[name]) - (name in _CLASS_EMBED) for name in shared}
    # A model that classifies its queries has no class for each of them.
    if any(name in side for name in _CLASS_EMBED for side in (weights, state)):
        rows.pop(_QUERIES, None)
    return rows


def _same_width(name: str, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return name in weights and name in state and weights[name].shape[1:] == state[name].shape[1:]


def _rows_by_class(old: Tensor, new: Tensor, sources: Sequence[int | None]) -> Tensor:
    rows = new.detach().to("cpu", copy=True)
    for place, source in enumerate(sources):
        if source is not None:
            rows[place] = old[source]
    if len(rows) > len(sources):
        rows[-1] = old[-1]  # "no object"
    return rows


@dataclass(frozen=True)
class Finetuning:
    """How a config wants a checkpoint of something else to be loaded."""

    classes: Sequence[str] | None  # the model's, by name, where they are known
    classes_from: str = ""  # a registered dataset that has the file's classes; "": none is known

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Finetuning | None:
        """None where ``MODEL.MASK_FORMER.FINETUNE`` is off.

        Raises:
            KeyError: if ``FINETUNE_CLASSES_FROM`` names no registered dataset.
        """
        node = cfg.MODEL.MASK_FORMER
        if not node.FINETUNE:
            return None
        known = MetadataCatalog.list()
        if node.FINETUNE_CLASSES_FROM and node.FINETUNE_CLASSES_FROM not in known:
            near = difflib.get_close_matches(node.FINETUNE_CLASSES_FROM, known)
            raise KeyError(
                f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {node.FINETUNE_CLASSES_FROM!r}, which "
                f"is no registered dataset; {'near it: ' if near else 'there are: '}"
                f"{', '.join(near or known)}."
            )
        return cls(classes_of(cfg).known_names, node.FINETUNE_CLASSES_FROM)

    def adapt(
        self,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        file_classes: Sequence[str] | None,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The file's weights with the model's classes and queries, and lines that say what it did.

        Args:
            weights: of the file.
            state: the model's state dict.
            file_classes: the class names in the file, None where it has none.

        Raises:
            ValueError: if the names are not as many as the file's classes.
        """
        notes = []
        sources: list[int | None] = []
        rows = class_rows(weights, state)
        if rows:
            name, count = next(iter(rows.items()))
            sources, note = self._sources(
                count, len(state[name]) - (name in _CLASS_EMBED), file_classes
            )
            notes.append(note)
        if _QUERIES not in rows and _same_width(_QUERIES, weights, state):
            old, new = len(weights[_QUERIES]), len(state[_QUERIES])
            if old != new:
                notes.append(f"queries {'cut' if new < old else 'repeated'} from {old} to {new}.")
        return carry_over(weights, state, sources), notes

    def _sources(
        self, in_file: int, in_model: int, file_classes: Sequence[str] | None
    ) -> tuple[list[int | None], str]:
        names = file_classes
        if names is None and self.classes_from:
            metadata = MetadataCatalog.get(self.classes_from)
            names = Classes.from_metadata(metadata, in_file).known_names
            if names is None:
                raise ValueError(
                    f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {self.classes_from!r}, which has "
                    f"no list of {in_file} classes, the number in the checkpoint: name the dataset "
                    "that it was trained on."
                )
        if names is not None and len(names) != in_file:
            raise ValueError(f"The checkpoint has {in_file} classes but {len(names)} class names.")
        if names is None or self.classes is None:
            who = "the file's" if names is None else "DATASETS.TRAIN's"
            advice = ": name a dataset that has them in MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM"
            return [None] * in_model, (
                f"classes: none carried over by name, for {who} are not known"
                f"{advice if names is None else ''}."
            )
        sources = match_classes(self.classes, names)
        new = [name for name, source in zip(self.classes, sources, strict=True) if source is None]
        shown = f"; new: {', '.join(new[:8])}{', …' if len(new) > 8 else ''}" if new else ""
        return sources, (
            f"classes: {in_model - len(new)} of {in_model} carried over by name{shown}."
        )
