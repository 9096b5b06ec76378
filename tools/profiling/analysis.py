"""What a model costs: parameters, multiply-adds, activations and time, module by module.

The network is looked at: backbone and head, for one image, without the post-processing of its
results. Counts follow fvcore's rules: one multiply-add is one, activations are the outputs of
convolutions and matrix products. Batch norms cost nothing, for they fold into the convolutions
before them. Every supervised decoder layer predicts, as in training and in published counts,
unless inference is asked for, which needs the last layer's prediction alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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

from mask_former.modeling import all_predictions
from mask_former.structures import Size

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
"""Of the network, to measure its speed."""


Counts = dict[str, dict[str, float]]
"""Module -> operator -> count; submodules are included, "" is the whole network."""


@dataclass
class Report:
    """What was found for one image; what was not asked for is None."""

    input_sizes: list[Size]
    """As the network sees them, padding included. Counts are the mean over them."""
    inference: bool
    """Whether only the last decoder layer predicts."""
    parameters: dict[str, int] | None = None
    """Module -> number, its submodules' included."""
    trained_parameters: int | None = None
    flops: Counts | None = None
    activations: Counts | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    """Operator that no multiply-adds are counted for -> how often it was met."""
    seconds: float | None = None
    """The median time of the network in inference, in fp32, for an image of the first size."""
    device: str = ""


class Network(nn.Module):
    """Backbone and head of a model, which is what costs."""

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            ValueError: if the model does not consist of ``backbone`` and ``sem_seg_head``.
        """
        super().__init__()
        missing = [part for part in ("backbone", "sem_seg_head") if not hasattr(model, part)]
        if missing:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {type(model).__name__}, which has no "
                f"{' and no '.join(missing)}: expected a model of both, such as MaskFormer."
            )
        self.backbone: Any = model.backbone
        self.sem_seg_head: Any = model.sem_seg_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """B×3×H×W to all tensors that the head gives: what is not returned is not traced."""
        return flatten_to_tuple(self.sem_seg_head(self.backbone(images)))[0]


def analyze(
    cfg: CfgNode,
    tasks: Sequence[str] = DEFAULT_TASKS,
    sizes: Sequence[Size] = ((512, 512),),
    *,
    inference: bool = False,
) -> tuple[Report, Network]:
    """Build the model, with random weights, and do the tasks.

    Args:
        cfg: of the model.
        tasks: some of `TASKS`.
        sizes: of the images, before the model pads them; the counts are the mean over them.
        inference: only the last decoder layer predicts; else every supervised one.

    Raises:
        ValueError: see `Network`.
    """
    model = build_model(cfg).eval()
    network = Network(model).eval()
    divisibility = getattr(model, "size_divisibility", network.backbone.size_divisibility)
    report = Report([_padded_size(size, divisibility) for size in sizes], inference)
    if "parameter" in tasks:
        report.parameters = count_parameters(network)
        report.trained_parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    with all_predictions(network) if not inference else nullcontext():
        if "flop" in tasks:
            report.flops, report.skipped = count_flops(network, report.input_sizes)
        if "activation" in tasks:
            report.activations = count_activations(network, report.input_sizes)
    if "speed" in tasks:
        report.seconds = measure_seconds(network, report.input_sizes[0])
        report.device = cfg.MODEL.DEVICE
    return report, network


def _padded_size(size: Size, divisibility: int) -> Size:
    """The size that the model pads an image to."""
    step = max(1, divisibility)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def count_parameters(network: nn.Module) -> dict[str, int]:
    """The number of parameters of each module, those of its submodules included."""
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


# Operators that fvcore does not know, or counts otherwise.
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
    """Multiply-adds for one image, the mean over sizes; see the module's text for the rules.

    Returns:
        the counts, and the operators that are not counted with how often they were met.
    """
    return _count(network, sizes, FlopCountAnalysis, _FLOPS)


def count_activations(network: nn.Module, sizes: Sequence[Size]) -> Counts:
    """Outputs of convolutions and matrix products for one image, the mean over sizes."""
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
        with torch.no_grad(), _autograd_functions_opened():
            found = analysis.by_module_and_operator()
        for module, operators in found.items():
            mean = {name: count * times / len(sizes) for name, count in operators.items()}
            counts.setdefault(module, Counter()).update(mean)
        skipped |= analysis.unsupported_ops()
    return {module: dict(operators) for module, operators in counts.items()}, dict(skipped)


@contextmanager
def _autograd_functions_opened() -> Iterator[None]:
    """Run the forward pass of autograd functions as plain code: a trace shows nothing of them."""
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
    """The median time of the network for one image, in fp32 on its device."""
    images = _random_image(network, size)
    if not images.is_cuda:  # as the model does it
        images = images.contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(WARM_UP_RUNS + RUNS):
            start = time.perf_counter()
            network(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return median(times[WARM_UP_RUNS:])
