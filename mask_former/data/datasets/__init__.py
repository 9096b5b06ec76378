"""Dataset tables, the catalog, loaders and custom datasets."""
