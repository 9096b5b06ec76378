"""Evaluators, on detectron2's interface."""
