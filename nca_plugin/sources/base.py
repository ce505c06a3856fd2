"""The contract of a source."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One training sequence of S inputs.

    Attributes:
        tokens: int32 [S + 1]; inputs are tokens[:-1], targets tokens[1:].
        loss_mask: bool [S]; whether target i counts. Set by position, never by token value.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


class Source(Protocol):
    """A pure function from an index to a sample: no state, no order of calls, no dependence on process or rank."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1."""

    @property
    def uri(self) -> str:
        """The complete identity of the source: `parse(uri)` gives an equal one."""

    def for_split(self, split: str) -> Self:
        """Return the stream of a split: train, valid or test. The same source, other random numbers."""

    def check_seq_length(self, seq_length: int) -> None:
        """Raise `NCAPluginError` if samples of `seq_length` inputs cannot be made."""

    def sample(self, index: int, seq_length: int) -> Sample:
        """Return sample `index`, 0 .. 2^63 - 1, with `seq_length` inputs."""
