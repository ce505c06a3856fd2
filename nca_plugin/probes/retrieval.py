"""Retrieval: whether a model finds again, at a distance, a piece of text that it has read. It needs only numpy.

A sequence is a segment of held-out text, a filler of other text, and the same segment again. A model that looks up what
it has read predicts the second occurrence better than the first.

The first eighth of a segment does not count, in neither occurrence: until then little tells that it has begun again.
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
            NCAPluginError: the sequences or the text are too short for a segment.
        """
        segment = min(_LONGEST_SEGMENT, seq_length // 4) // _MULTIPLE * _MULTIPLE
        if not segment:
            raise NCAPluginError(f"retrieval needs sequences of at least {LEAST_SEQ_LENGTH} tokens, not {seq_length}")
        longest = min(seq_length - 2 * segment, num_tokens - segment)
        if longest < 0:
            raise NCAPluginError(f"retrieval needs a text of at least {segment} tokens, not {num_tokens}")
        distances, distance = [0], _SHORTEST_DISTANCE
        while distance <= longest:
            distances.append(distance)
            distance *= _DISTANCE_FACTOR
        return cls(segment, segment // 8, tuple(distances))

    def occurrences(self, values: NDArray[np.float32], distance: int) -> tuple[float, float]:
        """Return the means of the targets that count, in the first and in the second occurrence.

        Args:
            values: [sequences, 2 n + distance], a value for each target; target i is token i + 1.
        """
        first = values[:, self.skipped - 1 : self.segment - 1]
        start = self.segment + distance
        second = values[:, start + self.skipped - 1 : start + self.segment - 1]
        return float(first.mean(dtype=np.float64)), float(second.mean(dtype=np.float64))


def retrieval_sequences(
    read: Callable[[int, int], NDArray[np.int32]],
    num_tokens: int,
    layout: RetrievalLayout,
    num_sequences: int,
    generator: np.random.Generator,
) -> list[NDArray[np.int32]]:
    """Return the sequences of each distance, int32 [num_sequences, 2 n + d + 1].

    Sequence i has the same segment at all distances, and shorter fillers begin as the longest does. A filler begins at
    a random place of the text, goes on at the start if the text ends, and shares no token with the segment.

    Args:
        read: returns the tokens from a given one on, int32 [count].
        num_tokens: number of tokens of the text; the layout must be one of a text of this length.
    """
    segment, longest = layout.segment, layout.distances[-1]
    rows: list[list[NDArray[np.int32]]] = [[] for _ in layout.distances]
    for _ in range(num_sequences):
        start = int(generator.integers(num_tokens - segment + 1))
        words = read(start, segment)
        gap = int(generator.integers(num_tokens - segment - longest + 1))
        filler_start = (start + segment + gap) % num_tokens
        until_end = min(longest, num_tokens - filler_start)
        filler = np.concatenate([read(filler_start, until_end), read(0, longest - until_end)])
        for of_distance, distance in zip(rows, layout.distances, strict=True):
            of_distance.append(np.concatenate([words, filler[:distance], words, words[:1]]))
    return [np.stack(of_distance) for of_distance in rows]
