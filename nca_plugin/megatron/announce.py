"""The lines in a run's log that say what it trains on."""

from nca_plugin.indexed.source import is_generated
from nca_plugin.lineage.training_data import DataPath, TrainingData
from nca_plugin.megatron.dataset import open_path
from nca_plugin.megatron.repeated import repeated
from nca_plugin.sources import short_uri


def announcements(data: TrainingData, num_samples: int) -> list[str]:
    """Return the lines for a run's log: warnings about repeated samples, and what the run trains on.

    The last line has the tokens, the data, and each source's vocabulary, share of supervised targets and fingerprint.
    Without a source there are only warnings.

    Args:
        num_samples: number of samples that the run trains on.
    """
    lines = [f"nca-plugin: warning: {warning}" for warning in repeated(data)]
    if data.has_source:
        parts = " ".join(_described(part, data.seq_length) for part in data.parts)
        lines.append(f"nca-plugin {data.version}: training on {num_samples * data.seq_length:,} tokens of {parts}")
    return lines


def _described(part: DataPath, seq_length: int) -> str:
    weight = "" if part.weight is None else f"{part.weight} "
    if part.uri is None:
        return f"{weight}{part.path}"
    source = open_path(part.path)
    share = float(source.sample(0, seq_length).loss_mask.mean())
    uri = short_uri(part.uri)
    name = f"{part.path}, written from {uri}" if is_generated(part.path) else uri
    return (
        f"{weight}{name} (vocabulary {source.vocab_size}, {share:.1%} of targets supervised, fingerprint "
        f"{part.fingerprint})"
    )
