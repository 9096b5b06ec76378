"""All config keys that this project adds to detectron2's, with their units and meanings.

The defaults are those of the published MaskFormer. Features that it lacks are off by default, so
that published configs behave as published; the configs of Mask2Former turn on those that it has.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from mask_former.registries import plugins

__all__ = ["add_mask_former_config", "get_mask_former_cfg"]


def add_mask_former_config(cfg: CfgNode) -> None:
    """Add the keys below and those of plug-ins to a config; call ``add_deeplab_config`` first."""
    _add_datasets(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_pixel_decoder(cfg)
    cfg.MODEL.MASK_FORMER = CN()
    _add_losses(cfg.MODEL.MASK_FORMER)
    _add_transformer(cfg.MODEL.MASK_FORMER)
    _add_inference(cfg.MODEL.MASK_FORMER)
    _add_finetuning(cfg)
    _add_acceleration(cfg)
    _add_sliding_window(cfg)
    _add_training_options(cfg)
    _add_swin(cfg)
    for plugin in plugins():
        if hasattr(plugin, "add_config"):
            plugin.add_config(cfg)


def get_mask_former_cfg() -> CfgNode:
    """Return the defaults that every config file starts from: detectron2's, DeepLab's and ours."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    return cfg


def _add_datasets(cfg: CfgNode) -> None:
    # Your own dataset tables, as JSON files (see data/datasets/table.py).
    cfg.DATASETS.TABLES = ()


