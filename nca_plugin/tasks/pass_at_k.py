"""The estimate of pass@k: how often at least one of k answers is right."""

import math

from nca_plugin.errors import NCAPluginError


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k answers is right.

    This is 1 - C(n - c, k) / C(n, k) for c right answers among n samples (Chen et al. 2021, arXiv 2107.03374, section
    2.1): the share of the choices of k samples that include a right one.

    Raises:
        NCAPluginError: k is less than 1 or larger than the number of samples.
    """
    if not 1 <= k <= num_samples:
        raise NCAPluginError(f"pass@{k} of {num_samples} samples: k must lie in 1 .. {num_samples}; draw more samples")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
