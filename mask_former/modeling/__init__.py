"""The model and its plug-ins, one file each; :mod:`mask_former.registries` finds them."""

from .deep_supervision import all_predictions

__all__ = ["all_predictions"]
