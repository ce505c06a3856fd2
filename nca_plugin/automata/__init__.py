"""The generator: random neural cellular automata, their rollouts as tokens, and their complexity.

Source: "Training Language Models via Neural Cellular Automata" (arXiv 2603.10055) and its released code. These are pure
functions on numpy arrays with numba kernels; they import neither torch nor Megatron.

>>> from nca_plugin.automata import NCAConfig, generate
>>> tokens, loss_mask = generate(NCAConfig.preset("web"), index=0, seq_length=1024)
>>> tokens.shape, int(loss_mask.sum())
((1025,), 987)
"""

from nca_plugin.arithmetic import SPLITS
from nca_plugin.automata.complexity import gzip_score, score_bounds
from nca_plugin.automata.config import PRESETS, CurriculumStep, NCAConfig
from nca_plugin.automata.generator import generate
from nca_plugin.automata.rule import Rule, random_rule
from nca_plugin.automata.tokens import decode, encode

__all__ = [
    "PRESETS",
    "SPLITS",
    "CurriculumStep",
    "NCAConfig",
    "Rule",
    "decode",
    "encode",
    "generate",
    "gzip_score",
    "random_rule",
    "score_bounds",
]
