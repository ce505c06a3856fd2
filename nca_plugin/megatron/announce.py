"""The line of a run's log that proves what it trains on."""

from nca_plugin.indexed.source import is_corpus
from nca_plugin.megatron.dataset import SourceGPTDatasetConfig, is_ours, open_path


def announcement(config: SourceGPTDatasetConfig, num_samples: int) -> str | None:
    """Return what a run trains on: tokens, data, and each source's vocabulary and share of supervised targets.

    None without any source.

    Args:
        config: of all splits.
        num_samples: samples that the run trains on.
    """
    blend = config.blend if config.blend_per_split is None else config.blend_per_split[0]
    if blend is None or not any(map(is_ours, blend[0])):
        return None
    paths, weights = blend
    parts = [_described(path, config.sequence_length) for path in paths]
    if weights is not None:
        parts = [f"{weight} {part}" for weight, part in zip(weights, parts, strict=True)]
    return f"nca-plugin: training on {num_samples * config.sequence_length:,} tokens of {' '.join(parts)}"


def _described(path: str, seq_length: int) -> str:
    """Return a data path; of a source with its canonical URI, which holds every option."""
    if not is_ours(path):
        return path
    source = open_path(path)
    share = float(source.sample(0, seq_length).loss_mask.mean())
    name = f"{path}, written from {source.uri}" if is_corpus(path) else source.uri
    return f"{name} (vocabulary {source.vocab_size}, {share:.1%} of targets supervised)"
