"""The base of sources of plain token sequences: configuration, split, and random numbers by index."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.errors import Check, NCAPluginError, check_index, check_options
from nca_plugin.sources.base import FrameLayout, Sample
from nca_plugin.sources.split import checked_split, split_option
from nca_plugin.sources.uri import ParsedURI, join_uri, parse_options


@dataclass(frozen=True, kw_only=True, slots=True)
class FormalConfig:
    """The options that all these sources have. Raises `NCAPluginError` if a value is out of range."""

    seed: int = 1234
    """Seed of every random number, 0 .. 2^63 - 1."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        check_options(self.kind, self, (0 <= self.seed < 1 << 63, "seed", "must lie in 0 .. 2^63 - 1"), *self._checks())

    def _checks(self) -> tuple[Check, ...]:
        """Return the checks of the subclass's own options."""
        return ()


@dataclass(frozen=True)
class FormalSource(ABC):
    """A source whose samples depend only on its configuration and the random numbers of (split, index).

    A subclass sets its scheme, the class of its configuration, and the purpose of its random numbers.
    """

    config: Any
    split: str = "train"

    scheme: ClassVar[str]
    config_class: ClassVar[type[FormalConfig]]
    purpose: ClassVar[int]

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        context = f"source {parsed.scheme}://"
        if parsed.preset:
            raise NCAPluginError(f"{context}{parsed.preset}: {parsed.scheme} has no presets; write {context}?seed=1")
        options = dict(parsed.options)
        split = checked_split(options.pop("split", "train"))
        return cls(cls.config_class(**parse_options(cls.config_class, options, context)), split)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1."""

    @property
    def frames(self) -> FrameLayout | None:
        return None

    @property
    def uri(self) -> str:
        return join_uri(self.scheme, "", dataclasses.asdict(self.config) | split_option(self.split))

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, split=checked_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        if seq_length < 1:
            raise NCAPluginError(f"sequence length {seq_length}: must be at least 1")

    def sample(self, index: int, seq_length: int) -> Sample:
        self.check_seq_length(seq_length)
        check_index(index)
        return Sample(self._tokens(index, seq_length + 1), self._loss_mask(seq_length))

    @abstractmethod
    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        """Return the first `length` tokens of sample `index`."""

    def _loss_mask(self, seq_length: int) -> NDArray[np.bool_]:
        return np.ones(seq_length, np.bool_)

    def _uniforms(self, index: int, count: int, stream: int = 0) -> NDArray[np.float64]:
        """Return `count` random numbers in (0, 1) for sample `index`; a sample may have several streams."""
        key = rng.stream_key(self.config.seed, self.split, self.purpose)
        uniforms: NDArray[np.float64] = rng.uniforms(key, index, stream, count)
        return uniforms
