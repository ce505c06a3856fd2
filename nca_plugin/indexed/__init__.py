"""Datasets that `nca-plugin generate` writes: Megatron's .bin and .idx, written, merged, verified and read."""
