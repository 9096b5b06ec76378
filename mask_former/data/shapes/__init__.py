"""The built-in dataset of shapes: ``scene`` draws its images, ``writer`` writes the files."""
