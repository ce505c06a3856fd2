"""The line of a run's log that proves what it trains on."""

from collections.abc import Sequence
from typing import Any

from nca_plugin.indexed.source import is_corpus
from nca_plugin.megatron.dataset import SourceGPTDatasetConfig, is_ours, open_path


def announcement(config: SourceGPTDatasetConfig, train: Sequence[dict[str, Any]], num_samples: int) -> str | None:
    """Return what a run trains on: data, vocabulary, tokens, share of supervised targets; None without any source.

    Args:
        config: of all splits.
        train: the training dataset; its first sample is made.
        num_samples: samples that the run trains on.
    """
    blend = config.blend if config.blend_per_split is None else config.blend_per_split[0]
    if blend is None or not any(map(is_ours, blend[0])):
        return None
    paths, weights = blend
    parts = [_described(path) for path in paths]
    if weights is not None:
        parts = [f"{weight} {part}" for weight, part in zip(weights, parts, strict=True)]
    vocab_size = max(open_path(path).vocab_size for path in paths if is_ours(path))
    supervised = float(train[0]["loss_mask"].float().mean())
    return (
        f"nca-plugin: training on {' '.join(parts)}: vocabulary {vocab_size}, "
        f"{num_samples * config.sequence_length:,} tokens, {100 * supervised:.1f} % of targets supervised"
    )


def _described(path: str) -> str:
    """Return a data path with the canonical URI of its source, which holds every option."""
    if is_corpus(path):
        return f"{path} ({open_path(path).uri})"
    return open_path(path).uri if is_ours(path) else path
