"""NVIDIA NeMo's configurations, as arguments of Megatron-LM."""
