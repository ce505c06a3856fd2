"""Sources on disk, in the .bin and .idx that Megatron reads: written, joined, verified and read without Megatron."""
