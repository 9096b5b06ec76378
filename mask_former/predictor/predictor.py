"""Prediction in Python, from a checkpoint to results: :class:`MaskFormerPredictor`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.checkpoint.inference_data import classes_of
from mask_former.config.loading import resolve_device
from mask_former.data.datasets.classes import Classes
from mask_former.data.transforms.inference import InferencePreprocessing
from mask_former.inference import SegmentationLogits
from mask_former.results import Result

from .adapters import as_mask_model
from .image_output import ImageOutput, check_kinds
from .images import ImageLike, LoadedImage, load_image
from .pretrained import find_pretrained
from .trained_model import load_trained_model

if TYPE_CHECKING:
    from mask_former.modeling.inner_outputs import InnerOutputs

__all__ = ["MaskFormerPredictor"]


class MaskFormerPredictor:
    """Trained model that turns images into results.

    For example::

        predictor = MaskFormerPredictor.from_pretrained("output/model_final.pth")
        result = predictor("street.jpg")
        result.save("street.png")

    An image is a path, a PIL image, a numpy array (H×W×3 RGB or H×W, uint8 or uint16) or a torch
    tensor (3×H×W RGB, uint8). It is resized, normalised and padded as in the model's evaluation;
    results have the size of the image. Several threads may share a predictor: it runs one forward
    pass at a time.
    """

    def __init__(
        self,
        cfg: CfgNode,
        classes: Classes | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Build the model and load its weights.

        Args:
            cfg: Config of the model, its weights (``MODEL.WEIGHTS``), the device, the input size
                (``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST``) and the channel order.
            classes: The K classes with their names, colours and things; None: those in the metadata
                of the config's datasets.
            weights: The model's weights; None: those of ``MODEL.WEIGHTS``.

        Raises:
            OSError, ValueError: If the weights cannot be read or do not fit the model, or the
                number of ``classes`` is not K.
        """
        cfg = resolve_device(cfg)
        self._inputs = InferencePreprocessing(cfg)
        self.cfg = cfg
        self.model = load_trained_model(cfg, weights)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self._lock = threading.Lock()
        self.classes = classes or classes_of(cfg)
        _check_number(self.classes, cfg)
        self._network = as_mask_model(self.model)
        self._network.thing_ids = frozenset(self.classes.thing_ids)

    @classmethod
    def from_pretrained(
        cls,
        path_or_url: str | Path,
        *,
        config_file: str | Path | None = None,
        device: str | torch.device | None = None,
        opts: Sequence[Any] = (),
        things: Sequence[str | int] | None = None,
    ) -> MaskFormerPredictor:
        """Load the model of a checkpoint.

        Args:
            path_or_url: A checkpoint (``.pth``, ``.safetensors``, ``.pkl``) or its URL; the output
                folder of a training run; another folder with one checkpoint, with or without a
                ``config.yaml``; the folder of a ``transformers`` MaskFormer; a config file with
                ``MODEL.WEIGHTS``; or the name of a model that comes with the code, such as
                "camvid_semantic".
            config_file: Config for a checkpoint that contains none, such as a third-party one or
                one of an older version; otherwise it replaces the config in the checkpoint.
            device: Device, such as "cpu" or "cuda:1"; None: that of the config file, or, with the
                config in the checkpoint, a GPU if there is one.
            opts: Keys and values that override the config, such as
                ``("INPUT.MIN_SIZE_TEST", 800, "TEST.SLIDING_WINDOW.SIZE", 1024)``.
            things: Names or ids of the classes whose objects get segments of their own in panoptic
                results, and that instance results contain; None: those of the checkpoint or config.

        Raises:
            FileNotFoundError: If the file, folder or model is missing.
            OSError: If a URL cannot be downloaded.
            KeyError: If a key of ``opts`` or a class of ``things`` is unknown.
            ValueError: If a file is damaged, or config and weights do not fit each other.
        """
        found = find_pretrained(
            path_or_url, config_file=config_file, device=device, opts=opts, things=things
        )
        return cls(found.cfg, found.classes, weights=found.weights)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of results that the config turns on, in the order panoptic, instance, semantic."""
        return self._network.inference.kinds

    @overload
    def __call__(self, image: ImageLike, *, batch_size: int = 1, **options: Any) -> Result: ...

    @overload
    def __call__(
        self, image: Sequence[ImageLike], *, batch_size: int = 1, **options: Any
    ) -> list[Result]: ...

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> Result | list[Result]:
        """Compute the results of an image, or of each image of a list.

        Args:
            image: An image, or a list or tuple of images.
            batch_size: Largest number of images in one forward pass; see :meth:`stream`.
            options: ``kinds``, ``object_mask_threshold``, ``overlap_threshold``, ``topk``; see
                :meth:`ImageOutput.result`.

        Returns:
            A result, or a list of one result for each image.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If an image or option is not valid.
        """
        if isinstance(image, list | tuple):
            return list(self.stream(image, batch_size=batch_size, **options))
        (result,) = self.stream([image], batch_size=batch_size, **options)  # type: ignore[list-item]
        return result

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        kinds: Sequence[str] | str | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[Result]:
        """Yield results lazily, in the order of the images and in constant memory.

        Args:
            images: Any number of images; ``batch_size`` of them are taken at a time.
            kinds, options: See :meth:`ImageOutput.result`.
            batch_size: Largest number of images in one forward pass. Only images with the same size
                at the network share a pass, because more padding would change their results.

        Raises:
            FileNotFoundError, ValueError: See :meth:`__call__`. A bad image ends the iteration; if
                some images may be bad, call the predictor for each image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        if kinds is not None:
            kinds = check_kinds(kinds)  # now, not at the first image
        return self._stream(iter(images), kinds, batch_size, options)

    def _stream(
        self,
        images: Iterator[ImageLike],
        kinds: Sequence[str] | None,
        batch_size: int,
        options: Mapping[str, Any],
    ) -> Iterator[Result]:
        while batch := list(islice(images, batch_size)):
            for output in self._forward([load_image(image) for image in batch]):
                yield output.result(kinds, **options)

    def logits(self, image: ImageLike) -> ImageOutput:
        """Run one forward pass and return its output, to compute results at several thresholds.

        Raises:
            FileNotFoundError, ValueError: See :meth:`__call__`.
        """
        return self._forward([load_image(image)])[0]

    def inner_outputs(self, image: ImageLike) -> InnerOutputs:
        """Run the network on one image and return the outputs of each of its parts.

        See :mod:`mask_former.modeling.inner_outputs`.

        Raises:
            FileNotFoundError, ValueError: See :meth:`__call__`.
        """
        from mask_former.modeling.inner_outputs import inner_outputs

        with torch.no_grad(), self._lock:
            return inner_outputs(self.model, [self._inputs(load_image(image).pixels)])

    @torch.no_grad()
    def _forward(self, images: Sequence[LoadedImage]) -> list[ImageOutput]:
        examples = [self._inputs(image.pixels) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            by_size.setdefault(tuple(example["image"].shape), []).append(index)
        logits: dict[int, SegmentationLogits] = {}
        for indices in by_size.values():
            with self._lock:
                found = self._network.predict([examples[index] for index in indices])
            logits.update(zip(indices, found, strict=True))
        return [
            ImageOutput(
                image=image.pixels,
                classes=self.classes,
                logits=logits[index],
                defaults=self._network.inference,
                file_name=image.file_name,
            )
            for index, image in enumerate(images)
        ]


def _check_number(classes: Classes, cfg: CfgNode) -> None:
    expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes.names) != expected:
        raise ValueError(
            f"classes: found {len(classes.names)}, the model has {expected} "
            "(MODEL.SEM_SEG_HEAD.NUM_CLASSES); the numbers must be equal."
        )
