"""What a checkpoint has learned to do in context: predict frames of automata that it has never seen, and copy."""
