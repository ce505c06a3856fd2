"""Llama checkpoints as Hugging Face folders, and back."""
