"""The settings of inference, read from a config."""

from __future__ import annotations

from detectron2.config import CfgNode

from mask_former.inference import InferenceSettings
from mask_former.utils.precision import amp_dtype

__all__ = ["inference_settings"]


def inference_settings(cfg: CfgNode) -> InferenceSettings:
    """Read the kinds of results and their settings from a config."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceSettings(
        semantic_on=test.SEMANTIC_ON,
        panoptic_on=test.PANOPTIC_ON,
        instance_on=test.INSTANCE_ON,
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        segment_within_mask=test.SEGMENT_WITHIN_MASK,
        topk=cfg.TEST.DETECTIONS_PER_IMAGE,
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        dtype=amp_dtype(cfg.TEST.AMP, "TEST.AMP"),
        window_size=cfg.TEST.SLIDING_WINDOW.SIZE,
        window_stride=cfg.TEST.SLIDING_WINDOW.STRIDE,
        window_mode=cfg.TEST.SLIDING_WINDOW.MODE,
    )
