"""Check that a checkpoint continues the training at hand, before anything is loaded from it.

torch copies the state of an optimizer without comparing shapes, and its fused kernels then write
outside of arrays that are too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mask_former.utils.errors import short
from mask_former.utils.weight_files import as_tensors, is_ordinary

from .weights_fit import compare, decides_outputs

__all__ = [
    "check_average",
    "check_form",
    "check_optimizer",
    "check_progress",
    "check_resumed",
    "check_same_model",
    "check_scaler",
]

_NUMBERS = {"lr": 0.0, "weight_decay": 0.0, "betas": (0.0, 0.0), "eps": 0.0, "momentum": 0.0}
"""Settings that an optimizer may have, by name, and their form."""
_FLAGS = ("amsgrad", "capturable", "differentiable", "maximize", "nesterov")
"""Settings that decide which state it keeps, and how it is used."""
_KERNELS = ("foreach", "fused")
"""Settings that choose its kernels; they may change between two runs."""
_MISTAKES = (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)
"""Exceptions that a check raises on data of another form."""


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Name the checkpoint in the error of a check; other errors mean that it is damaged.

    Raises:
        ValueError: If the body raises. The message explains how to use the weights nevertheless.
    """
    try:
        yield
    except _MISTAKES as error:
        reason = str(error)
        if not isinstance(error, ValueError):
            reason = f"its training state is damaged ({type(error).__name__}: {error})"
        raise ValueError(
            f"{source} cannot be resumed: {reason[:300].rstrip('.')}. --resume continues a "
            "training with its own model, optimizer and settings. To start a new one from these "
            f"weights, leave out --resume, name another OUTPUT_DIR and set MODEL.WEIGHTS {source}, "
            "and MODEL.MASK_FORMER.FINETUNE True if its classes or queries are others."
        ) from error


def check_same_model(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that weights are those of a whole model; see :func:`~.weights_fit.decides_outputs`.

    Args:
        weights: Names to tensors, of a file.
        state: State dict of the model.

    Raises:
        ValueError: If a weight is missing, has another shape or is not the model's.
    """
    fit = compare(weights, state)
    for name, (found, expected) in fit.reshaped.items():
        raise ValueError(f"{name} has shape {found}, the model expects {expected}")
    sides = (("missing in the file", fit.missing, state), ("not in the model", fit.unused, weights))
    for problem, names, side in sides:
        own = [name for name in names if decides_outputs(name, side[name])]
        if own:
            raise ValueError(f"{len(own)} weights are {problem}, such as {own[0]}")


def check_resumed(
    source: str,
    checkpoint: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    states: Mapping[str, Any],
) -> None:
    """Check that a checkpoint continues the training at hand.

    Args:
        source: Name of the file, for the error message.
        checkpoint: Its content.
        weights: Its weights, under the model's parameter names.
        state: State dict of the model.
        states: The objects that are to load their state, by the names of their entries. Those with
            ``check_state(entry)`` are asked, which raises ValueError.

    Raises:
        ValueError: If it does not.
    """
    with _naming(source):
        check_same_model(weights, state)
        for name, owner in states.items():
            check = getattr(owner, "check_state", None)
            if check is not None and name in checkpoint:
                check(checkpoint[name])


def check_progress(iteration: Any, max_iter: int) -> None:
    """Check the iteration that a checkpoint was written in.

    Raises:
        ValueError: If it is not one of a training of ``max_iter`` iterations.
    """
    if type(iteration) is not int or not 0 <= iteration < max_iter:
        raise ValueError(
            f"it was written in iteration {short(iteration, 40)}, expected 0 … {max_iter - 1}, "
            f"because SOLVER.MAX_ITER is {max_iter}; raise that key to train further"
        )


def check_average(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Check that a state is that of a moving average of the same model, with finite numbers.

    Raises:
        ValueError: If it is not.
    """
    weights = as_tensors(found, "the moving average of the weights")
    fit = compare(weights, expected)
    if not fit.is_complete:
        name = next(iter([*fit.reshaped, *fit.missing, *fit.unused]))
        raise ValueError(f"the moving average of the weights is of another model: {name}")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"the moving average of {name} is not finite")


