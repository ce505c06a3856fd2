"""The statistics of the released generator, by the keys of `nca_plugin.inspection.measures.measure`.

They were measured on the authors' released code for "Training Language Models via Neural Cellular Automata" (arXiv
2603.10055; danihyunlee/nca-pre-pretraining at bdd1c71, unmodified, jax 0.10.2 and 0.6.2): 2,500 sequences for each band
of 27 frames of 12 x 12 cells with 10 colours, and 5,000 random rules for the scores without a band.
"""

from types import MappingProxyType
from typing import Final

from nca_plugin.automata import NCAConfig

#: Number of sequences behind the values of each band.
NUM_SEQUENCES: Final = 2500

#: Number of frames in each of these sequences.
NUM_FRAMES: Final = 27

_WEB: Final = {
    "distinct_tokens": 10_000.0,
    "token_entropy": 12.612,
    "top_share_1": 0.0035,
    "top_share_10": 0.0307,
    "top_share_100": 0.0825,
    "top_share_1000": 0.381,
    "top_share_5000": 0.833,
    "change_rate": 0.760,
    "change_rate_q5": 0.581,
    "change_rate_q50": 0.773,
    "change_rate_q95": 0.894,
    "patch_repeat_1": 0.0103,
    "patch_repeat_2": 0.0127,
    "right_neighbour": 0.245,
    "distinct_per_sequence": 439.0,
    "color_entropy": 2.33,
    "seen_2": 0.005,
    "seen_13": 0.045,
    "seen_26": 0.078,
    "right_if_seen": 0.9992,
    "in_band": 0.952,
}

_CODE: Final = {
    "distinct_tokens": 9962.0,
    "token_entropy": 10.321,
    "top_share_1": 0.0203,
    "top_share_10": 0.180,
    "top_share_100": 0.299,
    "top_share_1000": 0.797,
    "top_share_5000": 0.986,
    "change_rate": 0.537,
    "change_rate_q5": 0.154,
    "change_rate_q50": 0.530,
    "change_rate_q95": 0.954,
    "patch_repeat_1": 0.146,
    "patch_repeat_2": 0.200,
    "right_neighbour": 0.455,
    "distinct_per_sequence": 98.9,
    "color_entropy": 1.40,
    "seen_2": 0.30,
    "seen_13": 0.71,
    "seen_26": 0.82,
    "right_if_seen": 0.9996,
    "in_band": 0.610,
}

#: The statistics of the release's training sequences, by the band of their gzip scores.
REFERENCE: Final = MappingProxyType({(0.5, 1.0): MappingProxyType(_WEB), (0.3, 0.4): MappingProxyType(_CODE)})

#: Quantiles of the scores of 5,000 random rules without a band.
SCORE_QUANTILES: Final = MappingProxyType(
    {0.05: 0.0243, 0.10: 0.0354, 0.25: 0.2854, 0.50: 0.4868, 0.75: 0.5667, 0.90: 0.6056, 0.95: 0.6201}
)

#: Share of random rules that each band accepts.
ACCEPTANCE: Final = MappingProxyType({(0.5, 1.0): 0.4662, (0.3, 0.4): 0.0924})


def reference_for(config: NCAConfig, num_frames: int) -> dict[str, float] | None:
    """Return the release's statistics; None unless alphabet, grid, time scale and length are the release's and the band
    is known.

    `in_band` is included only if, as in the release, the scored rollout is not the one that is trained on.
    """
    release = NCAConfig.preset("release")
    names = ("num_colors", "grid_size", "patch_size", "identity_bias", "burn_in", "steps_per_frame")
    if num_frames != NUM_FRAMES or any(getattr(config, name) != getattr(release, name) for name in names):
        return None
    if config.band is None or config.band not in REFERENCE:
        return None
    is_comparable = {"in_band": config.scored_rollout == release.scored_rollout}
    return {name: value for name, value in REFERENCE[config.band].items() if is_comparable.get(name, True)}
