"""Evaluators with detectron2's interface."""
