"""Checks that a resumed run has the data of its checkpoint, and makes the lineage that the run stores."""

from dataclasses import replace

from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage, TrainingData


def continued(
    data: TrainingData, origin: Checkpoint | None, *, is_resumed: bool, allow: str, is_allowed: bool
) -> Lineage:
    """Return the lineage of a run on `data`.

    Args:
        origin: the checkpoint that the run loads; None if it loads none.
        is_resumed: whether the run continues at the checkpoint's iteration. Otherwise it begins at 0 with the weights,
            as it does from a start checkpoint.
        allow: the option that allows the user to resume with other data.
        is_allowed: whether the user set that option.

    Raises:
        NCAPluginError: if the checkpoint is damaged, or its data differ from `data` and a source is among either.
    """
    try:
        trained = None if origin is None else read_trained(origin)
    except NCAPluginError as error:
        if not is_resumed or is_allowed or not data.has_source:
            return Lineage(data)
        if origin is None or origin.format is not None:
            raise
        raise NCAPluginError(f"{error}; to resume it without comparing the data, add {allow}") from error
    if origin is None or trained is None or trained.lineage is None:
        return Lineage(data)
    before = trained.lineage.now
    if before is None or not is_resumed:
        return Lineage(data, trained.ended.earlier)
    differs = difference(before, data)
    if differs is None:
        return Lineage(data, trained.lineage.earlier)
    if not is_allowed:
        raise NCAPluginError(
            f"checkpoint {trained.folder} would be resumed with other data, {differs}: use the data that it was "
            f"trained on, begin another stage with nca-plugin transfer --from {origin.root}, or add {allow}"
        )
    return Lineage(data, trained.ended.earlier)


def difference(before: TrainingData, now: TrainingData) -> str | None:
    """Return how the data of a run differ from those of the checkpoint that it resumes; None if they are the same.

    Data without a source on either side are Megatron's alone, and not compared.
    """
    if not (before.has_source or now.has_source):
        return None
    if before.seq_length != now.seq_length:
        return f"sequences of {now.seq_length} tokens rather than {before.seq_length}"
    if [part.weight for part in before.parts] != [part.weight for part in now.parts]:
        return f"{_short_name(now)} rather than {_short_name(before)}"
    for old, new in zip(before.parts, now.parts, strict=True):
        if old.uri != new.uri or (old.uri is None and old.fingerprint is None and old.path != new.path):
            return _path_difference(old.uri or old.path, new.uri or new.path)
        if None not in (old.fingerprint, new.fingerprint) and old.fingerprint != new.fingerprint:
            if old.uri is None:
                return f"{new.path} of {new.fingerprint} rather than {old.fingerprint}"
            return (
                f"{_short(old.uri)} with other samples (fingerprint {new.fingerprint} rather than {old.fingerprint}): "
                f"nca-plugin {now.version} rather than {before.version}, or another deflate library"
            )
    return None


def _path_difference(before: str, now: str) -> str:
    """Return how one data path differs from another. Of a source's many options, only the changed ones are named."""
    (name, old), (new_name, new) = (_options(path) for path in (before, now))
    if name != new_name or old.keys() != new.keys():
        return f"{_short(now)} rather than {_short(before)}"
    names = [key for key in new if old[key] != new[key]]
    changed, original = (", ".join(f"{key}={options[key]}" for key in names) for options in (new, old))
    return f"{name} with {changed} rather than {original}"


def _short_name(data: TrainingData) -> str:
    return " ".join(replace(part, uri=part.uri and _short(part.uri)).name for part in data.parts)


def _short(path: str) -> str:
    # Only who trains makes samples: a command that moves weights loads no generator, which would be compiled.
    from nca_plugin.sources import short_uri

    return short_uri(path)


def _options(path: str) -> tuple[str, dict[str, str]]:
    name, _, options = path.partition("?")
    return name, dict(option.partition("=")[::2] for option in options.split("&") if options)
