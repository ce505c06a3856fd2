"""Entry points that torchrun starts."""
