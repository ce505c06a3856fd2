"""Stages of training one after the other, each from what the one before it ended with."""
