"""Nested brackets, the formal-language control (k-Dyck, as in Hu et al. 2025, arXiv 2502.19249)."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit

from nca_plugin.automata import rng
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources.base import Sample
from nca_plugin.sources.split import checked_split, split_option
from nca_plugin.sources.uri import ParsedURI, join_uri, parse_options


@dataclass(frozen=True, kw_only=True, slots=True)
class DyckConfig:
    """What a bracket sequence is drawn from. Raises `NCAPluginError` if a value is out of range."""

    seed: int = 1234
    """Seed of every random number, 0 .. 2^63 - 1."""

    k: int = 64
    """Kinds of brackets, >= 1 (Hu et al.: 64)."""

    p: float = 0.5
    """Probability of opening a bracket where both are possible, 0 < p < 1 (Hu et al.: 0.5)."""

    max_depth: int = 16
    """Deepest nesting, >= 1 (Hu et al.: 16)."""

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.seed < 1 << 63, "seed", "must lie in 0 .. 2^63 - 1"),
            (1 <= self.k <= 1 << 20, "k", "must lie in 1 .. 2^20"),
            (0 < self.p < 1, "p", "must lie between 0 and 1"),
            (self.max_depth >= 1, "max_depth", "must be at least 1"),
        )
        for is_right, name, rule in checks:
            if not is_right:
                raise NCAPluginError(f"dyck option {name}={getattr(self, name)}: {rule}")


@dataclass(frozen=True)
class DyckSource:
    """`dyck://?k=64&p=0.5&max_depth=16`: well-nested brackets of k kinds.

    Ids 0 .. k-1 open, k .. 2k-1 close. A sequence starts at depth 0 and may end inside open brackets. Every target
    counts; the closing ones are the predictable half.
    """

    config: DyckConfig
    split: str = "train"

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        if parsed.preset:
            raise NCAPluginError(f"source dyck://{parsed.preset}: dyck has no presets; write dyck://?k=64")
        options = dict(parsed.options)
        split = checked_split(options.pop("split", "train"))
        return cls(DyckConfig(**parse_options(DyckConfig, options, "source dyck://")), split)

    @property
    def vocab_size(self) -> int:
        return 2 * self.config.k

    @property
    def uri(self) -> str:
        return join_uri("dyck", "", dataclasses.asdict(self.config) | split_option(self.split))

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, split=checked_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        if seq_length < 1:
            raise NCAPluginError(f"sequence length {seq_length}: must be at least 1")

    def sample(self, index: int, seq_length: int) -> Sample:
        config = self.config
        key = rng.stream_key(config.seed, self.split, rng.BRACKETS)
        u = rng.uniforms(key, np.uint64(index), np.uint64(0), 2 * (seq_length + 1))
        tokens = _brackets(u, config.k, config.p, config.max_depth)
        return Sample(tokens, np.ones(seq_length, np.bool_))


@njit(cache=True, nogil=True, error_model="numpy")
def _brackets(u: np.ndarray, k: int, p: float, max_depth: int) -> np.ndarray:
    """Return the walk of `u`, float64 [2 * length]: one of a pair opens or closes, one is the kind."""
    tokens = np.empty(u.size // 2, np.int32)
    stack = np.empty(max_depth, np.int32)
    depth = 0
    for i in range(tokens.size):
        if depth == 0 or (depth < max_depth and u[2 * i] < p):
            kind = int(u[2 * i + 1] * k)
            stack[depth] = kind
            depth += 1
            tokens[i] = kind
        else:
            depth -= 1
            tokens[i] = k + stack[depth]
    return tokens
