"""Cost of a model: parameters, multiply-adds, activations and time, module by module.

Only the network is analysed: backbone and head, for one image, without the post-processing of its
outputs. Counts follow fvcore's rules: a multiply-add counts once, and activations are the
outputs of convolutions and matrix products. Batch norms cost nothing, because they can be folded
into the convolutions before them. Every supervised decoder layer predicts, as in training and in
published counts; inference needs only the prediction of the last layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export.flatten import flatten_to_tuple
from detectron2.modeling import build_model
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from tqdm import tqdm

from mask_former.modeling import all_predictions, last_prediction
from mask_former.structures import Size
from mask_former.utils.timing import interleave, timed

__all__ = [
    "DEFAULT_TASKS",
    "TASKS",
    "Counts",
    "Network",
    "Report",
    "analyze",
    "count_activations",
    "count_flops",
    "count_parameters",
    "measure_seconds",
]

TASKS = ("parameter", "flop", "activation", "speed")
DEFAULT_TASKS = ("parameter", "flop", "activation")
RUNS, WARM_UP_RUNS = 10, 2
"""Number of runs to measure the network's speed."""


Counts = dict[str, dict[str, float]]
"""Counts by module and operator; those of submodules are included, "" is the whole network."""


@dataclass
class Report:
    """Costs for one image; None for tasks that were not requested."""

    input_sizes: list[Size]
    """Input sizes of the network, with padding; counts are the mean over them."""
    inference: bool
    """True if only the last decoder layer predicts."""
    parameters: dict[str, int] | None = None
    """Number of parameters by module, with those of submodules."""
    trained_parameters: int | None = None
    flops: Counts | None = None
    activations: Counts | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    """Operators without a rule for multiply-adds, with their number of calls."""
    seconds: float | None = None
    """Median time of the network in inference, in fp32, for an image of the first size."""
    device: str = ""


class Network(nn.Module):
    """Backbone and head of a model.

    Raises:
        ValueError: if the model does not consist of ``backbone`` and ``sem_seg_head``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        missing = [part for part in ("backbone", "sem_seg_head") if not hasattr(model, part)]
        if missing:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {type(model).__name__}, which has no "
                f"{' and no '.join(missing)}: expected a model with both, such as MaskFormer."
            )
        self.backbone: Any = model.backbone
        self.sem_seg_head: Any = model.sem_seg_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all tensors of the head's output for B×3×H×W: others would not be traced."""
        return flatten_to_tuple(self.sem_seg_head(self.backbone(images)))[0]


def analyze(
    cfg: CfgNode,
    tasks: Sequence[str] = DEFAULT_TASKS,
    sizes: Sequence[Size] = ((512, 512),),
    *,
    inference: bool = False,
) -> tuple[Report, Network]:
    """Build a model with random weights and analyse its cost.

    Args:
        cfg: The model's config.
        tasks: Names from :data:`TASKS`.
        sizes: Sizes of the images before the model pads them; counts are the mean over them.
        inference: Let only the last decoder layer predict; otherwise every supervised layer.

    Raises:
        ValueError: see :class:`Network`.
    """
    model = build_model(cfg).eval()
    network = Network(model).eval()
    divisibility = getattr(model, "size_divisibility", network.backbone.size_divisibility)
    report = Report([_padded_size(size, divisibility) for size in sizes], inference)
    if "parameter" in tasks:
        report.parameters = count_parameters(network)
        report.trained_parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    with last_prediction(network) if inference else all_predictions(network):
        if "flop" in tasks:
            report.flops, report.skipped = count_flops(network, report.input_sizes)
        if "activation" in tasks:
            report.activations = count_activations(network, report.input_sizes)
    if "speed" in tasks:
        report.seconds = measure_seconds(network, report.input_sizes[0])
        report.device = cfg.MODEL.DEVICE
    return report, network


def _padded_size(size: Size, divisibility: int) -> Size:
    """Return the size that the model pads an image to."""
    step = max(1, divisibility)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Count the parameters of each module, with those of its submodules."""
    return {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in network.named_modules()
    }


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    # queries …×S×C by keys …×T×C, then weights …×S×T by values …×T×D
    query, key, value = (get_shape(one) for one in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _baddbmm_flops(inputs: list[Any], outputs: list[Any]) -> int:
    return prod(get_shape(inputs[1])) * get_shape(inputs[2])[-1]


# Operators that fvcore does not know, or counts by other rules.
_FLOPS: dict[str, Any] = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::baddbmm": _baddbmm_flops,
    "aten::batch_norm": lambda inputs, outputs: Counter(),
}
_ACTIVATIONS: dict[str, Any] = {
    f"aten::{name}": generic_activation_jit()
    for name in ("scaled_dot_product_attention", "baddbmm", "mm")
}


def count_flops(network: nn.Module, sizes: Sequence[Size]) -> tuple[Counts, dict[str, int]]:
    """Count the multiply-adds for one image, as the mean over sizes.

    Returns:
        The counts, and the operators that are not counted, with their number of calls.
    """
    return _count(network, sizes, FlopCountAnalysis, _FLOPS)


def count_activations(network: nn.Module, sizes: Sequence[Size]) -> Counts:
    """Count the outputs of convolutions and matrix products for one image: mean over sizes."""
    return _count(network, sizes, ActivationCountAnalysis, _ACTIVATIONS)[0]


def _count(
    network: nn.Module, sizes: Sequence[Size], analysis_type: Any, handles: Mapping[str, Any]
) -> tuple[Counts, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    skipped: Counter[str] = Counter()
    frequencies = Counter(sizes)
    for size, times in tqdm(frequencies.items(), unit="size", disable=len(frequencies) == 1):
        images = _random_image(network, size)
        analysis: JitModelAnalysis = analysis_type(network, (images,))
        analysis.set_op_handle(**handles).tracer_warnings("none")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with torch.no_grad(), _traceable_autograd_functions():
            found = analysis.by_module_and_operator()
        for module, operators in found.items():
            mean = {name: count * times / len(sizes) for name, count in operators.items()}
            counts.setdefault(module, Counter()).update(mean)
        skipped |= analysis.unsupported_ops()
    return {module: dict(operators) for module, operators in counts.items()}, dict(skipped)


@contextmanager
def _traceable_autograd_functions() -> Iterator[None]:
    """Run the forward pass of autograd functions as plain code, because a trace skips them."""
    function = torch.autograd.Function
    apply = vars(function)["apply"]

    def forward(cls: Any, *args: Any) -> Any:
        has_context = cls.setup_context is function.setup_context
        return cls.forward(*[FunctionCtx()] * has_context, *args)

    function.apply = classmethod(forward)
    try:
        yield
    finally:
        function.apply = apply


def _random_image(network: nn.Module, size: Size) -> Tensor:
    return torch.randn(1, 3, *size, device=next(network.parameters()).device)


def measure_seconds(network: nn.Module, size: Size) -> float:
    """Measure the median time of the network for one image, in fp32 on its device."""
    images = _random_image(network, size)
    if not images.is_cuda:  # the model's own layout
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        step = timed(lambda: network(images), images.device)
        (seconds,) = interleave([step], RUNS, warmup=WARM_UP_RUNS)
    return median(seconds)
