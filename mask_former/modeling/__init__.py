"""The model and its plug-ins, one per file; :mod:`mask_former.registries` discovers them."""

from .deep_supervision import all_predictions, last_prediction

__all__ = ["all_predictions", "last_prediction"]
