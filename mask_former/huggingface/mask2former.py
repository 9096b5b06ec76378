"""Mask2Former: our names and settings, and those of ``Mask2FormerForUniversalSegmentation``.

Keys of theirs are those of ``Mask2FormerConfig``.
"""

from __future__ import annotations

from . import tables
from .backbone_names import ENCODER, RESNET, swin
from .family import Family
from .name_table import Modules, NameTable
from .tables import MAPS, Need, Value

__all__ = ["MASK2FORMER"]

_NAMES = (
    *swin(ENCODER, tuple(f"hidden_states_norms.stage{stage}" for stage in range(1, 5))),
    *RESNET,
    Modules(
        "sem_seg_head.pixel_decoder.",
        "model.pixel_level_module.decoder.",
        {
            "input_proj.*.*": "input_projections.*.*",
            "adapter_1": "adapter_1.0",
            "adapter_1.norm": "adapter_1.1",
            "layer_1": "layer_1.0",
            "layer_1.norm": "layer_1.1",
            "mask_features": "mask_projection",
        },
    ),
    # `level_embed` is a parameter of the decoder itself
    Modules("sem_seg_head.pixel_decoder.", "model.pixel_level_module.", {"transformer": "decoder"}),
    Modules(
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.*.",
        "model.pixel_level_module.decoder.encoder.layers.*.",
        {
            "self_attn.sampling_offsets": "self_attn.sampling_offsets",
            "self_attn.attention_weights": "self_attn.attention_weights",
            "self_attn.value_proj": "self_attn.value_proj",
            "self_attn.output_proj": "self_attn.output_proj",
            "norm1": "self_attn_layer_norm",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm2": "final_layer_norm",
        },
    ),
    Modules(
        "sem_seg_head.predictor.",
        "model.transformer_module.decoder.layers.*.",
        {
            "transformer_cross_attention_layers.*.multihead_attn.in_proj": "cross_attn.in_proj",
            "transformer_cross_attention_layers.*.multihead_attn.out_proj": "cross_attn.out_proj",
            "transformer_cross_attention_layers.*.norm": "cross_attn_layer_norm",
            "transformer_self_attention_layers.*.self_attn.in_proj": "self_attn.{q,k,v}_proj",
            "transformer_self_attention_layers.*.self_attn.out_proj": "self_attn.out_proj",
            "transformer_self_attention_layers.*.norm": "self_attn_layer_norm",
            "transformer_ffn_layers.*.linear1": "fc1",
            "transformer_ffn_layers.*.linear2": "fc2",
            "transformer_ffn_layers.*.norm": "final_layer_norm",
        },
    ),
    Modules(
        "sem_seg_head.predictor.",
        "model.transformer_module.",
        {
            "decoder_norm": "decoder.layernorm",
            "query_feat": "queries_features",
            "query_embed": "queries_embedder",
            "level_embed": "level_embed",
            "input_proj.*": "input_projections.*",
            "mask_embed.layers.*": "decoder.mask_predictor.mask_embedder.*.0",
        },
    ),
    Modules(
        "",
        "",
        {
            "sem_seg_head.predictor.class_embed": "class_predictor",
            "criterion": "criterion",  # the class weights
        },
    ),
)

_VALUES = (
    Value("MODEL.SEM_SEG_HEAD.CONVS_DIM", "feature_size", 256),
    Value("MODEL.SEM_SEG_HEAD.MASK_DIM", "mask_feature_size", 256),
    Value("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "encoder_layers", 6),
    Value("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "ignore_value", 255),
    Value("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "no_object_weight", 0.1),
    Value("MODEL.MASK_FORMER.CLASS_WEIGHT", "class_weight", 2.0),
    Value("MODEL.MASK_FORMER.MASK_WEIGHT", "mask_weight", 5.0),
    Value("MODEL.MASK_FORMER.DICE_WEIGHT", "dice_weight", 5.0),
    Value("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "train_num_points", 12544),
    Value("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", "oversample_ratio", 3.0),
    Value("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "importance_sample_ratio", 0.75),
    Value("MODEL.MASK_FORMER.DEEP_SUPERVISION", "use_auxiliary_loss", True),
    Value("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "num_queries", 100),
    Value("MODEL.MASK_FORMER.HIDDEN_DIM", "hidden_dim", 256),
    Value("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", "enforce_input_projection", False),
    Value("MODEL.MASK_FORMER.NHEADS", "num_attention_heads", 8),
    Value("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "dim_feedforward", 2048),
    Value("MODEL.MASK_FORMER.DEC_LAYERS", "decoder_layers", 10),
    Value("MODEL.MASK_FORMER.DROPOUT", "dropout", 0.0),
)

_PYRAMID = "the pyramid of features starts at stride 4"

MASK2FORMER = Family(
    name="Mask2Former",
    model_type="mask2former",
    architecture="Mask2FormerForUniversalSegmentation",
    names=NameTable(_NAMES),
    unused_norm=f"{ENCODER}swin.layernorm.",
    unsaved=("relative_position_index",),  # it follows from the window of a Swin
    values=_VALUES,
    theirs_needed=(
        *tables.THEIRS_NEEDED,
        Need("activation_function", ("relu",), "the encoder and the decoder support no other"),
        Need("encoder_feedforward_dim", (1024,), "the encoder of the maps has 1024 channels"),
        Need("pre_norm", (False,), "the norms come after each block"),
        Need("common_stride", (4,), _PYRAMID),
        Need("feature_strides", ([4, 8, 16, 32],), _PYRAMID),
    ),
    ours_needed=(
        *tables.OURS_NEEDED,
        Need(
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
            ("MSDeformAttnPixelDecoder",),
            "its pixel decoder has deformable attention",
        ),
        Need(
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES",
            (MAPS[1:],),
            "its encoder takes the three coarse maps",
        ),
        Need("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", (4,), _PYRAMID),
        Need(
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
            ("MultiScaleMaskedTransformerDecoder",),
            "it supports no other predictor",
        ),
        Need(
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
            ("multi_scale_pixel_decoder",),
            "its queries attend to the three maps of the pixel decoder",
        ),
    ),
    their_swin_needed=(
        *tables.THEIR_SWIN_NEEDED,
        Need("backbone_config.patch_size", (4, [4, 4]), _PYRAMID),
    ),
    our_swin_needed=(*tables.OUR_SWIN_NEEDED, Need("MODEL.SWIN.PATCH_SIZE", (4,), _PYRAMID)),
    # The loss of a pixel, the point rule and the panoptic rule of Mask2Former, and the thresholds
    # of its published configs.
    our_settings={
        "MODEL.MASK_FORMER.MASK_TERM": "cross_entropy",
        "MODEL.MASK_FORMER.POINT_PADDING": "zeros",
        "MODEL.MASK_FORMER.POINT_TARGETS": "bilinear",
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.SEGMENT_WITHIN_MASK": True,
    },
)
