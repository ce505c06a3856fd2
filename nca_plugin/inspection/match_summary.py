"""Describes a match in words."""

from typing import Final

import numpy as np

from nca_plugin.automata.complexity import SCORED_FRAMES
from nca_plugin.automata.config import Band
from nca_plugin.inspection.match import DOMAINS, WIDTH, Match, nearest_domains
from nca_plugin.inspection.statistics import NUM_BATCHES

_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
# If a band keeps a smaller share, finding a rule takes more than five times as long as with `code`, the slowest preset.
_FEW: Final = 0.02
# With fewer pieces, each of the parts that the interval rests on is the mean of less than ten.
_FEW_PIECES: Final = 10 * NUM_BATCHES


def match_summary(match: Match) -> str:
    """Return lines with the measured ratio, the proposed band, and warnings."""
    return "\n".join([*_corpus_lines(match), "", *_band_lines(match), *_warnings(match), "", *_caveats(match)])


def _corpus_lines(match: Match) -> list[str]:
    pieces, (low, high) = match.pieces, match.interval
    part = "the first " if pieces.is_beginning else ""
    quantiles = np.quantile(match.ratios, _QUANTILES)
    return [
        f"Gzip ratio of the text (compressed / raw, level 9, UTF-8): {len(pieces.texts):,} pieces of {pieces.size:,} "
        f"bytes, spread evenly over {part}{pieces.covered / 1e6:,.1f} MB of input",
        f"  mean {match.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}; "
        f"standard deviation of the pieces {match.ratios.std(ddof=1):.3f}",
        "  quantiles "
        + ", ".join(f"{q * 100:.0f} % {value:.3f}" for q, value in zip(_QUANTILES, quantiles, strict=True)),
    ]


def _band_lines(match: Match) -> list[str]:
    band, presets, distance = nearest_domains(match.ratio)
    domains = " and ".join(DOMAINS[name] for name in presets)
    where = "the mean lies in it" if not distance else f"{distance:.3f} away"
    uris = ", ".join(f"nca://{name}" for name in presets)
    low, high = map(_text, match.bands_of_interval)
    inside = np.mean((match.band[0] < match.ratios) & (match.ratios < match.band[1]))
    return [
        f"Band around the mean, as wide as the paper's: {_text(match.band)} {_kept(match, match.band)}",
        f"  {match.uri}",
        f"  from {low} to {high} at the ends of the interval; {inside * 100:.0f} % of the pieces lie in it",
        f"Nearest of the paper's bands: {_text(band)} for {domains} ({where}) {_kept(match, band)}",
        f"  {uris}",
    ]


def _warnings(match: Match) -> list[str]:
    lines = []
    count = len(match.pieces.texts)
    if count < _FEW_PIECES:
        lines.append(f"Warning: {count} pieces are few to tell how far their mean can be trusted: give more text.")
    low, high = match.interval
    if high - low >= WIDTH:
        lines.append(
            f"Warning: the interval is {high - low:.2f} wide, no less than a band, so that this text does not choose a "
            "band: give more text, or text of one kind."
        )
    elif nearest_domains(low)[0] != nearest_domains(high)[0]:
        lines.append("Warning: which of the paper's bands is nearest differs at the ends of the interval.")
    floor, ceiling = match.bounds
    ratio, share = match.ratio, match.kept(match.band).value
    if not floor <= ratio <= ceiling:
        far, cure = ("above", "more colours reach higher") if ratio > ceiling else ("below", "no automaton is lower")
        lines.append(
            f"Warning: the ratio is {far} what automata of {match.config.num_colors} colours reach, "
            f"{floor:.3f} to {ceiling:.3f}; {cure}."
        )
    if share < _FEW:
        tried = f"about {1 / share:,.0f} candidates for every sample" if share else "a search that may find none"
        lines.append(f"Warning: few rules are inside the band, which means {tried}: widen it.")
    return lines


def _caveats(match: Match) -> list[str]:
    tokens = SCORED_FRAMES * match.config.patches_per_frame
    return [
        f"A gzip ratio depends on the length: the pieces are as long as the {tokens:,} int32 tokens that are scored of "
        "a rollout. Text and tokens are different things all the same, and on which bytes the paper measured its "
        "corpora is not documented: take the band for where to start a study from."
    ]


def _text(band: Band) -> str:
    return f"{band[0]:g}:{band[1]:g}"


def _kept(match: Match, band: Band) -> str:
    share = match.kept(band)
    return (
        f"keeps {share.value * 100:.1f} % of {len(match.scores):,} random rules (+- {share.standard_error * 100:.1f})"
    )
