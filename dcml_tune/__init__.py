"""Finds the best divide-and-conquer deep metric learning recipe for an image retrieval data set."""

# The one place of the version: pyproject.toml reads it from here, and so does every `--version`.
__version__ = "0.1.0"
