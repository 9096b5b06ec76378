"""Models that take turns: what each does in a step, cut into stages."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former.inference import ImageLogits, semantic_map
from mask_former.modeling.mask_former import MaskFormer
from mask_former.ops import as_masks
from mask_former.solver.optimizer import build_optimizer
from mask_former.structures import Outputs, layer_predictions
from mask_former.utils.precision import amp_dtype

from .stopwatch import Stopwatch, lap_after, then
from .work import Work, be_sure, random_batch

__all__ = ["Contender", "ModelContender", "initial_weights"]

Stage = tuple[str, Any, str]
"""Its name, and the object and the method whose end is its end."""


def initial_weights(cfg: CfgNode, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a model of the config, with random weights."""
    torch.manual_seed(seed)
    return build_model(cfg).state_dict()


class Contender(ABC):
    """One of those that take turns."""

    def __init__(self, name: str, cfg: CfgNode, work: Work, model: nn.Module) -> None:
        """
        Args:
            name: in the results.
            cfg: its ``SOLVER`` says how the model is trained.
            work: what a step is given.
            model: on the config's device, with its weights.
        """
        self.name = name
        self.cfg = cfg
        self.work = work
        self.model: Any = model
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.batch = random_batch(work, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        self.optimizer: torch.optim.Optimizer | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)

    @property
    def training(self) -> bool:
        return self.model.training

    def prepare(self, training: bool) -> None:
        """Before steps of a mode."""
        self.model.train(training)
        self.optimizer = build_optimizer(self.cfg, self.model) if training else None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=training and self.amp_dtype is torch.float16
        )

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """Of the network in the present mode; None for fp32."""
        solver_or_test = "SOLVER" if self.training else "TEST"
        return amp_dtype(self.cfg[solver_or_test].AMP, f"{solver_or_test}.AMP")

    def autocast(self) -> torch.autocast:
        dtype = self.amp_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def step(self, watch: Stopwatch) -> None:
        """All that is done for a batch, from the images to results or changed weights."""
        if self.training:
            self._train(watch)
        else:
            with torch.no_grad():
                self._infer(watch)

    def _train(self, watch: Stopwatch) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        watch.start()
        for _ in range(self.cfg.SOLVER.ACCUMULATE_STEPS):
            loss = self._loss(watch)
            self.scaler.scale(loss).backward()
            watch.lap("backward")
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        watch.lap("optimizer")

    @abstractmethod
    def _infer(self, watch: Stopwatch) -> None:
        """Start the watch and make the results of the batch."""

    @abstractmethod
    def _loss(self, watch: Stopwatch) -> Tensor:
        """The loss of the batch, weighted."""

    @abstractmethod
    def network(self, watch: Stopwatch) -> bool:
        """Backbone and head alone, in training with their backward pass: the laps "network",
        and "semantic_map" where it is made of the outputs. Returns whether there is such a thing.
        """

    @abstractmethod
    def predict(self) -> tuple[Tensor, Tensor]:
        """The network's outputs in inference, B×Q×(K+1) and B×Q×h×w, fp32, on the CPU."""


