"""Random linear recurrent networks, a control.

Source: "formal language pre-pretraining" (arXiv 2605.10129) and its released code. Their vocabulary is the text's
(50,277 ids), a sequence has 2,048 tokens, and 1,000 systems have 100 sequences each.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.compiled import compiled
from nca_plugin.errors import Check
from nca_plugin.sources.formal import FormalConfig, FormalSource

_POWER_ITERATIONS: Final = 50
#: Tokens less likely than e^-40 times the most likely one are never drawn: a random number has 32 bits.
_REACH: Final = 40.0
#: A state above this is divided by its square root, long before float64 overflows.
_LARGE: Final = 1e100


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRNNConfig(FormalConfig):
    """The options of `linear_rnn://`."""

    kind = "linear_rnn"

    vocab_size: int = 64
    """Number of ids V, 1 .. 2^16 (released code: 50,277). The logits' standard deviation is about 2.3 / sqrt(V), so
    the larger the vocabulary, the nearer the tokens are to independent uniform ones: in a sample whose state does not
    grow, one who knows the system loses 0.03 nats less than ln V at the default, which is that of `copy`, and 0.002 at
    1,024. The time of a sample is proportional to V: seconds at 50,277."""

    hidden_size: int = 64
    """Number of hidden units H, 1 .. 256 (released code: 64)."""

    spectral_radius: float = 0.9
    """Estimated spectral radius of the recurrent matrix, 0 < r < 1 (released code: 0.9)."""

    temperature: float = 1.0
    """Temperature T > 0 of the softmax that tokens are drawn from (released code: 1)."""

    num_systems: int | None = None
    """Number of different systems in a split, >= 1: sample i is from system i modulo `num_systems` (released code:
    1,000). None means a fresh system for each sample."""

    def _checks(self) -> tuple[Check, ...]:
        return (
            (1 <= self.vocab_size <= 1 << 16, "vocab_size", "must lie in 1 .. 2^16"),
            (1 <= self.hidden_size <= 256, "hidden_size", "must lie in 1 .. 256"),
            (0 < self.spectral_radius < 1, "spectral_radius", "must lie between 0 and 1"),
            (1e-6 <= self.temperature <= 1e6, "temperature", "must lie in 1e-6 .. 1e6"),
            (self.num_systems is None or self.num_systems >= 1, "num_systems", "must be at least 1"),
        )


class LinearRNNSource(FormalSource):
    """`linear_rnn://?vocab_size=64`: tokens of a random linear recurrent network, which is a new one in each sample.

    The first token is uniform. From then on h' = A[:, token] + W h, starting at h = 0, and the next token is a draw
    from softmax(C h' / T). The entries of A [H, V] are normal with standard deviation 1 / sqrt(V), those of W [H, H]
    and C [V, H] with 1 / sqrt(H). W is then multiplied so that its spectral radius, estimated as the norm of W v after
    50 power iterations of a random unit vector v, is `spectral_radius`. Every target counts.

    The estimate is a rough one, because the leading eigenvalues are usually a complex pair: of matrices of 64 units
    scaled to 0.9, about one in 20 has a true radius above 1. Its state grows until the tokens hardly vary any more.
    These few samples are what a model can learn to predict. The others are nearly uniform.
    """

    config: LinearRNNConfig
    scheme = "linear_rnn"
    config_class = LinearRNNConfig
    purpose = rng.LINEAR_RNN

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def system(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return A, W and C of sample `index` as float64 [V, H], [H, H] and [H, V]: the transposes of the above, in
        the order in which they are read."""
        config = self.config
        system = index if config.num_systems is None else index % config.num_systems
        width, size = config.hidden_size, config.vocab_size
        u = self._uniforms(system, (2 * size + width + 1) * width, stream=1)
        matrices: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
        matrices = _system(u, size, width, config.spectral_radius)
        return matrices

    def oracle_losses(self, index: int, seq_length: int) -> NDArray[np.float64]:
        tokens = self.sample(index, seq_length).tokens
        losses: NDArray[np.float64] = _losses(*self.system(index), self.config.temperature, tokens)
        return losses

    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        tokens: NDArray[np.int32] = _draw(*self.system(index), self.config.temperature, self._uniforms(index, length))
        return tokens


# All matrices are transposed, so that the inner loops add a row to a vector: these sums can be vectorised in a fixed
# order.


@compiled
def _system(u, vocab_size, hidden_size, spectral_radius):  # type: ignore[no-untyped-def]
    """Return (A, W, C), transposed, for random numbers `u`, one for each entry and for the start of the power
    iterations."""
    flat = np.empty(u.size, np.float64)
    for i in range(u.size):
        flat[i] = rng.normal_quantile(u[i])
    of_tokens, of_units = vocab_size * hidden_size, hidden_size * hidden_size
    inputs = flat[:of_tokens].reshape(vocab_size, hidden_size) / np.sqrt(float(vocab_size))
    recurrent = flat[of_tokens : of_tokens + of_units].reshape(hidden_size, hidden_size) / np.sqrt(float(hidden_size))
    outputs = flat[of_tokens + of_units : 2 * of_tokens + of_units].reshape(hidden_size, vocab_size)
    outputs = outputs / np.sqrt(float(hidden_size))
    v = flat[2 * of_tokens + of_units :].copy()
    v /= _norm(v)
    image = np.empty_like(v)
    for _ in range(_POWER_ITERATIONS):
        image[:] = 0.0
        _add_product(recurrent, v, image)
        v[:] = image / _norm(image)
    image[:] = 0.0
    _add_product(recurrent, v, image)
    recurrent *= spectral_radius / _norm(image)
    return inputs, recurrent, outputs


@compiled
def _norm(vector: np.ndarray) -> float:
    total = 0.0
    for x in vector:
        total += x * x
    return np.sqrt(total)


@compiled
def _add_product(transposed: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    """Add the product of a matrix, given as its transpose, and `vector` to `out`."""
    for j in range(vector.size):
        row, factor = transposed[j], vector[j]
        for i in range(out.size):
            out[i] += row[i] * factor


@compiled
def _advance(inputs, recurrent, token, state, after):  # type: ignore[no-untyped-def]
    """Write the state after `token` to `after`."""
    after[:] = inputs[token]
    _add_product(recurrent, state, after)
    largest = 0.0
    for x in after:
        largest = max(largest, abs(x))
    if largest > _LARGE:
        # Only one token is likely, before and after.
        after /= np.sqrt(_LARGE)


@compiled
def _weigh(outputs, state, temperature, weights):  # type: ignore[no-untyped-def]
    """Write the probabilities of the next token to `weights`, up to a factor. Return their sum."""
    weights[:] = 0.0
    _add_product(outputs, state, weights)
    top = -np.inf
    for logit in weights:
        top = max(top, logit)
    total = 0.0
    for i in range(weights.size):
        gap = (top - weights[i]) / temperature
        weights[i] = rng.exp(-gap) if gap < _REACH else 0.0
        total += weights[i]
    return total


@compiled
def _draw(inputs, recurrent, outputs, temperature, u):  # type: ignore[no-untyped-def]
    """Return a sequence, int32 [u.size], whose token i is drawn by inversion with u[i]."""
    state, after, weights = np.zeros(len(recurrent)), np.zeros(len(recurrent)), np.ones(len(inputs))
    tokens = np.empty(u.size, np.int32)
    total = float(weights.size)
    for i in range(u.size):
        token, cumulative, threshold = 0, weights[0], u[i] * total
        while cumulative <= threshold:
            token += 1
            cumulative += weights[token]
        tokens[i] = token
        _advance(inputs, recurrent, token, state, after)
        state, after = after, state
        total = _weigh(outputs, state, temperature, weights)
    return tokens


@compiled
def _losses(inputs, recurrent, outputs, temperature, tokens):  # type: ignore[no-untyped-def]
    """Return -ln p of each token but the first, float64 [tokens.size - 1]."""
    state, after, weights = np.zeros(len(recurrent)), np.zeros(len(recurrent)), np.empty(len(inputs))
    losses = np.empty(tokens.size - 1, np.float64)
    for i in range(losses.size):
        _advance(inputs, recurrent, tokens[i], state, after)
        state, after = after, state
        total = _weigh(outputs, state, temperature, weights)
        losses[i] = rng.log(total) - rng.log(weights[tokens[i + 1]])
    return losses
