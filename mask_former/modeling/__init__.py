"""The model and its plug-ins, one file each; :mod:`mask_former.registries` finds them."""
