"""The model and its plug-ins. Which module holds what is in the file names; see ``registration``."""
