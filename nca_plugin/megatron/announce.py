"""The line of a run's log that proves what it trains on."""

from nca_plugin.indexed.source import is_corpus
from nca_plugin.megatron.dataset import open_path
from nca_plugin.trained_on import Part, TrainingData


def announcement(data: TrainingData, num_samples: int) -> str | None:
    """Return what a run trains on: tokens, data, and each source's vocabulary, share of supervised targets and
    fingerprint.

    None without any source.

    Args:
        num_samples: samples that the run trains on.
    """
    if not data.has_source:
        return None
    parts = " ".join(_described(part, data.seq_length) for part in data.parts)
    return f"nca-plugin {data.version}: training on {num_samples * data.seq_length:,} tokens of {parts}"


def _described(part: Part, seq_length: int) -> str:
    weight = "" if part.weight is None else f"{part.weight} "
    if part.uri is None:
        return f"{weight}{part.path}"
    source = open_path(part.path)
    share = float(source.sample(0, seq_length).loss_mask.mean())
    name = f"{part.path}, written from {part.uri}" if is_corpus(part.path) else part.uri
    return (
        f"{weight}{name} (vocabulary {source.vocab_size}, {share:.1%} of targets supervised, fingerprint "
        f"{part.fingerprint})"
    )
