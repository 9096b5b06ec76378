"""A checkpointer on detectron2's that writes atomically and never runs code from a file."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask_former.structures import ParameterRows
from mask_former.utils.atomic_files import replace_file, replace_text, save_torch
from mask_former.utils.bounded_files import read_text
from mask_former.utils.downloads import local_weights
from mask_former.utils.old_names import rename_old_layout
from mask_former.utils.weight_files import (
    CLASS_NAMES,
    INFERENCE,
    as_tensors,
    averaged_weights,
    read_checkpoint,
)

from .eomt_weights import fit_vit
from .finetuning import Finetuning, match_classes
from .resuming import check_resumed
from .weights_fit import WeightsFit, check_finite, compare, decides_outputs

__all__ = ["Checkpointer", "unwrapped"]


def parameter_rows(model: nn.Module) -> ParameterRows:
    """Return the parameters of a model's head with one row for each class or query."""
    head: Any = getattr(model, "sem_seg_head", None)
    if not hasattr(head, "parameter_rows"):
        return ParameterRows({})
    rows = head.parameter_rows()
    classes = {f"sem_seg_head.{name}": more for name, more in rows.classes.items()}
    return ParameterRows(classes, tuple(f"sem_seg_head.{name}" for name in rows.queries))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper of distributed training."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _metadata_of(weights: Any, source: str) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the versions of modules that torch writes with a state dict, if there are any."""
    metadata = getattr(weights, "_metadata", None)
    entries = metadata.values() if isinstance(metadata, Mapping) else [metadata]
    if metadata is not None and not all(
        isinstance(entry, Mapping) and isinstance(entry.get("version"), int | None)
        for entry in entries
    ):
        raise ValueError(
            f"{source}: the _metadata of its weights is not torch's, the versions of modules by "
            "name: save it again as a dict of tensors."
        )
    return metadata


_LONGEST_NAME = 1024
"""Most bytes of the file that names the last checkpoint."""
_FROM_CONFIG = "criterion.empty_weight"
"""A buffer of published weights that follows from the config; the file's value is ignored."""


