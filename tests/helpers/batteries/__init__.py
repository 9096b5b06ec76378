"""Batteries of tests for each kind of plug-in: a three-line subclass applies them to a new one."""
