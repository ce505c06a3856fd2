"""The line of a run's log that proves what it trains on."""

from collections.abc import Sequence
from typing import Any

from nca_plugin.indexed.source import is_corpus
from nca_plugin.megatron.dataset import is_ours, open_path


def announcement(data_path: list[str], train: Sequence[dict[str, Any]], num_samples: int, seq_length: int) -> str:
    """Return what a run trains on: data, vocabulary, tokens, share of supervised targets.

    Args:
        data_path: what `--data-path` takes: a path, or weights and paths, at least one of them a source or a corpus.
        train: the training dataset; its first sample is made.
        num_samples: samples that the run trains on.
        seq_length: inputs of a sample.
    """
    vocab_size = max(open_path(part).vocab_size for part in data_path if is_ours(part))
    supervised = float(train[0]["loss_mask"].float().mean())
    return (
        f"nca-plugin: training on {' '.join(map(_described, data_path))}: vocabulary {vocab_size}, "
        f"{num_samples * seq_length:,} tokens, {100 * supervised:.1f} % of targets supervised"
    )


def _described(part: str) -> str:
    """Return a part of a data path with the canonical URI of its source, which holds every option."""
    if is_corpus(part):
        return f"{part} ({open_path(part).uri})"
    return open_path(part).uri if is_ours(part) else part
