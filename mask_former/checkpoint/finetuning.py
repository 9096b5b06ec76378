"""Fine-tuning: load a checkpoint that has other classes or another number of queries.

Rows of the class layer are carried over by class name; the row of "no object" always is. Queries
are truncated or repeated.
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
    """Return, for each of ``names``, the index of the class of that name in ``others``, or None.

    Case and surrounding spaces are ignored. A name that lists synonyms ("wall, building") is
    matched as a whole or, failing that, by its first synonym if that is unique on both sides.
    """
    whole = {_normalized(name): index for index, name in reversed(list(enumerate(others)))}
    firsts = [_first_synonym(name) for name in others]
    ours, theirs = Counter(map(_first_synonym, names)), Counter(firsts)
    by_first = {
        first: index for index, first in enumerate(firsts) if ours[first] == theirs[first] == 1
    }
    return [whole.get(_normalized(name), by_first.get(_first_synonym(name))) for name in names]


def _normalized(name: str) -> str:
    return name.strip().lower()


def _first_synonym(name: str) -> str:
    return _normalized(name.partition(",")[0])


def carry_over(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rows: ParameterRows,
    class_sources: Sequence[int | None],
) -> dict[str, Tensor]:
    """Convert the weights of a file to the classes and queries of a model.

    Args:
        weights: Weights of the file, by name.
        state: The model's state dict, from which new classes take their rows.
        rows: Names of the model's parameters with one row for each class or query.
        class_sources: For each class of the model, the index of its class in the file, or None
            for a new class.
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
    """Return the number of classes in the file for each parameter with one row for each class.

    A query stands for a class only in models that do not classify their queries: if the file or
    the model has a classifier, parameters with one row for each query are left out.
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
    for index, source in enumerate(sources):
        if source is not None:
            rows[index] = old[source]
    if len(rows) > len(sources):
        rows[-1] = old[-1]  # "no object"
    return rows


@dataclass(frozen=True)
class Finetuning:
    """A rule for loading a checkpoint that has other classes or queries than the model."""

    classes: Sequence[str] | None
    """Names of the model's classes, if they are known."""
    classes_from: str = ""
    """A registered dataset with the classes of the file; "" if none is given."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Finetuning | None:
        """Build the rule of a config, or return None if ``MODEL.MASK_FORMER.FINETUNE`` is off.

        Raises:
            KeyError: If the dataset that ``FINETUNE_CLASSES_FROM`` names is not registered.
        """
        node = cfg.MODEL.MASK_FORMER
        if not node.FINETUNE:
            return None
        known = MetadataCatalog.list()
        if node.FINETUNE_CLASSES_FROM and node.FINETUNE_CLASSES_FROM not in known:
            near = difflib.get_close_matches(node.FINETUNE_CLASSES_FROM, known)
            raise KeyError(
                f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {node.FINETUNE_CLASSES_FROM!r}, which "
                f"is not a registered dataset; {'similar: ' if near else 'registered: '}"
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
        """Convert the weights of a file to the model's classes and queries.

        Args:
            weights: Weights of the file, by name.
            state: The model's state dict.
            file_classes: Class names that the file stores, or None.
            parameter_rows: Names of the model's parameters with one row for each class or query.

        Returns:
            The converted weights, and lines for the log that report the changes.

        Raises:
            ValueError: If the number of class names differs from the number of classes in the file.
        """
        notes = []
        sources: list[int | None] = []
        rows = class_rows(weights, state, parameter_rows)
        if rows:
            name, count = next(iter(rows.items()))
            num_classes = len(state[name]) - parameter_rows.classes[name]
            sources, note = self._sources(count, num_classes, file_classes)
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
        """Return the index in the file of each class of the model, and a line for the log."""
        names = file_classes
        if names is None and self.classes_from:
            metadata = MetadataCatalog.get(self.classes_from)
            names = Classes.from_metadata(metadata, in_file).known_names
            if names is None:
                raise ValueError(
                    f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {self.classes_from!r}, which has "
                    f"no list of {in_file} classes, the number in the checkpoint: name the dataset "
                    "that the checkpoint was trained on."
                )
        if names is not None and len(names) != in_file:
            raise ValueError(
                f"The checkpoint has {in_file} classes but {len(names)} class names; the numbers "
                "must be equal. Use another checkpoint."
            )
        if names is None or self.classes is None:
            owner = "the file" if names is None else "DATASETS.TRAIN"
            advice = ": name a dataset that has them in MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM"
            return [None] * in_model, (
                f"classes: none carried over by name, because the class names of {owner} are "
                f"unknown{advice if names is None else ''}."
            )
        sources = match_classes(self.classes, names)
        new = [name for name, source in zip(self.classes, sources, strict=True) if source is None]
        shown = f"; new: {', '.join(new[:8])}{', …' if len(new) > 8 else ''}" if new else ""
        return sources, (
            f"classes: {in_model - len(new)} of {in_model} carried over by name{shown}."
        )