class ModelContender(Contender):
    """A :class:`MaskFormer`."""

    model: MaskFormer

    def __init__(
        self, name: str, cfg: CfgNode, work: Work, weights: Mapping[str, Tensor], model: MaskFormer
    ) -> None:
        """
        Args:
            name, cfg, work: see :class:`Contender`.
            weights: loaded into the model where they fit; it keeps its own otherwise.
            model: built, on the config's device.
        """
        super().__init__(name, cfg, work, model)
        if _shapes(model.state_dict()) == _shapes(weights):
            model.load_state_dict(weights)
        self._gradients: list[Tensor] | None = None

    def prepare(self, training: bool) -> None:
        super().prepare(training)
        self._gradients = None

    def _infer(self, watch: Stopwatch) -> None:
        with self._laps(watch):
            watch.start()
            self.model(self.batch)
            watch.lap("rest")

    def _loss(self, watch: Stopwatch) -> Tensor:
        with self._laps(watch), then(self.model, "network", _EndOfCriterion(watch)):
            with self.autocast():
                losses = self.model(self.batch)
            return torch.stack(list(losses.values())).sum()

    def network(self, watch: Stopwatch) -> bool:
        images = self.model.preprocess(self.batch)
        if self.training:
            self._train_network(images.tensor, watch)
            return True
        with torch.no_grad(), self._segments():
            watch.start()
            outputs = self.model.network(images.tensor)
            watch.lap("network")
            if self.model.inference.semantic_on and type(self.model) is MaskFormer:
                self._semantic_maps(outputs, images)
                watch.lap("semantic_map")
        return True

    def _semantic_maps(self, outputs: Outputs, images: ImageList) -> None:
        padded = (images.tensor.shape[-2], images.tensor.shape[-1])
        output = self.work.output_size or self.work.size
        for mask_cls, mask_pred in zip(outputs["pred_logits"], outputs["pred_masks"], strict=True):
            masks = as_masks(mask_pred).resize(padded).crop(self.work.size).resize(output)
            semantic_map(mask_cls, masks)

    def _train_network(self, images: Tensor, watch: Stopwatch) -> None:
        watch.start()
        for _ in range(self.cfg.SOLVER.ACCUMULATE_STEPS):
            with self.autocast():
                tensors = list(_tensors(self.model.network(images)))
            if self._gradients is None:  # in the warm-up
                self._gradients = [torch.full_like(tensor, 1e-3) for tensor in tensors]
            torch.autograd.backward(tensors, self._gradients)
        watch.lap("network")
        self.model.zero_grad()

    def predict(self) -> tuple[Tensor, Tensor]:
        self.model.eval()
        with torch.no_grad():
            outputs = self.model.network(self.model.preprocess(self.batch).tensor)
        return outputs["pred_logits"].float().cpu(), outputs["pred_masks"].float().cpu()

    def _laps(self, watch: Stopwatch) -> ExitStack:
        stack = ExitStack()
        for stage, owner, method in self._stages():
            stack.enter_context(lap_after(watch, stage, owner, method))
        if not self.training:
            stack.enter_context(self._segments())
        return stack

    def _segments(self) -> AbstractContextManager[None]:
        def decide(outputs: Outputs) -> None:
            if self.work.segments is not None:
                be_sure(outputs["pred_logits"], self.work.segments)

        return then(self.model, "network", decide)

    def _stages(self) -> Iterator[Stage]:
        model, head = self.model, self.model.sem_seg_head
        yield "input", model, "preprocess"
        yield "backbone", model.backbone, _call_of(model.backbone)
        if _call_of(head) == "forward":
            yield "pixel decoder", head.pixel_decoder, "forward_features"
            yield "predictor", head.predictor, "forward"
        else:  # what is compiled as one has no parts
            yield "head", head, _call_of(head)
        if self.training:
            criterion = model.criterion
            yield "targets", model, "prepare_targets"
            if hasattr(criterion, "match"):  # the textbook's, of one image and layer
                yield "matching", criterion, "match"
            else:
                yield "matching", criterion.matcher, "match_layers"
            yield "losses", criterion, "forward"
        else:
            maker = ImageLogits if type(model) is MaskFormer else type(model)
            namespace = sys.modules[maker.__module__]
            for result in ("semantic", "panoptic", "instance"):
                yield result, namespace, f"{result}_inference"


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _call_of(module: nn.Module) -> str:
    """The attribute that a call of the module ends up in."""
    compiled = module._compiled_call_impl is not None
    return "_compiled_call_impl" if compiled else "forward"


def _tensors(outputs: Outputs) -> Iterator[Tensor]:
    for layer in layer_predictions(outputs):
        yield layer["pred_logits"]
        yield layer["pred_masks"]


class _EndOfCriterion:
    """Ends the stage "criterion backward" when the first gradient reaches the network's outputs.

    What was done last is differentiated first, so that all of the criterion lies before it.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.reached = False

    def __call__(self, outputs: Outputs) -> None:
        self.reached = False
        for tensor in _tensors(outputs):
            tensor.register_hook(self._reach)

    def _reach(self, gradient: Tensor) -> None:
        if not self.reached:
            self.reached = True
            self.watch.lap("criterion backward")
