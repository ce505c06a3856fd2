"""What a study computes from the losses of its runs, as pure functions of numbers.

A curve is a list of (tokens, loss): the number of language tokens trained on so far, and the mean loss on the held-out
text in nats per token. Definitions follow arXiv 2603.10055 where the paper has one.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

Curve = Sequence[tuple[float, float]]


def gain_percent(baseline_loss: float, loss: float) -> float:
    """Return the gain in perplexity over the baseline in per cent: 5.7 from 14.66 to 13.82 (the paper's numbers)."""
    return 100 * (1 - math.exp(loss - baseline_loss))


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Return the number of tokens at which a curve first reaches a loss, None if it never does.

    Between two evaluations the perplexity is taken to be linear in tokens, as in the paper. If a curve begins below the
    loss, the tokens of its first evaluation are returned.
    """
    target = math.exp(loss)
    points = [(tokens, math.exp(value)) for tokens, value in curve]
    if points[0][1] <= target:
        return points[0][0]
    for (tokens, perplexity), (next_tokens, next_perplexity) in pairwise(points):
        if next_perplexity <= target:
            share = (perplexity - target) / (perplexity - next_perplexity)
            return tokens + share * (next_tokens - tokens)
    return None


def speed_up(baseline: Curve, curve: Curve) -> float:
    """Return how many times as fast as the baseline a curve reaches a perplexity; below 1 it is slower.

    It is the baseline's tokens / the tokens at which `curve` first reaches the baseline's final perplexity (the paper's
    value for CodeParrot is 1.62). If `curve` never reaches it, it is the tokens at which the baseline reaches the final
    perplexity of `curve` / the tokens of `curve`.
    """
    tokens, loss = baseline[-1]
    reached = tokens_to_reach(curve, loss)
    if reached is not None:
        return tokens / reached
    own_tokens, own_loss = curve[-1]
    earlier = tokens_to_reach(baseline, own_loss)
    # The baseline ends below the curve, so it reaches the curve's end.
    assert earlier is not None
    return earlier / own_tokens
