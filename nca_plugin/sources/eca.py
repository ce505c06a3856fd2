"""Elementary cellular automata: one dimension, two colours, 256 rules."""

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.automata.loss_mask import check_two_frames, loss_mask
from nca_plugin.compiled import compiled
from nca_plugin.errors import Check
from nca_plugin.sources.base import FrameLayout
from nca_plugin.sources.formal import FormalConfig, FormalSource

# Wolfram's classes of the 88 rules that remain if reflections and exchanged colours are identified (Wolfram, "A New
# Kind of Science", 2002; table in Martinez, "A note on elementary cellular automata classification", J. Cellular
# Automata 8, 2013, arXiv 1306.5577). All other rules are in class 2.
_CLASSES: Final = {
    1: (0, 8, 32, 40, 128, 136, 160, 168),
    3: (18, 22, 30, 45, 60, 90, 105, 122, 126, 146, 150),
    4: (41, 54, 106, 110),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ECAConfig(FormalConfig):
    """The options of `eca://`."""

    kind = "eca"

    rule: int | None = None
    """Wolfram's number of the rule, 0 .. 255: bit 4 left + 2 self + right is the next state. None draws a rule for each
    sample."""

    wolfram_class: int | None = None
    """Draw only rules of this class: 1 uniform, 2 periodic, 3 chaotic, 4 complex. None draws from all 256."""

    width: int = 64
    """Number of cells in the ring, 3 .. 4,096, a multiple of `patch`."""

    patch: int = 8
    """Number of neighbouring cells per token, 1 .. 16."""

    burn_in: int = 0
    """Number of steps before the first row, 0 .. 10,000."""

    def _checks(self) -> tuple[Check, ...]:
        return (
            (self.rule is None or 0 <= self.rule <= 255, "rule", "must lie in 0 .. 255"),
            (self.wolfram_class in (None, 1, 2, 3, 4), "wolfram_class", "must be 1, 2, 3 or 4"),
            (self.rule is None or self.wolfram_class is None, "rule", "is fixed, so wolfram_class has no effect"),
            (1 <= self.patch <= 16, "patch", "must lie in 1 .. 16"),
            (3 <= self.width <= 4096, "width", "must lie in 3 .. 4,096"),
            (self.width % max(self.patch, 1) == 0, "width", f"must be a multiple of patch={self.patch}"),
            (0 <= self.burn_in <= 10_000, "burn_in", "must lie in 0 .. 10,000"),
        )


class ECASource(FormalSource):
    """`eca://?wolfram_class=4&width=64&patch=8`: rows of an elementary automaton from a random first row.

    A row is the token `<row>` (id 2^patch) and its cells from left to right, `patch` cells per token, the leftmost in
    the lowest bit. As in the NCA stream the first row is never a target, and the rule has to be inferred.

    It follows Zhang et al. 2024, "Intelligence at the Edge of Chaos" (arXiv 2410.02536), who pre-train on one rule at a
    time. They cut windows from a wider automaton, so that a window does not determine its edges, and predict whole rows
    of cells. Here the ring is complete, so that the rule determines every row, and rows are ordinary tokens.
    """

    config: ECAConfig
    scheme = "eca"
    config_class = ECAConfig
    purpose = rng.ELEMENTARY

    @property
    def vocab_size(self) -> int:
        return (1 << self.config.patch) + 1

    @property
    def frames(self) -> FrameLayout:
        """Each frame is one row."""
        return FrameLayout(2, (1, self.config.width), (1, self.config.patch), self.row_length)

    def described(self, index: int) -> str:
        return f"rule {self.rule_of(index)}"

    def likely_successors(self, index: int, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rule = self.rule_of(index)
        return np.stack([evolve(row, rule, 1)[1:] for row in frames[:, 0]])

    @property
    def row_length(self) -> int:
        """Tokens per row."""
        return self.config.width // self.config.patch + 1

    def check_seq_length(self, seq_length: int) -> None:
        check_two_frames(self.row_length, seq_length)

    def rule_of(self, index: int) -> int:
        """Return the number of the rule of sample `index`."""
        if self.config.rule is not None:
            return self.config.rule
        rules = range(256) if self.config.wolfram_class is None else rules_of_class(self.config.wolfram_class)
        return rules[int(self._uniforms(index, 1, stream=1)[0] * len(rules))]

    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        config = self.config
        first = (self._uniforms(index, config.width) < 0.5).astype(np.uint8)
        num_rows = -(-length // self.row_length)
        rows = evolve(first, self.rule_of(index), config.burn_in + num_rows - 1)[config.burn_in :]
        tokens = np.full((num_rows, self.row_length), 1 << config.patch, np.int32)
        weights = 1 << np.arange(config.patch, dtype=np.int32)
        tokens[:, 1:] = (rows.reshape(num_rows, -1, config.patch) * weights).sum(axis=2)
        return tokens.reshape(-1)[:length]

    def _loss_mask(self, seq_length: int) -> NDArray[np.bool_]:
        return loss_mask(self.row_length, seq_length)


def rules_of_class(wolfram_class: int) -> tuple[int, ...]:
    """Return the numbers of all rules of a class, 1 .. 4, including equivalent ones."""
    return tuple(rule for rule in range(256) if _class_of(rule) == wolfram_class)


@functools.cache
def _class_of(rule: int) -> int:
    equivalent = {rule, _reflected(rule), _exchanged(rule), _exchanged(_reflected(rule))}
    return next((number for number, rules in _CLASSES.items() if equivalent & set(rules)), 2)


def _reflected(rule: int) -> int:
    """Return the rule that does to the right what `rule` does to the left."""
    mirrored = (0, 4, 2, 6, 1, 5, 3, 7)
    return sum((rule >> mirrored[i] & 1) << i for i in range(8))


def _exchanged(rule: int) -> int:
    """Return the rule that does to colour 0 what `rule` does to colour 1."""
    return sum((1 - (rule >> (7 - i) & 1)) << i for i in range(8))


def evolve(first: NDArray[np.uint8], rule: int, steps: int) -> NDArray[np.uint8]:
    """Return the rows of a ring from `first`, uint8 [width] of 0 and 1, on: uint8 [steps + 1, width]."""
    rows = np.empty((steps + 1, first.size), np.uint8)
    rows[0] = first
    _evolve(rows, rule)
    return rows


@compiled
def _evolve(rows: np.ndarray, rule: int) -> None:
    width = rows.shape[1]
    for t in range(1, rows.shape[0]):
        for x in range(width):
            left, right = rows[t - 1, (x - 1) % width], rows[t - 1, (x + 1) % width]
            rows[t, x] = rule >> (4 * left + 2 * rows[t - 1, x] + right) & 1
