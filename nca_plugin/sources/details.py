"""Optional attributes of sources, beyond the `Source` interface, for code that inspects samples.

Each function returns a default for a source without the attribute of its name.
"""

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import NCAConfig
from nca_plugin.automata.config import Band
from nca_plugin.sources.base import Source


def generators(source: Source) -> tuple[Source, ...]:
    """Return the sources that samples are taken from, at the same index: a mixture's presets, or the source itself.

    With an offset, these are the sources below it: the samples differ only in their ids.
    """
    own: tuple[Source, ...] = getattr(source, "generators", (source,))
    return own


def generator_of(source: Source, index: int) -> Source:
    """Return the source among `generators` that sample `index` comes from."""
    choose = getattr(source, "generator_of", None)
    return source if choose is None else choose(index)


def automaton(source: Source) -> NCAConfig | None:
    """Return the configuration of the automata whose rollouts the samples are; None for other or several sources."""
    only, *others = generators(source)
    return None if others else getattr(only, "automaton", None)


def band(source: Source, index: int) -> Band | None:
    """Return the band of gzip scores for sample `index`; None if every rule is accepted."""
    choose = getattr(generator_of(source, index), "band", None)
    chosen: Band | None = None if choose is None else choose(index)
    return chosen


def num_brackets(source: Source) -> int | None:
    """Return k if id i opens a bracket and id k + i closes it, for i in 0 .. k - 1; None for other sources."""
    return getattr(source, "num_brackets", None)


def oracle_losses(source: Source, index: int, seq_length: int) -> NDArray[np.float64] | None:
    """Return the loss in nats of each target of sample `index` for a predictor that knows the law of the source and
    all tokens before, float64 [seq_length]; None for a source that does not say. No model's expected loss is lower,
    unless it remembers samples."""
    losses = getattr(source, "oracle_losses", None)
    return None if losses is None else losses(index, seq_length)


def likely_successors(source: Source, index: int, frames: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return what one who knows the rule of sample `index` predicts for the frame after each of `frames`; None for a
    source that does not say.

    Args:
        frames: uint8 [num_frames, height, width], as `FrameLayout.frames` returns them.
    """
    successors = getattr(generator_of(source, index), "likely_successors", None)
    return None if successors is None else successors(index, frames)


def described(source: Source, index: int) -> str:
    """Return a short text about sample `index`, such as its rule; empty if there is nothing to say."""
    describe = getattr(source, "described", None)
    return "" if describe is None else str(describe(index))
