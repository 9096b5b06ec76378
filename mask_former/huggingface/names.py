"""Conversion of parameter names between this project and Hugging Face's ``transformers``.

One table serves both directions. Ours are the published names; theirs are those of the files that
``save_pretrained`` writes, which transformers has kept through version 5.23.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.utils.errors import short

__all__ = ["from_huggingface_names", "to_huggingface_names"]

# Our prefix, their prefix, and modules, ours -> theirs. * is a number. Their three modules {a,b,c}
# are one module of ours, with their rows concatenated.
_TABLE: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "backbone.",
        "model.pixel_level_module.encoder.",
        {  # Swin
            "patch_embed.proj": "model.embeddings.patch_embeddings.projection",
            "patch_embed.norm": "model.embeddings.norm",
            "layers.*.downsample.reduction": "model.encoder.layers.*.downsample.reduction",
            "layers.*.downsample.norm": "model.encoder.layers.*.downsample.norm",
            "norm*": "hidden_states_norms.*",
        },
    ),
    (
        "backbone.layers.*.blocks.*.",
        "model.pixel_level_module.encoder.model.encoder.layers.*.blocks.*.",
        {
            "norm1": "layernorm_before",
            "attn": "attention.self",  # relative position biases and their index
            "attn.qkv": "attention.self.{query,key,value}",
            "attn.proj": "attention.output.dense",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    (
        "backbone.stem.",
        "model.pixel_level_module.encoder.embedder.embedder.",
        {"conv1": "convolution", "conv1.norm": "normalization"},
    ),
    *(
        (
            f"backbone.res{stage + 2}.*.",
            f"model.pixel_level_module.encoder.encoder.stages.{stage}.layers.*.",
            {
                "shortcut": "shortcut.convolution",
                "shortcut.norm": "shortcut.normalization",
                "conv1": "layer.0.convolution",
                "conv1.norm": "layer.0.normalization",
                "conv2": "layer.1.convolution",
                "conv2.norm": "layer.1.normalization",
                "conv3": "layer.2.convolution",
                "conv3.norm": "layer.2.normalization",
            },
        )
        for stage in range(4)
    ),
    (
        "sem_seg_head.pixel_decoder.",
        "model.pixel_level_module.decoder.",
        {
            "layer_4": "fpn.stem.0",
            "layer_4.norm": "fpn.stem.1",
            "adapter_3": "fpn.layers.0.proj.0",
            "adapter_3.norm": "fpn.layers.0.proj.1",
            "layer_3": "fpn.layers.0.block.0",
            "layer_3.norm": "fpn.layers.0.block.1",
            "adapter_2": "fpn.layers.1.proj.0",
            "adapter_2.norm": "fpn.layers.1.proj.1",
            "layer_2": "fpn.layers.1.block.0",
            "layer_2.norm": "fpn.layers.1.block.1",
            "adapter_1": "fpn.layers.2.proj.0",
            "adapter_1.norm": "fpn.layers.2.proj.1",
            "layer_1": "fpn.layers.2.block.0",
            "layer_1.norm": "fpn.layers.2.block.1",
            "mask_features": "mask_projection",
        },
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.",
        "model.transformer_module.decoder.",
        {
            "layers.*.self_attn.in_proj": "layers.*.self_attn.{q,k,v}_proj",
            "layers.*.self_attn.out_proj": "layers.*.self_attn.out_proj",
            "layers.*.multihead_attn.in_proj": "layers.*.encoder_attn.{q,k,v}_proj",
            "layers.*.multihead_attn.out_proj": "layers.*.encoder_attn.out_proj",
            "layers.*.linear1": "layers.*.fc1",
            "layers.*.linear2": "layers.*.fc2",
            "layers.*.norm1": "layers.*.self_attn_layer_norm",
            "layers.*.norm2": "layers.*.encoder_attn_layer_norm",
            "layers.*.norm3": "layers.*.final_layer_norm",
            "norm": "layernorm",
        },
    ),
    (
        "",
        "",
        {
            "sem_seg_head.predictor.query_embed": "model.transformer_module.queries_embedder",
            "sem_seg_head.predictor.input_proj": "model.transformer_module.input_projection",
            "sem_seg_head.predictor.class_embed": "class_predictor",
            "sem_seg_head.predictor.mask_embed.layers.*": "mask_embedder.*.0",
            "criterion": "criterion",  # the class weights
        },
    ),
)

# transformers 5 uses these names in memory, and `torch.save` writes them.
_IN_MEMORY = (
    (re.compile(r"(_attn)\.o_proj\."), r"\1.out_proj."),
    (re.compile(r"(transformer_module\.decoder\.layers\.\d+)\.mlp\.(fc[12])\."), r"\1.\2."),
)

# Only transformers has this norm, of a classifier that was removed; nothing reads it.
_UNUSED_NORM = "model.pixel_level_module.encoder.model.layernorm."
_LAST_SWIN_NORM = "backbone.norm3."
_MOST_UNKNOWN = 1000
"""Number of unknown names after which the others are not looked up."""
_COUNTER = "num_batches_tracked"  # of batch norms; the frozen kind has none


class _Row(NamedTuple):
    ours: str  # with * for numbers
    theirs: tuple[str, ...]  # one name, or the three that ours concatenates


def _expand(theirs: str) -> tuple[str, ...]:
    """Expand a name such as ``x.{q,k,v}_proj`` to three names."""
    parts = re.fullmatch(r"(.*)\{(.*)\}(.*)", theirs)
    return tuple(parts[1] + part + parts[3] for part in parts[2].split(",")) if parts else (theirs,)


_ROWS = [
    _Row(our_prefix + ours, _expand(their_prefix + theirs))
    for our_prefix, their_prefix, modules in _TABLE
    for ours, theirs in modules.items()
]


def _pattern(module: str) -> re.Pattern[str]:
    """Compile a pattern of a module's parameters; groups: numbers, and the parameter's own name."""
    return re.compile(re.escape(module).replace(r"\*", r"(\d+)") + r"\.(\w+)")


_OURS = [(_pattern(row.ours), row, 0) for row in _ROWS]
_THEIRS = [(_pattern(theirs), row, part) for row in _ROWS for part, theirs in enumerate(row.theirs)]


def _find(name: str, patterns: list[tuple[re.Pattern[str], _Row, int]]) -> tuple[_Row, int, list]:
    """Return the row of a name, the index of its part, and the numbers and last word of the name.

    Raises:
        KeyError: If no row has the name.
    """
    for pattern, row, part in patterns:
        found = pattern.fullmatch(name)
        if found:
            return row, part, list(found.groups())
    raise KeyError(name)


def _fill(module: str, words: list[str]) -> str:
    *numbers, leaf = words
    for number in numbers:
        module = module.replace("*", number, 1)
    return f"{module}.{leaf}"


def from_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a ``MaskFormerForInstanceSegmentation`` to this project's names.

    Two kinds of weights are left out: the counters of batch norms (ours are frozen), and Swin's
    last norm, which nothing reads.

    Args:
        weights: Its state dict, with the names in files or in memory.

    Returns:
        Tensors by name, with unchanged values; queries, keys and values are concatenated.

    Raises:
        ValueError: If names are not those of a MaskFormer (the message lists the first), if two
            names stand for one weight, or if a query, key and value differ in shape or one is
            missing.
    """
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    wanted: dict[str, int] = {}
    unknown = []
    for name, value in weights.items():
        if name.startswith(_UNUSED_NORM) or name.endswith(_COUNTER):
            continue
        saved = name
        for pattern, replacement in _IN_MEMORY:
            saved = pattern.sub(replacement, saved)
        try:
            row, part, words = _find(saved, _THEIRS)
        except KeyError:
            unknown.append(name)
            if len(unknown) > _MOST_UNKNOWN:
                break
            continue
        ours = _fill(row.ours, words).replace("in_proj.", "in_proj_")
        if part in parts[ours]:
            raise ValueError(f"Two names stand for one weight, {ours}: {name} is the second.")
        parts[ours][part] = value
        wanted[ours] = len(row.theirs)
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} names are unknown in a transformers MaskFormer with "
            f"a Swin or ResNet: {_shown(unknown)}."
        )
    incomplete = [ours for ours, found in parts.items() if len(found) < wanted[ours]]
    if incomplete:
        raise ValueError(
            f"Not all of query, key and value exist for {_shown(incomplete)}: is the file only one "
            "part of a checkpoint? Convert the whole checkpoint."
        )
    for ours, found in parts.items():
        shapes = {tuple(part.shape) for part in found.values()}
        if len(found) > 1 and (len(shapes) > 1 or shapes == {()}):
            raise ValueError(
                f"Query, key and value of {ours} must have one shape, found {sorted(shapes)}."
            )
    return {
        ours: torch.cat([found[part] for part in sorted(found)]) if len(found) > 1 else found[0]
        for ours, found in parts.items()
    }


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names that a ``MaskFormerForInstanceSegmentation`` saves.

    Weights that only transformers has are added: the counters of batch norms (0 if ours are
    frozen), and a last norm of Swin (ones and zeros), which nothing reads.

    Args:
        weights: State dict of a :class:`~mask_former.MaskFormer`.

    Returns:
        Tensors by name, with unchanged values; they share memory with ``weights``.

    Raises:
        ValueError: If names have no counterpart in transformers; the message lists the first.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        try:
            row, _, words = _find(name.replace("in_proj_", "in_proj."), _OURS)
        except KeyError:
            unknown.append(name)
            continue
        parts = value.chunk(len(row.theirs)) if len(row.theirs) > 1 else (value,)
        for theirs, part in zip(row.theirs, parts, strict=True):
            converted[_fill(theirs, words)] = part
        if name.startswith(_LAST_SWIN_NORM):
            like = torch.ones_like if words[-1] == "weight" else torch.zeros_like
            converted[_UNUSED_NORM + words[-1]] = like(value)
        if words[-1] == "running_mean":
            counter = name.replace("running_mean", _COUNTER)
            converted[_fill(row.theirs[0], [*words[:-1], _COUNTER])] = weights.get(
                counter, torch.tensor(0)
            )
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} weights have no counterpart in transformers' "
            f"MaskFormer: {_shown(unknown)}."
        )
    return converted


def _shown(names: list[str]) -> str:
    return ", ".join(short(name) for name in names[:3]) + (" …" if len(names) > 3 else "")
