"""Batteries of tests for each kind of plug-in: a new one gets them with a three-line subclass."""
