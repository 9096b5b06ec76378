"""Every config key that MaskFormer adds to detectron2's, with unit and meaning.

Defaults are the published ones; what is ours beside them leaves published behaviour as it is.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from mask_former.registries import plugins

from . import validation

__all__ = ["add_mask_former_config", "get_mask_former_cfg", "validate"]


def add_mask_former_config(cfg: CfgNode) -> None:
    """Add the keys below, and those of the plug-ins, to ``cfg`` (after ``add_deeplab_config``)."""
    _add_datasets(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_pixel_decoder(cfg)
    _add_mask_former(cfg)
    _add_finetuning(cfg)
    _add_acceleration(cfg)
    _add_sliding_window(cfg)
    _add_training_comforts(cfg)
    _add_swin(cfg)
    for plugin in plugins():
        if hasattr(plugin, "add_config"):
            plugin.add_config(cfg)


def get_mask_former_cfg() -> CfgNode:
    """detectron2's defaults, DeepLab's and ours: what every config file starts from."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    return cfg


def validate(cfg: CfgNode) -> None:
    """Find the mistakes that a config alone shows: see :mod:`mask_former.config.validation`.

    Raises:
        KeyError, ValueError: name the key and the fix.
    """
    validation.check_lists(cfg, get_mask_former_cfg())
    validation.validate(cfg)


def _add_datasets(cfg: CfgNode) -> None:
    # JSON tables whose datasets are registered besides our own (see data/datasets/catalog.py).
    cfg.DATASETS.TABLES = ()


