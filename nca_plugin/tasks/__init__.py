"""Tasks of lm-eval: their data, answers that are sampled, scores, and the sandbox that runs programs."""
