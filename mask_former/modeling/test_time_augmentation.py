"""Test-time augmentation (``TEST.AUG``) of semantic segmentation, one view at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import DatasetMapperTTA, SemanticSegmentor
from fvcore.transforms.transform import (
    BlendTransform,
    HFlipTransform,
    NoOpTransform,
    TransformList,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask_former.data.formats.readers import read_image

__all__ = ["LazyDatasetMapperTTA", "SemanticSegmentorWithTTA"]

# Transforms that can be undone on class scores: scores are resized to the output size anyway, and
# changes of colour do not move pixels.
_KNOWN_TRANSFORMS = (NoOpTransform, ResizeTransform, HFlipTransform, BlendTransform)


class LazyDatasetMapperTTA(DatasetMapperTTA):
    """detectron2's mapper, which makes each view when it is requested instead of all at once."""

    def __call__(self, dataset_dict: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Make the views of an image.

        Args:
            dataset_dict: ``image`` 3×H×W, 0 … 255; ``height`` and ``width`` of the output.

        Yields:
            One view for each of ``min_sizes``, followed by its mirror image if ``flip`` is True: a
            copy with the resized ``image``, and ``transforms``, the applied ``TransformList``.
        """
        for min_size in self.min_sizes:
            resize = DatasetMapperTTA(min_sizes=[min_size], max_size=self.max_size, flip=False)
            (view,) = resize(dataset_dict)
            yield view
            if self.flip:
                flip = HFlipTransform(view["image"].shape[-1])
                transforms = view["transforms"] + flip
                view = {**view, "image": view["image"].flip(-1), "transforms": transforms}
                yield view


class SemanticSegmentorWithTTA(nn.Module):
    """A wrapper that averages a model's semantic results over several views of an image.

    Class scores are averaged: MaskFormer's class×mask scores as they are, the logits of
    detectron2's ``SemanticSegmentor`` after a softmax. Only one K×H×W sum is stored, however many
    views there are.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict[str, Any]], Iterable[dict[str, Any]]] | None = None,
        batch_size: int = 1,
    ) -> None:
        """Wrap a model.

        Args:
            cfg: ``TEST.AUG`` describes the views, ``INPUT.FORMAT`` the channel order of files.
            model: returns ``sem_seg``; it is not changed, and its other results are ignored.
            tta_mapper: like ``DatasetMapperTTA(cfg)``, or a generator like the default,
                :class:`LazyDatasetMapperTTA`. It may resize, mirror and recolour.
            batch_size: views that are run at once; only views of equal size share a batch, because
                padding changes results.

        Raises:
            ValueError: if semantic results are off, there are no views, or ``batch_size`` < 1.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        settings = getattr(model, "inference", None)
        if settings is not None and not settings.semantic_on:
            raise ValueError(
                "Test-time augmentation averages the semantic result, which is off in this "
                "model: set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True, or TEST.AUG.ENABLED False."
            )
        if tta_mapper is None and not cfg.TEST.AUG.MIN_SIZES:
            raise ValueError(
                "TEST.AUG.MIN_SIZES is empty: list the shorter side of at least one view in pixels."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        self.model = model
        self.training = model.training  # evaluation restores the mode that it finds here
        self.tta_mapper = LazyDatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size
        self.image_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Compute the mean scores of each image.

        Args:
            batched_inputs: one dict for each image: ``file_name`` of the original image, or
                ``image`` 3×H×W, values 0 … 255 in the channel order of ``INPUT.FORMAT``. With both,
                the file is used, because the ``image`` of a test loader is already resized.
                ``height`` and ``width`` of the output are optional; default: the image's own.

        Returns:
            One dict for each image with ``sem_seg``, scores K×height×width.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: for a damaged file, an example without ``file_name`` and ``image``, a view
                whose transforms cannot be undone, or a model in training mode.
        """
        if self.model.training:
            raise ValueError("Test-time augmentation is for inference: call .eval() on the model.")
        return [{"sem_seg": self._mean_scores(example)} for example in batched_inputs]

    def _mean_scores(self, example: dict[str, Any]) -> Tensor:
        total: Tensor | None = None
        count = 0
        for scores in self._view_scores(self._original(example)):
            total = scores.to(torch.float32, copy=True) if total is None else total.add_(scores)
            count += 1
            del scores  # before the next view is run
        if total is None:
            raise ValueError("The tta_mapper made no view of an image; expected one or more.")
        return total.div_(count)

    def _view_scores(self, example: dict[str, Any]) -> Iterator[Tensor]:
        """Yield the class scores of each view, flipped back to the orientation of the image."""
        size = {"height": example["height"], "width": example["width"]}
        for _, views in groupby(self.tta_mapper(example), key=lambda view: view["image"].shape):
            while batch := list(islice(views, self.batch_size)):
                transforms = [view["transforms"] for view in batch]
                inputs = [{"image": view["image"], **size} for view in batch]
                for scores in self._scores(inputs):
                    yield scores.flip(-1) if _is_mirrored(transforms.pop(0)) else scores
                    del scores

    def _scores(self, inputs: list[dict[str, Any]]) -> Iterator[Tensor]:
        """Yield the class scores K×height×width of each input: probabilities or sums of them."""
        predict: Any = getattr(self.model, "predict", None)  # skips the model's other results
        if predict is not None:
            yield from (logits.semantic_scores() for logits in predict(inputs))
            return
        results = self.model(inputs)[::-1]
        while results:  # pop them, so that none occupies memory when the next view is run
            scores = results.pop()["sem_seg"]
            yield scores.softmax(dim=0) if isinstance(self.model, SemanticSegmentor) else scores
            del scores

    def _original(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return the original ``image``, and ``height`` and ``width`` of the output."""
        if "file_name" in example:
            image = self._read(example["file_name"])
        elif "image" in example:
            image = example["image"].cpu()
        else:
            raise ValueError(
                f"An example has the keys {sorted(example)}; expected `file_name` or `image`."
            )
        height, width = image.shape[-2:]
        return {
            "image": image,
            "height": example.get("height", height),
            "width": example.get("width", width),
        }

    def _read(self, file_name: str) -> Tensor:
        """Read an image, 3×H×W, as the evaluation loader does."""
        try:
            pixels = read_image(file_name, "file_name", self.image_format)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"There is no image {file_name} (`file_name`), which test-time augmentation reads; "
                "leave `file_name` out to use the tensor `image` instead."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _is_mirrored(transforms: TransformList) -> bool:
    mirrored = False
    for transform in transforms.transforms:
        if not isinstance(transform, _KNOWN_TRANSFORMS):
            raise ValueError(
                f"A view was made with {type(transform).__name__}, which cannot be undone on class "
                f"scores; a tta_mapper may use {', '.join(t.__name__ for t in _KNOWN_TRANSFORMS)}."
            )
        mirrored ^= isinstance(transform, HFlipTransform)
    return mirrored