def _add_input(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"  # a registered training mapper
    cfg.INPUT.COLOR_AUG_SSD = False  # SSD's colour jitter
    # A side in pixels, in spite of its name: training images are padded to it. -1: not at all.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Pixels: targets that a crop left smaller are dropped. 0: none is (published).
    cfg.INPUT.MIN_MASK_AREA = 0
    # Share of crops placed on a class drawn among the image's, each equally likely. 0: published.
    cfg.INPUT.CROP.CLASS_UNIFORM = 0.0
    # "quick": before training, see that all files are there and read 20 images a dataset; "off".
    cfg.DATASETS.CHECK = "quick"


def _add_solver(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW or SGD
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # the backbone's learning rate, × BASE_LR
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of embeddings (the queries')
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # of SOLVER.AMP.ENABLED: bfloat16 or float16
    # Batches of IMS_PER_BATCH images whose gradients one step adds up.
    cfg.SOLVER.ACCUMULATE_STEPS = 1


def _add_pixel_decoder(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256  # channels of the per-pixel embeddings
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"  # a registered pixel decoder
    head.TRANSFORMER_ENC_LAYERS = 0  # encoder layers of TransformerEncoderPixelDecoder


def _add_mask_former(cfg: CfgNode) -> None:
    node = cfg.MODEL.MASK_FORMER = CN()
    # Losses
    node.CRITERION_NAME = "SetCriterion"  # a registered criterion
    node.LOSSES = ["labels", "masks"]  # registered set losses
    node.DEEP_SUPERVISION = True  # supervise every decoder layer
    node.NO_OBJECT_WEIGHT = 0.1  # weight of "no object" in the cross-entropy
    node.CLASS_WEIGHT = 1.0  # of the cross-entropy, and of the class in matching
    node.MASK_WEIGHT = 20.0  # of the mask term, in the losses and in matching
    node.DICE_WEIGHT = 1.0  # of the dice loss, and of dice in matching
    node.MASK_TERM = "focal"  # loss of a pixel: "focal" (MaskFormer) or "cross_entropy"
    # Mask losses and matching at so many points of an image; 0: at all pixels (published).
    node.TRAIN_NUM_POINTS = 0
    node.OVERSAMPLE_RATIO = 3.0  # random points that the losses choose theirs from, × their number
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of uncertain points in the losses'; others random
    # Outside the centres of the outermost cells a map continues ("border") or fades to 0 ("zeros").
    node.POINT_PADDING = "border"
    # A target at a point: the pixel it lies in ("nearest"), or interpolated ("bilinear").
    node.POINT_TARGETS = "nearest"
    # Leave pixels without a label and padding out of mask losses and matching. False: published.
    node.MASK_IGNORE = False
    node.MATCHER = CN()
    node.MATCHER.NAME = "HungarianMatcher"  # a registered matcher
    # A cost that is NaN or infinite: "raise" an error, or "sanitize": match with a high cost.
    node.MATCHER.ON_NONFINITE = "raise"
    # Transformer
    node.TRANSFORMER_DECODER_NAME = "TransformerPredictor"  # a registered transformer decoder
    # The map that the queries attend to: a backbone map, "transformer_encoder", "pixel_embedding"
    # or "multi_scale_pixel_decoder".
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.NUM_OBJECT_QUERIES = 100
    node.HIDDEN_DIM = 256  # channels
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048  # channels
    node.DROPOUT = 0.1  # probability
    node.ENC_LAYERS = 0  # encoder layers before the decoder
    node.DEC_LAYERS = 6
    node.PRE_NORM = False  # normalise the input of each block instead of its result
    node.ENFORCE_INPUT_PROJ = False  # project the map even where it has HIDDEN_DIM channels
    # Images are padded to a multiple of it (pixels). 0: to the batch's largest only; negative:
    # to the backbone's.
    node.SIZE_DIVISIBILITY = 32
    # Inference
    node.TEST = CN()
    node.TEST.SEMANTIC_ON = True
    node.TEST.PANOPTIC_ON = False
    node.TEST.INSTANCE_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # class probability a panoptic segment needs
    node.TEST.OVERLAP_THRESHOLD = 0.0  # share of its own mask a panoptic segment must win
    # Resize mask logits to the output size before the semantic result, not the result after it.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_finetuning(cfg: CfgNode) -> None:
    node = cfg.MODEL.MASK_FORMER
    # MODEL.WEIGHTS may be of other classes or another number of queries: the class layer keeps the
    # rows of classes of the same name and of "no object", queries are cut or repeated.
    node.FINETUNE = False
    # A registered dataset with the classes of MODEL.WEIGHTS, for a file that does not name them.
    node.FINETUNE_CLASSES_FROM = ""


def _add_acceleration(cfg: CfgNode) -> None:
    # torch.compile for the backbone and the head, anew for each input size; needs a C++ compiler.
    cfg.MODEL.COMPILE = False
    # Keep the inputs of the backbone's blocks alone and run them twice: less memory, more time.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    # Run the plain reference version of every kernel in mask_former/ops: slower, the same results.
    cfg.MODEL.REFERENCE_OPS = False
    # Write sem_seg_predictions.json and predictions.json. False: faster, the metrics alone.
    cfg.TEST.SAVE_PREDICTIONS = True
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False  # mixed precision in inference
    cfg.TEST.AMP.DTYPE = "bfloat16"  # or float16


def _add_sliding_window(cfg: CfgNode) -> None:
    # Semantic results of large images by overlapping windows, whose class scores are blended: less
    # memory, and objects of the size that the network was trained on.
    window = cfg.TEST.SLIDING_WINDOW = CN()
    # Side in pixels of the network's input (after INPUT.MIN_SIZE_TEST; 0 there: the image's own).
    # Images no larger than it are run whole. 0: all are.
    window.SIZE = 0
    window.STRIDE = 0  # pixels; 0: 2/3 of SIZE, rounded to a multiple of 32


def _add_training_comforts(cfg: CfgNode) -> None:
    # Shell patterns of names of parameters or modules, such as "backbone", that are not trained.
    cfg.MODEL.FREEZE = []
    # [[pattern, factor], …] on the learning rate, beside BACKBONE_MULTIPLIER; factors multiply.
    cfg.SOLVER.LR_MULTIPLIERS = []
    # An exponential moving average of the weights, evaluated and saved beside them.
    cfg.MODEL.EMA = CN()
    cfg.MODEL.EMA.ENABLED = False
    cfg.MODEL.EMA.DECAY = 0.999  # the average's share in the new one, each iteration
    cfg.MODEL.EMA.START_ITER = 0  # the iteration whose weights it begins with
    # The losses on DATASETS.TEST (val_…) each TEST.EVAL_PERIOD iterations and at the end.
    cfg.TEST.VAL_LOSS = False
    # A metric such as "sem_seg/mIoU": the model that was best in it stays in model_best.pth.
    cfg.TEST.BEST_METRIC = ""
    cfg.LOGGERS = ["json", "tensorboard"]  # and "wandb", where it is installed


def _add_swin(cfg: CfgNode) -> None:
    swin = cfg.MODEL.SWIN = CN()
    swin.PRETRAIN_IMG_SIZE = 224  # pixels; of the absolute position embedding
    swin.PATCH_SIZE = 4  # pixels
    swin.EMBED_DIM = 96  # channels of the first stage
    swin.DEPTHS = [2, 2, 6, 2]  # blocks a stage
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7  # patches
    swin.MLP_RATIO = 4.0
    swin.QKV_BIAS = True
    swin.QK_SCALE = None  # None: head width ** -0.5
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3  # stochastic depth
    swin.APE = False  # absolute position embedding
    swin.PATCH_NORM = True
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
