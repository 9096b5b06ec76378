"""One training step, in full or mixed precision, on a GPU or a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mask_former.checkpoint.checkpointer import unwrapped
from mask_former.checkpoint.resuming import check_form, check_optimizer, check_scaler
from mask_former.losses import NonFiniteError
from mask_former.structures import Batch

from .nonfinite import check_losses, explained

__all__ = ["TrainLoop"]


class TrainLoop(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` with autocast, on a CPU too, and with accumulated gradients.

    Several batches may form one step. If the model has a ``criterion``, losses are normalised over
    all of them, so that the gradient is that of one large batch; otherwise they are averaged.

    A loss or matching cost that is not finite raises a :class:`~mask_former.losses.NonFiniteError`
    before it changes a weight.
    """

    def __init__(
        self,
        *args: Any,
        amp_dtype: torch.dtype | None = None,
        device: torch.device,
        accumulate_steps: int = 1,
        output_dir: Path | None = None,
    ) -> None:
        """Set up the loop.

        Args:
            args: Arguments of ``SimpleTrainer``.
            amp_dtype: Type of mixed precision; None for fp32.
            device: Device of the model.
            accumulate_steps: Number of batches in a step.
            output_dir: Folder in which a batch is saved if its losses are not finite, or None.

        Raises:
            ValueError: If ``accumulate_steps`` is less than 1.
        """
        super().__init__(*args)
        if accumulate_steps < 1:
            raise ValueError(f"SOLVER.ACCUMULATE_STEPS is {accumulate_steps}; expected 1 or more.")
        self.device = device
        self.amp_dtype = amp_dtype
        self.accumulate_steps = accumulate_steps
        self.output_dir = output_dir
        # bf16 has fp32's range and needs no scaling.
        scale = self.amp_dtype is torch.float16
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scale)

    def run_step(self) -> None:
        """Update the weights once, from the gradients of ``accumulate_steps`` batches."""
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batches = [self._next_batch() for _ in range(self.accumulate_steps)]
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._add_gradients(batches)
        # Fused optimizers would otherwise clip the scaled gradient.
        self.grad_scaler.unscale_(self.optimizer)
        self.after_backward()
        self._write_metrics(self._read(losses, batches), data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _next_batch(self) -> Batch:
        try:
            batch: Batch = next(self._data_loader_iter)
        except (ConnectionError, EOFError) as error:
            # torch itself reports a worker that dies, unless it dies while it sends a batch.
            raise RuntimeError(
                f"A DataLoader worker died while it sent a batch ({error}), perhaps because memory "
                "ran out. Set DATALOADER.NUM_WORKERS to 0: the main process then reports the cause."
            ) from error
        return batch

    def _read(self, losses: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
        """Move the losses to the CPU in one transfer, and check that they are finite."""
        values = torch.stack(list(losses.values())).cpu()
        try:
            check_losses(dict(zip(losses, values.tolist(), strict=True)))
        except NonFiniteError as error:
            batch = [example for batch in batches for example in batch]
            raise self._explained(error, batch) from error
        return dict(zip(losses, values, strict=True))

    def _explained(self, error: NonFiniteError, batch: Batch, scale: float = 1.0) -> NonFiniteError:
        precision = str(self.amp_dtype or torch.float32).removeprefix("torch.")
        if self.grad_scaler.is_enabled():
            precision += f", losses scaled by {self.grad_scaler.get_scale():g}"
        return explained(
            error,
            batch,
            iteration=self.iter,
            model=self.model,
            optimizer=self.optimizer,
            precision=precision,
            output_dir=self.output_dir,
            gradient_scale=scale,
        )

    def _forward(self, batch: Batch, options: dict[str, Any]) -> dict[str, Tensor]:
        dtype = self.amp_dtype or torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self.amp_dtype is not None):
            try:
                losses: dict[str, Tensor] = self.model(batch, **options)
            except NonFiniteError as error:
                scale = self.grad_scaler.get_scale()
                raise self._explained(error, batch, scale) from error
        return losses

    def _add_gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Run each batch forward and backward, and return the losses summed over the batches."""
        weight, options = self._normalisation(batches)
        total: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for index, batch in enumerate(batches):
            with self._gradients_synchronised(index == len(batches) - 1):
                losses = {k: weight * value for k, value in self._forward(batch, options).items()}
                total_loss = sum(losses.values(), start=torch.zeros((), device=self.device))
                self.grad_scaler.scale(total_loss).backward()
            for name, value in losses.items():
                total[name] = total[name] + value.detach()
        return total

    def _normalisation(self, batches: list[Batch]) -> tuple[float, dict[str, Any]]:
        """Return the factor for the losses of each batch, and keyword arguments for the model."""
        if len(batches) == 1:
            return 1.0, {}
        if not hasattr(unwrapped(self.model), "criterion"):
            return 1 / len(batches), {}
        counts = [len(example["instances"]) for batch in batches for example in batch]
        return 1.0, {"batch_counts": counts}

    def _gradients_synchronised(self, is_last: bool) -> AbstractContextManager[None]:
        """Let ranks average their gradients only in the last backward pass of a step."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if a state from a file does not fit the optimizer and the scaler."""
        check_form({"iteration": 0}, state, "the training loop")
        names = {parameter: name for name, parameter in unwrapped(self.model).named_parameters()}
        check_optimizer(self.optimizer, names, state["optimizer"])
        check_scaler(state.get("grad_scaler") or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty if losses were not scaled so far
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
