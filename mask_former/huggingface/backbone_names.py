"""Parameter names of the backbones."""

from __future__ import annotations

from collections.abc import Sequence

from .name_table import Modules

__all__ = ["ENCODER", "RESNET", "swin"]

ENCODER = "model.pixel_level_module.encoder."
"""Prefix of their backbone."""

RESNET = (
    Modules(
        "backbone.stem.",
        f"{ENCODER}embedder.embedder.",
        {"conv1": "convolution", "conv1.norm": "normalization"},
    ),
    *(
        Modules(
            f"backbone.res{stage + 2}.*.",
            f"{ENCODER}encoder.stages.{stage}.layers.*.",
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
)


def swin(transformer: str, norms: Sequence[str]) -> tuple[Modules, ...]:
    """Return the names of a Swin.

    Args:
        transformer: Their prefix of the transformer.
        norms: Their modules for the norms of the four maps.
    """
    return (
        Modules(
            "backbone.",
            transformer,
            {
                "patch_embed.proj": "embeddings.patch_embeddings.projection",
                "patch_embed.norm": "embeddings.norm",
                "layers.*.downsample.reduction": "encoder.layers.*.downsample.reduction",
                "layers.*.downsample.norm": "encoder.layers.*.downsample.norm",
            },
        ),
        Modules(
            "backbone.layers.*.blocks.*.",
            f"{transformer}encoder.layers.*.blocks.*.",
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
        Modules("backbone.", ENCODER, {f"norm{stage}": name for stage, name in enumerate(norms)}),
    )
