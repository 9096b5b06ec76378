"""Datasets, augmentation and dataset mappers. Importing this registers nothing."""