def _add_input(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"  # a registered training mapper
    cfg.INPUT.COLOR_AUG_SSD = False  # colour jitter as in SSD
    # Side in pixels, despite its name: training images are padded to this size. -1: no padding.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter, in the *_lsj mappers: images are resized to fit into a square of MIN_SCALE
    # to MAX_SCALE times IMAGE_SIZE, then cropped or padded to it.
    cfg.INPUT.IMAGE_SIZE = 1024  # side in pixels
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # "detectron2": sizes are rounded, crops lie on the diagonal of the image, and colours are
    # jittered in HSV. "torchvision" (EoMT): sizes are rounded down, crops lie anywhere, and colours
    # are mixed with grey.
    cfg.INPUT.LSJ_RULE = "detectron2"
    cfg.INPUT.PAD_VALUE = 128  # value that training images are padded with, 0 (black) … 255
    # An image without a target after augmentation is augmented again, at most this often in all; if
    # it still has none, it is an example without targets. Set MIN_MASK_AREA to 1, too, because with
    # 0 segments outside the crop remain, as empty targets.
    cfg.INPUT.MAX_TRIES = 1
    # Minimum area of a target in pixels; smaller ones, such as objects cut off by a crop, are
    # dropped. 0 (published): keep all.
    cfg.INPUT.MIN_MASK_AREA = 0
    # Fraction of crops that are moved to contain a pixel of a class, drawn uniformly from those in
    # the image. 0 (published): none.
    cfg.INPUT.CROP.CLASS_UNIFORM = 0.0
    # "quick": before training, check that all files exist and read 20 images of each dataset.
    # "off": no check.
    cfg.DATASETS.CHECK = "quick"


def _add_solver(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW or SGD
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone, relative to BASE_LR
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of embeddings, such as those of the queries
    # Plain ViTs: factor on the learning rate for each block after a parameter's own. 1: none.
    cfg.SOLVER.LAYER_DECAY = 1.0
    cfg.SOLVER.LAYER_DECAY_LAST_BLOCKS = True  # False: not in the blocks that are in EoMT's head
    # "WarmupTwoStagePolyLR": steps of the warm-up of new layers, then of that of the ViT.
    cfg.SOLVER.WARMUP_STEPS = [500, 1000]
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # with SOLVER.AMP.ENABLED: "bfloat16" or "float16"
    # Number of batches of IMS_PER_BATCH images whose gradients are accumulated for one step.
    cfg.SOLVER.ACCUMULATE_STEPS = 1


def _add_pixel_decoder(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256  # channels of the per-pixel embeddings
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"  # a registered pixel decoder
    # Encoder layers of TransformerEncoderPixelDecoder and MSDeformAttnPixelDecoder.
    head.TRANSFORMER_ENC_LAYERS = 0
    # Backbone maps that the encoder of MSDeformAttnPixelDecoder encodes.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Not read: published configs set them, but heads are MASK_FORMER.NHEADS and points always 4.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8


def _add_losses(node: CfgNode) -> None:
    node.CRITERION_NAME = "SetCriterion"  # a registered criterion
    node.LOSSES = ["labels", "masks"]  # registered set losses
    node.DEEP_SUPERVISION = True  # supervise every decoder layer
    node.NO_OBJECT_WEIGHT = 0.1  # weight of "no object" in the cross-entropy
    # Weights of the terms, both in the loss and in the matching cost:
    node.CLASS_WEIGHT = 1.0  # class probability (loss: cross-entropy)
    node.MASK_WEIGHT = 20.0  # mask term
    node.DICE_WEIGHT = 1.0  # dice
    node.MASK_TERM = "focal"  # loss of a pixel: "focal" (MaskFormer) or "cross_entropy"
    # Number of points per image at which mask losses and matching are computed. 0 (published): all
    # pixels.
    node.TRAIN_NUM_POINTS = 0
    node.OVERSAMPLE_RATIO = 3.0  # random candidates for each point of a loss
    # Fraction of points that are the most uncertain candidates; the others are random.
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Values of a map beyond the centres of its outermost cells: repeat those of the cells
    # ("border"), or fade to 0 ("zeros").
    node.POINT_PADDING = "border"
    # Value of a target at a point: that of its pixel ("nearest"), or interpolated ("bilinear").
    node.POINT_TARGETS = "nearest"
    # Exclude unlabelled pixels and padding from mask losses and matching. False: published.
    node.MASK_IGNORE = False
    # The mask losses are divided by the number of "targets", or of "matched" pairs, which is less
    # if an image has more targets than there are queries.
    node.MASK_LOSS_DIVISOR = "targets"
    node.MATCHER = CN()
    node.MATCHER.NAME = "HungarianMatcher"  # a registered matcher
    # If a cost is NaN or infinite: "raise" an error, or "sanitize" (replace it by a high cost).
    node.MATCHER.ON_NONFINITE = "raise"


def _add_transformer(node: CfgNode) -> None:
    node.TRANSFORMER_DECODER_NAME = "TransformerPredictor"  # a registered transformer decoder
    # The map that queries attend to: a backbone map, "transformer_encoder", "pixel_embedding" or
    # "multi_scale_pixel_decoder".
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.NUM_OBJECT_QUERIES = 100
    node.HIDDEN_DIM = 256  # channels
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048  # channels
    node.DROPOUT = 0.1  # probability
    node.ENC_LAYERS = 0  # encoder layers before the decoder
    # Decoder layers; in MultiScaleMaskedTransformerDecoder predictions: one more than layers.
    node.DEC_LAYERS = 6
    node.PRE_NORM = False  # normalise the input of each block instead of its output
    node.ENFORCE_INPUT_PROJ = False  # project the map even if it has HIDDEN_DIM channels
    # Images are padded to a multiple of this many pixels. 0: to the size of the largest image in
    # the batch; negative: to the multiple that the backbone needs.
    node.SIZE_DIVISIBILITY = 32


def _add_inference(node: CfgNode) -> None:
    node.TEST = CN()
    node.TEST.SEMANTIC_ON = True
    node.TEST.PANOPTIC_ON = False
    node.TEST.INSTANCE_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # minimum class probability of a panoptic segment
    # Minimum fraction of its mask that a panoptic segment wins against the others.
    node.TEST.OVERLAP_THRESHOLD = 0.0
    # Leave pixels void that lie outside the mask of the query that wins them. False: MaskFormer's
    # rule; True: Mask2Former's.
    node.TEST.SEGMENT_WITHIN_MASK = False
    # True: resize mask logits to the output size and compute the semantic result from them. False:
    # compute the semantic result, then resize it.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_finetuning(cfg: CfgNode) -> None:
    node = cfg.MODEL.MASK_FORMER
    # Allow MODEL.WEIGHTS to have other classes or another number of queries: the class layer keeps
    # the rows of "no object" and of classes with the same name; queries are truncated or repeated.
    node.FINETUNE = False
    # A registered dataset with the classes of MODEL.WEIGHTS, if that file does not list them.
    node.FINETUNE_CLASSES_FROM = ""


def _add_acceleration(cfg: CfgNode) -> None:
    # Compile backbone and head with torch.compile, for each input size; needs a C++ compiler.
    cfg.MODEL.COMPILE = False
    # Store only the input of each backbone block and recompute the block in the backward pass:
    # less memory, more time.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    # Run the reference version of every kernel in mask_former/ops: slower, with equal results.
    cfg.MODEL.REFERENCE_OPS = False
    # Write sem_seg_predictions.json and predictions.json. False: only the metrics, which is faster.
    cfg.TEST.SAVE_PREDICTIONS = True
    # How images are resized. "": by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. EoMT: "fit" into
    # MODEL.EOMT.IMAGE_SIZE, or "cover" it (for windows).
    cfg.TEST.RESIZE = ""
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False  # mixed precision in inference
    cfg.TEST.AMP.DTYPE = "bfloat16"  # or "float16"


def _add_sliding_window(cfg: CfgNode) -> None:
    # Compute semantic results of large images in overlapping windows and blend the class scores:
    # less memory, and objects of the size that the network was trained on.
    window = cfg.TEST.SLIDING_WINDOW = CN()
    # "": windows with a stride, blended with weights. "even": as few windows as possible, evenly
    # spaced, of which the mean is taken (EoMT).
    window.MODE = ""
    # Side of a window in pixels, after resizing to INPUT.MIN_SIZE_TEST (0 there: the original
    # size). Images that fit into one window are not divided. 0: no sliding window.
    window.SIZE = 0
    window.STRIDE = 0  # pixels; 0: 2/3 of SIZE, rounded to a multiple of 32


def _add_training_options(cfg: CfgNode) -> None:
    # Shell patterns for the names of parameters or modules to freeze, such as "backbone".
    cfg.MODEL.FREEZE = []
    # Factors on the learning rate, [[pattern, factor], …]; all matching ones and
    # BACKBONE_MULTIPLIER are multiplied.
    cfg.SOLVER.LR_MULTIPLIERS = []
    # An exponential moving average of the weights, evaluated and saved in addition to them.
    cfg.MODEL.EMA = CN()
    cfg.MODEL.EMA.ENABLED = False
    cfg.MODEL.EMA.DECAY = 0.999  # average = DECAY · average + (1 - DECAY) · weights, each iteration
    cfg.MODEL.EMA.START_ITER = 0  # averaging starts from the weights of this iteration
    # Compute the losses on DATASETS.TEST (val_…) every TEST.EVAL_PERIOD iterations and at the end.
    cfg.TEST.VAL_LOSS = False
    # A metric such as "sem_seg/mIoU": the model with the best value is saved as model_best.pth.
    cfg.TEST.BEST_METRIC = ""
    cfg.LOGGERS = ["json", "tensorboard"]  # also "wandb", if it is installed


def _add_swin(cfg: CfgNode) -> None:
    swin = cfg.MODEL.SWIN = CN()
    swin.PRETRAIN_IMG_SIZE = 224  # pixels; size of the absolute position embedding
    swin.PATCH_SIZE = 4  # pixels
    swin.EMBED_DIM = 96  # channels of the first stage
    swin.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    swin.NUM_HEADS = [3, 6, 12, 24]  # attention heads of each stage
    swin.WINDOW_SIZE = 7  # patches
    swin.MLP_RATIO = 4.0  # hidden channels of a block's MLP, relative to its channels
    swin.QKV_BIAS = True  # biases of queries, keys and values
    swin.QK_SCALE = None  # factor on attention logits; None: (channels of a head) ** -0.5
    swin.DROP_RATE = 0.0  # probability
    swin.ATTN_DROP_RATE = 0.0  # probability
    swin.DROP_PATH_RATE = 0.3  # probability of stochastic depth in the last block
    swin.APE = False  # add an absolute position embedding
    swin.PATCH_NORM = True  # normalise the patch embedding
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    swin.USE_CHECKPOINT = False  # as MODEL.ACTIVATION_CHECKPOINTING, for Swin only
