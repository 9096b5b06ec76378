"""Names of EoMT's parameters: ours, the official ones, those of transformers and of timm.

Our names divide the ViT: its front belongs to the backbone, its last n blocks to the head. So a
state dict is renamed as a whole. Values are not changed; only tensors that one form has in parts
(queries, keys and values; the gate and the value of a SwiGLU) are joined or cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = [
    "OFFICIAL_VIT",
    "from_any",
    "from_official",
    "from_timm",
    "from_transformers",
    "is_difference",
    "to_official",
    "to_transformers",
]

State = dict[str, Tensor]
Table = list[tuple[tuple[str, ...], str]]

_FRONT, _HEAD, _PROBABILITIES = "backbone.vit.", "sem_seg_head.", "attn_mask_probs"
_OFFICIAL, OFFICIAL_VIT = "network.", "network.encoder.backbone."
_IMAGENET = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}

# In the tables, * is a number and @ is "weight" or "bias". On the left are the names of
# transformers, whose tensors are joined along axis 0; on the right is the name of timm or ours.


def _table(*rows: tuple[str | tuple[str, ...], str]) -> Table:
    return [(names if isinstance(names, tuple) else (names,), name) for names, name in rows]


_HEAD_TABLE = _table(
    ("query.weight", "q.weight"),
    ("class_predictor.@", "class_head.@"),
    ("mask_head.fc1.@", "mask_head.0.@"),
    ("mask_head.fc2.@", "mask_head.2.@"),
    ("mask_head.fc3.@", "mask_head.4.@"),
    ("upscale_block.block.*.layernorm2d.@", "upscale.*.norm.@"),
    ("upscale_block.block.*.conv1.@", "upscale.*.conv1.@"),
    ("upscale_block.block.*.conv2.weight", "upscale.*.conv2.weight"),
    (_PROBABILITIES, _PROBABILITIES),
)
_ATTENTION = "layers.*.attention."
_QKV = tuple(f"{_ATTENTION}{part}_proj" for part in "qkv")
_BOTH = _table(
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("layers.*.norm1.@", "blocks.*.norm1.@"),
    ("layers.*.norm2.@", "blocks.*.norm2.@"),
    ("layernorm.@", "norm.@"),
)
_DINOV2 = _BOTH + _table(
    ("embeddings.position_embeddings.weight", "pos_embed"),
    ("embeddings.patch_embeddings.projection.@", "patch_embed.proj.@"),
    (tuple(f"{name}.@" for name in _QKV), "blocks.*.attn.qkv.@"),
    (f"{_ATTENTION}out_proj.@", "blocks.*.attn.proj.@"),
    ("layers.*.layer_scale1.lambda1", "blocks.*.ls1.gamma"),
    ("layers.*.layer_scale2.lambda1", "blocks.*.ls2.gamma"),
)
_PLAIN_MLP = _table(
    ("layers.*.mlp.fc1.@", "blocks.*.mlp.fc1.@"), ("layers.*.mlp.fc2.@", "blocks.*.mlp.fc2.@")
)
_SWIGLU = _table(
    (("layers.*.mlp.gate_proj.@", "layers.*.mlp.up_proj.@"), "blocks.*.mlp.fc1.@"),
    ("layers.*.mlp.down_proj.@", "blocks.*.mlp.fc2.@"),
)
_OLD_SWIGLU = _table(  # of older files of transformers
    ("layers.*.mlp.weights_in.@", "blocks.*.mlp.fc1.@"),
    ("layers.*.mlp.weights_out.@", "blocks.*.mlp.fc2.@"),
)
_DINOV3 = _BOTH + _table(
    ("embeddings.patch_embeddings.@", "patch_embed.proj.@"),
    (tuple(f"{name}.weight" for name in _QKV), "blocks.*.attn.qkv.weight"),
    (f"{_ATTENTION}q_proj.bias", "blocks.*.attn.q_bias"),
    (f"{_ATTENTION}v_proj.bias", "blocks.*.attn.v_bias"),
    (f"{_ATTENTION}o_proj.@", "blocks.*.attn.proj.@"),
    ("layers.*.layer_scale1.lambda1", "blocks.*.gamma_1"),
    ("layers.*.layer_scale2.lambda1", "blocks.*.gamma_2"),
    ("layers.*.mlp.up_proj.@", "blocks.*.mlp.fc1.@"),
    ("layers.*.mlp.down_proj.@", "blocks.*.mlp.fc2.@"),
)
_OFFICIAL_DINOV3 = (
    ("patch_embed.", "embeddings."),
    ("blocks.", "layers."),
    ("norm.", "layernorm."),
)
"""The official names of a DINOv3 are those of transformers but for these prefixes."""


def is_difference(state: Mapping[str, Tensor]) -> bool:
    """Return True for the names of a published EoMT on DINOv3: differences to DINOv3's weights."""
    return f"{OFFICIAL_VIT}patch_embed.cls_token" in state


