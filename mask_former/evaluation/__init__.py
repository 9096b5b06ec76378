"""Evaluators of semantic, panoptic and instance results, with detectron2's interface."""
