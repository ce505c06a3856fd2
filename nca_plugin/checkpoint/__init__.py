"""Checkpoint formats and save folders: read without PyTorch, and written."""
