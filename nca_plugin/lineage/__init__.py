"""What a checkpoint was trained on: the words for it, where each stack stores them, how a resumed run compares them."""
