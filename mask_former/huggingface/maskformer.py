"""MaskFormer: our names and settings, and those of ``MaskFormerForInstanceSegmentation``.

Keys of theirs are those of ``MaskFormerConfig`` with ``DetrConfig`` as ``decoder_config``.
"""

from __future__ import annotations

from . import tables
from .backbone_names import ENCODER, RESNET, swin
from .family import Family
from .name_table import Modules, NameTable
from .tables import Need, Value

__all__ = ["MASKFORMER"]

_NAMES = (
    *swin(f"{ENCODER}model.", tuple(f"hidden_states_norms.{stage}" for stage in range(4))),
    *RESNET,
    Modules(
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
    Modules(
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
    Modules(
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

_VALUES = (
    Value("MODEL.SEM_SEG_HEAD.CONVS_DIM", "fpn_feature_size", 256),
    Value("MODEL.SEM_SEG_HEAD.MASK_DIM", "mask_feature_size", 256),
    Value("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "no_object_weight", 0.1),
    Value("MODEL.MASK_FORMER.CLASS_WEIGHT", "cross_entropy_weight", 1.0),
    Value("MODEL.MASK_FORMER.MASK_WEIGHT", "mask_weight", 20.0),
    Value("MODEL.MASK_FORMER.DICE_WEIGHT", "dice_weight", 1.0),
    Value("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "decoder_config.num_queries", 100),
    Value("MODEL.MASK_FORMER.HIDDEN_DIM", "decoder_config.d_model", 256),
    Value("MODEL.MASK_FORMER.NHEADS", "decoder_config.decoder_attention_heads", 8),
    Value("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "decoder_config.decoder_ffn_dim", 2048),
    Value("MODEL.MASK_FORMER.DEC_LAYERS", "decoder_config.decoder_layers", 6),
    Value("MODEL.MASK_FORMER.DROPOUT", "decoder_config.dropout", 0.1),
)

MASKFORMER = Family(
    name="MaskFormer",
    model_type="maskformer",
    architecture="MaskFormerForInstanceSegmentation",
    names=NameTable(_NAMES),
    unused_norm=f"{ENCODER}model.layernorm.",
    unsaved=(),
    values=_VALUES,
    theirs_needed=(
        *tables.THEIRS_NEEDED,
        Need("decoder_config.model_type", ("detr",), "the predictor is DETR's decoder"),
        Need("decoder_config.activation_function", ("relu",), "the decoder supports no other"),
    ),
    ours_needed=(
        *tables.OURS_NEEDED,
        Need(
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
            ("BasePixelDecoder",),
            "its pixel decoder is the plain pyramid, without a transformer encoder",
        ),
        Need(
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
            ("TransformerPredictor",),
            "it supports no other predictor",
        ),
        Need(
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
            ("res5",),
            "its queries attend to the backbone's last map",
        ),
        Need("MODEL.MASK_FORMER.ENC_LAYERS", (0,), "it has no encoder before the decoder"),
    ),
    copies={
        # transformers has three dropout rates, this project one
        "decoder_config.attention_dropout": "MODEL.MASK_FORMER.DROPOUT",
        "decoder_config.activation_dropout": "MODEL.MASK_FORMER.DROPOUT",
    },
    # with True, their forward pass fails unless hidden states are requested
    their_settings={"use_auxiliary_loss": False},
    # The published thresholds. Deep supervision stays on regardless of `use_auxiliary_loss`, which
    # is False in published checkpoints that were trained with it.
    our_settings={
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    },
)
