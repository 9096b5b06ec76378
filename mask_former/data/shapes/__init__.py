"""The built-in dataset, drawn on first use: ``scene`` draws, ``writer`` writes the files."""
