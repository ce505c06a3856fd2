"""Converts Llama checkpoints to Hugging Face folders and back."""
