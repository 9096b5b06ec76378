"""Models to benchmark: each runs a step that is divided into stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former.inference import semantic_map
from mask_former.modeling.mask_former import MaskFormer
from mask_former.ops import as_masks
from mask_former.solver.optimizer import build_optimizer
from mask_former.structures import Match, Outputs, Prediction, Target, layer_predictions
from mask_former.utils.precision import amp_dtype

from .reference import ReferenceMaskFormer
from .stopwatch import Stopwatch
from .workload import Workload, force_confident, random_batch

__all__ = ["BenchmarkedMaskFormer", "BenchmarkedModel", "initial_weights"]


def initial_weights(cfg: CfgNode, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a model of the config, with random weights."""
    torch.manual_seed(seed)
    return build_model(cfg).state_dict()


class BenchmarkedModel(ABC):
    """Model to benchmark, with its input and its optimizer.

    Args:
        name: Name in the results.
        cfg: Config; ``SOLVER`` defines the training step.
        workload: Input of a step.
        model: Model with its weights, on the config's device.
    """

    def __init__(self, name: str, cfg: CfgNode, workload: Workload, model: nn.Module) -> None:
        self.name = name
        self.cfg = cfg
        self.workload = workload
        self.model: Any = model
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.watch = Stopwatch(self.device)
        self.batch = random_batch(workload, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        self.optimizer: torch.optim.Optimizer | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)

    @property
    def training(self) -> bool:
        return self.model.training

    def prepare(self, training: bool) -> None:
        """Prepare for steps of training or inference."""
        self.model.train(training)
        self.optimizer = build_optimizer(self.cfg, self.model) if training else None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=training and self.amp_dtype is torch.float16
        )

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """Precision of the network in the current mode; None for fp32."""
        solver_or_test = "SOLVER" if self.training else "TEST"
        return amp_dtype(self.cfg[solver_or_test].AMP, f"{solver_or_test}.AMP")

    def autocast(self) -> torch.autocast:
        dtype = self.amp_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def step(self) -> dict[str, float]:
        """Run a batch, from images to results or to changed weights; return seconds by stage."""
        if self.training:
            self._train()
        else:
            with torch.no_grad():
                self._infer()
        return self.watch.read()

    def _train(self) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        self.watch.start()
        for _ in range(self.cfg.SOLVER.ACCUMULATE_STEPS):
            loss = self._loss()
            self.scaler.scale(loss).backward()
            self.watch.lap("backward")
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.watch.lap("optimizer")

    @abstractmethod
    def _infer(self) -> None:
        """Start the watch and compute the results of the batch."""

    @abstractmethod
    def _loss(self) -> Tensor:
        """Compute the weighted loss of the batch."""

    @abstractmethod
    def network_alone(self) -> dict[str, float]:
        """Run backbone and head alone, in training with their backward pass.

        Returns:
            Seconds of "network", and of "semantic_map" if it is computed from the outputs; empty
            if the network cannot be run alone.
        """

    @abstractmethod
    def predict(self) -> tuple[Tensor, Tensor]:
        """Return the network's outputs in inference, B×Q×(K+1) and B×Q×h×w, fp32, on the CPU."""


