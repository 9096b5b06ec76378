"""One training step, in full or mixed precision, on a GPU or a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["TrainLoop"]

Batch = list[dict[str, Any]]


class TrainLoop(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` with autocast, on a CPU too, and with accumulated gradients.

    Several batches may make one step. Losses of a model with a ``criterion`` are normalised over
    all of them, so the gradient is that of one large batch; those of others are averaged.
    """

    def __init__(
        self,
        *args: Any,
        amp_dtype: torch.dtype | None = None,
        device: torch.device,
        accumulate_steps: int = 1,
    ) -> None:
        """
        Args:
            args: as ``SimpleTrainer``'s.
            amp_dtype: of mixed precision; None for fp32.
            device: where the model lives.
            accumulate_steps: batches a step.

        Raises:
            ValueError: if ``accumulate_steps`` is less than 1.
        """
        super().__init__(*args)
        if accumulate_steps < 1:
            raise ValueError(f"SOLVER.ACCUMULATE_STEPS is {accumulate_steps}; expected 1 or more.")
        self.device = device
        self.amp_dtype = amp_dtype
        self.accumulate_steps = accumulate_steps
        # bf16 has fp32's range and needs no scaling.
        scale = self.amp_dtype is torch.float16
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scale)

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate_steps)]
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._add_gradients(batches)
        # Fused optimizers would otherwise clip the scaled gradient.
        self.grad_scaler.unscale_(self.optimizer)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _add_gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Forward and backward of each batch. Returns the losses of all of them together."""
        total: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for index, batch in enumerate(batches):
            with self._part_of(batches, is_last=index == len(batches) - 1) as weight:
                with torch.autocast(
                    self.device.type,
                    self.amp_dtype or torch.bfloat16,
                    enabled=self.amp_dtype is not None,
                ):
                    losses = self.model(batch)
                losses = {name: weight * value for name, value in losses.items()}
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, value in losses.items():
                total[name] = total[name] + value.detach()
        return total

    @contextmanager
    def _part_of(self, batches: list[Batch], is_last: bool) -> Iterator[float]:
        """What a batch is run in, as a part of all; yields the weight of its losses."""
        if len(batches) == 1:
            yield 1.0
            return
        model: Any = self.model
        with ExitStack() as stack:
            if isinstance(model, DistributedDataParallel):
                if not is_last:
                    stack.enter_context(model.no_sync())
                model = model.module
            if not hasattr(model, "criterion"):
                yield 1 / len(batches)
                return
            counts = [len(example["instances"]) for batch in batches for example in batch]
            stack.enter_context(model.criterion.part_of(counts))
            yield 1.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty where the run did not scale so far
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