def from_any(state: Mapping[str, Tensor]) -> State:
    """Rename a checkpoint with official names or those of transformers; others stay as they are.

    Raises:
        ValueError: as :func:`from_official` does.
    """
    state = {name.replace("._orig_mod", ""): value for name, value in state.items()}
    if any(name.startswith(_OFFICIAL) for name in state):
        return from_official(state)
    if {"query.weight", "class_predictor.weight"} <= state.keys():
        return from_transformers(state)
    return state


def from_official(state: Mapping[str, Tensor]) -> State:
    """Rename a published checkpoint (``pytorch_model.bin``) to our names.

    The mean and the standard deviation of the pixels, which our config has, are dropped.

    Raises:
        ValueError: if it has no ``network.attn_mask_probs``, the length of which is the number of
            blocks in the head, or if a part of a joined tensor is missing.
    """
    vit = _below(state, OFFICIAL_VIT)
    if "patch_embed.cls_token" in vit:
        vit = _read(_with_prefixes(vit, _OFFICIAL_DINOV3), _DINOV3)
    head = {
        name: value
        for name, value in _below(state, _OFFICIAL).items()
        if not name.startswith("encoder.")
    }
    others = {name: value for name, value in state.items() if not name.startswith(_OFFICIAL)}
    return _cut(vit, head) | others


def to_official(state: Mapping[str, Tensor]) -> State:
    """Rename a model's state dict, or its gradients by name, to the published names.

    The mean and the standard deviation of the pixels are those of ImageNet, which all published
    models use.
    """
    vit = _joined(state)
    if _is_dinov3(vit):
        back = tuple((ours, theirs) for theirs, ours in _OFFICIAL_DINOV3)
        vit = _with_prefixes(_write(vit, _DINOV3), back)
    head = _head_of(state)
    if _PROBABILITIES in head:
        for name, values in _IMAGENET.items():
            head[f"encoder.{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    return {
        **{OFFICIAL_VIT + name: value for name, value in vit.items()},
        **{_OFFICIAL + name: value for name, value in head.items()},
        **_others(state),
    }


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """Rename a checkpoint of transformers' ``eomt`` or ``eomt_dinov3`` to our names.

    Raises:
        ValueError: as :func:`from_official` does.
    """
    tables = _DINOV2 + _PLAIN_MLP + _OLD_SWIGLU
    if "embeddings.patch_embeddings.weight" in state:
        tables = _DINOV3
    elif any(".mlp.gate_proj." in name for name in state):
        tables = _DINOV2 + _SWIGLU
    criterion = {name: value for name, value in state.items() if name.startswith("criterion.")}
    vit = {
        name: value
        for name, value in state.items()
        if name.startswith(("embeddings.", "layers.", "layernorm."))
    }
    rest = {name: value for name, value in state.items() if name not in vit.keys() | criterion}
    vit = _read(vit, tables)
    if "pos_embed" in vit and vit["pos_embed"].ndim == 2:
        vit["pos_embed"] = vit["pos_embed"][None]
    return _cut(vit, _read(rest, _HEAD_TABLE)) | criterion


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """Rename a model's state dict to the names of transformers."""
    vit = _joined(state)
    if "pos_embed" in vit:
        vit["pos_embed"] = vit["pos_embed"][0]
    if _is_dinov3(vit):
        table = _DINOV3
    else:
        fc1, fc2 = vit["blocks.0.mlp.fc1.weight"], vit["blocks.0.mlp.fc2.weight"]
        table = _DINOV2 + (_SWIGLU if len(fc1) == 2 * fc2.shape[1] else _PLAIN_MLP)
    return {**_write(vit, table), **_write(_head_of(state), _HEAD_TABLE), **_others(state)}


