"""Download and convert the published datasets."""
