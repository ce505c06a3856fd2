"""A token source from a package of its own: arithmetic progressions modulo a number."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import ParsedURI, Sample, checked_split, join_uri, parse_options


@dataclass(frozen=True, kw_only=True)
class ProgressionConfig:
    """What a progression is drawn from. Raises `NCAPluginError` if a value is out of range."""

    seed: int = 1234
    """Seed of every random number, >= 0."""

    modulus: int = 97
    """Tokens are 0 .. modulus - 1, 2 .. 2^20."""

    def __post_init__(self) -> None:
        if self.seed < 0 or not 2 <= self.modulus <= 1 << 20:
            raise NCAPluginError(
                f"progression seed={self.seed}, modulus={self.modulus}: seed must be at least 0, modulus in 2 .. 2^20"
            )


@dataclass(frozen=True)
class ProgressionSource:
    """`progression://?modulus=97`: token t is (start + t * step) modulo `modulus`; start and step are the hidden rule.

    The first two tokens tell both, so they are not targets.
    """

    config: ProgressionConfig
    split: str = "train"

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        options = dict(parsed.options)
        split = checked_split(options.pop("split", "train"))
        return cls(ProgressionConfig(**parse_options(ProgressionConfig, options, "source progression://")), split)

    @property
    def vocab_size(self) -> int:
        return self.config.modulus

    @property
    def frames(self) -> None:
        """Tokens of a progression are no frames of cells."""
        return None

    @property
    def uri(self) -> str:
        return join_uri("progression", "", dataclasses.asdict(self.config) | {"split": self.split})

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, split=checked_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        if seq_length < 2:
            raise NCAPluginError(f"sequence length {seq_length}: must be at least 2, to have a target")

    def sample(self, index: int, seq_length: int) -> Sample:
        # Seeded by all that names the sample, so that any process can make it, in any order.
        names = (self.config.seed, index, ("train", "valid", "test").index(self.split))
        start, step = np.random.default_rng(names).integers(self.config.modulus, size=2)
        tokens = (start + np.arange(seq_length + 1) * step) % self.config.modulus
        return Sample(tokens.astype(np.int32), np.arange(1, seq_length + 1) >= 2)
