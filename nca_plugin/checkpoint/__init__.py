"""Reads and writes checkpoint formats and save folders, without PyTorch."""
