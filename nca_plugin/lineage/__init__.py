"""What a checkpoint was trained on: its description, where each stack stores that, how a resumed run compares it."""
