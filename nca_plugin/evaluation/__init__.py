"""Several checkpoints evaluated side by side on the same tasks and texts: `nca-plugin eval`."""
