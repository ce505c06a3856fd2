"""What a source may tell beside its contract, for those who look at its samples; a source without the attribute of a
function's name, which has to be told nothing, has the usual answer."""

from nca_plugin.automata import NCAConfig
from nca_plugin.automata.config import Band
from nca_plugin.sources.base import Source


def generators(source: Source) -> tuple[Source, ...]:
    """Return what a source takes its samples from, each at the same index: itself, or the presets of a mixture.

    Samples of a source with an offset are those of the source below it, with other ids.
    """
    own: tuple[Source, ...] = getattr(source, "generators", (source,))
    return own


def generator_of(source: Source, index: int) -> Source:
    """Return the one of `generators` that sample `index` comes from."""
    choose = getattr(source, "generator_of", None)
    return source if choose is None else choose(index)


def automaton(source: Source) -> NCAConfig | None:
    """Return the automata whose rollouts the samples are; None for samples of another kind, or of several presets."""
    only, *others = generators(source)
    return None if others else getattr(only, "automaton", None)


def band(source: Source, index: int) -> Band | None:
    """Return the band of gzip scores that chose sample `index`; None where every rule was accepted."""
    choose = getattr(generator_of(source, index), "band", None)
    chosen: Band | None = None if choose is None else choose(index)
    return chosen


def num_brackets(source: Source) -> int | None:
    """Return k where id i opens a bracket and id k + i closes it, for i in 0 .. k - 1; None for other tokens."""
    return getattr(source, "num_brackets", None)


def described(source: Source, index: int) -> str:
    """Return what sample `index` is, such as its rule, for people; empty if there is nothing to say."""
    describe = getattr(source, "described", None)
    return "" if describe is None else str(describe(index))
