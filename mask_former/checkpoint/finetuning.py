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
from mask_former.structures import ParameterRows

from .inference_data import classes_of

__all__ = ["Finetuning", "match_classes"]


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
    rows: ParameterRows,
    class_sources: Sequence[int | None],
) -> dict[str, Tensor]:
    """Give the weights of a file the classes and queries of a model.

    Args:
        weights: those of the file, by name.
        state: the model's state dict. Rows of new classes stay as it has them.
        rows: the model's parameters with one row for each class or query.
        class_sources: for each class of the model, the file's class that it continues.
    """
    carried = dict(weights)
    by_class = class_rows(weights, state, rows)
    for name in by_class:
        carried[name] = _rows_by_class(weights[name], state[name], class_sources)
    for name in rows.queries:
        if name not in by_class and _same_width(name, weights, state):
            old, new = weights[name], state[name]
            carried[name] = old[torch.arange(len(new)) % len(old)]
    return carried


def class_rows(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], rows: ParameterRows
) -> dict[str, int]:
    """Return the number of the file's classes by the name of each parameter with a row for each.

    A query is a class only in a model that does not classify its queries: if file or model has a
    classifier, its queries are not classes.
    """
    classifier = [name for name in rows.classes if name not in rows.queries]
    classifies = any(name in side for name in classifier for side in (weights, state))
    return {
        name: len(weights[name]) - more
        for name, more in rows.classes.items()
        if _same_width(name, weights, state) and not (classifies and name in rows.queries)
    }


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
        parameter_rows: ParameterRows,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The file's weights with the model's classes and queries, and lines that say what it did.

        Args:
            weights: of the file.
            state: the model's state dict.
            file_classes: the class names in the file, None if it has none.
            parameter_rows: the model's parameters with one row for each class or query.

        Raises:
            ValueError: if the names are not as many as the file's classes.
        """
        notes = []
        sources: list[int | None] = []
        rows = class_rows(weights, state, parameter_rows)
        if rows:
            name, count = next(iter(rows.items()))
            in_model = len(state[name]) - parameter_rows.classes[name]
            sources, note = self._sources(count, in_model, file_classes)
            notes.append(note)
        for name in parameter_rows.queries[:1]:
            if name not in rows and _same_width(name, weights, state):
                old, new = len(weights[name]), len(state[name])
                if old != new:
                    verb = "cut" if new < old else "repeated"
                    notes.append(f"queries {verb} from {old} to {new}.")
        return carry_over(weights, state, parameter_rows, sources), notes

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
