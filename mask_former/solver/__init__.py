"""Optimizers, schedules and frozen parameters."""
