"""NeMo 1 configurations, as arguments of Megatron-LM."""
