"""Nested brackets: k-Dyck and k-Shuffle Dyck, the formal-language controls.

Source: Hu et al. 2025, "Between Circuits and Chomsky: Pre-pretraining on Formal Languages Imparts Linguistic Biases"
(arXiv 2502.19249), and their released code. There and here a sequence is filled with words that end at depth 0, and
the last word is cut off. Their code also closes k-Dyck words at 510 tokens; ours does not.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.compiled import compiled
from nca_plugin.errors import Check
from nca_plugin.sources.formal import FormalConfig, FormalSource


@dataclass(frozen=True, kw_only=True, slots=True)
class DyckConfig(FormalConfig):
    """The options of `dyck://` and `shuffle_dyck://`."""

    kind = "dyck"

    k: int = 64
    """Number of bracket types, 1 .. 2^20 (Hu et al.: 64; the default of their code for k-Dyck is 30)."""

    p: float = 0.5
    """Probability of opening a bracket where opening and closing are both possible, 0 < p < 1 (Hu et al.: 0.5; versions
    of their code have 0.5 or 0.51 for k-Shuffle Dyck)."""

    max_depth: int = 16
    """Largest number of open brackets of all types together, 1 .. 65,536 (Hu et al.: 16; versions of their code have 16
    or 8 for k-Shuffle Dyck)."""

    def _checks(self) -> tuple[Check, ...]:
        return (
            (1 <= self.k <= 1 << 20, "k", "must lie in 1 .. 2^20"),
            (0 < self.p < 1, "p", "must lie between 0 and 1"),
            (1 <= self.max_depth <= 1 << 16, "max_depth", "must lie in 1 .. 65,536"),
        )


class DyckSource(FormalSource):
    """`dyck://?k=64&p=0.5&max_depth=16`: well-nested brackets of k types.

    Ids 0 .. k-1 open a bracket, ids k .. 2k-1 close it. A sequence starts at depth 0 and may end with open brackets.
    Every target counts. The closing brackets are the predictable half.
    """

    config: DyckConfig
    scheme = "dyck"
    config_class = DyckConfig
    purpose = rng.BRACKETS
    is_nested: ClassVar[bool] = True

    @property
    def vocab_size(self) -> int:
        return 2 * self.config.k

    @property
    def num_brackets(self) -> int:
        return int(self.config.k)

    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        config = self.config
        u = self._uniforms(index, 2 * length)
        tokens: NDArray[np.int32] = _brackets(u, config.k, config.p, config.max_depth, self.is_nested)
        return tokens

    def oracle_losses(self, index: int, seq_length: int) -> NDArray[np.float64]:
        """The losses of one who keeps track of the open brackets.

        At depth 0 a bracket opens, at the largest depth one closes, and otherwise one opens with probability p. All k
        types are equally likely to open. The type that closes is certain, or in `shuffle_dyck` any of the open ones.
        """
        config = self.config
        losses = np.empty(seq_length + 1)
        counts: Counter[int] = Counter()
        depth = 0
        for i, token in enumerate(self.sample(index, seq_length).tokens.tolist()):
            opens = token < config.k
            losses[i] = -math.log(config.p if opens else 1 - config.p) if 0 < depth < config.max_depth else 0
            if opens or not self.is_nested:
                losses[i] += math.log(config.k if opens else len(counts))
            depth += 1 if opens else -1
            counts[token % config.k] += 1 if opens else -1
            if not counts[token % config.k]:
                del counts[token % config.k]
        return losses[1:]


class ShuffleDyckSource(DyckSource):
    """`shuffle_dyck://?k=64&p=0.5&max_depth=16`: brackets of k types, balanced within each type but not across types.

    The ids are those of `dyck`. The type of a closing bracket is drawn uniformly from the types that are open (as in
    the released code), so that dependencies cross.
    """

    scheme = "shuffle_dyck"
    purpose = rng.SHUFFLE_BRACKETS
    is_nested = False


@compiled
def _brackets(u: np.ndarray, k: int, p: float, max_depth: int, is_nested: bool) -> np.ndarray:
    """Return the brackets for `u`, float64 [2 * length]: one number opens or closes, the next chooses the type."""
    tokens = np.empty(u.size // 2, np.int32)
    # If nested: the types of the open brackets in order. Otherwise: the types that are open, and how many of each.
    kinds, counts = np.empty(max_depth, np.int32), np.zeros(max_depth, np.int32)
    num_kinds = depth = 0
    for i in range(tokens.size):
        if depth == 0 or (depth < max_depth and u[2 * i] < p):
            kind = int(u[2 * i + 1] * k)
            tokens[i] = kind
            depth += 1
            place = num_kinds
            if not is_nested:
                place = 0
                while place < num_kinds and kinds[place] != kind:
                    place += 1
            if place == num_kinds:
                kinds[place] = kind
                counts[place] = 0
                num_kinds += 1
            counts[place] += 1
        else:
            place = num_kinds - 1 if is_nested else int(u[2 * i + 1] * num_kinds)
            tokens[i] = k + kinds[place]
            depth -= 1
            counts[place] -= 1
            if counts[place] == 0:
                num_kinds -= 1
                kinds[place], counts[place] = kinds[num_kinds], counts[num_kinds]
    return tokens
