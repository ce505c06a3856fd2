"""What a checkpoint was trained on: how it is described, where each stack stores that, how a resumed run compares it."""
