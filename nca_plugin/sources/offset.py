"""A source whose ids are shifted past those of another vocabulary."""

import dataclasses
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources.base import FrameLayout, Sample, Source
from nca_plugin.sources.details import described, generator_of, generators, oracle_losses
from nca_plugin.sources.uri import VOCAB_OFFSET, ParsedURI
from nca_plugin.typed_numbers import number

_MAX_VOCAB_SIZE: Final = 1 << 31


@dataclass(frozen=True)
class OffsetSource:
    """`<source>?vocab_offset=50257`: the offset is added to every id, so that ids differ from those of the text that
    the source is blended with. Ids below the offset do not occur."""

    source: Source
    offset: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.vocab_size > _MAX_VOCAB_SIZE:
            raise NCAPluginError(
                f"{VOCAB_OFFSET}={self.offset}: must be at least 0, and the largest id, {self.vocab_size - 1}, below "
                "2^31"
            )

    @property
    def vocab_size(self) -> int:
        return self.offset + self.source.vocab_size

    @property
    def frames(self) -> FrameLayout | None:
        layout = self.source.frames
        return layout and layout.shifted(self.offset)

    @property
    def generators(self) -> tuple[Source, ...]:
        return generators(self.source)

    def generator_of(self, index: int) -> Source:
        return generator_of(self.source, index)

    def oracle_losses(self, index: int, seq_length: int) -> NDArray[np.float64] | None:
        return oracle_losses(self.source, index, seq_length)

    def described(self, index: int) -> str:
        return described(self.source, index)

    @property
    def uri(self) -> str:
        uri = self.source.uri
        return f"{uri}{'&' if '?' in uri else '?'}{VOCAB_OFFSET}={self.offset}"

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, source=self.source.for_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        self.source.check_seq_length(seq_length)

    def sample(self, index: int, seq_length: int) -> Sample:
        sample = self.source.sample(index, seq_length)
        return Sample(sample.tokens + np.int32(self.offset), sample.loss_mask)


def split_offset(parsed: ParsedURI) -> tuple[ParsedURI, int]:
    """Return the URI without its offset, and the offset (default: 0). Raises `NCAPluginError` if it is not a number."""
    text = parsed.options.get(VOCAB_OFFSET, "0")
    try:
        offset = number(int, text)
    except ValueError:
        raise NCAPluginError(
            f"source {parsed.scheme}://{parsed.preset}: option {VOCAB_OFFSET}='{text}' must be a whole number"
        ) from None
    options = {name: value for name, value in parsed.options.items() if name != VOCAB_OFFSET}
    return dataclasses.replace(parsed, options=options), offset
