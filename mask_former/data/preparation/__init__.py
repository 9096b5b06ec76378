"""Check and convert downloads of published datasets."""
