"""Parameter names: ours (the published ones) and those of Hugging Face's ``transformers``.

One table serves both ways. Its names are those of the files that ``save_pretrained`` writes, which
the library has kept through version 5.23.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["from_huggingface_names", "to_huggingface_names"]

# Modules: prefixes, then ours -> theirs. * is a number. Where theirs are three, {a,b,c}, ours holds
# them in one, rows upon rows.
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
            "attn": "attention.self",  # the table of position biases and its index
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

# A model of transformers 5 has these names in memory, and `torch.save` writes what is in memory.
_IN_MEMORY = (
    (re.compile(r"(_attn)\.o_proj\."), r"\1.out_proj."),
    (re.compile(r"(transformer_module\.decoder\.layers\.\d+)\.mlp\.(fc[12])\."), r"\1.\2."),
)

# Only theirs has it, and nothing reads it: the norm of a classifier that was cut off.
_UNUSED_NORM = "model.pixel_level_module.encoder.model.layernorm."
_LAST_SWIN_NORM = "backbone.norm3."
_COUNTER = "num_batches_tracked"  # of batch norms; the frozen kind has none


class _Row(NamedTuple):
    ours: str  # with * for numbers
    theirs: tuple[str, ...]  # one name, or the three that ours holds as one


def _expand(theirs: str) -> tuple[str, ...]:
    """``x.{q,k,v}_proj`` to the three names."""
    parts = re.fullmatch(r"(.*)\{(.*)\}(.*)", theirs)
    return tuple(parts[1] + part + parts[3] for part in parts[2].split(",")) if parts else (theirs,)


_ROWS = [
    _Row(our_prefix + ours, _expand(their_prefix + theirs))
    for our_prefix, their_prefix, modules in _TABLE
    for ours, theirs in modules.items()
]


def _pattern(module: str) -> re.Pattern[str]:
    """A parameter of a module, with the numbers in its name and the parameter's own name."""
    return re.compile(re.escape(module).replace(r"\*", r"(\d+)") + r"\.(\w+)")


_OURS = [(_pattern(row.ours), row, 0) for row in _ROWS]
_THEIRS = [(_pattern(theirs), row, part) for row in _ROWS for part, theirs in enumerate(row.theirs)]


def _find(name: str, patterns: list[tuple[re.Pattern[str], _Row, int]]) -> tuple[_Row, int, list]:
    """The row of a name, which of its parts it is, and the numbers and last word in it."""
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
    """The weights of a ``MaskFormerForInstanceSegmentation`` under our names.

    What ours has no place for is left out: the counters of batch norms (ours are frozen), and
    Swin's last norm, which nothing reads.

    Args:
        weights: its state dict, as saved or as in memory.

    Returns:
        Names to tensors; no value is changed. Queries, keys and values are joined.

    Raises:
        ValueError: for names that are not a MaskFormer's; lists the first.
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
            continue
        ours = _fill(row.ours, words).replace("in_proj.", "in_proj_")
        parts[ours][part] = value
        wanted[ours] = len(row.theirs)
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} names are none of a transformers MaskFormer with a "
            f"Swin or ResNet: {_shown(unknown)}."
        )
    halves = [ours for ours, found in parts.items() if len(found) < wanted[ours]]
    if halves:
        raise ValueError(
            f"The query, key or value that {_shown(halves)} is made of is missing: is the file "
            "a part of a checkpoint only?"
        )
    return {
        ours: torch.cat([found[part] for part in sorted(found)]) if len(found) > 1 else found[0]
        for ours, found in parts.items()
    }


def to_huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of a ``MaskFormerForInstanceSegmentation``, as it saves them.

    What only theirs has is added: the counters of batch norms (0 where ours are frozen), and a
    last norm of Swin's (ones and zeros), which nothing reads.

    Args:
        weights: the state dict of a :class:`~mask_former.MaskFormer`.

    Returns:
        Names to tensors; no value is changed, and no memory copied.

    Raises:
        ValueError: for names that theirs has no place for; lists the first.
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
            f"{len(unknown)} of {len(weights)} weights have no place in transformers' MaskFormer: "
            f"{_shown(unknown)}."
        )
    return converted


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
