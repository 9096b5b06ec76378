"""Diagnostics for losses and costs that are not finite: the error text and the saved batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from mask_former.losses import NonFiniteError
from mask_former.structures import Batch
from mask_former.utils.atomic_files import replace_file, save_torch

__all__ = ["check_losses", "explained", "load_batch"]


_SHOWN = 8  # image files in the message


def check_losses(losses: Mapping[str, float]) -> None:
    """Refuse losses that are NaN or infinite.

    Args:
        losses: Weighted losses by name; names of earlier decoder layers end in ``_0``, ``_1``, ….

    Raises:
        NonFiniteError: If a loss is NaN or infinite. The message names all of them and their
            layers.
    """
    broken = {name: value for name, value in losses.items() if not abs(value) < float("inf")}
    if broken:
        named = [f"{_with_layer(name, losses)} is {value}" for name, value in broken.items()]
        raise NonFiniteError(f"The loss is not finite: {'; '.join(named)}.")


def _with_layer(name: str, losses: Mapping[str, float]) -> str:
    """Add the decoder layer to the name of a loss: ``loss_mask_2 (decoder layer 3 of 6)``."""
    term, _, layer = name.rpartition("_")
    if not layer.isdigit():
        term, layer = name, ""
    earlier = sum(other.startswith(f"{term}_") for other in losses)
    if not earlier:
        return name
    number = int(layer) if layer else earlier
    return f"{name} (decoder layer {number + 1} of {earlier + 1})"


def explained(
    error: NonFiniteError,
    batch: Batch,
    *,
    iteration: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: str,
    output_dir: Path | None,
    gradient_scale: float = 1.0,
) -> NonFiniteError:
    """Add the details that help to find the cause of an error, and save the batch.

    Args:
        error: Error that names the loss or cost that is not finite.
        batch: Training examples.
        iteration: Number of the step.
        model: Model whose weights and, after the backward pass, gradients are examined.
        optimizer: Optimizer whose learning rates are reported.
        precision: Precision of the forward pass, as it appears in the message.
        output_dir: Folder for ``nonfinite_batch.pth``; None writes no file.
        gradient_scale: Loss scale of fp16 training, by which the gradient norm is divided.

    Returns:
        A new error with the details in its message.
    """
    files = [str(example.get("file_name", "an image without a file_name")) for example in batch]
    if error.image is not None:
        files = [files[error.image]]
    shown = ", ".join(files[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" * (len(files) > _SHOWN))
    lines = [
        f"{error} (iteration {iteration})",
        f"Images: {shown}.",
        f"Learning rate: {_rates(optimizer)}. Precision: {precision}. "
        f"Gradient norm: {_gradient_norm(model, optimizer, gradient_scale)}. {_weights(model)}",
    ]
    if output_dir is not None:
        rank = comm.get_rank()
        path = output_dir / f"nonfinite_batch{f'_rank{rank}' if rank else ''}.pth"
        _save(path, batch, str(error), iteration)
        lines.append(f"The batch is in {path} (mask_former.engine.nonfinite.load_batch reads it).")
    lines.append(
        "If weights or the gradient norm are large or not finite, training diverged: lower "
        "SOLVER.BASE_LR, clip gradients more strongly (SOLVER.CLIP_GRADIENTS), or turn off "
        "SOLVER.AMP.ENABLED, and continue from the last checkpoint with --resume. Otherwise "
        "inspect the images and their labels."
    )
    return NonFiniteError("\n".join(lines), image=error.image)


def _rates(optimizer: torch.optim.Optimizer) -> str:
    rates = {group["lr"] for group in optimizer.param_groups}
    low, high = min(rates), max(rates)
    return f"{high:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _gradient_norm(model: nn.Module, optimizer: torch.optim.Optimizer, scale: float) -> str:
    """Describe the gradient norm of this step, or of the last one if this one has none yet."""
    gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
    if gradients:
        return f"{float(torch.nn.utils.get_total_norm(gradients)) / scale:.4g}"
    norm: Tensor | None = getattr(optimizer, "gradient_norm", None)
    if norm is None:
        return "unknown, recorded after each step if SOLVER.CLIP_GRADIENTS clips by full_model"
    return f"{float(norm):.4g} in the previous step, before clipping"


def _weights(model: nn.Module) -> str:
    named = list(model.named_parameters())
    broken = [name for name, weight in named if not weight.detach().isfinite().all()]
    if not broken:
        largest = max(
            (float(weight.detach().abs().max()) for _, weight in named if weight.numel()),
            default=0.0,
        )
        return f"All weights are finite, the largest is ±{largest:.3g}."
    return f"{len(broken)} of {len(named)} weight tensors are not finite, such as {broken[0]}."


def _save(path: Path, batch: Batch, message: str, iteration: int) -> None:
    plain = [{key: _plain(value) for key, value in example.items()} for example in batch]
    content = {"batch": plain, "message": message, "iteration": iteration}
    replace_file(path, lambda part: save_torch(content, part))


def _plain(value: Any) -> Any:
    """Convert a value to tensors, numbers and text, which load without running code."""
    if isinstance(value, Instances):
        fields = {key: _plain(field) for key, field in value.get_fields().items()}
        return {"image_size": list(value.image_size), "fields": fields}
    if isinstance(value, BitMasks):
        value = value.tensor
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return value if isinstance(value, str | int | float | None) else repr(value)


def load_batch(path: str | Path) -> list[dict[str, Any]]:
    """Read the training examples of a ``nonfinite_batch.pth``, as inputs for the model."""
    batch = torch.load(path, weights_only=True)["batch"]
    for example in batch:
        if isinstance(example.get("instances"), dict):
            stored = example["instances"]
            example["instances"] = Instances(tuple(stored["image_size"]), **stored["fields"])
    return list(batch)
