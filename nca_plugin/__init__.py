"""Neural cellular automata as pre-pre-training data for Megatron-style language-model training."""
