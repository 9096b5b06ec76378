"""Names of settings in both libraries, and settings that one of them does not support.

``ours`` are config keys; ``theirs`` are dotted keys of ``config.json``, with ``SwinConfig`` or
``ResNetConfig`` as ``backbone_config``. The tables here are those that all models share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mask_former.utils.errors import short

__all__ = [
    "MAPS",
    "RESNET_DEPTHS",
    "STAGES",
    "Need",
    "Value",
    "check",
    "get",
    "nest",
    "supported",
]


class Value(NamedTuple):
    """A setting that both libraries have."""

    ours: str
    theirs: str
    default: Any  # value of theirs if its file lacks the key


class Need(NamedTuple):
    """A setting of one library of which the other supports only some values."""

    key: str
    allowed: tuple[Any, ...]  # supported values; the first is the default if the key is missing
    reason: str  # the end of the error message


MAPS = ["res2", "res3", "res4", "res5"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]

RESNET_DEPTHS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}
"""transformers' ``layer_type`` and ``depths`` by detectron2's ``MODEL.RESNETS.DEPTH``."""

SWIN_VALUES = (
    Value("MODEL.SWIN.PRETRAIN_IMG_SIZE", "backbone_config.image_size", 224),
    Value("MODEL.SWIN.PATCH_SIZE", "backbone_config.patch_size", 4),
    Value("MODEL.SWIN.EMBED_DIM", "backbone_config.embed_dim", 96),
    Value("MODEL.SWIN.DEPTHS", "backbone_config.depths", [2, 2, 6, 2]),
    Value("MODEL.SWIN.NUM_HEADS", "backbone_config.num_heads", [3, 6, 12, 24]),
    Value("MODEL.SWIN.WINDOW_SIZE", "backbone_config.window_size", 7),
    Value("MODEL.SWIN.MLP_RATIO", "backbone_config.mlp_ratio", 4.0),
    Value("MODEL.SWIN.QKV_BIAS", "backbone_config.qkv_bias", True),
    Value("MODEL.SWIN.DROP_RATE", "backbone_config.hidden_dropout_prob", 0.0),
    Value("MODEL.SWIN.ATTN_DROP_RATE", "backbone_config.attention_probs_dropout_prob", 0.0),
    Value("MODEL.SWIN.DROP_PATH_RATE", "backbone_config.drop_path_rate", 0.1),
)
RESNET_VALUES = (
    Value("MODEL.RESNETS.STEM_OUT_CHANNELS", "backbone_config.embedding_size", 64),
    Value("MODEL.RESNETS.STRIDE_IN_1X1", "backbone_config.downsample_in_bottleneck", False),
)

THEIRS_NEEDED = (
    Need(
        "backbone_config.model_type",
        ("swin", "maskformer-swin", "resnet"),
        "weights of other backbones are not converted",
    ),
    Need("backbone_config.num_channels", (3,), "images have 3 channels"),
    Need("backbone_config.out_features", (STAGES,), "the pixel decoder takes all four maps"),
)
THEIR_SWIN_NEEDED = (
    Need("backbone_config.use_absolute_embeddings", (False,), "absolute ones are not converted"),
    Need("backbone_config.layer_norm_eps", (1e-5,), "detectron2's Swin supports no other"),
    Need("backbone_config.hidden_act", ("gelu",), "detectron2's Swin supports no other"),
)
THEIR_RESNET_NEEDED = (
    Need(
        "backbone_config.downsample_in_first_stage",
        (False,),
        "detectron2's ResNet does not downsample in its first stage",
    ),
    Need("backbone_config.hidden_act", ("relu",), "detectron2's ResNet supports no other"),
)

OURS_NEEDED = (
    Need("MODEL.META_ARCHITECTURE", ("MaskFormer",), "it has no per-pixel models"),
    Need("MODEL.SEM_SEG_HEAD.NAME", ("MaskFormerHead",), "it supports no other head"),
    Need("MODEL.SEM_SEG_HEAD.IN_FEATURES", (MAPS,), "its pixel decoder takes all four maps"),
    Need("MODEL.SEM_SEG_HEAD.NORM", ("GN",), "its pixel decoder has group norms"),
    Need("MODEL.MASK_FORMER.PRE_NORM", (False,), "its norms come after each block"),
    Need(
        "MODEL.BACKBONE.NAME",
        ("D2SwinTransformer", "build_resnet_backbone"),
        "weights of other backbones, and of ResNets with DeepLab's stem, are not converted",
    ),
    Need("INPUT.FORMAT", ("RGB",), "its image processor outputs RGB"),
)
OUR_SWIN_NEEDED = (
    Need("MODEL.SWIN.OUT_FEATURES", (MAPS,), "its pixel decoder takes all four maps"),
    Need("MODEL.SWIN.APE", (False,), "absolute position embeddings are not converted"),
    Need("MODEL.SWIN.PATCH_NORM", (True,), "its patches are always normalised"),
    Need("MODEL.SWIN.QK_SCALE", (None,), "it scales by the width of a head"),
)
OUR_RESNET_NEEDED = (
    Need("MODEL.RESNETS.OUT_FEATURES", (MAPS,), "its pixel decoder takes all four maps"),
    Need("MODEL.RESNETS.NORM", ("FrozenBN", "BN", "SyncBN"), "its ResNet has batch norms"),
    Need("MODEL.RESNETS.NUM_GROUPS", (1,), "its ResNet has no grouped convolutions"),
    Need("MODEL.RESNETS.RES5_DILATION", (1,), "its ResNet is not dilated"),
    Need("MODEL.RESNETS.DEFORM_ON_PER_STAGE", ([False] * 4,), "it has no deformable convolutions"),
)


def get(tree: Any, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key in nested mappings; ``default`` if it is missing or None."""
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return default if tree is None else tree


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a mapping with dotted keys to nested dicts."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return tree


def supported(needs: Iterable[Need]) -> dict[str, Any]:
    """Return the first supported value of each setting, by dotted key."""
    values = {need.key: need.allowed[0] for need in needs}
    return {key: list(v) if isinstance(v, list) else v for key, v in values.items()}


def check(tree: Any, needs: Iterable[Need], where: str, other_model: str) -> None:
    """Check that the other library supports the settings of a config.

    Args:
        tree: Config of one library, as nested mappings.
        needs: Settings to check.
        where: Start of the error message.
        other_model: Name of the other library's model, for the message.

    Raises:
        ValueError: If a value is not supported; the message has the first one and the reason.
    """
    for key, allowed, reason in needs:
        value = get(tree, key, allowed[0])
        if (list(value) if isinstance(value, tuple) else value) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{where}{key} is {short(repr(value))}, which {other_model} does not support; "
                f"expected {expected}: {reason}."
            )
