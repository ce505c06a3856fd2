"""A chain: stages of training in order, each of which starts from the last checkpoint of the stage before it."""