def from_timm(state: Mapping[str, Tensor], num_blocks: int) -> State:
    """Rename the weights of a whole ViT of timm, without a classifier, to our names.

    Args:
        state: the ViT's state dict.
        num_blocks: the number of blocks in the head.
    """
    vit = {name: value for name, value in state.items() if not name.startswith("head.")}
    halves = _cut(vit, {_PROBABILITIES: torch.ones(num_blocks)})
    del halves[_HEAD + _PROBABILITIES]
    return halves


def _cut(vit: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> State:
    """Divide a whole ViT, and add the rest of the head."""
    if not vit and not head:
        return {}
    if _PROBABILITIES not in head:
        raise ValueError(
            f"These weights are not those of a whole EoMT: there is no {_PROBABILITIES!r}, which "
            "has one number for each block that processes the queries."
        )
    front = _depth(vit) - len(head[_PROBABILITIES])
    state = {}
    for name, value in vit.items():
        index, rest = _block(name)
        if index is not None and index >= front:
            state[f"{_HEAD}blocks.{index - front}.{rest}"] = value
        else:
            state[(_HEAD if name.startswith("norm.") else _FRONT) + name] = value
    return state | {_HEAD + name: value for name, value in head.items()}


def _joined(state: Mapping[str, Tensor]) -> State:
    """Put both halves of the ViT together: names of timm."""
    vit = {k: v for k, v in _below(state, _FRONT).items() if not k.endswith(".k_bias")}
    front = _depth(vit)
    for name, value in _below(state, _HEAD).items():
        index, rest = _block(name)
        if index is not None and not name.endswith(".k_bias"):
            vit[f"blocks.{front + index}.{rest}"] = value
        elif name.startswith("norm."):
            vit[name] = value
    return vit


def _head_of(state: Mapping[str, Tensor]) -> State:
    return {
        name: value
        for name, value in _below(state, _HEAD).items()
        if not name.startswith(("blocks.", "norm."))
    }


def _others(state: Mapping[str, Tensor]) -> State:
    return {k: v for k, v in state.items() if not k.startswith((_FRONT, _HEAD))}


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _with_prefixes(state: State, prefixes: Iterable[tuple[str, str]]) -> State:
    def renamed(name: str) -> str:
        for old, new in prefixes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {renamed(name): value for name, value in state.items()}


def _block(name: str) -> tuple[int | None, str]:
    """Return the number of the block in a name of timm, and the name in the block."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (int(match[1]), match[2]) if match else (None, name)


def _depth(vit: Iterable[str]) -> int:
    return 1 + max((index for name in vit if (index := _block(name)[0]) is not None), default=-1)


def _is_dinov3(vit: Iterable[str]) -> bool:
    return any(name.endswith(".gamma_1") for name in vit)


def _regex(template: str) -> str:
    return re.escape(template).replace(r"\*", r"(\d+)").replace("@", "(weight|bias)")


def _fill(template: str, groups: Iterable[str]) -> str:
    values = iter(groups)
    return re.sub(r"[*@]", lambda _: next(values), template)


def _read(state: Mapping[str, Tensor], table: Table) -> State:
    """Rename from the left to the right of a table; unknown names stay as they are."""
    result: State = {}
    rows = [(re.compile(_regex(theirs[0])), theirs, ours) for theirs, ours in table]
    used = set()
    for name in state:
        for regex, theirs, ours in rows:
            if match := regex.fullmatch(name):
                parts = [_fill(template, match.groups()) for template in theirs]
                missing = [part for part in parts if part not in state]
                if missing:
                    raise ValueError(f"These weights have {name}, but not {', '.join(missing)}.")
                used.update(parts)
                values = [state[part] for part in parts]
                joined = torch.cat(values) if len(values) > 1 else values[0]
                result[_fill(ours, match.groups())] = joined
                break
    return result | {name: value for name, value in state.items() if name not in used}


def _write(state: Mapping[str, Tensor], table: Table) -> State:
    """Rename from the right to the left of a table; unknown names stay as they are."""
    result: State = {}
    rows = [(re.compile(_regex(ours)), theirs) for theirs, ours in table]
    for name, value in state.items():
        for regex, theirs in rows:
            if match := regex.fullmatch(name):
                names = [_fill(template, match.groups()) for template in theirs]
                result.update(zip(names, value.chunk(len(names)), strict=True))
                break
        else:
            result[name] = value
    return result
