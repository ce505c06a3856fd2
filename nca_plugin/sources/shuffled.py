"""NCA tokens in random order, a control."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np

from nca_plugin.automata import rng
from nca_plugin.sources.base import Sample
from nca_plugin.sources.mixture import MixtureSource, nca_from_uri
from nca_plugin.sources.nca import NCASource
from nca_plugin.sources.uri import ParsedURI


@dataclass(frozen=True)
class ShuffledSource:
    """`shuffled://<preset>?<options>`: the tokens of each NCA sample in random order.

    This control keeps the token frequencies of each sequence and removes the rule that orders them. The loss mask is
    not shuffled.
    """

    source: NCASource | MixtureSource

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        return cls(nca_from_uri(parsed))

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    @property
    def frames(self) -> None:
        return None

    @property
    def uri(self) -> str:
        return "shuffled" + self.source.uri.removeprefix("nca")

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, source=self.source.for_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        self.source.check_seq_length(seq_length)

    def sample(self, index: int, seq_length: int) -> Sample:
        sample = self.source.sample(index, seq_length)
        key = rng.stream_key(self.source.seed, self.source.split, rng.PERMUTATION)
        order = np.argsort(rng.uniforms(key, index, 0, seq_length + 1), kind="stable")
        return Sample(sample.tokens[order], sample.loss_mask)
