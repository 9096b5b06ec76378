"""Readers and writers of image and annotation files."""