class Checkpointer(DetectionCheckpointer):
    """A checkpointer that writes atomically and loads files of unknown origin safely.

    Besides detectron2's formats it loads ``.safetensors``, ``timm://NAME``, early MaskFormer
    checkpoints and, with ``?ema=True`` after the name of a file, its averaged weights. One log
    record lists the weights that were loaded and those that were not. A file is refused if less
    than half of it fits the model.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        whole: bool = False,
        class_names: Sequence[str] | None = None,
        inference: Mapping[str, Any] | None = None,
        finetuning: Finetuning | None = None,
        metadata: Mapping[str, Any] | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Set the model and the entries of the checkpoints.

        Args:
            model: Model to save and to load.
            save_dir: Folder of the checkpoints.
            whole: Refuse a checkpoint that lacks weights of the model; for inference.
            class_names: Names of the model's classes, to be saved.
            inference: The model's config and classes as plain data, to be saved; see
                :mod:`.inference_data`.
            finetuning: Conversion of a checkpoint with other classes or queries.
            metadata: Origin of the checkpoint as plain data, to be saved; see :mod:`.provenance`.
            save_to_disk: Write files. Default: only in the main process.
            checkpointables: Other objects with a state to save and load, by name.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.whole = whole
        self.class_names = class_names
        self.inference = inference
        self.finetuning = finetuning
        self.metadata = metadata
        self._source = ""
        self._states: Collection[str] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth``, then the file ``last_checkpoint`` that names it."""
        if self.write(name, **kwargs):
            self.tag_last_checkpoint(f"{name}.pth")

    def write(self, name: str, **kwargs: Any) -> bool:
        """Write ``name.pth`` with all entries and, in addition, those of ``kwargs``.

        Returns:
            True if this process writes checkpoints.
        """
        if not self.save_dir or not self.save_to_disk:
            return False
        data: dict[str, Any] = {"model": self.model.state_dict()}
        if self.class_names is not None:
            data[CLASS_NAMES] = list(self.class_names)
        for key, extra in ((INFERENCE, self.inference), ("metadata", self.metadata)):
            if extra is not None:
                data[key] = dict(extra)
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        replace_file(path, lambda part: save_torch(data, part))
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        replace_text(self._pointer, last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint, or "" if there is none.

        Raises:
            ValueError: If the file that names it is damaged, or not a regular file.
        """
        if not self._pointer.exists():
            return ""
        return os.path.join(self.save_dir, read_text(self._pointer, _LONGEST_NAME).strip())

    @property
    def _pointer(self) -> Path:
        return Path(self.save_dir) / "last_checkpoint"

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; an empty ``path`` loads nothing.

        With the states of ``checkpointables`` (default: all), the file must continue the training
        at hand: see :mod:`.resuming`. A URL counts as passed by the user: it may have a private
        address.

        Raises:
            FileNotFoundError: If the file is missing.
            OSError: If ``path`` is a URL that cannot be fetched.
            ValueError: If the file is damaged, is refused because it would run code, or does not
                fit the model; if the URL is refused; or if ``path`` is empty and ``whole`` is set.
        """
        if self.whole and not path:
            raise ValueError("MODEL.WEIGHTS is not set: set it to a trained model's checkpoint.")
        self._source = path
        if path:
            path = local_weights(path, by_user=True)
            plain = path.partition("?")[0]
            if not os.path.isfile(plain):
                raise FileNotFoundError(f"There is no checkpoint {plain} (MODEL.WEIGHTS).")
        self._states = self.checkpointables if checkpointables is None else checkpointables
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # detectron2 does not reset it after an error

    def load_weights(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Load weights that are in memory.

        Args:
            weights: Tensors by name.
            source: Origin of the weights, for the log and for errors.

        Raises:
            ValueError: If the weights do not fit the model.
        """
        self._source, self._states = source, ()
        self._load_model({"model": dict(weights)})

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` with all states, or only weights of ``path``.

        ``path`` may come from a config: as a URL it needs a public address, or one that the user
        typed (:func:`mask_former.utils.downloads.typed_by_user`).
        """
        if resume and self.has_checkpoint():
            self.finetuning = None  # a checkpoint of this run has the model's classes
        else:
            path = local_weights(path)
        return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        blobs = content["model"].get("blobs", content["model"])
        blobs = blobs if isinstance(blobs, dict) else content["model"]
        is_caffe2 = "__author__" not in content and all(
            isinstance(name, str) and "." not in name for name in blobs
        )
        if filename.endswith(".pkl") and is_caffe2:
            # Caffe2 has names such as res2_0_branch2a_w, which detectron2 matches by heuristics.
            content.update(__author__="Caffe2", matching_heuristics=True)
            content["model"] = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        query = getattr(self._parsed_url_during_load, "query", "")
        if "ema=True" in query:
            content["model"] = averaged_weights(content, filename)
        if filename.endswith(".pyth") or "matching_heuristics=True" in query:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Load ``checkpoint["model"]`` and log how it fits; a refused file changes nothing."""
        metadata = _metadata_of(checkpoint["model"], self._source)
        state = self.model.state_dict()
        weights = self._named_as(state, checkpoint)
        for side in (state, weights):
            side.pop(_FROM_CONFIG, None)
        notes: list[str] = []
        if self.finetuning is not None:
            file_classes = checkpoint.get(CLASS_NAMES)
            rows = parameter_rows(self.model)
            weights, notes = self.finetuning.adapt(weights, state, file_classes, rows)
        if self._states:
            owners = {name: self.checkpointables[name] for name in self._states}
            check_resumed(self._source, checkpoint, weights, state, owners)
        check_finite(weights, state, self._source)
        fit = compare(weights, state)
        fit.check_share(self._source)
        if self.whole:
            fit.check_whole(self._source, state)
        checkpoint["model"] = OrderedDict(weights)
        if metadata is not None:  # versions of modules, which some need to convert old weights
            checkpoint["model"]._metadata = metadata
        missing = super()._load_model(checkpoint).missing_keys
        # A module may handle a missing weight itself, as detectron2's frozen norms do.
        missing = [k for k in fit.missing if k in missing and decides_outputs(k, state[k])]
        fit = replace(fit, missing=missing)
        advice = self._advice(fit, checkpoint.get(CLASS_NAMES))
        level = logging.INFO if fit.is_complete and not advice else logging.WARNING
        text = fit.summary(self._source, [*notes, *advice])
        logging.getLogger(__name__).log(level, text)

    def _named_as(
        self, state: Mapping[str, Tensor], checkpoint: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return the checkpoint's weights under the model's parameter names."""
        weights = as_tensors(checkpoint["model"], self._source)
        if checkpoint.pop("matching_heuristics", False):
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            weights = align_and_update_state_dicts(state, weights, c2_conversion=is_caffe2)
        return fit_vit(rename_old_layout(weights, keep=state), self.model, self._source)

    def _advice(self, fit: WeightsFit, file_classes: Sequence[str] | None) -> list[str]:
        """Return advice if the file has other classes or queries and is loaded as it is."""
        if self.finetuning is not None:
            return []
        how = "set MODEL.MASK_FORMER.FINETUNE True to carry over"
        rows = parameter_rows(self.model)
        if any(name in rows.classes or name in rows.queries for name in fit.reshaped):
            return [f"It has other classes or queries: {how} those that it shares."]
        if file_classes is not None and self.class_names is not None:
            same_order = list(range(len(file_classes)))
            if match_classes(self.class_names, file_classes) != same_order:
                return [f"Its classes have other names or another order: {how} them by name."]
        return []
