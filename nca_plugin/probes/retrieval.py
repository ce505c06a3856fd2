"""Retrieval: whether a model finds again, at a distance, a piece of text that it has read. It needs only numpy.

A sequence is a segment of held-out text, a filler of other text, and the same segment again. Its control begins with
another segment of the text and is equal otherwise. A model that looks up what it has read predicts the last segment of
the sequence better than that of the control.

The first eighth of the last segment does not count: until then little tells that it has begun again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError

#: The longest segment in tokens. It is long enough to be recognised, and leaves room for a filler.
_LONGEST_SEGMENT: Final = 64
#: Transformer Engine's FP8 and sequence parallelism need sequence lengths that are multiples of this.
_MULTIPLE: Final = 8
#: The shortest sequences that have room for a segment, its repetition and a filler.
LEAST_SEQ_LENGTH: Final = 4 * _MULTIPLE
_SHORTEST_DISTANCE: Final = 32
_DISTANCE_FACTOR: Final = 4


@dataclass(frozen=True, slots=True)
class RetrievalLayout:
    """The lengths of the parts of a sequence in tokens.

    Attributes:
        segment: length of a segment, n.
        skipped: number of tokens at its beginning that do not count.
        distances: lengths d of the filler: 0, 32, 128, 512, ... A sequence has 2 n + d + 1 tokens, so that the number
            of inputs is a multiple of 8. The last token does not count.
    """

    segment: int
    skipped: int
    distances: tuple[int, ...]

    @classmethod
    def of(cls, seq_length: int, num_tokens: int) -> Self:
        """Return the layout for a run's sequence length and a text of `num_tokens` tokens.

        Raises:
            NCAPluginError: the sequences or the text are too short for two segments.
        """
        segment = min(_LONGEST_SEGMENT, seq_length // 4) // _MULTIPLE * _MULTIPLE
        if not segment:
            raise NCAPluginError(f"retrieval needs sequences of at least {LEAST_SEQ_LENGTH} tokens, not {seq_length}")
        longest = min(seq_length, num_tokens) - 2 * segment
        if longest < 0:
            raise NCAPluginError(f"retrieval needs a text of at least {2 * segment} tokens, not {num_tokens}")
        distances, distance = [0], _SHORTEST_DISTANCE
        while distance <= longest:
            distances.append(distance)
            distance *= _DISTANCE_FACTOR
        return cls(segment, segment // 8, tuple(distances))

    def last_segment(self, values: NDArray[np.float32]) -> float:
        """Return the mean of the targets that count, all but the first ones of the last segment.

        Args:
            values: [sequences, 2 n + d], a value for each target; target i is token i + 1.
        """
        return float(values[:, self.skipped - self.segment - 1 : -1].mean(dtype=np.float64))


@dataclass(frozen=True, eq=False, slots=True)
class RetrievalSequences:
    """The sequences of one distance, and their controls, int32 [sequences, 2 n + d + 1] each."""

    repeated: NDArray[np.int32]
    control: NDArray[np.int32]


def retrieval_sequences(
    read: Callable[[int, int], NDArray[np.int32]],
    num_tokens: int,
    layout: RetrievalLayout,
    num_sequences: int,
    generator: np.random.Generator,
) -> list[RetrievalSequences]:
    """Return the sequences of each distance.

    Sequence i has the same segments at all distances, and shorter fillers begin as the longest does. The longest filler
    and the first segment of the control are one piece of the text, which begins at a random place, goes on at the start
    if the text ends, and shares no token with the segment.

    Args:
        read: returns the tokens from a given one on, int32 [count].
        num_tokens: number of tokens of the text; the layout must be one of a text of this length.
    """
    segment, longest = layout.segment, layout.distances[-1]
    length = longest + segment
    rows: list[list[list[NDArray[np.int32]]]] = [[[], []] for _ in layout.distances]
    for _ in range(num_sequences):
        start = int(generator.integers(num_tokens - segment + 1))
        words = read(start, segment)
        gap = int(generator.integers(num_tokens - segment - length + 1))
        other_start = (start + segment + gap) % num_tokens
        until_end = min(length, num_tokens - other_start)
        other = np.concatenate([read(other_start, until_end), read(0, length - until_end)])
        for of_distance, distance in zip(rows, layout.distances, strict=True):
            for of_kind, first in zip(of_distance, (words, other[longest:]), strict=True):
                of_kind.append(np.concatenate([first, other[:distance], words, words[:1]]))
    return [RetrievalSequences(np.stack(repeated), np.stack(control)) for repeated, control in rows]