class BenchmarkedMaskFormer(BenchmarkedModel):
    """A benchmarked :class:`MaskFormer`; forward hooks end the stages of its parts.

    Args:
        name: See :class:`BenchmarkedModel`.
        cfg: See :class:`BenchmarkedModel`.
        workload: See :class:`BenchmarkedModel`.
        weights: Weights to load if they fit; otherwise the model keeps its own.
        model: Model on the config's device.
    """

    model: MaskFormer

    def __init__(
        self,
        name: str,
        cfg: CfgNode,
        workload: Workload,
        weights: Mapping[str, Tensor],
        model: MaskFormer,
    ) -> None:
        super().__init__(name, cfg, workload, model)
        if _shapes(model.state_dict()) == _shapes(weights):
            model.load_state_dict(weights)
        self._gradients: list[Tensor] | None = None
        self._criterion_is_differentiated = False
        self._add_hooks()

    def _add_hooks(self) -> None:
        model, head, lap = self.model, self.model.sem_seg_head, self.watch.lap
        compiled = self.cfg.MODEL.COMPILE
        _before(model.backbone, lambda: lap("input"), compiled)
        _after(model.backbone, lambda _: lap("backbone"), compiled)
        if compiled or not hasattr(head, "predictor"):  # a compiled head has no parts
            _after(head, lambda _: lap("head"), compiled)
        else:
            _before(head.predictor, lambda: lap("pixel decoder"))
            _after(head.predictor, lambda _: lap("predictor"))
        _after(head, self._after_head, compiled)
        _before(model.criterion, lambda: lap("targets"))
        _after(model.criterion, lambda _: lap("losses"))
        model.criterion.matcher = _TimedMatcher(model.criterion.matcher, self.watch)

    def _after_head(self, outputs: Outputs) -> None:
        if not self.training:
            if self.workload.segments is not None:
                force_confident(outputs["pred_logits"], self.workload.segments)
        elif self.watch.is_running:
            # The criterion's backward pass ends when the first gradient reaches the outputs,
            # because autograd differentiates the last operations, those of the criterion, first.
            self._criterion_is_differentiated = False
            for tensor in _tensors(outputs):
                tensor.register_hook(self._after_criterion_backward)

    def _after_criterion_backward(self, gradient: Tensor) -> None:
        if not self._criterion_is_differentiated:
            self._criterion_is_differentiated = True
            self.watch.lap("criterion backward")

    def prepare(self, training: bool) -> None:
        super().prepare(training)
        self._gradients = None

    def _infer(self) -> None:
        settings = self.model.inference
        results: list[Any] = []  # kept until the end of the step, as in a call of the model
        self.watch.start()
        for logits in self.model.predict(self.batch):
            if settings.semantic_on:
                results.append(logits.semantic_scores())
                self.watch.lap("semantic")
            if settings.panoptic_on:
                results.append(
                    logits.panoptic(
                        thing_ids=self.model.thing_ids,
                        object_mask_threshold=settings.object_mask_threshold,
                        overlap_threshold=settings.overlap_threshold,
                    )
                )
                self.watch.lap("panoptic")
            if settings.instance_on:
                things = self.model.thing_ids or None
                results.append(logits.instances(topk=settings.topk, thing_ids=things))
                self.watch.lap("instance")

    def _loss(self) -> Tensor:
        with self.autocast():
            losses = self.model(self.batch)
        return torch.stack(list(losses.values())).sum()

    def network_alone(self) -> dict[str, float]:
        images, watch = self.model.preprocess(self.batch), Stopwatch(self.device)
        if self.training:
            self._train_network(images.tensor, watch)
            return watch.read()
        with torch.no_grad():
            watch.start()
            with self.model.inference_precision():
                outputs = self.model.network(images.tensor)
            watch.lap("network")
            if self.model.inference.semantic_on and not isinstance(self.model, ReferenceMaskFormer):
                self._semantic_maps(outputs, images)
                watch.lap("semantic_map")
        return watch.read()

    def _semantic_maps(self, outputs: Outputs, images: ImageList) -> None:
        padded = (images.tensor.shape[-2], images.tensor.shape[-1])
        size = self.workload.size
        output = self.workload.output_size or size
        for mask_cls, mask_pred in zip(outputs["pred_logits"], outputs["pred_masks"], strict=True):
            semantic_map(mask_cls, as_masks(mask_pred).resize(padded).crop(size).resize(output))

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
        with torch.no_grad(), self.model.inference_precision():
            outputs = self.model.network(self.model.preprocess(self.batch).tensor)
        return outputs["pred_logits"].float().cpu(), outputs["pred_masks"].float().cpu()


class _TimedMatcher(nn.Module):
    """Wrapper of a matcher that ends the stage "matching"."""

    def __init__(self, matcher: nn.Module, watch: Stopwatch) -> None:
        super().__init__()
        self.matcher: Any = matcher
        self.watch = watch

    def match_layers(
        self, layers: Sequence[Prediction], targets: Sequence[Target]
    ) -> list[list[Match]]:
        matches: list[list[Match]] = self.matcher.match_layers(layers, targets)
        self.watch.lap("matching")
        return matches


def _before(module: nn.Module, do: Callable[[], None], compiled: bool = False) -> None:
    """Call a function before each forward pass of a module."""

    def hook(module: nn.Module, inputs: Any) -> None:
        do()

    # Otherwise torch compiles the hook together with the module.
    module.register_forward_pre_hook(torch.compiler.disable(hook) if compiled else hook)


def _after(module: nn.Module, do: Callable[[Any], None], compiled: bool = False) -> None:
    """Call a function with the output of each forward pass of a module."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        do(output)

    module.register_forward_hook(torch.compiler.disable(hook) if compiled else hook)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _tensors(outputs: Outputs) -> Iterator[Tensor]:
    for layer in layer_predictions(outputs):
        yield layer["pred_logits"]
        yield layer["pred_masks"]
