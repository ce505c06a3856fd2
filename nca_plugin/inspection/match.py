"""Measures the gzip ratio of a text corpus, and proposes a band of an automaton's scores around it.

The paper defines complexity as the ratio compressed / raw of gzip at level 9. Of the bands that it tried (0.2-0.3,
0.3-0.4, 0.4-0.5 and above 0.5), 0.3-0.4 is best for code, and 0.5 and above for web text and mathematics. Its code
measures only automata, and no ratio of a text was found, nor on which bytes one would be measured. This project
measures text as UTF-8, in pieces as long as the scored part of a rollout, because a gzip ratio depends on the length
(Python's standard library without its tests: 0.62 in pieces of 256 bytes, 0.38 of 1,440, 0.25 of 32,768).
docs/study.md compares this with the ids of GPT-2, which would put mathematics nearest to the band of code.

The bytes of a text and the int32 tokens of an automaton remain different things, so a band is a starting point for a
study, not a result.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin import deflate
from nca_plugin.automata import NCAConfig, score_bounds
from nca_plugin.automata.complexity import SCORED_FRAMES, tokens_score
from nca_plugin.automata.config import Band
from nca_plugin.automata.generator import Rollout
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection.statistics import NUM_BATCHES, Measured, batch_interval, estimate_mean
from nca_plugin.inspection.text_pieces import Pieces, sample_pieces
from nca_plugin.sources.details import automaton
from nca_plugin.sources.registry import parse
from nca_plugin.sources.uri import join_uri, split_uri
from nca_plugin.text.prepare import Corpus

#: Presets of the paper's bands, and the domains for which the paper found them best.
DOMAINS: Final = {"code": "code", "web": "web text", "math": "mathematics"}

#: The width of the bands that the paper compares, except for the highest, which is open.
WIDTH: Final = 0.1
_MIN_PIECES: Final = 2 * NUM_BATCHES

# Number of scored rules. It falls, at most to the minimum, if a rollout computes more cells than the released one.
_NUM_RULES: Final = 2_000
_MIN_RULES: Final = 100
_RELEASED_WORK: Final = 144 * 19


@dataclass(frozen=True, eq=False, slots=True)
class Match:
    """The measurement of a corpus, and the proposed band."""

    pieces: Pieces
    ratios: NDArray[np.float64]
    """The gzip ratio of each piece, float64 [pieces]."""

    config: NCAConfig
    """The automata, without a band."""

    scores: NDArray[np.float64]
    """The gzip scores of random rules, float64 [rules]."""

    band: Band
    uri: str
    """The source with the proposed band."""

    @property
    def ratio(self) -> float:
        """The mean ratio of the corpus."""
        return float(self.ratios.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean ratio. Neighbouring pieces are alike, and often from the same document."""
        return batch_interval(self.ratios)

    @property
    def bands_of_interval(self) -> tuple[Band, Band]:
        """The bands that would be proposed if the ratio were at the lower or at the upper end of its interval."""
        low, high = (propose_band(end, self.config) for end in self.interval)
        return low, high

    def kept(self, band: Band) -> Measured:
        """Return the share of random rules, 0 to 1, whose scores are inside `band`."""
        return estimate_mean((band[0] < self.scores) & (self.scores < band[1]))

    @property
    def bounds(self) -> Band:
        """The lowest and the highest possible score of the alphabet, see `score_bounds`."""
        return score_bounds(self.config.num_colors, self.config.grid_size, self.config.patch_size)


def match(corpus: Corpus, source: str = "nca://web", start_stage: StartStage = silent_stage) -> Match:
    """Measure the gzip ratio of a corpus and propose a band of the automata's gzip scores.

    Args:
        corpus: the corpus. Its tokenizer is not used, because the text is measured as UTF-8.
        source: URI of the automata. Its band, if it has one, is replaced.

    Raises:
        NCAPluginError: if the source is not a single NCA, the corpus cannot be read or has fewer than 40 pieces of
            text, or the deflate library gives other sizes than zlib.
    """
    config = _config(source)
    # In pieces as long as the scored part of a rollout, gzip's header and repetitions have the same weight as there.
    size = 4 * SCORED_FRAMES * config.patches_per_frame
    pieces = sample_pieces(corpus, size, start_stage)
    if len(pieces.texts) < _MIN_PIECES:
        raise NCAPluginError(
            f"corpus {', '.join(corpus.inputs)} (files: {corpus.pattern}) is too small to measure: "
            f"{len(pieces.texts)} pieces of {size:,} bytes of text, at least {_MIN_PIECES} are needed"
        )
    ratios = np.array([deflate.gzip_size(text) / size for text in pieces.texts])
    scores = rule_scores(config, start_stage)
    band = propose_band(float(ratios.mean()), config)
    return Match(pieces, ratios, config, scores, band, _with_band(source, band))


def propose_band(ratio: float, config: NCAConfig) -> Band:
    """Return the band around a gzip ratio, rounded to two decimals.

    It is 0.1 wide, as in the paper (0.2-0.3, 0.3-0.4, 0.4-0.5), and moved or cut to lie between the lowest and the
    highest possible score of the alphabet.
    """
    floor, ceiling = score_bounds(config.num_colors, config.grid_size, config.patch_size)
    low = max(floor, min(ratio - WIDTH / 2, ceiling - WIDTH))
    return round(low, 2), round(min(low + WIDTH, ceiling), 2)


def rule_scores(config: NCAConfig, start_stage: StartStage = silent_stage) -> NDArray[np.float64]:
    """Return the gzip scores of random rules, the first candidates of a source's first samples, float64 [rules].

    There are 2,000 rules, or fewer, at least 100, for larger grids or longer rollouts.
    """
    config = dataclasses.replace(config, band=None, curriculum=None)
    work = config.grid_size**2 * (config.burn_in + (SCORED_FRAMES - 1) * config.steps_per_frame)
    scores = np.empty(max(_MIN_RULES, min(_NUM_RULES, _NUM_RULES * _RELEASED_WORK // work)))
    advance = start_stage("scoring rules", len(scores))
    tokens = np.empty((SCORED_FRAMES, config.frame_length), np.int32)
    for index in range(len(scores)):
        Rollout(config, "train", index, 0, index, 0).write_tokens(tokens)
        scores[index] = tokens_score(tokens)
        advance(1)
    return scores


def nearest_domains(ratio: float) -> tuple[Band, tuple[str, ...], float]:
    """Return the paper's band that is nearest to a ratio, its presets, and the distance, which is 0 inside the band."""
    presets: dict[Band, list[str]] = {}
    for name in DOMAINS:
        band = NCAConfig.preset(name).band
        assert band is not None
        presets.setdefault(band, []).append(name)
    nearest = min(presets, key=lambda band: _distance(ratio, band))
    return nearest, tuple(presets[nearest]), _distance(ratio, nearest)


def _distance(ratio: float, band: Band) -> float:
    return max(band[0] - ratio, ratio - band[1], 0.0)


def _config(uri: str) -> NCAConfig:
    # The band will be replaced. It is removed first, because the alphabet may not reach the preset's band.
    source = parse(_with_band(uri, None) if split_uri(uri).scheme == "nca" else uri)
    config = automaton(source)
    if config is None:
        raise NCAPluginError(f"source '{uri}': a band belongs to one NCA preset: name one, such as nca://web")
    return config


def _with_band(uri: str, band: Band | None) -> str:
    parsed = split_uri(uri)
    options = {name: value for name, value in parsed.options.items() if name not in ("band", "curriculum")}
    return join_uri(parsed.scheme, parsed.preset or "web", {**options, "band": band})