def check_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Any]
) -> None:
    """Check that a state is that of an optimizer, with a tensor of its shape for each parameter.

    Args:
        optimizer: The optimizer that is to load the state.
        names: The parameters' names.
        state: Its state, from a file.

    Raises:
        ValueError: If it is not; the message names the parameter.
    """
    own, groups = optimizer.state_dict()["param_groups"], state["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [g["params"] for g in groups] != [g["params"] for g in own]:
        count = sum(len(group["params"]) for group in groups)
        raise ValueError(
            f"its optimizer has other parameters: {count}, that of this config {len(parameters)}"
        )
    for mine, other in zip(own, groups, strict=True):
        lacking = [k for k in _NUMBERS if k in mine and k not in other]
        differing = [k for k in _FLAGS if k in mine and mine[k] is not other.get(k, mine[k])]
        differing += [k for k in _KERNELS if type(other.get(k)) not in (bool, type(None))]
        if lacking or differing:
            raise ValueError(
                f"its optimizer is another one than SOLVER.OPTIMIZER: {[*lacking, *differing][0]} "
                f"is {'missing' if lacking else 'different'}"
            )
        numbers = {k: form for k, form in _NUMBERS.items() if k in mine}
        check_form(numbers, other, "the optimizer's settings")
    expected = {"step", "exp_avg", "exp_avg_sq"} if "betas" in own[0] else {"momentum_buffer"}
    for index, parameter in enumerate(parameters):
        values = state["state"].get(index, {})
        name = names.get(parameter, f"parameter {index}")
        if not isinstance(values, Mapping) or (values and set(values) != expected):
            raise ValueError(
                f"the optimizer's state of {name} is not that of SOLVER.OPTIMIZER, which keeps "
                f"{', '.join(sorted(expected))}"
            )
        for key, value in values.items():
            _check_state(f"{key} of {name}", value, parameter, is_number=key == "step")


def _check_state(where: str, value: Any, parameter: Tensor, *, is_number: bool) -> None:
    """Check one entry of an optimizer's state, for the shape and the memory of its parameter."""
    if value is None:  # SGD without a momentum
        return
    if is_number and isinstance(value, int | float):
        value = torch.tensor(float(value))
    shape = () if is_number else tuple(parameter.shape)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the optimizer's {where} has {found}, expected shape {shape}")
    if not is_ordinary(value):
        raise ValueError(f"the optimizer's {where} has the type {value.dtype}, {value.layout}")
    is_dense = value.is_contiguous() or value.stride() == parameter.stride()
    if not is_dense:  # several elements may share their memory
        raise ValueError(f"the optimizer's {where} has strides {value.stride()}")
    if is_number and not 0 <= value.item() < math.inf:
        raise ValueError(f"the optimizer's {where} is {value.item()}, expected 0 or more steps")


def check_scaler(state: Mapping[str, Any]) -> None:
    """Check the state of a gradient scaler, which is empty if the training did not scale.

    Raises:
        ValueError: If an entry is missing or out of range.
    """
    if not state:
        return
    own = torch.amp.GradScaler("cpu").state_dict()
    check_form(own, state, "the gradient scaler")
    for name in own:
        if state[name] < 0 or (state[name] == 0 and name != "_growth_tracker"):
            raise ValueError(f"the gradient scaler's {name} is {state[name]}")


def check_form(expected: Any, found: Any, where: str) -> None:
    """Check that plain data has the types, the lengths and the finite numbers of other data.

    Args:
        expected: Data of the right form. A None allows anything.
        found: Data from a file. It may lack keys, as other versions of torch do, and have more.
        where: Its name, for the message.

    Raises:
        ValueError: If the form is another one.
    """
    if expected is None:
        return
    if isinstance(expected, Mapping):
        is_alike = isinstance(found, Mapping)
    elif isinstance(expected, list | tuple):
        is_alike = isinstance(found, list | tuple) and len(found) == len(expected)
    elif isinstance(expected, float):
        is_alike = type(found) in (int, float) and math.isfinite(found)
    else:
        is_alike = type(found) is type(expected)
    if not is_alike:
        text = short(found, 40) if isinstance(found, int | float) else type(found).__name__
        text += f" of {len(found)}" if isinstance(found, list | tuple) else ""
        raise ValueError(f"{where} is {text}, expected {short(expected, 40)} or the like")
    if isinstance(expected, Mapping):
        for key in expected.keys() & found.keys():
            check_form(expected[key], found[key], f"{where}, {key}")
    elif isinstance(expected, list | tuple):
        for mine, other in zip(expected, found, strict=True):
            check_form(mine, other, where)
