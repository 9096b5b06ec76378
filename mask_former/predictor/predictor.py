"""From a checkpoint to results in Python: :class:`MaskFormerPredictor`."""

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
from mask_former.data.datasets.classes import Classes
from mask_former.modeling.mask_former import MaskFormer
from mask_former.results import Result
from mask_former.structures import RESULTS

from .image_logits import PictureLogits, PixelLogits, ResultOptions, check_kinds
from .images import Picture, PictureLike, to_picture
from .inference_pipeline import InputPipeline, load_trained_model
from .pretrained import find_pretrained

if TYPE_CHECKING:
    from mask_former.modeling.inner_outputs import InnerOutputs

__all__ = ["MaskFormerPredictor", "PictureLogits"]


class MaskFormerPredictor:
    """A trained model that takes pictures and gives results::

        predictor = MaskFormerPredictor.from_pretrained("output/model_final.pth")
        result = predictor("street.jpg")
        result.save("street.png")

    A picture is a path, a PIL image, a numpy array (H×W×3 RGB or H×W, uint8 or uint16) or a torch
    tensor (3×H×W RGB, uint8). It is resized, normalised and padded as in the model's evaluation;
    results have its own size. Several threads may use one predictor: forward passes take turns.
    """

    def __init__(
        self,
        cfg: CfgNode,
        classes: Classes | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            cfg: names the model, its weights (``MODEL.WEIGHTS``), the device, the input's size
                (``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST``) and channel order.
            classes: names, colours and things of the K classes; None: those of the metadata of the
                config's datasets.
            weights: of the model, where they are not those of ``MODEL.WEIGHTS``.

        Raises:
            OSError, ValueError: if the weights cannot be read or do not fit the model, or there
                are not K ``classes``.
        """
        self._inputs = InputPipeline(cfg)
        self.cfg = cfg
        self.model = load_trained_model(cfg, weights)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self._lock = threading.Lock()
        self.classes = classes or classes_of(cfg)
        _check_number(self.classes, cfg)
        if isinstance(self.model, MaskFormer):
            self.model.thing_ids = frozenset(self.classes.thing_ids)

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
        """The model of a checkpoint.

        Args:
            path_or_url: a checkpoint (``.pth``, ``.safetensors``, ``.pkl``) or its URL; the output
                folder of a training; another folder of a checkpoint, with or without a
                ``config.yaml``; the folder of a ``transformers`` MaskFormer; a config file that
                names its weights; or the name of a model that comes with the code, such as
                "camvid_semantic".
            config_file: needed for a checkpoint that does not carry what inference needs, as those
                of others and of older trainings; otherwise it takes the place of what is carried.
            device: such as "cpu" or "cuda:1"; None: the config's, or where that is carried in the
                checkpoint, a GPU where there is one.
            opts: KEY VALUE … on top of the config, such as
                ``("INPUT.MIN_SIZE_TEST", 800, "TEST.SLIDING_WINDOW.SIZE", 1024)``.
            things: names or ids of the classes whose objects are told apart in panoptic results
                and that instance results are of; None: as the checkpoint or config says.

        Raises:
            FileNotFoundError: if there is no such file, folder or model.
            OSError: if a URL cannot be fetched.
            KeyError: for an unknown key of ``opts`` or class of ``things``.
            ValueError: if a file is broken, or config and weights do not fit each other.
        """
        found = find_pretrained(
            path_or_url, config_file=config_file, device=device, opts=opts, things=things
        )
        return cls(found.cfg, found.classes, weights=found.weights)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of results that the config turns on, the richest first."""
        if not isinstance(self.model, MaskFormer):
            return ("semantic",)
        test = self.cfg.MODEL.MASK_FORMER.TEST
        return tuple(kind for kind in RESULTS if test[f"{kind.upper()}_ON"])

    @overload
    def __call__(self, image: PictureLike, *, batch_size: int = 1, **options: Any) -> Result: ...

    @overload
    def __call__(
        self, image: Sequence[PictureLike], *, batch_size: int = 1, **options: Any
    ) -> list[Result]: ...

    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> Result | list[Result]:
        """The results of a picture, or of each picture of a list.

        Args:
            image: a picture, or a list or tuple of them.
            batch_size: the most pictures in one forward pass; see :meth:`stream`.
            options: ``kinds``, ``object_mask_threshold``, ``overlap_threshold``, ``topk``: see
                :meth:`PictureLogits.result`.

        Raises:
            FileNotFoundError: if a file is not there.
            ValueError: for what is no picture, or a wrong option.
        """
        if isinstance(image, list | tuple):
            return list(self.stream(image, batch_size=batch_size, **options))
        (result,) = self.stream([image], batch_size=batch_size, **options)  # type: ignore[list-item]
        return result

    def stream(
        self,
        images: Iterable[PictureLike],
        *,
        kinds: Sequence[str] | str | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[Result]:
        """Results in the order of the pictures, made as they are asked for: constant memory.

        Args:
            images: pictures; ``batch_size`` of them are taken at a time.
            kinds, options: see :meth:`PictureLogits.result`.
            batch_size: the most pictures in one forward pass. Only pictures of one size at the
                network share a pass: padding to a larger one would change their results.

        Raises:
            FileNotFoundError, ValueError: as a call. What follows a bad picture is not reached:
                call the predictor for each where some may be bad.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        if kinds is not None:
            kinds = check_kinds(kinds)  # now, not at the first picture
        return self._stream(iter(images), kinds, batch_size, options)

    def _stream(
        self,
        images: Iterator[PictureLike],
        kinds: Sequence[str] | None,
        batch_size: int,
        options: Mapping[str, Any],
    ) -> Iterator[Result]:
        while batch := list(islice(images, batch_size)):
            for logits in self._forward([to_picture(image) for image in batch]):
                yield logits.result(kinds, **options)

    def logits(self, image: PictureLike) -> PictureLogits:
        """One forward pass; results are made of it, with any thresholds, without another.

        Raises:
            FileNotFoundError, ValueError: as a call.
        """
        return self._forward([to_picture(image)])[0]

    def inner_outputs(self, image: PictureLike) -> InnerOutputs:
        """Run one image and keep what each part of the network returns.

        See :mod:`mask_former.modeling.inner_outputs`.

        Raises:
            FileNotFoundError, ValueError: as a call.
        """
        from mask_former.modeling.inner_outputs import inner_outputs

        with torch.no_grad(), self._lock:
            return inner_outputs(self.model, [self._inputs(to_picture(image).pixels)])

    @torch.no_grad()
    def _forward(self, pictures: Sequence[Picture]) -> list[PictureLogits]:
        examples = [self._inputs(picture.pixels) for picture in pictures]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, example in enumerate(examples):
            by_size.setdefault(tuple(example["image"].shape), []).append(place)
        logits: dict[int, Any] = {}
        for places in by_size.values():
            found = self._predict([examples[place] for place in places])
            logits.update(zip(places, found, strict=True))
        return [
            PictureLogits(
                image=picture.pixels,
                classes=self.classes,
                logits=logits[place],
                defaults=self._defaults,
                file_name=picture.file_name,
            )
            for place, picture in enumerate(pictures)
        ]

    def _predict(self, examples: list[dict[str, Any]]) -> list[Any]:
        with self._lock:
            if isinstance(self.model, MaskFormer):
                return self.model.predict(examples)
            return [PixelLogits(found["sem_seg"]) for found in self.model(examples)]

    @property
    def _defaults(self) -> ResultOptions:
        test = self.cfg.MODEL.MASK_FORMER.TEST
        return ResultOptions(
            kinds=self.kinds,
            object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
            overlap_threshold=test.OVERLAP_THRESHOLD,
            topk=self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )


def _check_number(classes: Classes, cfg: CfgNode) -> None:
    expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes.names) != expected:
        raise ValueError(
            f"classes: found {len(classes.names)}, the model has {expected} "
            "(MODEL.SEM_SEG_HEAD.NUM_CLASSES)."
        )
