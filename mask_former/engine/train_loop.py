"""One training step, in full or mixed precision, on a GPU or a CPU."""

from __future__ import annotations

import time

import torch
from detectron2.engine import SimpleTrainer

__all__ = ["TrainLoop"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainLoop(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` with optional autocast: its ``AMPTrainer`` refuses a CPU."""

    def __init__(self, *args, amp_dtype: str | None = None, device: torch.device) -> None:
        """
        Args:
            amp_dtype: "bfloat16" or "float16" for mixed precision; None for fp32.
            device: where the model lives.
        """
        super().__init__(*args)
        if amp_dtype is not None and amp_dtype not in _DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE is {amp_dtype!r}; it must be in {list(_DTYPES)}.")
        self.device = device
        self.amp_dtype = None if amp_dtype is None else _DTYPES[amp_dtype]
        # bf16 has fp32's range and needs no scaling.
        scale = self.amp_dtype is torch.float16
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scale)

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(
            self.device.type, self.amp_dtype or torch.bfloat16, enabled=self.amp_dtype is not None
        ):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        # Fused optimizers would otherwise clip the scaled gradient.
        self.grad_scaler.unscale_(self.optimizer)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty where the run did not scale so far
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
